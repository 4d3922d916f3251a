"""What a run found, as JSON and back, and the ratios that reports are made of."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.cases import MODES
from bench.peers import SUBJECT
from bench.timing import Timing


@dataclass
class Result:
    """One case in one mode. Seconds; `refused` says of a peer that was not timed why."""

    case: str
    cell: str
    mode: str
    batch: int
    time: int
    hidden: int
    limit: float
    bound: str
    timings: dict[str, Timing] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def ratio(self, peer: str, figure: str = "") -> float | None:
        """The peer's time over fastrnn's: above 1 fastrnn is faster. figure: not of the medians but of these."""
        return self.speedup(SUBJECT, peer, figure)

    def speedup(self, of: str, over: str, figure: str = "") -> float | None:
        """The time of `over` divided by the time of `of`."""
        if of not in self.timings or over not in self.timings:
            return None
        seconds = [
            timing.figures[figure] if figure else timing.median
            for timing in (self.timings[over], self.timings[of])
        ]
        return seconds[0] / seconds[1]

    def best_ratio(self, peers: Iterable[str]) -> float | None:
        """The ratio to the fastest of these peers."""
        ratios = [ratio for peer in peers if (ratio := self.ratio(peer)) is not None]
        return min(ratios, default=None)

    @property
    def fraction(self) -> float | None:
        """The share of the machine's limit that fastrnn reaches."""
        return self.limit / self.timings[SUBJECT].median if SUBJECT in self.timings else None


@dataclass
class Run:
    """A whole run: header and results."""

    machine: dict[str, Any]
    settings: dict[str, Any]
    limits: dict[str, Any]
    peers: dict[str, str]  # version, or "absent: <pip line>"
    results: list[Result] = field(default_factory=list)

    def others(self) -> list[str]:
        """The peers that were timed at least once, the subject's own variants left out."""
        timed = {peer for result in self.results for peer in result.timings}
        return [peer for peer in self.peers if peer in timed and not peer.startswith(SUBJECT)]

    def comparable(self) -> Run:
        """Without load, and without the modes whose peers match not fastrnn's plain layers but its variants."""
        modes = {name for name, mode in MODES.items() if not (mode.quantized or mode.options or mode.loaded)}
        return replace(self, results=[result for result in self.results if result.mode in modes])

    def save(self, path: Path) -> None:
        data = asdict(self)
        for entry, result in zip(data["results"], self.results, strict=True):
            entry["ratios"] = {peer: result.ratio(peer) for peer in result.timings if peer != SUBJECT}
            entry["fraction_of_limit"] = result.fraction
        data["geometric_means"] = geometric_means(self)
        write_json(path, data)

    @classmethod
    def load(cls, path: Path, *more: Path) -> Run:
        """The run saved at `path`, with the results of other runs on the same machine behind its own."""
        run = cls._load(path)
        for other in map(cls._load, more):
            if any(other.machine[key] != run.machine[key] for key in ("cpu", "cores")):
                raise ValueError(f"{path} and the others come from different machines")
            run.results += other.results
            run.peers = other.peers | run.peers
        return run

    @classmethod
    def _load(cls, path: Path) -> Run:
        data = json.loads(path.read_text())
        results = []
        for entry in data["results"]:
            entry["timings"] = {peer: Timing(**timing) for peer, timing in entry["timings"].items()}
            results.append(Result(**{key: entry[key] for key in Result.__dataclass_fields__}))
        return cls(data["machine"], data["settings"], data["limits"], data["peers"], results)


def write_json(path: Path, data: object) -> None:
    """All of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(data, indent=1) + "\n")
    os.replace(unfinished, path)


def geometric_mean(values: Iterable[float | None]) -> float | None:
    """Of those that are not None; None of nothing."""
    logs = [math.log(value) for value in values if value is not None]
    return math.exp(sum(logs) / len(logs)) if logs else None


def geometric_means(run: Run) -> dict[str, dict[str, dict[str, float | None]]]:
    """Mode -> cell -> peer (or "best") -> geometric mean of the ratios."""
    means: dict[str, dict[str, dict[str, float | None]]] = {}
    others = run.others()
    for mode in dict.fromkeys(result.mode for result in run.results):
        for cell in dict.fromkeys(result.cell for result in run.results if result.mode == mode):
            group = [result for result in run.results if (result.mode, result.cell) == (mode, cell)]
            row = {
                peer: geometric_mean(result.ratio(peer) for result in group)
                for peer in run.peers
                if peer != SUBJECT
            }
            row["best"] = geometric_mean(result.best_ratio(others) for result in group)
            means.setdefault(mode, {})[cell] = row
    return means
