"""What a peer makes of a case: something to call, and what its outputs are."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Outputs = dict[str, np.ndarray]


class Unsupported(Exception):
    """A peer cannot run a case; the message says why."""


@dataclass
class Runner:
    """A case made ready: `outputs(call())` are the case's outputs by name; only `call` is timed."""

    call: Callable[[], Any]
    outputs: Callable[[Any], Outputs]
    context: Callable[[], AbstractContextManager[object]] = nullcontext
    skip: tuple[str, ...] = ()  # outputs that this peer, by its nature, has different
    note: str = ""
    threads: int = 0  # torch's intra-op threads, where not those of the run
    figures: dict[str, float] = field(default_factory=dict)  # what making it ready took, seconds by name


@dataclass(frozen=True)
class Settings:
    """What a peer needs to know besides the case."""

    threads: int
    unroll: int = 1
