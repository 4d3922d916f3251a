"""``python -m bench.gpu``: fastrnn's CUDA engines beside torch.nn, which runs cuDNN, on a sample of layers and sizes.

Calls are timed with CUDA events, in blocks of each way in turn; a time is the median of its blocks' calls. Before it is
timed, each way's result is held against torch.nn in float32 (float64 for float32). The label says what cuDNN launched.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from bench.cases import GATES

os.environ["FASTRNN_CUDA_ENGINE"] = "grid"  # nothing goes to torch; each call names its engine

ROOT = Path(__file__).parent.parent
ENGINES = ("steps", "grid")
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32, "f16": torch.float16}
MOST_BYTES = 4 << 30  # of saved gates


@dataclass(frozen=True)
class Point:
    cell: str
    time: int
    batch: int
    hidden: int
    dtype: str
    layers: int
    bidirectional: bool
    packed: bool
    training: bool

    @property
    def id(self) -> str:
        name = f"{self.cell}-T{self.time}-B{self.batch}-H{self.hidden}-{self.dtype}"
        name += f"-L{self.layers}" * (self.layers > 1) + "-bi" * self.bidirectional
        return name + "-packed" * self.packed + ("-train" if self.training else "-infer")

    @property
    def gate_bytes(self) -> int:
        directions = 2 if self.bidirectional else 1
        return 4 * self.time * self.batch * self.hidden * (GATES[self.cell] + 1) * self.layers * directions

    @property
    def in_cudnn_window(self) -> bool:
        """Where cuDNN has a persistent kernel: docs/design.md."""
        single = self.layers == 1 and not self.bidirectional and not self.packed
        sizes = self.hidden <= 1024 and self.hidden % 128 == 0 and self.batch <= 128 and self.batch % 8 == 0
        return single and sizes and self.cell == "lstm" and self.dtype == "f16"


TARGETS = [
    Point("lstm", 1024, 16, hidden, dtype, 1, False, False, training)
    for hidden, dtype, training in product((256, 512, 768), ("bf16", "f16"), (False, True))
]


def sample(count: int) -> list[Point]:
    """The targets, and as many others, drawn with a fixed seed, as make `count` in all."""
    everything = [
        point
        for values in product(
            ("lstm", "gru", "rnn"),
            (64, 256, 1024),
            (1, 8, 16, 32, 64, 128),
            (64, 128, 256, 384, 512, 768, 1024),
            ("bf16", "bf16", "f32", "f16"),
            (1, 2),
            (False, True),
            (False, True),
            (False, True),
        )
        if (point := Point(*values)).gate_bytes <= MOST_BYTES and not (point.packed and point.batch == 1)
    ]
    others = [point for point in dict.fromkeys(everything) if point not in TARGETS]
    return TARGETS + random.Random(0).sample(others, max(0, count - len(TARGETS)))


@dataclass
class Found:
    point: Point
    label: str = ""  # what cuDNN launched
    seconds: dict[str, float] = field(default_factory=dict)
    blocks: dict[str, list[float]] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def ratio(self, way: str) -> float | None:
        """torch.nn's time over this way's."""
        if way not in self.seconds or "torch" not in self.seconds:
            return None
        return self.seconds["torch"] / self.seconds[way]


class Problem:
    """A point's modules and inputs on the device; a call is one forward or one forward and backward pass."""

    def __init__(self, point: Point) -> None:
        import fastrnn

        torch.manual_seed(0)
        self.point = point
        arguments = (point.hidden, point.hidden, point.layers)
        options = {"bidirectional": point.bidirectional, "device": "cuda", "dtype": DTYPES[point.dtype]}
        name = point.cell.upper()
        self.torch = getattr(nn, name)(*arguments, **options)
        self.fast = getattr(fastrnn, name)(*arguments, **options)
        self.fast.load_state_dict(self.torch.state_dict())
        self.torch.flatten_parameters()
        self.x = torch.randn(point.time, point.batch, point.hidden).to(**_device(point)).requires_grad_()
        self.lengths = None
        if point.packed:
            lengths = torch.randint(1, point.time + 1, (point.batch,)).sort(descending=True).values
            lengths[0] = point.time
            self.lengths = lengths
        packed = self.input(self.x.detach())
        rows = packed.data if point.packed else packed
        width = point.hidden * (2 if point.bidirectional else 1)
        self.d_y = torch.randn(*rows.shape[:-1], width).to(**_device(point))

    def input(self, x: Tensor) -> Any:
        return x if self.lengths is None else pack_padded_sequence(x, self.lengths)

    def call(self, module: nn.Module) -> list[Tensor]:
        """(y), or in training (y, d_x, *d_weights)."""
        if not self.point.training:
            with torch.no_grad():
                y = module(self.input(self.x))[0]
            return [y.data if self.point.packed else y]
        y = module(self.input(self.x))[0]
        y = y.data if self.point.packed else y
        return [y.detach(), *torch.autograd.grad(y, [self.x, *module.parameters()], self.d_y)]

    def exact(self) -> list[Tensor]:
        wide = torch.float64 if self.point.dtype == "f32" else torch.float32
        module = type(self.torch)(
            self.point.hidden,
            self.point.hidden,
            self.point.layers,
            bidirectional=self.point.bidirectional,
            device="cuda",
            dtype=wide,
        )
        module.load_state_dict(self.torch.state_dict())
        x, d_y = self.x, self.d_y
        self.x, self.d_y = x.detach().to(wide).requires_grad_(), d_y.to(wide)
        try:
            return self.call(module)
        finally:
            self.x, self.d_y = x, d_y

    def ways(self) -> dict[str, Callable[[], list[Tensor]]]:
        def ours(engine: str) -> Callable[[], list[Tensor]]:
            def call() -> list[Tensor]:
                os.environ["FASTRNN_CUDA_ENGINE"] = engine
                return self.call(self.fast)

            return call

        return {"torch": lambda: self.call(self.torch)} | {engine: ours(engine) for engine in ENGINES}


def _device(point: Point) -> dict[str, Any]:
    return {"device": "cuda", "dtype": DTYPES[point.dtype]}


def error_of(found: list[Tensor], exact: list[Tensor]) -> float:
    """The largest ‖found − exact‖ / ‖exact‖ of all tensors."""
    errors = [
        float((f.double() - e.double()).norm() / e.double().norm().clamp_min(1e-30))
        for f, e in zip(found, exact, strict=True)
    ]
    return max(errors) if all(map(math.isfinite, errors)) else math.inf


def launched(call: Callable[[], object]) -> str:
    """How many kernels a call launches, and whether any is persistent."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        call()
        torch.cuda.synchronize()
    names = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    kind = "persistent" if any("persist" in name.lower() for name in names) else "standard"
    return f"{kind}, {len(names)} launches"


def why_no_grid(point: Point) -> str:
    """Empty where the grid engine runs all of the point, on the first layer's sizes."""
    from fastrnn import _ops, info

    dtype = str(DTYPES[point.dtype]).removeprefix("torch.")
    directions = 2 if point.bidirectional else 1
    sizes = (point.time, point.batch, point.hidden, point.hidden, 0, directions, point.layers)
    for backward in (False, True)[: 1 + point.training]:
        device = info.cuda_properties()
        lines = _ops.cuda_plan(point.cell, dtype, sizes, point.packed, backward, "grid", *device).splitlines()
        plan = dict(line.split(": ", 1) for line in lines)
        if plan["engine"] != "grid":
            return plan["why"]
    return ""


def time_block(call: Callable[[], object], seconds: float, guess: float) -> list[float]:
    count = max(2, min(200, int(seconds / guess)))
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    call()
    for mark in marks[:-1]:
        mark.record()
        call()
    marks[-1].record()
    marks[-1].synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in pairwise(marks)]


def measure(point: Point, rounds: int, seconds: float) -> Found:
    result = Found(point)
    problem = Problem(point)
    exact = problem.exact()
    ways, guesses = {}, {}
    lack = why_no_grid(point)
    if lack:
        result.refused["grid"] = lack
    for name, call in problem.ways().items():
        if name in result.refused:
            continue
        try:
            call()
            torch.cuda.synchronize()
            start = time.perf_counter()
            result.errors[name] = error_of(call(), exact)
            torch.cuda.synchronize()
            guesses[name] = time.perf_counter() - start
            ways[name] = call
        except RuntimeError as error:
            result.refused[name] = str(error).splitlines()[0]
    try:
        result.label = launched(ways["torch"])
    except (KeyError, RuntimeError) as error:
        result.label = f"unknown: {error}"
    samples: dict[str, list[list[float]]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            samples[name].append(time_block(call, seconds, guesses[name]))
    for name, blocks in samples.items():
        result.blocks[name] = [statistics.median(block) for block in blocks]
        result.seconds[name] = statistics.median([value for block in blocks for value in block])
    return result


def machine() -> dict[str, Any]:
    def output(*command: str) -> str:
        try:
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return "unknown"

    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "processors": properties.multi_processor_count,
        "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "commit": output("git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"),
        "date": time.strftime("%Y-%m-%d"),
    }


def probe() -> dict[str, float]:
    """Latencies of barriers and launches, or nothing where there is no nvcc."""
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    with tempfile.TemporaryDirectory() as folder:
        program = f"{folder}/probe"
        includes = (f"-I{ROOT}/csrc", f"-I{ROOT}/csrc/include")
        try:
            source = str(ROOT / "bench" / "gpu_probe.cu")
            command = [nvcc, "-std=c++17", "-O3", "-arch=native", *includes, source, "-o", program]
            subprocess.run(command, check=True, capture_output=True)
            found = subprocess.run([program], check=True, capture_output=True, text=True).stdout
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"no probe of barriers: {error}", file=sys.stderr)
            return {}
    return dict(json.loads(found))


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(statistics.fmean(logs)) if logs else math.nan


def summary(results: list[Found]) -> list[str]:
    """Geometric means of torch.nn's time over ours, and the targets by step."""
    lines = []
    for way in ENGINES:
        for training, inside in product((False, True), (False, True)):
            chosen = [
                ratio
                for found in results
                if found.point.training == training and found.point.in_cudnn_window == inside
                if (ratio := found.ratio(way)) is not None
            ]
            where = "in cuDNN's persistent window" if inside else "elsewhere"
            what = "forward and backward" if training else "forward"
            if chosen:
                mean, least = geometric_mean(chosen), min(chosen)
                lines.append(
                    f"{way:6}{what:22}{where:30}{len(chosen):4} points, mean {mean:.2f}, least {least:.2f}"
                )
    for found in results:
        if found.point in TARGETS:
            steps = {way: 1e6 * value / found.point.time for way, value in found.seconds.items()}
            times = "  ".join(f"{way} {value:.2f}" for way, value in steps.items())
            lines.append(f"{found.point.id:36} us a step: {times}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--points", type=int, default=150, help="how many (default: 150)")
    parser.add_argument("--rounds", type=int, default=5, help="blocks of each way (default: 5)")
    parser.add_argument("--block", type=float, default=0.02, metavar="SECONDS", help="length of a block")
    parser.add_argument("--only", default="", metavar="TEXT", help="points whose name holds TEXT")
    parser.add_argument("--limit", type=float, default=480, metavar="SECONDS", help="stop after so long")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--list", action="store_true", help="show the points, run nothing")
    arguments = parser.parse_args()
    points = [point for point in sample(arguments.points) if arguments.only in point.id]
    if arguments.list:
        print("\n".join(point.id for point in points))
        return 0
    if not torch.cuda.is_available():
        print("bench.gpu: no CUDA device that torch can use; nothing measured")
        return 1
    head = {"machine": machine(), "probe": probe()}
    print(json.dumps(head))
    results: list[Found] = []
    start = time.monotonic()
    for point in points:
        if time.monotonic() - start > arguments.limit:
            print(f"stopped after {arguments.limit:.0f} s: {len(points) - len(results)} points are left")
            break
        found = measure(point, arguments.rounds, arguments.block)
        results.append(found)
        times = "  ".join(f"{way} {1e6 * value:.1f}" for way, value in found.seconds.items())
        worst = max(found.errors.values(), default=math.nan)
        print(f"{point.id:46} us: {times}  error {worst:.1e}  cuDNN: {found.label} {found.refused or ''}")
        torch.cuda.empty_cache()
    print("\n".join(summary(results)))
    if arguments.json:
        body = [asdict(found) | {"id": found.point.id} for found in results]
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(head | {"results": body}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
