"""Training that keeps no activations of a layer but its outputs, and computes the rest again for the backward pass.

Time is cut into about sqrt(T) chunks (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"): between the
passes only the states at their ends are kept, and in the backward pass the activations of one chunk at a time.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastrnn import _ops
from fastrnn._ops import STATES, Options, State

_SHORTEST = 16  # steps of a chunk: each packs the weights again


class Chunk:
    """Some steps of a sequence: which part of its tensors belongs to them, and how many rows they begin with."""

    def __init__(
        self, first: int, last: int, batch_sizes: Tensor | None, first_row: int, time_dim: int
    ) -> None:
        self.batch_sizes = None if batch_sizes is None else batch_sizes[first:last]
        if self.batch_sizes is None:
            self._dim, self._first, self._length = time_dim, first, last - first
            self.batch = None
        else:
            self._dim, self._first, self._length = 0, first_row, int(self.batch_sizes.sum())
            self.batch = int(self.batch_sizes[0])

    def of(self, sequence: Tensor) -> Tensor:
        return sequence.narrow(self._dim, self._first, self._length)

    def rows(self, state: Tensor) -> Tensor:
        """Of a state [D, B, R] the rows that the chunk begins with."""
        return state if self.batch is None else state[:, : self.batch]


def chunks_of(x: Tensor, batch_sizes: Tensor | None, options: Options) -> list[Chunk]:
    """In the order of time; a bidirectional layer reads its input from both ends, so that is one chunk."""
    _, batch_first, bidirectional, *_ = options
    time_dim = 1 if batch_first and batch_sizes is None else 0
    time = x.shape[time_dim] if batch_sizes is None else len(batch_sizes)
    count = 1 if bidirectional else max(1, min(math.isqrt(time), time // _SHORTEST))
    chunks, row = [], 0
    for index in range(count):
        first, last = time * index // count, time * (index + 1) // count
        chunks.append(Chunk(first, last, batch_sizes, row, time_dim))
        if batch_sizes is not None:
            row += int(batch_sizes[first:last].sum())
    return chunks


def forward_in_chunks(
    cell: str,
    x: Tensor,
    states: Sequence[State],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    options: Options,
) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """(y, *final_states), and the states that the chunks but the first begin with."""
    chunks = chunks_of(x, batch_sizes, options)
    if len(chunks) == 1:
        return _ops.forward(cell, x, states, weights, batch_sizes, options, False)[:-1], []
    y = x.new_empty((*x.shape[:-1], weights[1].shape[1]))
    finals: list[Tensor] = []
    kept: list[Tensor] = []
    for index, chunk in enumerate(chunks):
        y_chunk, *last, _ = _ops.forward(
            cell, chunk.of(x), states, weights, chunk.batch_sizes, options, False
        )
        chunk.of(y).copy_(y_chunk)
        if index == 0:
            finals = [state.clone() for state in last]
        for final, state in zip(finals, last, strict=True):
            chunk.rows(final).copy_(state)
        if index + 1 < len(chunks):
            starts = [chunks[index + 1].rows(state).contiguous() for state in last]
            kept += starts
            states = starts
    return (y, *finals), kept


def backward_in_chunks(
    cell: str,
    d_outputs: Sequence[Tensor | None],
    x: Tensor,
    states: Sequence[State],
    kept: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    options: Options,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, ...]:
    """(d_x, *d_states, *d_weights), with shape [0] where they are not needed."""
    count = STATES[cell]
    needs_x, needs_state, needs_weights = needs
    chunks = chunks_of(x, batch_sizes, options)
    d_y, *d_finals = d_outputs
    d_x = x.new_empty(x.shape if needs_x and len(chunks) > 1 else (0,))
    d_states: Sequence[Tensor | None] = [None] * count
    d_weights: Sequence[Tensor] = []
    for index in range(len(chunks) - 1, -1, -1):
        chunk = chunks[index]
        start = states if index == 0 else kept[(index - 1) * count : index * count]
        d_ends = [_joined(chunk, after, final) for after, final in zip(d_states, d_finals, strict=True)]
        y, *_, reserve = _ops.forward(cell, chunk.of(x), start, weights, chunk.batch_sizes, options, True)
        d_x_chunk, *rest = _ops.backward(
            cell,
            (None if d_y is None else chunk.of(d_y), *d_ends),
            chunk.of(x),
            start,
            weights,
            chunk.batch_sizes,
            y,
            reserve,
            options,
            (needs_x, needs_state or index > 0, needs_weights),
        )
        if len(chunks) == 1:
            return d_x_chunk, *rest
        if needs_x:
            chunk.of(d_x).copy_(d_x_chunk)
        d_states = rest[:count]
        if not d_weights:
            d_weights = rest[count:]
        else:
            for total, part in zip(d_weights, rest[count:], strict=True):
                total.add_(part)
    return d_x, *(d for d in d_states if d is not None), *d_weights


def _joined(chunk: Chunk, after: Tensor | None, final: Tensor | None) -> Tensor | None:
    """The gradient of a chunk's final states: of rows that go on, from the chunk after it; of others, their own."""
    if after is None:
        return None if final is None else chunk.rows(final)
    alive = after.shape[1]
    if chunk.batch is None or chunk.batch == alive:
        return after
    ended = after.new_zeros(1, chunk.batch - alive, after.shape[2])
    if final is not None:
        ended = final[:, alive : chunk.batch]
    return torch.cat([after, ended], 1)
