"""Sequences cut by hand: each piece through a module of torch.nn by itself, and the results put together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from helpers import Case, Inputs, Results, cotangent, threads_for

Span = tuple[int, int]  # times first .. end


def spans(length: int, cuts: Tensor | None) -> list[Span]:
    """Of a row with marks [T]."""
    places = [] if cuts is None else [t for t in range(1, length) if cuts[t]]
    return list(zip([0, *places], [*places, length], strict=True))


def run_rows(
    module: nn.Module,
    case: Case,
    inputs: Inputs,
    lengths: Tensor | None,
    resets: Tensor | None,
    cell_states: bool = False,
) -> Results:
    """Outputs and all gradients of a fastrnn module; resets [B, T], inputs [B, T, I] or [T, B, I]. In packed cases
    lengths are those of the PackedSequence, and sequences come back padded."""
    leaves = _leaves(inputs)
    x, marks = leaves["x"], None if resets is None else resets if case.batch_first else resets.T
    state = _state(leaves)
    options: dict[str, Any] = {"return_cell_states": True} if cell_states else {}
    if case.layout == "unbatched":
        dim = 0 if case.batch_first else 1
        x, marks = x.squeeze(dim), None if marks is None else marks.squeeze(dim)
        lengths = None if lengths is None else lengths[0]
        state = (
            None
            if state is None
            else state[:, 0]
            if isinstance(state, Tensor)
            else tuple(s[:, 0] for s in state)
        )
    if case.packed:
        assert lengths is not None
        sequence: Any = pack_padded_sequence(x, lengths, batch_first=case.batch_first, enforce_sorted=False)
        if marks is not None:
            marks = pack_padded_sequence(
                marks, lengths, batch_first=case.batch_first, enforce_sorted=False
            ).data
        lengths = None
    else:
        sequence = x
    with threads_for(module):
        y, final, *cells = module(sequence, state, lengths=lengths, resets=marks, **options)
    sequences = [_padded(s, case) for s in (y, *cells)]
    finals = [
        s.unsqueeze(1) if case.layout == "unbatched" else s
        for s in ([final] if isinstance(final, Tensor) else final)
    ]
    return _results(leaves, module, sequences[0], finals, sequences[1:])


def _padded(sequence: Any, case: Case) -> Tensor:
    if isinstance(sequence, PackedSequence):
        found: Tensor = nn.utils.rnn.pad_packed_sequence(sequence, case.batch_first, total_length=case.time)[
            0
        ]
        return found
    assert isinstance(sequence, Tensor)
    return sequence.unsqueeze(0 if case.batch_first else 1) if case.layout == "unbatched" else sequence


def run_pieces(
    module: nn.Module,
    case: Case,
    inputs: Inputs,
    lengths: Tensor | None,
    resets: Tensor | None,
    cell_states: bool = False,
) -> Results:
    """What :func:`run_rows` is to return, of a torch.nn module."""
    leaves = _leaves(inputs)
    x = leaves["x"] if case.batch_first else leaves["x"].transpose(0, 1)
    states = [leaves[name] for name in ("h0", "c0") if name in leaves]
    ys, finals, cells = [], [], []
    for b in range(case.batch):
        length = case.time if lengths is None else int(lengths[b])
        cuts = None if resets is None else resets[b]
        start = [s[:, b : b + 1] for s in states]
        y, final, cell = _row(module, case, x[b, :length], start, cuts, cell_states)
        rest = (0, 0, 0, case.time - length)
        ys.append(nn.functional.pad(y, rest))
        cells += [nn.functional.pad(cell, rest)] if cell is not None else []
        finals.append(final)
    dim = 0 if case.batch_first else 1
    joined = [torch.cat(parts, 1) for parts in zip(*finals, strict=True)]
    return _results(leaves, module, torch.stack(ys, dim), joined, [torch.stack(cells, dim)] if cells else [])


def _row(
    module: nn.Module, case: Case, x: Tensor, start: list[Tensor], cuts: Tensor | None, cell_states: bool
) -> tuple[Tensor, list[Tensor], Tensor | None]:
    pieces = spans(len(x), cuts)
    ys, cells, ends = [], [], []
    for index, (first, end) in enumerate(pieces):
        # [L*D, 1, ..] with zeros where a direction does not begin the row
        keeps = [index == 0 and not (cuts is not None and cuts[0]), index + 1 == len(pieces)][
            : case.directions
        ]
        kept = torch.tensor(keeps * case.layers)[:, None, None]
        begin = [torch.where(kept, s, 0.0) for s in start]
        y, final = _call(module, x[first:end], begin)
        ys.append(y)
        ends.append(final)
        if cell_states:
            cells.append(_cell_states(module, case, x[first:end], begin))
    backwards = torch.tensor([False, True][: case.directions] * case.layers)[:, None, None]
    final = [torch.where(backwards, a, z) for a, z in zip(ends[0], ends[-1], strict=True)]
    return torch.cat(ys), final, torch.cat(cells) if cells else None


def _call(module: nn.Module, x: Tensor, states: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """One row [T, I] of a batch_first module or another."""
    hx = None if not states else states[0] if len(states) == 1 else tuple(states)
    dim = 0 if module.batch_first else 1
    y, final = module(x.unsqueeze(dim), hx)
    return y.squeeze(dim), [final] if isinstance(final, Tensor) else list(final)


def _cell_states(module: nn.Module, case: Case, x: Tensor, states: list[Tensor]) -> Tensor:
    """c after every step of the last layer: the c_n of each beginning, and of each end for the other direction."""
    assert case.layers == 1 or not case.bidirectional
    found = [
        torch.stack([_call(module, x[: t + 1], states)[1][1][-case.directions, 0] for t in range(len(x))])
    ]
    if case.bidirectional:
        found.append(torch.stack([_call(module, x[t:], states)[1][1][-1, 0] for t in range(len(x))]))
    return torch.cat(found, -1)


def _leaves(inputs: Inputs) -> dict[str, Tensor]:
    given = {"x": inputs.x, "h0": inputs.h0, "c0": inputs.c0}
    return {k: v.detach().clone().requires_grad_() for k, v in given.items() if v is not None}


def _state(leaves: dict[str, Tensor]) -> Any:
    if "h0" not in leaves:
        return None
    return (leaves["h0"], leaves["c0"]) if "c0" in leaves else leaves["h0"]


def _results(
    leaves: dict[str, Tensor], module: nn.Module, y: Tensor, finals: list[Tensor], cells: list[Tensor]
) -> Results:
    found = (
        {"y": y}
        | dict(zip(("h_n", "c_n"), finals, strict=False))
        | dict(zip(("cells",), cells, strict=False))
    )
    targets = leaves | dict(module.named_parameters())
    gradients = torch.autograd.grad(
        list(found.values()),
        list(targets.values()),
        [cotangent(name, value) for name, value in found.items()],
        materialize_grads=True,
    )
    outputs = {name: value.detach() for name, value in found.items()}
    return outputs | {f"d_{name}": g for name, g in zip(targets, gradients, strict=True)}
