"""Whether torch's own kernels serve a call on CUDA tensors, where FASTRNN_CUDA_ENGINE=auto leaves it to estimates."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastrnn import _ops
from fastrnn._spec import BATCH_FIRST, cell_of

if TYPE_CHECKING:
    from fastrnn._stack import Stack

_torch_is_quicker = lru_cache(maxsize=1024)(_ops.torch_is_quicker)


def torch_is_quicker(
    stack: Stack,
    x: Tensor,
    states: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
) -> bool:
    """For a stack of a cell that torch has, x on a CUDA device; what traces, and cannot ask, gets the ops."""
    if _ops.cuda_engine != "auto" or torch.compiler.is_compiling():
        return False
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False
    training = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *(states or ()), *weights))
    if training and stack.recompute:  # torch's would keep everything
        return False
    if batch_sizes is not None:
        time, batch = len(batch_sizes), int(batch_sizes[0])
    elif stack.spec & BATCH_FIRST:
        batch, time, _ = x.shape
    else:
        time, batch, _ = x.shape
    cell = cell_of(stack.spec)
    recurrent, hidden = weights[1].shape[1], weights[1].shape[0] // cell.gates
    projection = recurrent if recurrent != hidden else 0
    return _torch_is_quicker(
        cell.name,
        str(x.dtype).removeprefix("torch."),
        (time, batch, x.shape[-1], hidden, projection, stack.directions, stack.num_layers),
        batch_sizes is not None,
        training,
        "cuda",
        _ops.cuda_properties(x.device.index),
    )
