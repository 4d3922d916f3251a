"""The functions beneath the modules: their arguments, their defaults, and weights that are no Parameters."""

import inspect
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastrnn import functional
from helpers import CELLS, F64, Case, fast_module, make_inputs, pack, torch_module


def _call(case: Case, x: Tensor, state: Any, weights: list[Tensor], **options: Any) -> tuple[Tensor, ...]:
    if case.kind == "rnn":
        options["nonlinearity"] = case.cell.removeprefix("rnn_")
    return getattr(functional, case.kind)(x, state, weights, **options)


CASES = [
    Case(cell, layers=layers, bidirectional=bi, bias=bias, batch_first=first, layout=layout, state=state)
    for cell, layers, (bi, bias, first, layout, state) in product(
        CELLS,
        (1, 3),
        [
            (False, True, False, "padded", True),
            (True, False, True, "padded", False),
            (True, True, False, "packed", True),
            (False, True, False, "packed", False),
        ],
    )
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equal_to_the_torch_module(case: Case) -> None:
    module, inputs = torch_module(case), make_inputs(case)
    x = pack(inputs.x, inputs.lengths, case.batch_first)
    packed = isinstance(x, PackedSequence)
    found = _call(
        case,
        x.data if packed else x,
        inputs.state(),
        list(module.parameters()),
        batch_sizes=x.batch_sizes if packed else None,
        has_biases=case.bias,
        num_layers=case.layers,
        bidirectional=case.bidirectional,
        batch_first=case.batch_first,
    )
    y, state = module(x, inputs.state())
    expected = (y.data if packed else y, *(state if isinstance(state, tuple) else (state,)))
    assert len(found) == len(expected)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_defaults_are_torchs() -> None:
    for name in ("lstm", "gru", "rnn"):
        parameters = inspect.signature(getattr(functional, name)).parameters
        defaults = {key: p.default for key, p in parameters.items() if p.default is not p.empty}
        expected = {"num_layers": 1, "dropout": 0.0, "bidirectional": False, "batch_first": False}
        assert expected.items() <= defaults.items()
        assert defaults["has_biases"] is True
    assert inspect.signature(functional.gru).parameters["reset_after"].default is True


def test_options_reach_the_cell() -> None:
    for cell, options in (("lstm", {"activation": "relu"}), ("gru", {"reset_after": False})):
        case = Case(cell, **options)
        module, x = fast_module(case), make_inputs(case).x
        weights = list(module.parameters())
        found = getattr(functional, cell)(x, None, weights, **options)[0]
        assert torch.equal(found, module(x)[0])
        assert not torch.allclose(found, getattr(functional, cell)(x, None, weights)[0])


def test_gradient_reaches_weights_that_are_no_parameters() -> None:
    case = Case("gru")
    base = [p.detach().clone().requires_grad_() for p in torch_module(case).parameters()]
    x = make_inputs(case).x
    y = functional.gru(x, None, [w * 2 for w in base])[0]
    found = torch.autograd.grad(y.sum(), base)
    doubled = [(w * 2).detach().requires_grad_() for w in base]
    expected = torch.autograd.grad(functional.gru(x, None, doubled)[0].sum(), doubled)
    torch.testing.assert_close(found, tuple(2 * g for g in expected), rtol=1e-12, atol=1e-12)


def test_dropout_only_in_training() -> None:
    case = Case("lstm", layers=2)
    weights, x = list(torch_module(case).parameters()), make_inputs(case).x
    plain = functional.lstm(x, None, weights, num_layers=2)[0]
    still = functional.lstm(x, None, weights, num_layers=2, dropout=0.5)[0]
    assert torch.equal(still, plain)
    dropped = functional.lstm(x, None, weights, num_layers=2, dropout=0.5, training=True)[0]
    assert (dropped - plain).abs().max() > 1e-4
    assert dropped.dtype == F64


@pytest.mark.parametrize("recompute", [False, True], ids=["plain", "recompute"])
@pytest.mark.parametrize("state", [True, False], ids=["state", "nostate"])
@pytest.mark.parametrize("first", [False, True], ids=["tbi", "bti"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("cell", CELLS)
def test_an_unbatched_sequence(cell: str, layers: int, first: bool, state: bool, recompute: bool) -> None:
    """x [T, I] is one sequence of T steps, as in torch.nn, and no step of T rows."""
    case = Case(
        cell, layers=layers, bidirectional=True, batch_first=first, layout="unbatched", state=state, time=40
    )
    module, inputs = torch_module(case), make_inputs(case)
    options = {"num_layers": layers, "bidirectional": True, "batch_first": first, "recompute": recompute}
    found = _call(case, inputs.x, inputs.state(), list(module.parameters()), **options)
    y, final = module(inputs.x, inputs.state())
    expected = (y, *(final if isinstance(final, tuple) else (final,)))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
