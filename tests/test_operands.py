"""What the ops and the modules refuse of a cell's operands, before a kernel reads anything."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import fastrnn
from fastrnn import _spec, functional

HIDDEN, TIME, BATCH = 16, 5, 3


def call(operands: list[Tensor], *, bidirectional: bool = False, projection: int = 0) -> Any:
    """layer_forward of the LSTM with all options."""
    spec = _spec.LSTM.spec(("tanh", "sigmoid", False, False), False, False, bidirectional, general=True)
    weights = [torch.randn(4 * HIDDEN, 2), torch.randn(4 * HIDDEN, projection or HIDDEN)]
    weights += [torch.randn(projection, HIDDEN)] if projection else []
    x = torch.randn(TIME, BATCH, 2)
    return torch.ops.fastrnn.layer_forward(
        x, [], weights * (2 if bidirectional else 1), None, operands, spec, False
    )


def absent() -> Tensor:
    return torch.empty(0)


def values(place: int, *shape: int) -> list[Tensor]:
    """One direction's operands of which those at a place from 0 to 5 are there; -1: none."""
    found = [absent() for _ in range(6)]
    for index in range(3) if place == 0 else [place][: place + 1]:
        found[index] = torch.full(shape or (HIDDEN,), 0.5)
    return found


@pytest.mark.parametrize("place", [0, 3, 4, 5])
@pytest.mark.parametrize("first", [True, False])
def test_directions_take_the_same(place: int, first: bool) -> None:
    given = values(place) + values(-1) if first else values(-1) + values(place)
    with pytest.raises(RuntimeError, match="both directions take the same operands"):
        call(given, bidirectional=True)
    assert len(call(values(place) + values(place), bidirectional=True)) == 3


@pytest.mark.parametrize("shape", [(HIDDEN,), (BATCH, HIDDEN), (TIME, BATCH, HIDDEN)], ids=str)
def test_zoneout_of_h_goes_with_no_projection(shape: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeError, match="zoneout of h does not go with a projection"):
        call(values(3, *shape), projection=2)
    call(values(4, *shape), projection=2)
    call(values(3, *shape))


@pytest.mark.parametrize(("layers", "bidirectional"), [(1, False), (2, False), (1, True), (2, True)])
def test_functional_refuses_it_for_any_stack(layers: int, bidirectional: bool) -> None:
    module = fastrnn.LSTM(3, 16, layers, proj_size=4, bidirectional=bidirectional)
    options: dict[str, Any] = {"num_layers": layers, "bidirectional": bidirectional}
    weights = [p.detach() for p in module.parameters()]
    with pytest.raises(ValueError, match="which a projection has none of"):
        functional.lstm(torch.randn(5, 2, 3), None, weights, zoneout=0.5, **options)
    functional.lstm(torch.randn(5, 2, 3), None, weights, zoneout=(0.0, 0.5), **options)


def test_functional_needs_the_peepholes() -> None:
    weights = [p.detach() for p in fastrnn.LSTM(3, 16, 2).parameters()]
    with pytest.raises(ValueError, match="expected 2, got 0"):
        functional.lstm(torch.randn(5, 2, 3), None, weights, num_layers=2, peephole=True)


@pytest.mark.parametrize(
    ("built", "changed", "sentence"),
    [
        ({"proj_size": 4}, {"zoneout": 0.5}, "which a projection has none of"),
        ({"layer_norm": True}, {"cell_clip": 0.1}, "does not go with cell_clip"),
        ({}, {"peephole": True}, "given to the constructor"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, dict) else "",
)
def test_options_that_are_changed_are_checked(
    built: dict[str, Any], changed: dict[str, Any], sentence: str
) -> None:
    module = fastrnn.LSTM(3, 16, **built)
    for name, value in changed.items():
        setattr(module, name, value)
    with pytest.raises(ValueError, match=sentence):
        module(torch.randn(5, 2, 3))


@pytest.mark.parametrize("name", ["SLSTM", "IndRNN", "MinGRU", "MinLSTM"])
def test_a_sequence_has_steps(name: str) -> None:
    with pytest.raises(RuntimeError, match="Expected sequence length to be larger than 0"):
        getattr(fastrnn, name)(3, 16)(torch.randn(0, 2, 3))


@pytest.mark.parametrize("name", ["IndRNN", "MinGRU", "MinLSTM"])
def test_autocast_does_not_ask_for_biases(name: str) -> None:
    kinds = []
    for bias in (True, False):
        with torch.autocast("cpu", torch.bfloat16):
            y, h_n = getattr(fastrnn, name)(3, 16, bias=bias)(torch.randn(4, 2, 3))
        kinds.append((y.dtype, h_n.dtype))
    assert kinds == [(torch.bfloat16, torch.bfloat16)] * 2


def test_states_are_tensors() -> None:
    zeros = torch.zeros(1, 2, 16)
    with pytest.raises(TypeError, match="h_0, c_0, n_0, m_0"):
        fastrnn.SLSTM(3, 16)(torch.randn(4, 2, 3), (None, zeros, zeros, zeros))
