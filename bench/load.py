"""Timing under load: several Python threads that call one layer at once, and cores that have other work."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import torch

from bench.problem import Problem
from bench.runner import Runner
from bench.timing import Block, Effort, Timing, summarise, time_in_turns, without_collection

_WARM_UP = 5
_CALLS = 50  # of each peer in a round beside busy cores, at the least


def time_at_once(runners: Mapping[str, Runner], problem: Problem, effort: Effort) -> dict[str, Timing]:
    """Seconds a call of as many threads as the case has callers, by round; p50, p99: of a single call."""
    callers = problem.case.callers
    blocks = {name: _block_at_once(runner, callers, effort.block_seconds) for name, runner in runners.items()}
    timings = {}
    for name, rounds in time_in_turns(blocks, effort.rounds).items():
        # callers that never rest make `callers` calls in the mean time of one
        timings[name] = summarise([[float(np.mean(calls))] for calls in rounds], callers)
        p50, p99 = np.percentile(np.concatenate(rounds), (50, 99))
        timings[name].figures = {"p50": float(p50), "p99": float(p99)}
    return timings


def _block_at_once(runner: Runner, callers: int, seconds: float) -> Block:
    """Starts the threads anew for every block: a thread takes on torch's number of threads at its first call."""

    def block() -> list[float]:
        before = torch.get_num_threads()
        torch.set_num_threads(runner.threads or before)
        start = threading.Barrier(callers)
        try:
            with without_collection(), ThreadPoolExecutor(callers) as pool:
                parts = [pool.submit(_call_for, runner, start, seconds) for _ in range(callers)]
                return [call for part in parts for call in part.result()]
        finally:
            torch.set_num_threads(before)

    return block


def _call_for(runner: Runner, start: threading.Barrier, seconds: float) -> list[float]:
    """Seconds of every call that one thread makes in that time."""
    try:
        with runner.context():
            for _ in range(_WARM_UP):
                runner.call()
            start.wait()
            calls, now = [], time.perf_counter()
            stop = now + seconds
            while now < stop:
                runner.call()
                before, now = now, time.perf_counter()
                calls.append(now - before)
            return calls
    except BaseException:
        start.abort()
        raise


def time_beside_others(runners: Mapping[str, Runner], problem: Problem, effort: Effort) -> dict[str, Timing]:
    """Single calls, peer after peer, while other processes keep every core busy.

    quiet: the median of such calls without them; p90: of all calls; worst p90: the largest of a round.
    """
    quiet = _one_by_one(runners, effort.block_seconds)
    rounds = []
    for _ in range(effort.rounds):
        with busy_cores(torch.get_num_threads()):
            rounds.append(_one_by_one(runners, effort.block_seconds))
    timings = {}
    for name in runners:
        calls = [found[name] for found in rounds]
        timings[name] = summarise(calls)
        timings[name].figures = {
            "quiet": float(np.median(quiet[name])),
            "p90": float(np.percentile(np.concatenate(calls), 90)),
            "worst p90": max(float(np.percentile(found, 90)) for found in calls),
        }
    return timings


def _one_by_one(runners: Mapping[str, Runner], seconds: float) -> dict[str, list[float]]:
    """Seconds of every call. A scheduler favours a process that has slept: the first calls beside others meet none."""
    samples: dict[str, list[float]] = {name: [] for name in runners}
    stop, turns = time.perf_counter() + seconds, 0
    with without_collection():
        while turns < _WARM_UP + _CALLS or time.perf_counter() < stop:
            turns += 1
            for name, runner in runners.items():
                with runner.context():
                    start = time.perf_counter()
                    runner.call()
                    samples[name].append(time.perf_counter() - start)
    return {name: calls[_WARM_UP:] for name, calls in samples.items()}


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
