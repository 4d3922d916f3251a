"""The machine's limit for a case: three constants, measured in the same run, and the least time they allow.

A step cannot be faster than the longer of its arithmetic at the peak rate of a matrix product and of its
weights read at the bandwidth of where they lie, plus, where hidden units are split over cores, one store seen
by another core. The limit is the least over the ways to spread the work: chains (a layer in one direction)
side by side or one after another, and within a chain the hidden units or the batch split over cores.
Pointwise arithmetic, activations in memory and the cost of a call are taken as free.
"""

from __future__ import annotations

import bisect
import ctypes
import math
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from bench.problem import Problem

# used where there is no C++ compiler: a server with AVX-512, as in docs/design.md
FALLBACK_BANDWIDTH = {1 << 18: 136e9, 1 << 22: 30e9, 1 << 26: 12e9}
FALLBACK_HANDOFF = 75e-9
_CREDIBLE_HANDOFF = 2e-6  # more than this is the time until a thread got a core
_SIZES = tuple(1 << bits for bits in range(14, 27))
_FLOAT = 4


@dataclass(frozen=True)
class Constants:
    """peak: FLOP/s a core; bandwidth: bytes -> bytes/s a core; handoff: seconds until a store is seen."""

    threads: int
    peak: float
    bandwidth: dict[int, float]
    handoff: float
    measured: bool

    def read_rate(self, size: float) -> float:
        """Bytes per second at which a core reads `size` bytes again and again, between the sizes measured."""
        sizes = sorted(self.bandwidth)
        place = bisect.bisect_left(sizes, size)
        if place in (0, len(sizes)):
            return self.bandwidth[sizes[min(place, len(sizes) - 1)]]
        low, high = sizes[place - 1], sizes[place]
        share = math.log(size / low) / math.log(high / low)
        return float(self.bandwidth[low] ** (1 - share) * self.bandwidth[high] ** share)

    def to_json(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True)
class Limit:
    """The least time of one run of a case, and what most of it goes to: arithmetic, weights or hand-over."""

    seconds: float
    bound: str


def measure(threads: int, quick: bool = False) -> Constants:
    """The constants of this machine with that many cores at work; two seconds of work, or half a second."""
    peak = _measure_product(0.1 if quick else 0.6)
    with tempfile.TemporaryDirectory() as folder:
        probe = _load_probe(Path(folder))
        if probe is None:
            return Constants(threads, peak, FALLBACK_BANDWIDTH, FALLBACK_HANDOFF, measured=False)
        sizes, seconds = (_SIZES[::4], 0.02) if quick else (_SIZES, 0.1)
        peak = max(peak, probe.probe_flops(seconds))  # torch's products are far below it on some CPUs
        bandwidth = {size: probe.probe_read(size, threads, seconds) for size in sizes}
        handoff = probe.probe_handoff(seconds) if threads > 1 else 0.0
        if handoff > _CREDIBLE_HANDOFF:
            handoff = FALLBACK_HANDOFF
    return Constants(threads, peak, bandwidth, handoff, measured=True)


def _measure_product(seconds: float) -> float:
    """FLOP/s of the best square float32 matrix product on one core."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    best, stop = 0.0, time.perf_counter() + seconds
    try:
        operands = {n: (torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)) for n in (384, 768)}
        while time.perf_counter() < stop:
            for n, (a, b, out) in operands.items():
                start = time.perf_counter()
                torch.mm(a, b, out=out)
                best = max(best, 2 * n**3 / (time.perf_counter() - start))
    finally:
        torch.set_num_threads(before)
    return best


def _load_probe(folder: Path) -> ctypes.CDLL | None:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        return None
    library = folder / "probe.so"
    source = Path(__file__).with_name("probe.cpp")
    flags = ["-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread", "-w"]
    built = subprocess.run(
        [compiler, *flags, str(source), "-o", str(library)], capture_output=True, check=False
    )
    if built.returncode != 0:
        return None
    probe = ctypes.CDLL(str(library))
    probe.probe_read.restype = probe.probe_handoff.restype = probe.probe_flops.restype = ctypes.c_double
    probe.probe_read.argtypes = (ctypes.c_size_t, ctypes.c_int, ctypes.c_double)
    probe.probe_handoff.argtypes = probe.probe_flops.argtypes = (ctypes.c_double,)
    return probe


@dataclass(frozen=True)
class _Cost:
    arithmetic: float = 0.0
    weights: float = 0.0
    handover: float = 0.0

    @property
    def seconds(self) -> float:
        return self.arithmetic + self.weights + self.handover

    def __add__(self, other: _Cost) -> _Cost:
        return _Cost(
            self.arithmetic + other.arithmetic, self.weights + other.weights, self.handover + other.handover
        )

    def __mul__(self, times: float) -> _Cost:
        return _Cost(self.arithmetic * times, self.weights * times, self.handover * times)


def _longer(flops_seconds: float, bytes_seconds: float) -> _Cost:
    return _Cost(arithmetic=flops_seconds) if flops_seconds >= bytes_seconds else _Cost(weights=bytes_seconds)


def limit_of(problem: Problem, constants: Constants) -> Limit:
    """The least time that the constants allow one run of the case (in the stream mode, one step)."""
    case = problem.case
    chains = case.layers * case.directions
    best: _Cost | None = None
    for abreast in range(1, min(chains, constants.threads) + 1):
        if chains % abreast:
            continue
        cores = max(1, constants.threads // abreast)
        layers = (_chain(problem, inputs, cores, constants) for inputs in case.layer_inputs())
        total = sum(layers, _Cost()) * (case.directions / abreast)
        if best is None or total.seconds < best.seconds:
            best = total
    assert best is not None
    parts = {"arithmetic": best.arithmetic, "weights": best.weights, "hand-over": best.handover}
    return Limit(best.seconds, max(parts, key=lambda name: parts[name]))


def _chain(problem: Problem, inputs: int, cores: int, constants: Constants) -> _Cost:
    """One layer in one direction on that many cores."""
    case = problem.case
    rows = sum(problem.batch_sizes)
    recurrent, incoming = case.gates * case.hidden * case.hidden, case.gates * case.hidden * inputs
    peak = constants.peak

    def product(weights: int) -> _Cost:
        """One product over all rows at once, split over all cores."""
        size = weights * _FLOAT / cores
        return _longer(2 * rows * weights / (peak * cores), size / constants.read_rate(size))

    def loop(parts: int, split_batch: bool) -> _Cost:
        total = _Cost()
        for batch, steps in Counter(problem.batch_sizes).items():
            size = recurrent * _FLOAT / (1 if split_batch else parts)
            rows_each = math.ceil(batch / parts) if split_batch else batch / parts
            step = _longer(2 * rows_each * recurrent / peak, size / constants.read_rate(size))
            if parts > 1 and not split_batch:
                step += _Cost(handover=constants.handoff)
            total += step * steps
        return total

    ways = [loop(parts, split) for parts in {1, cores} for split in (False, True)]
    recurrence = min(ways, key=lambda cost: cost.seconds)
    if not problem.mode.training:
        return recurrence + product(incoming)
    # backward: the recurrence again with the weights transposed; d_x, d_weight_ih and d_weight_hh as products
    return recurrence * 2 + product(incoming) * 3 + product(recurrent)
