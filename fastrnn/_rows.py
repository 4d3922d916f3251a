"""Where the rows of a call's sequences end and are cut, checked and brought to the ops' form."""

from typing import Any

import torch
from torch import Tensor

from fastrnn._compat import FakeTensor, is_transformed
from fastrnn._spec import BATCH_FIRST, CELL_STATES, RAGGED, cell_of


def rows_of_call(
    spec: int, x: Tensor, batch_sizes: Tensor | None, lengths: Any, resets: Any, return_cell_states: bool
) -> tuple[int, Tensor | None]:
    """The spec and the batch_sizes or lengths, as the ops take them, of a call with x [T, B, I], [B, T, I] if the spec
    is batch_first, [T, I], or [N, I] with batch_sizes [T].

    Raises:
        ValueError: lengths or resets that do not fit, or cell states of a layer that has none
    """
    if return_cell_states:
        if cell_of(spec).states != 2 or cell_of(spec).memories != 1:
            raise ValueError("return_cell_states needs an LSTM: other layers have no such states")
        spec |= CELL_STATES
    if resets is not None:
        check_resets(resets, x)
    if lengths is None:
        return spec, batch_sizes
    if batch_sizes is not None:
        raise ValueError("a PackedSequence has lengths of its own, so it does not go with lengths")
    batched = x.dim() == 3
    batch, time = (0, 1) if batched and spec & BATCH_FIRST else (1, 0)
    return spec | RAGGED, _checked_lengths(
        lengths, x.shape[batch : batch + 1] if batched else (), x.shape[time]
    )


def check_resets(resets: Any, x: Tensor) -> None:
    """A ValueError unless they mark steps of x [..., I]."""
    shape = x.shape[:-1]
    if (
        not isinstance(resets, Tensor)
        or resets.dtype != torch.bool
        or resets.shape != shape
        or resets.device != x.device
    ):
        raise ValueError(
            f"resets must be a bool tensor {list(shape)} on {x.device}, got {_described(resets)}"
        )


def _checked_lengths(lengths: Any, shape: tuple[int, ...], time: int) -> Tensor:
    """They, on the CPU. The ops check values that cannot be seen here."""
    if isinstance(lengths, Tensor) and lengths.dtype == torch.int64 and lengths.shape == shape:
        near: Tensor = lengths if lengths.is_cpu or lengths.is_meta else lengths.cpu()
        hidden = torch.compiler.is_compiling() or is_transformed() or isinstance(near, FakeTensor)
        if hidden or near.is_meta or not near.numel():
            return near
        low, high = map(int, near.aminmax())
        if low >= 1 and high <= time:
            return near
        found = f"values from {low} to {high}"
    else:
        found = _described(lengths)
    raise ValueError(f"lengths must be an int64 tensor {list(shape)} of values from 1 to {time}, got {found}")


def _described(given: Any) -> str:
    if not isinstance(given, Tensor):
        return type(given).__name__
    return f"{list(given.shape)} of {given.dtype} on {given.device}"
