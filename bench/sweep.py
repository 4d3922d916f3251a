"""How time grows with T, B and H: `python -m bench.sweep`.

It times one cell along each of them and draws the times beside the limit. It is `python -m bench` with cases of its
own; what it does not know it hands on: --peers, --threads, --rounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import run as bench_run
from bench.cases import CELLS, MODES, Case
from bench.results import Run

BASE = {"T": 50, "B": 16, "H": 256}
LINES = {
    "T": (1, 5, 25, 100, 400, 1600),
    "B": (1, 2, 4, 8, 16, 32, 64, 128, 256),
    "H": (16, 32, 64, 128, 256, 512, 1024),
}


def cases(cell: str, letter: str) -> list[Case]:
    """The cases along one axis, the other two at their base; as many inputs as hidden units."""
    found = []
    for value in LINES[letter]:
        size = BASE | {letter: value}
        found.append(Case(cell, size["T"], size["B"], size["H"], size["H"]))
    return found


def draw(run: Run, cell: str, mode: str, path: Path) -> None:
    """Three panels: time of every peer and the limit, over T, over B and over H."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    from bench.plot import PLAIN, SECONDS, caption, colour

    results = {result.case: result for result in run.results if result.mode == mode}
    with plt.rc_context(PLAIN):
        figure, panels = plt.subplots(1, len(LINES), figsize=(12, 3.8), layout="constrained", sharey=True)
        figure.suptitle(f"{cell}, {mode}: time of one run as the work grows\n{caption(run)}")
        for axes, (letter, values) in zip(panels, LINES.items(), strict=True):
            line = [results[case.id] for case in cases(cell, letter)]
            for peer in run.peers:
                found = [
                    (value, result.timings[peer].median)
                    for value, result in zip(values, line, strict=True)
                    if peer in result.timings
                ]
                if found:
                    axes.plot(*zip(*found, strict=True), "o-", ms=4, color=colour(peer), label=peer)
            axes.plot(values, [result.limit for result in line], "k--", linewidth=1, label="machine's limit")
            axes.set_xscale("log", base=2)
            axes.set_yscale("log")
            axes.set_xticks(values)
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_formatter(SECONDS)
            axes.grid(color="0.92")
            others = ", ".join(f"{key} {value}" for key, value in BASE.items() if key != letter)
            axes.set_xlabel(f"{letter} ({others})")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=7)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.sweep", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--cell", choices=CELLS, default="gru")
    parser.add_argument("--mode", choices=[m.name for m in MODES.values() if not m.stream], default="infer")
    parser.add_argument("--folder", type=Path, default=bench_run.RESULTS, help="for the JSON and the PNG")
    args, rest = parser.parse_known_args(argv)
    if "--peers" not in rest:
        rest += ["--peers", "fastrnn", "torch"]
    path = args.folder / f"sweep-{args.cell}-{args.mode}.json"
    names = dict.fromkeys(case.id for letter in LINES for case in cases(args.cell, letter))
    status = bench_run.main(
        ["--cell", args.cell, "--mode", args.mode, "--cases", *names, "--json", str(path), *rest]
    )
    if status == 0:
        draw(Run.load(path), args.cell, args.mode, path.with_suffix(".png"))
        print(f"picture: {path.with_suffix('.png')}")
    return status


if __name__ == "__main__":
    sys.exit(main())
