"""The command line of the bench suite."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench import limits, machine, report
from bench.cases import CELLS, MODE_NAMES, MODES, Case, Mode, choose, modes_of
from bench.load import time_at_once, time_beside_others
from bench.peers import PEERS, SUBJECT
from bench.problem import Problem, make_problem
from bench.results import Result, Run
from bench.runner import Runner, Settings, Unsupported
from bench.timing import Effort, time_alone

RESULTS = Path(__file__).parent / "results"
QUICK = Effort(rounds=2, block_seconds=0.01)
_NOISY = 0.1  # cores' worth of work by other processes that a reader should know of


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    modes = "\n".join(f"  {mode.name:17}{mode.about}" for mode in MODES.values())
    peers = "\n".join(f"  {peer.name:15}{peer.about}" for peer in PEERS.values())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Times fastrnn's layers beside other ways to run them. Every peer's output is held\n"
        "against torch.nn in float64 before it is timed; blocks of calls are taken in turn; the machine's\n"
        "limit for each case is measured in the same run.",
        epilog=f"modes:\n{modes}\n\npeers:\n{peers}\n\n"
        "A case is named like lstm-T100-B1-I128-H128 or gru-T35-B20-I650-H650-L2-bi; in mode server\n"
        "lstm-T50-B1-I128-H128-x4 is called by 4 threads.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--cell", nargs="+", choices=CELLS, default=list(CELLS), help="which cells (default: all)")
    add(
        "--mode",
        nargs="+",
        choices=MODE_NAMES,
        default=["infer"],
        help="what to run (default: infer); cell: the four of it",
    )
    add(
        "--cases",
        nargs="+",
        default=[],
        metavar="TEXT",
        help="only cases whose name holds TEXT, or exactly TEXT",
    )
    add(
        "--peers",
        nargs="+",
        choices=PEERS,
        default=list(PEERS),
        metavar="PEER",
        help="default: all; see below",
    )
    add(
        "--threads",
        type=_positive,
        default=min(2, machine.available_cores()),
        help="default: 2 where there are 2",
    )
    add("--rounds", type=_positive, help="blocks of each peer (default: the mode's, mostly 7)")
    add("--block", type=float, metavar="SECONDS", help="length of a block (default: the mode's, mostly 0.08)")
    add("--unroll", type=int, default=1, metavar="STEPS", help="let torch.compile unroll up to so many steps")
    add("--quick", action="store_true", help="two short blocks, rough limits: to see whether it works")
    add(
        "--json",
        nargs="?",
        type=Path,
        const=RESULTS,
        metavar="FILE",
        help="write results (default: bench/results)",
    )
    add(
        "--plot",
        nargs="?",
        type=Path,
        const=RESULTS,
        metavar="DIR",
        help="draw PNGs (default: bench/results)",
    )
    add("--list", action="store_true", help="show the chosen cases and the peers, run nothing")
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    console = Console(width=None if sys.stdout.isatty() else 160)
    chosen = [(mode, case) for mode in modes_of(args.mode) for case in choose(args.cell, mode, args.cases)]
    if not chosen:
        console.print(f"no case of {' '.join(args.cell)} in mode {' '.join(args.mode)} matches {args.cases}")
        return 2
    if args.list:
        console.print(report.registry_table([(mode.name, case) for mode, case in chosen]))
        console.print("\n".join(report.peer_lines()), highlight=False)
        return 0
    if args.plot is not None:
        try:
            from bench import plot
        except ModuleNotFoundError as error:
            console.print(f"--plot needs {error.name}: pip install {error.name}")
            return 2

    run = _prepare(args)
    report.header(run, console)
    path = _result_path(args, run)
    complete = False
    try:
        _measure(run, chosen, args, console)
        complete = True
    except KeyboardInterrupt:
        console.print("[yellow]interrupted: what follows covers the cases that were finished[/]")
    report.notes(run, console)
    if complete and not args.quick:
        report.targets(run, console)
    if run.results and path is not None:
        run.save(path)
        console.print(f"results: {path}", highlight=False)
    if run.results and args.plot is not None:
        for picture in plot.draw(run, args.plot, _slug(run)):
            console.print(f"picture: {picture}", highlight=False)
    subject_failed = any(_is_failure(result.refused.get(SUBJECT, "")) for result in run.results)
    return 130 if not complete else int(subject_failed)


def _prepare(args: argparse.Namespace) -> Run:
    """Sets threads and measures the limits."""
    description = machine.describe()
    machine.restrict_cores(args.threads)
    torch.set_num_threads(args.threads)
    efforts = {mode.name: asdict(_effort(mode, args)) for mode in modes_of(args.mode)}
    settings = {"threads": args.threads, "unroll": args.unroll, "quick": args.quick, "efforts": efforts}
    versions = {}
    for name in args.peers:
        peer = PEERS[name]
        versions[name] = f"absent: {peer.install_line()}" if peer.missing() else peer.version()
    constants = limits.measure(args.threads, args.quick)
    return Run(description, settings, constants.to_json(), versions)


def _effort(mode: Mode, args: argparse.Namespace) -> Effort:
    if args.quick:
        return QUICK
    return Effort(args.rounds or mode.rounds, args.block or mode.block_seconds)


def _measure(run: Run, chosen: list[tuple[Mode, Case]], args: argparse.Namespace, console: Console) -> None:
    constants = limits.Constants(**run.limits)
    settings = Settings(args.threads, args.unroll)
    names = [name for name in args.peers if not run.peers[name].startswith("absent")]
    quietness = machine.Quietness()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(chosen))
        for index, (mode, case) in enumerate(chosen):
            progress.update(task, description=f"{mode.name} {case.id}")
            problem = make_problem(case, mode)
            limit = limits.limit_of(problem, constants)
            result = Result(
                case.id,
                case.cell,
                mode.name,
                batch=case.batch,
                time=case.time,
                hidden=case.hidden,
                limit=limit.seconds,
                bound=limit.bound,
            )
            _time_case(result, problem, names, settings, _effort(mode, args))
            run.results.append(result)
            progress.advance(task)
            last = index + 1 == len(chosen)
            if last or (chosen[index + 1][0], chosen[index + 1][1].cell) != (mode, case.cell):
                console.print(report.group_table(run, mode.name, case.cell))
    others = quietness.others()
    run.machine["others_cores"] = others
    if others is not None and others > _NOISY:
        console.print(f"[yellow]other processes used {others:.1f} cores meanwhile: the numbers are noisy[/]")


def _time_case(
    result: Result, problem: Problem, names: list[str], settings: Settings, effort: Effort
) -> None:
    """Fills in timings and refusals: build, hold against float64, then time in turns."""
    runners: dict[str, Runner] = {}
    errors: dict[str, float] = {}
    for name in names:
        if not PEERS[name].suits(problem.mode):
            continue
        try:
            runner = PEERS[name].build(problem, settings)
            with runner.context():
                errors[name] = problem.check(runner.outputs(runner.call()), runner.skip)
            runners[name] = runner
        except Unsupported as reason:
            result.refused[name] = str(reason)
        except Exception as error:  # a peer that breaks must not end the run; the report names it
            result.refused[name] = (
                f"failed: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )
    mode = problem.mode
    timed = time_at_once if mode.server else time_beside_others if mode.busy else time_alone
    result.timings = timed(runners, problem, effort)
    for name, timing in result.timings.items():
        timing.error, timing.note = errors[name], runners[name].note
        timing.figures |= runners[name].figures


def _is_failure(reason: str) -> bool:
    return reason.startswith("failed")


def _slug(run: Run) -> str:
    cpu = re.sub(r"[^a-z0-9]+", "-", str(run.machine["cpu"]).lower()).strip("-")
    return f"{cpu}-{run.settings['threads']}t"


def _result_path(args: argparse.Namespace, run: Run) -> Path | None:
    path: Path | None = args.json
    if path != RESULTS:
        return path
    modes = "all" if "all" in args.mode else "-".join(args.mode)
    return RESULTS / f"{_slug(run)}-{modes}.json"
