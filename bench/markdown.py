"""Tables of a saved run in Markdown.

`python -m bench.markdown RESULTS.json...` prints them; `--write PAGE...` puts them into pages instead: the
geometric means between `<!-- bench:begin -->` and `<!-- bench:end -->`, every case between
`<!-- results:begin -->` and `<!-- results:end -->`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from bench.cases import MODES
from bench.peers import SUBJECT
from bench.report import duration, own_rows
from bench.results import Run, geometric_means
from bench.targets import verdicts


def table(header: list[str], rows: Iterable[list[str]], left: int = 1) -> str:
    rule = ["---"] * left + ["---:"] * (len(header) - left)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in [header, rule, *rows])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def machine_line(run: Run) -> str:
    machine = run.machine
    versions = ", ".join(f"{name} {run.peers[name]}" for name in run.others() if name != "compile")
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {run.settings['threads']} threads, "
        f"{machine.get('isa', '')} kernels, float32; {versions}. "
        "Numbers are a peer's time over fastrnn's: above 1 fastrnn is faster."
    )


def means_table(run: Run) -> str:
    """One row a mode and cell: the geometric mean of the ratio to each peer."""
    run = run.comparable()
    others = run.others()
    means = geometric_means(run)
    rows = [
        [mode, cell, *(_number(row[peer]) for peer in others), _number(row["best"])]
        for mode, cells in means.items()
        for cell, row in cells.items()
    ]
    return f"{machine_line(run)}\n\n" + table(["mode", "cell", *others, "best of them"], rows, left=2)


def case_tables(run: Run) -> str:
    """One table a mode, one row a case, and the targets."""
    parts = [machine_line(run)]
    for mode in geometric_means(run):
        group = [result for result in run.results if result.mode == mode]
        if own := own_rows(MODES[mode], group):
            parts.append(f"### {mode}\n\n" + table(*own))
            continue
        others = [peer for peer in run.peers if peer != SUBJECT and any(peer in r.timings for r in group)]
        rows = [
            [
                result.case,
                duration(result.timings[SUBJECT].median) if SUBJECT in result.timings else "failed",
                *(_number(result.ratio(peer)) for peer in others),
                duration(result.limit),
                "-" if result.fraction is None else f"{result.fraction:.0%}",
            ]
            for result in group
        ]
        parts.append(f"### {mode}\n\n" + table(["case", SUBJECT, *others, "limit", "of limit"], rows))
    rows = [
        [line.what, f"{line.aim:.2f}", _number(line.value), "met" if line.met else "missed", line.where]
        for line in verdicts(run)
    ]
    parts.append(
        "### Targets\n\n" + table(["target", "aim", "found", "", "least at, or all below the aim"], rows)
    )
    return "\n\n".join(parts)


def fill(page: Path, places: dict[str, Callable[[], str]]) -> bool:
    """Fills the places of these names that the page has marks for; False where it has none."""
    text = before = page.read_text()
    found = False
    for name, make in places.items():
        place = re.compile(rf"(<!-- {name}:begin -->\n).*?(<!-- {name}:end -->)", re.DOTALL)
        if place.search(text):
            found = True
            filling = make()
            text = place.sub(lambda match, filling=filling: f"{match[1]}{filling}\n{match[2]}", text)  # type: ignore[misc]
    if text != before:
        page.write_text(text)
    return found


def write_into(page: Path, run: Run) -> bool:
    """Puts the run's tables into the page; False where it has no place for them."""
    return fill(page, {"bench": lambda: means_table(run), "results": lambda: case_tables(run)})


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.markdown",
        description="Tables of saved runs in Markdown: printed, or written into pages between their marks.",
    )
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--write", nargs="+", type=Path, default=[], metavar="PAGE")
    args = parser.parse_args(argv)
    run = Run.load(*args.results)
    if not args.write:
        print(means_table(run), case_tables(run), sep="\n\n")
    unmarked = [str(page) for page in args.write if not write_into(page, run)]
    if unmarked:
        print(f"no bench or results marks in {', '.join(unmarked)}", file=sys.stderr)
    return int(bool(unmarked))


if __name__ == "__main__":
    sys.exit(main())
