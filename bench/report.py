"""Tables for the terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.cases import MODES, Case, Mode
from bench.options import OPTIONS
from bench.peers import PEERS, SUBJECT
from bench.results import Result, Run, geometric_means
from bench.targets import verdicts
from bench.timing import Timing


def duration(seconds: float) -> str:
    """Three significant digits in the unit that suits."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e9:.3g} ns"


def _spread(timing: Timing) -> str:
    half = (timing.q3 - timing.q1) / 2 / timing.median
    return f"{duration(timing.median)} ±{half:.0%}"


def ratio_text(ratio: float | None) -> str:
    if ratio is None:
        return "[dim]-[/]"
    style = "green" if ratio >= 1.0 else "red"
    return f"[{style}]{ratio:.2f}[/]"


def header(run: Run, console: Console) -> None:
    machine, settings, limits = run.machine, run.settings, run.limits
    caches = " ".join(f"{level} {size}" for level, size in machine["caches"].items())
    console.print(
        f"[bold]{escape(str(machine['cpu']))}[/], {machine['cores']} cores, {settings['threads']} threads; "
        f"{caches}; {' '.join(machine['flags'])}; fastrnn kernels: {machine.get('isa', 'none')}"
    )
    versions = ", ".join(
        f"{name} {version}"
        for name, version in run.peers.items()
        if "absent" not in version and not (name in PEERS and PEERS[name].only)
    )
    console.print(f"Python {machine['python']}, {versions}; commit {machine['commit']}", highlight=False)
    for name, version in run.peers.items():
        if version.startswith("absent"):
            console.print(f"[yellow]{name} {escape(version)}[/]", highlight=False)
    rates = ", ".join(f"{_bytes(int(size))} {rate / 1e9:.0f}" for size, rate in limits["bandwidth"].items())
    origin = "measured" if limits["measured"] else "no C++ compiler, so bandwidth and hand-over are assumed"
    console.print(
        f"limits ({origin}): {limits['peak'] / 1e9:.0f} GFLOP/s a core; reading, GB/s a core: {rates}; "
        f"hand-over {limits['handoff'] * 1e9:.0f} ns",
        highlight=False,
    )


def _bytes(size: int) -> str:
    return f"{size >> 20}M" if size >= 1 << 20 else f"{size >> 10}K"


def group_table(run: Run, mode: str, cell: str) -> Table:
    """One row a case: fastrnn's time, every peer's time over it, and the limit."""
    group = [result for result in run.results if (result.mode, result.cell) == (mode, cell)]
    if own := own_rows(MODES[mode], group):
        return _table(f"{cell} {mode}", *own)
    variants = [name for name in run.peers if name.startswith(SUBJECT) and name != SUBJECT]
    columns = [name for name in variants + run.others() if any(name in result.timings for result in group)]
    with_subject = any(SUBJECT in result.timings for result in group)
    title = f"{cell} {mode}: " + (
        "peer's time / fastrnn's (above 1: fastrnn is faster)" if with_subject else "time a run"
    )
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("case", no_wrap=True)
    if with_subject:
        table.add_column("fastrnn", justify="right", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    if with_subject:
        table.add_column("best", justify="right")
    table.add_column("limit", justify="right", no_wrap=True)
    if with_subject:
        table.add_column("of limit", justify="right")
    for result in group:
        table.add_row(*_row(result, columns, run.others(), with_subject))
    if with_subject:
        means = geometric_means(run)[mode][cell]
        table.add_section()
        cells = [ratio_text(means.get(name)) for name in columns]
        table.add_row("geometric mean", "", *cells, ratio_text(means["best"]), "", "")
    return table


def _row(result: Result, columns: list[str], others: list[str], with_subject: bool) -> list[str]:
    if not with_subject:
        times = [_spread(result.timings[name]) if name in result.timings else "[dim]-[/]" for name in columns]
        return [result.case, *times, duration(result.limit)]
    subject = result.timings.get(SUBJECT)
    return [
        result.case,
        _spread(subject) if subject else "[red]failed[/]",
        *(ratio_text(result.ratio(name)) for name in columns),
        ratio_text(result.best_ratio(others)),
        f"{duration(result.limit)} [dim]{result.bound}[/]",
        "[dim]-[/]" if result.fraction is None else f"{result.fraction:.0%}",
    ]


def load_rows(mode: Mode, group: list[Result]) -> tuple[list[str], list[list[str]]]:
    """Header and one row a case of a mode that times under load: every peer's figures, and its time over fastrnn's."""
    peers = [name for name in mode.peers if any(name in result.timings for result in group)]
    if mode.server:
        what, ratios = "calls/s, p50, p99", [(peer, "") for peer in peers if peer != SUBJECT]
    else:
        what = "quiet, busy, p90, worst p90"
        ratios = [(peer, figure) for peer in peers if peer != SUBJECT for figure in ("p90", "worst p90")]

    def figures(timing: Timing | None) -> str:
        if timing is None:
            return "-"
        first = f"{1 / timing.median:,.0f}" if mode.server else duration(timing.median)
        rest = {name: duration(seconds) for name, seconds in timing.figures.items()}
        return ", ".join([rest.pop("quiet"), first, *rest.values()] if mode.busy else [first, *rest.values()])

    header = ["case", *(f"{peer}: {what}" for peer in peers)]
    header += [f"{peer} / fastrnn {figure}".rstrip() for peer, figure in ratios]
    rows = []
    for result in group:
        found = [result.ratio(peer, figure) for peer, figure in ratios]
        numbers = ["-" if ratio is None else f"{ratio:.2f}" for ratio in found]
        rows.append([result.case, *(figures(result.timings.get(peer)) for peer in peers), *numbers])
    return header, rows


def option_rows(group: list[Result]) -> tuple[list[str], list[list[str]]]:
    """Header and one row a case and option: its time, that over the plain cell's, and those of loops over its own."""
    header = [
        "case",
        "option",
        SUBJECT,
        "/ plain cell",
        "at most",
        "loop /",
        "compiled loop /",
        "compiled in",
    ]
    rows = []
    for result in group:
        if SUBJECT in result.timings:
            ratio = result.ratio("torch")
            torchs = "-" if ratio is None else f"torch.nn {ratio:.2f}"
            rows.append(
                [result.case, "none", duration(result.timings[SUBJECT].median), "1", "-", torchs, "-", "-"]
            )
        for name, option in OPTIONS.items():
            own = f"{SUBJECT}-{name}"
            if own not in result.timings:
                continue
            cost, *loops = (
                result.speedup(SUBJECT, own),
                *(result.speedup(own, f"{way}-{name}") for way in ("loop", "compiled")),
            )
            compiled = result.timings.get(f"compiled-{name}")
            rows.append(
                [
                    result.case,
                    name,
                    duration(result.timings[own].median),
                    "-" if cost is None else f"{cost:.2f}",
                    f"{option.aim:.2f}",
                    *("-" if ratio is None else f"{ratio:.1f}" for ratio in loops),
                    duration(compiled.figures["compile"]) if compiled else "-",
                ]
            )
    return header, rows


def own_rows(mode: Mode, group: list[Result]) -> tuple[list[str], list[list[str]]] | None:
    """Header and rows of a mode that has a table of its own; None of others."""
    if mode.options:
        return option_rows(group)
    return load_rows(mode, group) if mode.loaded else None


def _table(title: str, header: list[str], rows: list[list[str]]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold")
    for name in header:
        table.add_column(name, justify="left" if name == "case" else "right", no_wrap=name == "case")
    for row in rows:
        table.add_row(*row)
    return table


def notes(run: Run, console: Console) -> None:
    """Why peers were left out of cases, each reason once."""
    reasons: dict[tuple[str, str], int] = {}
    for result in run.results:
        for peer, reason in result.refused.items():
            reasons[peer, reason] = reasons.get((peer, reason), 0) + 1
        for peer, timing in result.timings.items():
            if timing.note:
                reasons[peer, timing.note] = reasons.get((peer, timing.note), 0) + 1
    for (peer, reason), count in reasons.items():
        console.print(f"[dim]{peer}, {count} case{'s' * (count > 1)}: {escape(reason)}[/]", highlight=False)


def targets(run: Run, console: Console) -> None:
    lines = verdicts(run)
    if not lines:
        return
    table = Table(title="Targets over the cases of this run", title_justify="left", header_style="bold")
    for name, justify in (
        ("target", "left"),
        ("aim", "right"),
        ("found", "right"),
        ("", "left"),
        ("least at, or all below the aim", "left"),
    ):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for line in lines:
        word = "[green]met[/]" if line.met else "[red]missed[/]"
        table.add_row(line.what, f"{line.aim:.2f}", f"{line.value:.2f}", word, line.where)
    console.print(table)


def registry_table(chosen: list[tuple[str, Case]]) -> Table:
    """mode name and case of everything a command line chooses."""
    table = Table(header_style="bold")
    for name in ("mode", "case"):
        table.add_column(name)
    for mode, case in chosen:
        table.add_row(mode, case.id)
    return table


def peer_lines() -> list[str]:
    """One line a peer: name, what it is, version or how to get it."""
    lines = []
    for peer in PEERS.values():
        state = f"absent: {peer.install_line()}" if peer.missing() else peer.version()
        lines.append(f"{peer.name:15} {peer.about:45} {state}")
    return lines
