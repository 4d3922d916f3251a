"""Training that keeps no activations of a layer but its outputs, and computes the rest again for the backward pass.

Time is cut into about sqrt(T) chunks (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost"): between the
passes only the states at their ends are kept, and in the backward pass the activations of one chunk at a time. Chunks
of bfloat16 and float16 layers compute in float32, and so are the states between them and the sums of their gradients:
results are rounded once.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastrnn import _ops, _spec
from fastrnn._ops import Call, is_packed

_SHORTEST = 16  # steps of a chunk: each packs the weights again


class Chunk:
    """Some steps of a sequence: which part of its tensors belongs to them, and how many rows they begin with."""

    def __init__(self, call: Call, first: int, last: int, first_row: int, time_dim: int) -> None:
        self._steps = slice(first, last)
        sizes = call.batch_sizes
        if sizes is not None and is_packed(call.spec, sizes):
            self.batch_sizes: Tensor | None = sizes[first:last]
            self._dim, self._first, self._length = 0, first_row, int(self.batch_sizes.sum())
            self.batch: int | None = int(self.batch_sizes[0])
        else:
            # rows that have ended go through the other chunks with no step
            self.batch_sizes = None if sizes is None else (sizes - first).clamp(0, last - first)
            self._dim, self._first, self._length = time_dim, first, last - first
            self.batch = None

    def of(self, sequence: Tensor) -> Tensor:
        return sequence.narrow(self._dim, self._first, self._length)

    def of_operand(self, operand: Tensor) -> Tensor:
        """Of an operand [H], [B, H] or [T, B, H] the steps and rows of the chunk."""
        if operand.dim() == 3:
            operand = operand[self._steps]
        return operand if operand.dim() == 1 or self.batch is None else operand[..., : self.batch, :]

    def rows(self, state: Tensor) -> Tensor:
        """Of a state [D, B, R] the rows that the chunk begins with."""
        return state if self.batch is None else state[:, : self.batch]


def chunks_of(call: Call) -> list[Chunk]:
    """In the order of time; a bidirectional layer reads its input from both ends, so that is one chunk."""
    spec, x, batch_sizes = call.spec, call.x, call.batch_sizes
    packed_sizes = batch_sizes if is_packed(spec, batch_sizes) else None
    time_dim = 1 if spec & _spec.BATCH_FIRST and packed_sizes is None else 0
    time = x.shape[time_dim] if packed_sizes is None else len(packed_sizes)
    bidirectional = spec & _spec.BIDIRECTIONAL
    count = 1 if bidirectional else max(1, min(math.isqrt(time), time // _SHORTEST))
    chunks, row = [], 0
    for index in range(count):
        first, last = time * index // count, time * (index + 1) // count
        chunks.append(Chunk(call, first, last, row, time_dim))
        if packed_sizes is not None:
            row += int(packed_sizes[first:last].sum())
    return chunks


def forward_in_chunks(call: Call) -> tuple[tuple[Tensor, ...], list[Tensor]]:
    """(y, *final_states, *cell_states), and the states that the chunks but the first begin with."""
    chunks = chunks_of(call)
    if len(chunks) == 1:
        return tuple(_ops.forward(*call, False)), []
    x, wide, count = call.x, _widened(call), _spec.cell_of(call.spec).states
    sequences: list[Tensor] = []  # y and the cell states
    finals: list[Tensor] = []
    kept: list[Tensor] = []
    states = wide.states
    for index, chunk in enumerate(chunks):
        y, *rest = _ops.forward(*_part(wide, x, chunk, states), False)
        made, last = [y, *rest[count:]], rest[:count]
        if index == 0:
            sequences = [x.new_empty((*x.shape[:-1], part.shape[-1])) for part in made]
            finals = [state.clone() for state in last]
        for sequence, part in zip(sequences, made, strict=True):
            chunk.of(sequence).copy_(part)
        for final, state in zip(finals, last, strict=True):
            chunk.rows(final).copy_(state)
        if index + 1 < len(chunks):
            states = [chunks[index + 1].rows(state).contiguous() for state in last]
            kept += states
    y, *cell_states = sequences
    return (y, *(final.to(x.dtype) for final in finals), *cell_states), kept


def backward_in_chunks(
    call: Call, kept: Sequence[Tensor], d_outputs: Sequence[Tensor | None], needs: int
) -> tuple[Tensor, ...]:
    """(d_x, *d_states, *d_weights, *d_operands), with shape [0] where they are not needed."""
    chunks = chunks_of(call)
    if len(chunks) == 1:
        y, *_, reserve = _ops.forward(*call, True)
        return tuple(_ops.backward(call, y, reserve, d_outputs, needs))
    x, wide, count = call.x, _widened(call), _spec.cell_of(call.spec).states
    d_y, d_finals, d_cell_states = d_outputs[0], d_outputs[1 : 1 + count], d_outputs[1 + count :]
    d_x = x.new_empty(x.shape if needs & _spec.NEEDS_X else (0,))
    d_states: Sequence[Tensor | None] = [None] * count
    totals: list[Tensor] = []
    for index in range(len(chunks) - 1, -1, -1):
        chunk = chunks[index]
        states = wide.states if index == 0 else kept[(index - 1) * count : index * count]
        part = _part(wide, x, chunk, states)
        d_ends = [_joined(chunk, after, final) for after, final in zip(d_states, d_finals, strict=True)]
        d_sequences = [None if d is None else chunk.of(d) for d in (d_y, *d_cell_states)]
        d_chunk = (d_sequences[0], *d_ends, *d_sequences[1:])
        y, *_, reserve = _ops.forward(*part, True)
        d_x_part, *rest = _ops.backward(
            part,
            y,
            reserve,
            [None if d is None else d.to(part.x.dtype) for d in d_chunk],
            needs | (_spec.NEEDS_STATES if index > 0 else 0),
        )
        if needs & _spec.NEEDS_X:
            chunk.of(d_x).copy_(d_x_part)
        d_states, d_rest = rest[: len(states)], rest[len(states) :]
        if not totals:
            totals = d_rest
        else:
            for total, d in zip(totals, d_rest, strict=True):
                total.add_(d)
    return d_x, *(d.to(x.dtype) for d in (*d_states, *totals) if d is not None)


_WIDE = {torch.bfloat16: torch.float32, torch.float16: torch.float32}


def _widened(call: Call) -> Call:
    """The call with all its tensors but x in the type that the chunks compute in."""
    if call.x.dtype not in _WIDE:
        return call
    lists = ([t.to(torch.float32) for t in some] for some in (call.states, call.weights, call.operands))
    states, weights, operands = lists
    return call._replace(states=states, weights=weights, operands=operands)


def _part(wide: Call, x: Tensor, chunk: Chunk, states: Sequence[Tensor]) -> Call:
    """The call of a chunk."""
    part = chunk.of(x)
    operands = [chunk.of_operand(operand) for operand in wide.operands]
    return wide._replace(
        x=part.to(_WIDE.get(x.dtype, x.dtype)),
        states=states,
        batch_sizes=chunk.batch_sizes,
        operands=operands,
        resets=None if wide.resets is None else chunk.of(wide.resets),
    )


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
