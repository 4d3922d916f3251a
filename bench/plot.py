"""Pictures of runs; `python -m bench.plot RESULTS.json...` draws saved ones again."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from bench.cases import MODES
from bench.options import OPTIONS
from bench.peers import SUBJECT
from bench.report import duration
from bench.results import Result, Run, geometric_means

_COLOURS = {
    "fastrnn": "#d1495b",
    "torch": "#2e6f95",
    "compile": "#7fb7d6",
    "onnxruntime": "#66a182",
    "openvino": "#8d6a9f",
    "jax": "#edae49",
}
PLAIN: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "font.size": 9,
    "axes.titlesize": 10,
}
_TIMES = FuncFormatter(lambda value, _: f"{value:g}x")
SECONDS = FuncFormatter(lambda value, _: duration(value))


def draw(run: Run, folder: Path, stem: str) -> list[Path]:
    """One PNG for each mode and cell, and one of the geometric means; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    with plt.rc_context(PLAIN):
        for mode, cells in geometric_means(run).items():
            for cell in cells if not MODES[mode].loaded else ():
                group = [result for result in run.results if (result.mode, result.cell) == (mode, cell)]
                pictures.append(folder / f"{stem}-{mode}-{cell}.png")
                draw_group = _draw_options if MODES[mode].options else _draw_group
                draw_group(run, group, f"{cell}, {mode}", pictures[-1])
        if any(SUBJECT in result.timings for result in run.comparable().results):
            pictures.append(folder / f"{stem}-means.png")
            _draw_means(run.comparable(), pictures[-1])
    return pictures


def caption(run: Run) -> str:
    machine = run.machine
    return f"{machine['cpu']}, {run.settings['threads']} threads, float32, torch {run.peers.get('torch', '')}"


def _draw_group(run: Run, group: list[Result], title: str, path: Path) -> None:
    others = [peer for peer in run.others() if any(peer in result.timings for result in group)]
    height = 1.6 + len(group) * (0.14 * max(2, len(others)) + 0.1)
    figure, (ratios, times) = plt.subplots(
        1, 2, figsize=(12, height), sharey=True, layout="constrained", width_ratios=(1, 1)
    )
    figure.suptitle(f"{title}\n{caption(run)}")
    _ratio_bars(ratios, [[result.ratio(peer) for result in group] for peer in others], others)
    ratios.set_yticks(range(len(group)), [result.case.split("-", 1)[1] for result in group])
    ratios.invert_yaxis()
    ratios.set_title("peer's time / fastrnn's time: right of 1 fastrnn is faster")

    for peer in [*others, SUBJECT]:
        found = [
            (result.timings[peer].median, row) for row, result in enumerate(group) if peer in result.timings
        ]
        if found:
            seconds, rows = zip(*found, strict=True)
            times.scatter(
                seconds, rows, s=30 if peer == SUBJECT else 16, color=colour(peer), label=peer, zorder=3
            )
    limits = [result.limit for result in group]
    times.scatter(limits, range(len(group)), marker="|", s=160, color="black", label="machine's limit")
    times.set_xscale("log")
    times.xaxis.set_major_formatter(SECONDS)
    times.grid(axis="both", color="0.92")
    times.set_axisbelow(True)
    times.set_title("time of one run, and the least that the machine allows")
    figure.legend(*times.get_legend_handles_labels(), loc="outside lower center", ncols=7)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_options(run: Run, group: list[Result], title: str, path: Path) -> None:
    """What each option costs beside what it may, and the loops over steps beside the layers that they stand for."""
    found = [
        (option, result)
        for option in OPTIONS.values()
        for result in group
        if f"{SUBJECT}-{option.name}" in result.timings
    ]
    figure, (costs, loops) = plt.subplots(
        1, 2, figsize=(12, 1.8 + 0.3 * len(found)), sharey=True, layout="constrained", width_ratios=(1, 1)
    )
    figure.suptitle(f"{title}\n{caption(run)}")
    rows = range(len(found))
    over = [result.speedup(SUBJECT, f"{SUBJECT}-{option.name}") for option, result in found]
    _ratio_bars(costs, [over], [SUBJECT])
    costs.scatter(
        [option.aim for option, _ in found], rows, marker="|", s=120, color="black", zorder=5, label="at most"
    )
    costs.set_yticks(rows, [f"{option.name}, {result.case.split('-', 3)[3]}" for option, result in found])
    costs.invert_yaxis()
    costs.set_title("time with the option / time of the plain cell")
    ways = {"loop": "torch", "compiled": "compile"}
    ratios = [
        [result.speedup(f"{SUBJECT}-{option.name}", f"{way}-{option.name}") for option, result in found]
        for way in ways
    ]
    _ratio_bars(loops, ratios, list(ways.values()))
    loops.set_title("time of a loop over steps / time of the layer")
    handles = {
        "with the option": SUBJECT,
        "loop of torch's operations": "torch",
        "that loop compiled": "compile",
    }
    figure.legend(
        [plt.Rectangle((0, 0), 1, 1, color=colour(peer)) for peer in handles.values()],
        list(handles),
        loc="outside lower center",
        ncols=3,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_means(run: Run, path: Path) -> None:
    means = geometric_means(run)
    others = run.others()
    figure, panels = plt.subplots(
        1, len(means), figsize=(1.5 + 3.6 * len(means), 3.4), layout="constrained", squeeze=False
    )
    figure.suptitle(f"Geometric mean of peer's time / fastrnn's time\n{caption(run)}")
    for axes, (mode, cells) in zip(panels[0], means.items(), strict=True):
        present = [peer for peer in others if any(row[peer] is not None for row in cells.values())]
        _ratio_bars(axes, [[row[peer] for row in cells.values()] for peer in present], present)
        axes.set_yticks(range(len(cells)), list(cells))
        axes.invert_yaxis()
        axes.set_title(mode)
    handles = {
        label: handle
        for axes in panels[0]
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=7)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _ratio_bars(axes: Axes, columns: list[list[float | None]], peers: list[str]) -> None:
    """A bar from 1 to each ratio; columns: of each peer, of each row."""
    thickness = 0.8 / max(1, len(peers))
    for place, (peer, column) in enumerate(zip(peers, columns, strict=True)):
        found = [(row, ratio) for row, ratio in enumerate(column) if ratio is not None]
        if not found:
            continue
        rows = [row + (place + 0.5) * thickness - 0.4 for row, _ in found]
        axes.barh(
            rows,
            [ratio - 1 for _, ratio in found],
            thickness,
            left=1,
            color=colour(peer),
            label=peer,
            zorder=3,
        )
    axes.set_xscale("log", base=2)
    # a single short bar would leave the axis without a tick
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.5), max(high, 2.0))
    axes.xaxis.set_major_formatter(_TIMES)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.axvline(1, color="black", linewidth=1, zorder=4)
    axes.grid(axis="x", color="0.92")
    axes.set_axisbelow(True)


def colour(peer: str) -> str:
    return _COLOURS.get(peer, "0.6")


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.plot", description="Pictures of saved runs, beside the first of them."
    )
    parser.add_argument("results", type=Path, nargs="+")
    paths: list[Path] = parser.parse_args().results
    modes = "|".join(MODES)
    stem = re.sub(rf"-({modes})$", "", paths[0].stem)
    for picture in draw(Run.load(*paths), paths[0].parent, stem):
        print(picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
