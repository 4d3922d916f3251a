"""Recurrent weights of several heads: of a matrix [G*H, R] there are the blocks by which a head's units meet its own
part of h, one below the other, [G*H, R / heads]."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn import _ops
from fastrnn._spec import BIDIRECTIONAL, FACTS, MOST_HEADS, cell_of, heads_of, with_heads

_ALIGNMENT = int(FACTS["unit_alignment"])


def check_heads(heads: Any, *widths: int) -> int:
    """heads, if so many may share widths; a ValueError otherwise."""
    if not isinstance(heads, int) or isinstance(heads, bool) or not 1 <= heads <= MOST_HEADS:
        raise ValueError(f"heads must be an integer from 1 to {MOST_HEADS}, got {heads!r}")
    for width in widths:
        if width % heads:
            raise ValueError(
                f"heads must divide hidden_size and proj_size, but {heads} does not divide {width}"
            )
    return heads


def are_aligned(heads: int, *widths: int) -> bool:
    """Whether the kernels take so many heads of these widths of h and of the hidden units."""
    return heads == 1 or all(width % (heads * _ALIGNMENT) == 0 for width in widths)


def have_kernels(spec: int, x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether the kernels run the heads that the spec has, for torch's flat list of weights."""
    heads = heads_of(spec)
    if heads == 1 or weights[1].dtype == torch.int8:  # of which quantize makes none that they do not run
        return True
    hidden, recurrent = weights[1].shape[0] // cell_of(spec).gates, weights[1].shape[1] * heads
    return _ops.has_kernels(x) and not x.is_cuda and are_aligned(heads, hidden, recurrent)


def joined(spec: int, weights: Sequence[Tensor], layers: int) -> tuple[int, list[Tensor]]:
    """The layers as one of a single head: every w_hh whole, with zeros beside its blocks."""
    heads, gates = heads_of(spec), cell_of(spec).gates
    count = len(weights) // (layers * (2 if spec & BIDIRECTIONAL else 1))
    check_heads(heads, weights[1].shape[0] // gates)
    whole = [_whole(w, heads, gates) if index % count == 1 else w for index, w in enumerate(weights)]
    return with_heads(spec, 1), whole


def _whole(w: Tensor, heads: int, gates: int) -> Tensor:
    """w [G*H, R / heads] as [G*H, R]."""
    blocks = w.view(gates, heads, -1, 1, w.shape[1])
    own = torch.eye(heads, dtype=torch.bool, device=w.device)[:, None, :, None]
    return torch.where(own, blocks, 0.0).flatten(3).flatten(0, 2)
