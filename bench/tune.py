"""Finds the constants of the CPU kernels' cost model on this machine: `python -m bench.tune`.

The kernels choose between ways to do the same work by constants in csrc/cpu: threads that share rows or units, weights
that are packed first or read as they lie. This times whole layers on one thread, on either side of each choice, for
each instruction set and element type, and prints what it finds beside what the source says. Each side's time is a line
over the number of steps; where the two lines meet, packing begins to pay.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import fastrnn
from bench import machine
from bench.cases import MODES, Case
from bench.problem import make_module, make_problem, outputs_of, torch_step
from bench.results import write_json
from bench.runner import Runner
from bench.scaling import plan
from bench.timing import Effort, blocks_of, time_in_turns

HEADERS = Path(__file__).resolve().parent.parent / "csrc" / "cpu"
OPS = torch.ops.fastrnn
DTYPES = {"float32": torch.float32, "float64": torch.float64}
GATES = 4  # of the LSTM that is timed
# of csrc/cpu/plan-inl.h, storage-inl.h and forward-layout-inl.h
COSTS = ("kFlopSeconds", "kByteSecondsNear", "kByteSecondsFar", "kNearBytes")
BARRIER = ("kBarrierSeconds", "kBarrierSecondsAThread")
PACKING = ("kUnpackedRows", "kUnpackedBatch", "kUnpackedSteps", "kUnpackedStepsFar", "kFarBytes")
ANY = "any"  # in place of an instruction set and element type


@dataclass(frozen=True)
class Sizes:
    """Hidden units of the layers that are timed."""

    packing: tuple[int, ...] = (128, 256, 512, 1024)
    reading: tuple[int, ...] = (96, 128, 192, 256, 384, 512, 768, 1024)
    product: int = 384


QUICK = Sizes((32, 64), (32, 64), 32)


def source_constants(names: Iterable[str], folder: Path = HEADERS) -> dict[str, float]:
    """The constants of these names that the headers define as numbers, such as 6 << 20 or 1.0 / 100e9."""
    text = "\n".join(path.read_text() for path in sorted(folder.glob("*.h")))
    found = {}
    for name in names:
        match = re.search(rf"\b{name} = ([\d.eE+\-*/<> ]+)[,;]", text)
        if match is not None:
            found[name] = float(eval(match[1]))  # digits and operators alone
    return found


def least_times(cases: Iterable[Case], dtype: torch.dtype, effort: Effort) -> dict[Case, float]:
    """Seconds of each case, the least of all samples: other work on the machine only adds."""
    blocks = {case.id: blocks_of(_runner(case, dtype), effort) for case in cases}
    samples = time_in_turns(blocks, effort.rounds)
    return {case: min(map(min, samples[case.id])) for case in cases}


def _runner(case: Case, dtype: torch.dtype) -> Runner:
    problem = make_problem(case, MODES["infer"])
    module = make_module(fastrnn, problem).to(dtype)
    call = torch_step(module, problem, dtype)
    return Runner(call, lambda result: outputs_of(result, problem), torch.inference_mode)


def meeting(before: dict[int, float], after: dict[int, float]) -> float:
    """From which number of steps on the second way is quicker: 0 where always, inf where it loses in the end.

    Each way's seconds by steps, as far as it was timed; its line is drawn on to where it was not.
    """
    (slope_before, start_before), (slope_after, start_after) = (
        np.polyfit(list(times), list(times.values()), 1) for times in (before, after)
    )
    if slope_after >= slope_before:
        return math.inf
    return max(0.0, float((start_after - start_before) / (slope_before - slope_after)))


def two_levels(values: dict[float, float]) -> tuple[float, float, float]:
    """(level below, level above, border): the step function of the keys that fits the logarithms best."""
    keys = sorted(values)
    logs = np.log([values[key] for key in keys])
    if len(keys) == 1:
        return values[keys[0]], values[keys[0]], keys[0]

    def misfit(cut: int) -> float:
        return float(sum(((part - part.mean()) ** 2).sum() for part in (logs[:cut], logs[cut:])))

    cut = min(range(1, len(keys)), key=misfit)
    low, high = (math.exp(float(part.mean())) for part in (logs[:cut], logs[cut:]))
    return low, high, math.sqrt(keys[cut - 1] * keys[cut])


def flop_seconds(sizes: Sizes, dtype: torch.dtype, effort: Effort) -> float:
    """Seconds of one operation where the product is everything: many rows a step."""
    units, rows, steps = sizes.product, 96, 4
    case = Case("lstm", steps, rows, units, units)
    flops = 2 * steps * rows * GATES * units * 2 * units
    return least_times([case], dtype, effort)[case] / flops


def byte_seconds(sizes: Sizes, dtype: torch.dtype, effort: Effort) -> dict[float, float]:
    """Bytes of recurrent weights -> seconds a byte, where one row reads all of them every step."""
    found = {}
    for units in sizes.reading:
        short, long = (Case("lstm", steps, 1, 16, units) for steps in (64, 128))
        times = least_times([short, long], dtype, effort)
        size = GATES * units * units * dtype.itemsize
        found[float(size)] = (times[long] - times[short]) / (long.time - short.time) / size
    return found


def packing_pays(
    units: int, batch: int, inputs: int, least: int, switch: int, dtype: torch.dtype, effort: Effort
) -> float:
    """The number of steps from which packing pays, where the kernels pack from `switch` steps on.

    least: steps from which nothing else changes.
    """

    def times(first: int, last: int) -> dict[int, float]:
        steps = sorted({round(first + (last - first) * part / 4) for part in range(5)})
        cases = [Case("lstm", count, batch, inputs, units) for count in steps]
        return {case.time: seconds for case, seconds in least_times(cases, dtype, effort).items()}

    return meeting(times(least, switch - 1), times(switch, switch + max(4, switch - least)))


def packing_constants(
    source: dict[str, float], sizes: Sizes, dtype: torch.dtype, effort: Effort
) -> dict[str, float]:
    """The thresholds of csrc/cpu/forward-layout-inl.h."""
    rows, few = int(source["kUnpackedRows"]), int(source["kUnpackedBatch"])
    # rows from which packing pays: of W_ih alone for so few rows a step that W_hh is still read as it lies
    rows_pay = {
        batch: statistics.median(
            batch * packing_pays(units, batch, units, 1, rows // batch + 1, dtype, effort)
            for units in sizes.packing
        )
        for batch in (1, 2, 4)
    }
    steps_pay: dict[int, dict[float, float]] = {}
    for batch in range(1, few + 1):
        steps_pay[batch] = {}
        for units in sizes.packing:
            size = GATES * units * units * dtype.itemsize
            far = size > source["kFarBytes"]
            switch = int(source["kUnpackedStepsFar" if far else "kUnpackedSteps"])
            found = packing_pays(units, batch, 16, rows // batch + 1, switch, dtype, effort)
            steps_pay[batch][float(size)] = min(max(found, 1.0), 1e4)
    near, far, border = two_levels(steps_pay[1])
    rows_found = statistics.median(rows_pay.values())
    lasting = [b for b, found in steps_pay.items() if b * statistics.median(found.values()) > 2 * rows_found]
    lasting += [b for b in rows_pay if b > few and rows_pay[b] > 2 * rows_found]
    return {
        "kUnpackedRows": rows_found,
        "kUnpackedBatch": max(lasting, default=0),
        "kUnpackedSteps": near,
        "kUnpackedStepsFar": far,
        "kFarBytes": border,
    }


def barrier_constants(sizes: Sizes, threads: int, effort: Effort) -> dict[str, float]:
    """What a step of one row, its units split over threads, takes beyond its share of the work of one thread."""
    beyond: dict[int, float] = {}
    for count in range(2, threads + 1):
        found = []
        for units in sizes.reading:
            cases = short, long = [Case("lstm", steps, 1, 16, units) for steps in (64, 128)]
            if plan(long, count)[2] != count:
                continue
            step = {}
            for used in (1, count):
                torch.set_num_threads(used)
                times = least_times(cases, torch.float32, effort)
                step[used] = (times[long] - times[short]) / (long.time - short.time)
            found.append(step[count] - step[1] / count)
        if found:
            beyond[count] = statistics.median(found)
    source = source_constants(BARRIER)
    if len(beyond) > 1:
        share, start = np.polyfit(list(beyond), list(beyond.values()), 1)
        return dict(zip(BARRIER, (float(start), float(share)), strict=True))
    # one number says nothing about the share of a thread: both are scaled alike
    for count, seconds in beyond.items():
        modelled = source["kBarrierSeconds"] + count * source["kBarrierSecondsAThread"]
        return {name: value * seconds / modelled for name, value in source.items()}
    return {}


def measure(isas: Iterable[str], sizes: Sizes, effort: Effort, threads: int) -> dict[str, dict[str, float]]:
    """Instruction set and element type, or ANY -> constant -> value."""
    source = source_constants(PACKING)
    found: dict[str, dict[str, float]] = {}
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        kinds = [(isa, name) for isa in isas for name in DTYPES]
        for isa, name in track(kinds, "one thread", transient=True):
            OPS.force_isa(isa)
            dtype = DTYPES[name]
            levels = two_levels(byte_seconds(sizes, dtype, effort))
            values = dict(zip(COSTS, (flop_seconds(sizes, dtype, effort), *levels), strict=True))
            if len(source) == len(PACKING):  # without them it is not known which side was timed
                values |= packing_constants(source, sizes, dtype, effort)
            found[f"{isa} {name}"] = values
        OPS.force_isa("")
        found[ANY] = barrier_constants(sizes, threads, effort)
    finally:
        OPS.force_isa("")
        torch.set_num_threads(before)
    return found


def _text(name: str, value: float | None) -> str:
    """As the headers write it."""
    if value is None:
        return "-"
    if name in ("kFlopSeconds", "kByteSecondsNear", "kByteSecondsFar"):
        return f"1.0 / {1e-9 / value:.3g}e9"
    if name.endswith("Bytes"):
        return f"{value / 1e3:.0f}e3"
    return f"{value * 1e6:.2f}e-6" if name in BARRIER else f"{value:.0f}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.tune", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    isas = OPS.supported_isas().split(",")
    parser.add_argument(
        "--isa", nargs="+", choices=isas, default=isas, help="instruction sets (default: all)"
    )
    parser.add_argument("--threads", type=int, default=machine.available_cores(), help="for the barrier")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="tiny layers: to see whether it works")
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args(argv)
    effort = Effort(2, 0.001) if args.quick else Effort(args.rounds, 0.01)
    found = measure(args.isa, QUICK if args.quick else Sizes(), effort, args.threads)
    source = source_constants((*COSTS, *BARRIER, *PACKING))
    table = Table("constant", "source", *found)
    for name in (*COSTS, *BARRIER, *PACKING):
        values = [_text(name, values.get(name)) for values in found.values()]
        table.add_row(name, _text(name, source.get(name)), *values)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    if args.json is not None:
        write_json(args.json, {"machine": machine.describe(), "source": source, "found": found})
    return 0


if __name__ == "__main__":
    sys.exit(main())
