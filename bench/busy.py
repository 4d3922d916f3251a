"""What other work on the same cores costs: `python -m bench.busy`.

It times fastrnn and torch alone, and again while every core also runs another process.

The slow-down of each is its busy time over its quiet one; the last column says how much worse fastrnn's is.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench import machine
from bench.cases import MODES, Case
from bench.peers import PEERS
from bench.problem import make_problem
from bench.report import duration
from bench.results import write_json
from bench.run import RESULTS
from bench.runner import Settings
from bench.timing import Effort, blocks_of, summarise, time_in_turns

CASES = """
lstm-T100-B1-I128-H128 gru-T100-B1-I512-H512 lstm-T50-B16-I256-H256 gru-T1000-B8-I128-H128 rnn-T50-B8-I200-H200
lstm-T200-B1-I40-H256-L2-bi
"""
NAMES = ("fastrnn", "torch")


@contextmanager
def busy_cores(count: int) -> Iterator[None]:
    """One process a core that never rests."""
    cores = sorted(os.sched_getaffinity(0))[:count]
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in cores]
    try:
        for process, core in zip(others, cores, strict=True):
            os.sched_setaffinity(process.pid, {core})
        time.sleep(0.2)
        yield
    finally:
        for process in others:
            process.kill()
            process.wait()


def measure(name: str, settings: Settings, effort: Effort) -> dict[str, float]:
    """Seconds of each peer."""
    case = Case.parse(name)
    assert case is not None
    problem = make_problem(case, MODES["infer"])
    peers = {peer: blocks_of(PEERS[peer].build(problem, settings), effort) for peer in NAMES}
    return {
        peer: summarise(blocks, 1, 0.0, "").median
        for peer, blocks in time_in_turns(peers, effort.rounds).items()
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.busy", description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=min(2, machine.available_cores()))
    parser.add_argument("--json", type=Path, nargs="?", const=RESULTS / "busy.json", metavar="FILE")
    args = parser.parse_args(argv)
    description = machine.describe()
    machine.restrict_cores(args.threads)
    torch.set_num_threads(args.threads)
    settings, effort = Settings(args.threads), Effort(args.rounds, 0.1)
    found = {}
    for name in track(CASES.split(), "quiet, then busy", transient=True):
        quiet = measure(name, settings, effort)
        with busy_cores(args.threads):
            busy = measure(name, settings, effort)
        slowdown = {peer: busy[peer] / quiet[peer] for peer in NAMES}
        found[name] = {"quiet": quiet, "busy": busy, "slowdown": slowdown}
    table = Table("case", *(f"{peer} quiet / busy" for peer in NAMES), "slow-downs", "fastrnn's over torch's")
    for name, times in found.items():
        pairs = [f"{duration(times['quiet'][peer])} / {duration(times['busy'][peer])}" for peer in NAMES]
        own, theirs = (times["slowdown"][peer] for peer in NAMES)
        table.add_row(name, *pairs, f"{own:.2f}, {theirs:.2f}", f"{own / theirs:.2f}")
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    if args.json is not None:
        write_json(args.json, {"machine": description, "threads": args.threads, "cases": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
