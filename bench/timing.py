"""Timing in turns: one block of peer A, one of B, one of C, then A again, so that drift hits all alike."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from bench.problem import Problem
from bench.runner import Runner

_SAMPLE_SECONDS = 1e-4  # shorter calls are timed several at once
_SETTLE_SECONDS = 0.01  # thread pools spin for a while after their last work, on the next peer's cores


@dataclass(frozen=True)
class Effort:
    """rounds: blocks of each peer; block_seconds: the length of a block, which holds at least one call."""

    rounds: int
    block_seconds: float


@dataclass
class Timing:
    """Seconds a run over all samples, and the median of each block; error as from Problem.check.

    figures: what else a mode asks for, seconds by name.
    """

    median: float
    q1: float
    q3: float
    blocks: list[float]
    error: float = 0.0
    note: str = ""
    figures: dict[str, float] = field(default_factory=dict)


Block = Callable[[], list[float]]  # times one block: the samples, seconds a call


def time_in_turns(peers: Mapping[str, Block], rounds: int) -> dict[str, list[list[float]]]:
    """Of each peer, of each block, the samples."""
    samples: dict[str, list[list[float]]] = {name: [] for name in peers}
    for _ in range(rounds):
        for name, block in peers.items():
            samples[name].append(block())
    return samples


def blocks_of(runner: Runner, effort: Effort) -> Block:
    """Warms the runner up and returns what times blocks of it."""
    inner, count = _plan(runner, effort)
    return lambda: _block(runner, inner, count)


def _plan(runner: Runner, effort: Effort) -> tuple[int, int]:
    """Calls a sample and samples a block."""
    with runner.context():
        _timed(runner, 1)
        stop = time.perf_counter() + effort.block_seconds / 2
        seconds = _timed(runner, 1)
        while time.perf_counter() < stop:
            seconds = min(seconds, _timed(runner, 1))
    inner = max(1, round(_SAMPLE_SECONDS / seconds))
    return inner, max(1, round(effort.block_seconds / (inner * seconds)))


def _timed(runner: Runner, calls: int) -> float:
    call = runner.call
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls


def _block(runner: Runner, inner: int, count: int) -> list[float]:
    time.sleep(_SETTLE_SECONDS)
    with without_collection(), runner.context():
        if count > 1:  # caches and pools are cold after the other peers, which a long call hardly feels
            _timed(runner, 1)
        return [_timed(runner, inner) for _ in range(count)]


@contextmanager
def without_collection() -> Iterator[None]:
    """Python's garbage collector rests."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def summarise(blocks: list[list[float]], repeats: int = 1) -> Timing:
    """repeats: runs of the case in one call."""
    everything = np.concatenate([np.asarray(block) for block in blocks]) / repeats
    q1, median, q3 = (float(value) for value in np.percentile(everything, (25, 50, 75)))
    return Timing(median, q1, q3, [float(np.median(block)) / repeats for block in blocks])


def time_alone(runners: Mapping[str, Runner], problem: Problem, effort: Effort) -> dict[str, Timing]:
    """Blocks of calls, peer after peer, with nothing else at work."""
    blocks = {name: blocks_of(runner, effort) for name, runner in runners.items()}
    return {
        name: summarise(samples, problem.repeats)
        for name, samples in time_in_turns(blocks, effort.rounds).items()
    }
