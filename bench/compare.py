"""Two builds of fastrnn side by side: `python -m bench.compare --baseline TREE`.

TREE is another checkout with its own compiled extension. Two processes hold one build each and make the same cases
ready; blocks of calls are timed in turn, never both at once. Every run begins with new processes. Only `fastrnn`
comes from the tree: what is timed, and how, is this checkout's. Ratios are the baseline's time over this build's:
above 1 this build is faster.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import machine
from bench.cases import CELLS, MODE_NAMES, MODES, Case, Mode, choose, modes_of
from bench.peers import PEERS
from bench.problem import make_problem
from bench.report import duration, ratio_text
from bench.results import geometric_mean, write_json
from bench.run import QUICK
from bench.runner import Outputs, Settings
from bench.timing import Block, Effort, blocks_of, summarise, time_in_turns

ROOT = Path(__file__).resolve().parent.parent
BASELINE, THIS = "baseline", "this"
SLOWER = 0.95  # a case is slower where each of the runs finds a ratio below
# what a mode has fastrnn's users run, where that is not its modules as they are
PEERS_OF = {"stream": ("fastrnn", "fastrnn-stream"), "quantized": ("fastrnn-bfloat16", "fastrnn-int8")}


@dataclass
class Pair:
    """One case in both builds: medians in seconds, one entry a run. same_bits: of every output in every run."""

    mode: str
    case: str
    peer: str
    seconds: dict[str, list[float]] = field(default_factory=lambda: {BASELINE: [], THIS: []})
    same_bits: bool = True
    failed: str = ""

    @property
    def ratios(self) -> list[float]:
        pairs = zip(self.seconds[BASELINE], self.seconds[THIS], strict=True)
        return [baseline / this for baseline, this in pairs]

    @property
    def slower(self) -> bool:
        return not self.failed and all(ratio < SLOWER for ratio in self.ratios)


class Prepared(NamedTuple):
    """What a build answers to a case; repeats as of the Problem."""

    digest: str  # of all outputs
    repeats: int


_Answer = TypeVar("_Answer")


class Build:
    """One build of fastrnn in a process of its own, which sleeps in a read while it is not asked."""

    def __init__(self, tree: Path, effort: Effort, threads: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, tree, effort, threads), daemon=True)
        self._process.start()
        far.close()

    def prepare(self, pair: Pair) -> Prepared:
        return self._ask((pair.mode, pair.case, pair.peer), Prepared)

    def block(self) -> list[float]:
        return self._ask("block", list)

    def _ask(self, question: object, kind: type[_Answer]) -> _Answer:
        """Raises RuntimeError where the other process failed or died."""
        try:
            self._pipe.send(question)
            answer = self._pipe.recv()
        except (EOFError, OSError) as error:
            raise RuntimeError("its process died") from error
        if isinstance(answer, kind):
            return answer
        raise RuntimeError(answer)

    def close(self) -> None:
        self._pipe.close()
        self._process.join()


def _serve(pipe: Connection, tree: Path, effort: Effort, threads: int) -> None:
    """Answers until the other end of the pipe is closed."""
    machine.restrict_cores(threads)
    torch.set_num_threads(threads)
    sys.path.insert(0, str(tree))
    block: Block | None = None
    while True:
        try:
            question = pipe.recv()
        except EOFError:
            return
        try:
            if question == "block":
                assert block is not None
                pipe.send(block())
            else:
                block, prepared = prepare(tree, *question, effort=effort, threads=threads)
                pipe.send(prepared)
        except Exception as error:  # the parent decides what becomes of the case
            pipe.send(f"{type(error).__name__}: {error}")


def prepare(
    tree: Path, mode: str, name: str, peer: str, *, effort: Effort, threads: int
) -> tuple[Block, Prepared]:
    import fastrnn

    if Path(fastrnn.__file__).resolve().parent.parent != tree:
        raise ImportError(f"fastrnn comes from {fastrnn.__file__}, not from {tree}")
    case = Case.parse(name)
    assert case is not None
    problem = make_problem(case, MODES[mode])
    runner = PEERS[peer].build(problem, Settings(threads))
    with runner.context():
        outputs = runner.outputs(runner.call())
    return blocks_of(runner, effort), Prepared(_digest(outputs), problem.repeats)


def _digest(outputs: Outputs) -> str:
    digest = hashlib.sha256()
    for name, array in sorted(outputs.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


@contextmanager
def both_builds(trees: dict[str, Path], effort: Effort, threads: int) -> Iterator[dict[str, Build]]:
    with ExitStack() as stack:
        builds = {name: Build(tree, effort, threads) for name, tree in trees.items()}
        for build in builds.values():
            stack.callback(build.close)
        yield builds


def time_pair(pair: Pair, builds: dict[str, Build], rounds: int) -> None:
    """Adds one run to the pair, or says why it failed."""
    try:
        prepared = {name: build.prepare(pair) for name, build in builds.items()}
        samples = time_in_turns({name: build.block for name, build in builds.items()}, rounds)
    except RuntimeError as error:
        pair.failed = str(error)
        return
    pair.same_bits &= len({answer.digest for answer in prepared.values()}) == 1
    for name, blocks in samples.items():
        pair.seconds[name].append(summarise(blocks, prepared[name].repeats).median)


def pairs_of(chosen: list[tuple[Mode, Case]]) -> list[Pair]:
    return [
        Pair(mode.name, case.id, peer)
        for mode, case in chosen
        for peer in PEERS_OF.get(mode.name, ("fastrnn",))
    ]


def means(pairs: list[Pair]) -> dict[str, list[float]]:
    """Mode -> geometric mean of the ratios over its cases, one entry a run."""
    found: dict[str, list[float]] = {}
    for mode in dict.fromkeys(pair.mode for pair in pairs):
        ratios = [pair.ratios for pair in pairs if pair.mode == mode and not pair.failed]
        found[mode] = [mean for run in zip(*ratios, strict=True) if (mean := geometric_mean(run)) is not None]
    return found


def report(pairs: list[Pair], console: Console) -> None:
    for mode, by_run in means(pairs).items():
        table = Table(title=f"{mode}: baseline's time / this build's", title_justify="left")
        for name in ("case", "baseline", "this", "ratio", "each run", "outputs"):
            table.add_column(name, no_wrap=True)
        for pair in pairs:
            if pair.mode != mode:
                continue
            name = pair.case if pair.peer == "fastrnn" else f"{pair.case} {pair.peer}"
            if pair.failed:
                table.add_row(name, "", "", "[red]failed[/]", "", "")
                continue
            table.add_row(
                name,
                *(duration(statistics.median(pair.seconds[build])) for build in (BASELINE, THIS)),
                ratio_text(statistics.median(pair.ratios)),
                " ".join(f"{ratio:.2f}" for ratio in pair.ratios),
                "same bits" if pair.same_bits else "other bits",
            )
        if by_run:
            table.add_section()
            runs = " ".join(f"{mean:.3f}" for mean in by_run)
            table.add_row("geometric mean", "", "", f"{statistics.median(by_run):.3f}", runs, "")
        console.print(table)
    for pair in pairs:
        if pair.failed:
            console.print(f"failed: {pair.mode} {pair.case} {pair.peer}: {pair.failed}", highlight=False)
    slower = [f"{pair.mode} {pair.case} {pair.peer}" for pair in pairs if pair.slower]
    console.print(f"slower, below {SLOWER} in every run: {', '.join(slower) or 'none'}", highlight=False)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--baseline", type=Path, required=True, metavar="TREE", help="a checkout with a compiled fastrnn")
    add("--this", type=Path, default=ROOT, metavar="TREE", help="default: this checkout")
    add("--cell", nargs="+", choices=CELLS, default=list(CELLS))
    add("--mode", nargs="+", choices=MODE_NAMES, default=["infer", "train"])
    add("--cases", nargs="+", default=[], metavar="TEXT", help="cases whose name holds TEXT, or is TEXT")
    add("--runs", type=int, default=3, help="whole runs in turn (default: 3)")
    add("--rounds", type=int, default=7, help="blocks of each build and case in a run (default: 7)")
    add("--block", type=float, default=0.08, metavar="SECONDS", help="length of a block (default: 0.08)")
    add("--threads", type=int, default=min(2, machine.available_cores()))
    add("--quick", action="store_true", help="two short blocks: to see whether it works")
    add("--json", type=Path, metavar="FILE", help="write every number")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    # the threads of the build that is not asked must not spin on the cores of the one that is
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    trees = {BASELINE: args.baseline.resolve(), THIS: args.this.resolve()}
    effort = QUICK if args.quick else Effort(args.rounds, args.block)
    chosen = [(mode, case) for mode in modes_of(args.mode) for case in choose(args.cell, mode, args.cases)]
    console = Console(width=None if sys.stdout.isatty() else 160)
    if not chosen:
        console.print(f"no case in mode {' '.join(args.mode)} matches {args.cases}")
        return 2
    pairs = pairs_of(chosen)
    commits = {name: machine.commit_of(tree) for name, tree in trees.items()}
    for run in range(args.runs):
        with both_builds(trees, effort, args.threads) as builds:
            todo = [pair for pair in pairs if not pair.failed]
            for pair in track(todo, f"run {run + 1} of {args.runs}", console=console, transient=True):
                time_pair(pair, builds, effort.rounds)
        line = ", ".join(f"{mode} {by_run[-1]:.3f}" for mode, by_run in means(pairs).items() if by_run)
        console.print(f"run {run + 1}, geometric means: {line}", highlight=False)
    console.print(", ".join(f"{name}: {commit}" for name, commit in commits.items()), highlight=False)
    report(pairs, console)
    if args.json is not None:
        cases = [asdict(pair) | {"ratios": pair.ratios, "slower": pair.slower} for pair in pairs]
        settings = {"threads": args.threads, "runs": args.runs, **asdict(effort)}
        write_json(
            args.json,
            {
                "machine": machine.describe(),
                "commits": commits,
                "settings": settings,
                "geometric_means": means(pairs),
                "cases": cases,
            },
        )
    return int(any(pair.failed for pair in pairs))


if __name__ == "__main__":
    sys.exit(main())
