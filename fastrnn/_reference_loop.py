"""The loop of the specification: directions, time, and where rows end and are cut; :mod:`fastrnn.reference` has the
steps."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Rows(NamedTuple):
    """Where the rows of a layer's sequence end and are cut, and whether c is returned for every step.

    lengths, int64 [B], are those of the rows of an x that is not packed: y is zero behind a row's end, its final state
    is the one there, and the reverse direction begins there. resets, bool, have x's shape without I: a row is cut
    before each step where they are true, and the piece that begins there begins with a state of zeros, at the first
    step too. The reverse direction runs from a cut's other side: h0 enters the last piece, the pieces before it begin
    with zeros, and h_n is the state after the first one.
    """

    lengths: Tensor | None = None
    resets: Tensor | None = None
    cell_states: bool = False


WHOLE = Rows()

# w_ih, w_hh, b_ih, b_hh, w_hr, and the operands
Direction = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Sequence[Tensor]]


def directions_of(
    weights: Sequence[Tensor],
    operands: Sequence[Tensor],
    has_biases: bool,
    bidirectional: bool,
    recurrent: bool = True,
) -> list[Direction]:
    """(w_ih, w_hh, b_ih, b_hh, w_hr, operands) of each direction, with None for what is absent: w_hh and b_hh where the
    cell is not recurrent."""
    count = 2 if bidirectional else 1
    found: list[Direction] = []
    for index in range(count):
        part, own = (
            tensors[len(tensors) * index // count : len(tensors) * (index + 1) // count]
            for tensors in (weights, operands)
        )
        if not recurrent:
            found.append((part[0], None, part[1] if has_biases else None, None, None, own))
            continue
        w_ih, w_hh, *rest = part
        b_ih, b_hh = (rest[0], rest[1]) if has_biases else (None, None)
        w_hr = rest[-1] if len(rest) % 2 else None
        found.append((w_ih, w_hh, b_ih, b_hh, w_hr, own))
    return found


def run_loop(
    step: Callable[..., tuple[Tensor, ...]],
    x: Tensor,
    initial: tuple[Tensor | None, ...],
    sizes: tuple[int, ...],
    directions: list[Direction],
    batch_sizes: Tensor | None,
    batch_first: bool,
    masks: Sequence[Tensor],
    rows: Rows,
) -> tuple[Tensor, ...]:
    """y and the final states, and the last state of every step where rows ask for it; rows of a sequence that have
    ended keep their state."""
    time_dim = 1 if batch_first and batch_sizes is None else 0

    def split(sequence: Tensor) -> list[Tensor]:
        if batch_sizes is None:
            return list(sequence.unbind(time_dim))
        return list(torch.split(sequence, batch_sizes.tolist()))

    def join(steps: Sequence[Tensor]) -> Tensor:
        return torch.stack(tuple(steps), time_dim) if batch_sizes is None else torch.cat(tuple(steps))

    steps = split(x)
    cuts = None if rows.resets is None else split(rows.resets)
    batch, time = steps[0].shape[0], len(steps)
    going_on: list[Tensor] | None = None
    if rows.lengths is not None:
        ends = rows.lengths.to(x.device)
        going_on = [t < ends for t in range(time)]
        steps = [torch.where(on[:, None], row, 0.0) for on, row in zip(going_on, steps, strict=True)]
    sequences, finals = [], []
    for direction, weights in enumerate(directions):
        state = tuple(
            x.new_zeros(batch, size) if start is None else start[direction]
            for start, size in zip(initial, sizes, strict=True)
        )
        made: list[tuple[Tensor, ...]] = []
        for t in reversed(range(time)) if direction else range(time):
            active = steps[t].shape[0]
            start = tuple(s[:active] for s in state)
            if cuts is not None and (not direction or t + 1 < time):
                start = _cut(start, cuts, going_on, t + direction)
            mask = masks[direction][:active] if masks else None
            own = (*weights[:-1], [_at(operand, t, active) for operand in weights[-1]])
            new = step(steps[t], *start, own, mask)
            state = tuple(
                torch.cat((n if going_on is None else torch.where(going_on[t][:, None], n, s), s[active:]))
                for n, s in zip(new, state, strict=True)
            )
            out = new[:2] if rows.cell_states else (new[0],)
            if going_on is not None:
                out = tuple(torch.where(going_on[t][:, None], o, 0.0) for o in out)
            made.append(out)
        sequences.append(made[::-1] if direction else made)
        finals.append(state)
    # of each direction, step and output -> of each output, joined over directions, then over steps
    of_steps = zip(*sequences, strict=True)
    joined = ([torch.cat(parts, -1) for parts in zip(*outs, strict=True)] for outs in of_steps)
    y, *cell_states = (join(of_output) for of_output in zip(*joined, strict=True))
    return y, *(torch.stack(parts) for parts in zip(*finals, strict=True)), *cell_states


def _at(operand: Tensor, t: int, rows: int) -> Tensor | None:
    """Of an operand [H], [B, H] or [T, B, H] that of the first rows at a time; None of one that is absent."""
    if operand.dim() == 3:
        operand = operand[t]
    if operand.dim() == 2:
        return operand[:rows]
    return operand if operand.numel() else None


def _cut(
    state: tuple[Tensor, ...], cuts: Sequence[Tensor], going_on: Sequence[Tensor] | None, t: int
) -> tuple[Tensor, ...]:
    """The state with zeros in the rows that are cut before time t, of those that are still there then."""
    cut = cuts[t] if going_on is None else cuts[t] & going_on[t]
    there = cut.shape[0]
    return tuple(torch.cat((torch.where(cut[:, None], 0.0, s[:there]), s[there:])) for s in state)
