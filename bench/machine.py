"""What a run was made on: the header of every report."""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
import time
from pathlib import Path

import torch

_FLAGS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "sve",
    "bf16",
)


def describe() -> dict[str, object]:
    """CPU, caches, versions; only what the system tells, so that it also works off Linux."""
    info = _cpuinfo()
    flags = set((info.get("flags") or info.get("Features") or "").split())
    machine: dict[str, object] = {
        "cpu": info.get("model name") or platform.processor() or platform.machine(),
        "cores": available_cores(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "caches": _caches(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "commit": commit_of(Path(__file__).parent),
        "date": time.strftime("%Y-%m-%d"),
    }
    try:
        importlib.import_module("fastrnn")
        machine["isa"] = str(torch.ops.fastrnn.active_isa())
    except (ImportError, AttributeError):
        pass
    return machine


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def restrict_cores(threads: int) -> None:
    """Confines the process to that many cores, as JAX has no other way to be told how many threads to use."""
    if hasattr(os, "sched_setaffinity") and threads < available_cores():
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


class Quietness:
    """How much of the machine other processes used between its making and `others()`."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._busy = self._busy_seconds()

    def others(self) -> float | None:
        """Cores' worth of work by others, or None where the system does not tell."""
        now = self._busy_seconds()
        elapsed = time.monotonic() - self._start
        if now is None or self._busy is None or elapsed <= 0:
            return None
        return max(0.0, (now - self._busy) / elapsed)

    @staticmethod
    def _busy_seconds() -> float | None:
        try:
            fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
        except OSError:
            return None
        user, nice, system, _, _, irq, softirq, *_ = (int(field) for field in fields)
        own = sum(os.times()[:4])
        return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK") - own


def _cpuinfo() -> dict[str, str]:
    try:
        first = Path("/proc/cpuinfo").read_text().split("\n\n", 1)[0]
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in first.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def _caches() -> dict[str, str]:
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        except OSError:
            continue
        if kind != "Instruction":
            caches[f"L{level}"] = size
    return caches


def commit_of(folder: Path) -> str:
    """The commit of the checkout that holds the folder, with a mark where files differ from it."""
    git = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
