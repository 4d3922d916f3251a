"""First and second derivatives against finite differences."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from fastrnn._spec import ACTIVATIONS
from helpers import (
    CELLS,
    F64,
    Case,
    assert_same,
    fast_cell_pair,
    fast_module,
    flat_outputs,
    make_inputs,
    module_pair,
    pack,
)

SMALL = {"batch": 2, "time": 3, "input": 2, "hidden": 3}


def _cases() -> list[Case]:
    plain = [
        Case(cell, bidirectional=bi, layout=layout, **SMALL)
        for cell, bi, layout in product(CELLS, (False, True), ("padded", "unsorted"))
    ]
    shapes = [Case(cell, layers=2, batch_first=True, bias=False, **SMALL) for cell in CELLS]
    lstm = [Case("lstm", activation=a, **SMALL) for a in ACTIVATIONS[1:]]
    gru = [
        Case("gru", activation=a, reset_after=r, layout=layout, **SMALL)
        for a, r, layout in product(ACTIVATIONS, (True, False), ("padded", "packed"))
        if not (r and a == "tanh")
    ]
    before = [Case("gru", reset_after=False, bidirectional=True, bias=False, layers=2, **SMALL)]
    return plain + shapes + lstm + gru + before


def _function(module: nn.Module, case: Case, seed: int = 0) -> tuple[Any, dict[str, Tensor]]:
    """(f, leaves): f takes the leaves in order and gives (y, h_n[, c_n])."""
    inputs = make_inputs(case, seed)
    leaves = {"x": inputs.x, "h0": inputs.h0, "c0": inputs.c0}
    leaves = {name: value for name, value in leaves.items() if value is not None}
    count = len(leaves)
    names = [name for name, _ in module.named_parameters()]
    leaves |= {name: p.detach().clone() for name, p in module.named_parameters()}

    def f(*values: Tensor) -> tuple[Tensor, ...]:
        x, *states = values[:count]
        state = None if not states else states[0] if len(states) == 1 else tuple(states)
        weights = dict(zip(names, values[count:], strict=True))
        packed = pack(x, inputs.lengths, case.batch_first)
        return flat_outputs(functional_call(module, weights, (packed, state)))

    return f, leaves


@pytest.mark.parametrize("case", _cases(), ids=str)
def test_gradcheck(case: Case) -> None:
    f, leaves = _function(fast_module(case), case)
    assert torch.autograd.gradcheck(f, [v.requires_grad_() for v in leaves.values()])


@pytest.mark.parametrize("case", _cases(), ids=str)
def test_gradgradcheck(case: Case) -> None:
    f, leaves = _function(fast_module(case), case)
    assert torch.autograd.gradgradcheck(f, [v.requires_grad_() for v in leaves.values()], fast_mode=True)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_gradgradcheck_in_full(cell: str) -> None:
    case = Case(cell, 1, 2, 1, 2)
    f, leaves = _function(fast_module(case), case)
    assert torch.autograd.gradgradcheck(f, [v.requires_grad_() for v in leaves.values()])


WANTED = ["x", "h0", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_ih_l1"]


@pytest.mark.parametrize("only", WANTED)
@pytest.mark.parametrize("cell", CELLS)
def test_gradient_for_one_leaf_alone(cell: str, only: str) -> None:
    """First and second derivative where all else is frozen."""
    case = Case(cell, layers=2, **SMALL)
    f, leaves = _function(fast_module(case), case)
    leaves[only].requires_grad_()
    assert torch.autograd.gradcheck(f, list(leaves.values()))
    assert torch.autograd.gradgradcheck(f, list(leaves.values()), fast_mode=True)


@pytest.mark.parametrize("only", ["c0", "weight_hr_l0", "weight_hr_l1"])
def test_gradient_for_one_leaf_of_a_projected_lstm(only: str) -> None:
    case = Case("lstm_proj", layers=2, **SMALL)
    f, leaves = _function(fast_module(case), case)
    leaves[only].requires_grad_()
    assert torch.autograd.gradcheck(f, list(leaves.values()))
    assert torch.autograd.gradgradcheck(f, list(leaves.values()), fast_mode=True)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell-tanh", "RNNCell-relu"])
def test_cell_modules(name: str) -> None:
    module, _ = fast_cell_pair(name, 2, 3, dtype=F64)
    names = [key for key, _ in module.named_parameters()]
    count = 3 if name == "LSTMCell" else 2
    leaves = [torch.randn(2, n, dtype=F64) for n in (2, 3, 3)[:count]]
    leaves += [p.detach().clone() for p in module.parameters()]

    def f(*values: Tensor) -> Any:
        state = values[1] if count == 2 else values[1:3]
        weights = dict(zip(names, values[count:], strict=True))
        return functional_call(module, weights, (values[0], state))

    leaves = [leaf.requires_grad_() for leaf in leaves]
    assert torch.autograd.gradcheck(f, leaves)
    assert torch.autograd.gradgradcheck(f, leaves, fast_mode=True)


def _penalty(module: nn.Module, case: Case, feed: int) -> dict[str, Tensor]:
    """Gradients of a gradient penalty on x: what a WGAN trains with."""
    f, leaves = _function(module, case)
    leaves = {name: value.requires_grad_() for name, value in leaves.items()}
    output = f(*leaves.values())[feed]
    (d_x,) = torch.autograd.grad(output.square().sum(), leaves["x"], create_graph=True)
    loss = d_x.square().sum() + output.sum()
    found = torch.autograd.grad(loss, list(leaves.values()), materialize_grads=True)
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("layout", ["padded", "unsorted", "unbatched"])
@pytest.mark.parametrize("bi", [False, True], ids=["uni", "bi"])
@pytest.mark.parametrize("cell", CELLS)
def test_gradient_penalty_is_torchs(cell: str, bi: bool, layout: str) -> None:
    case = Case(cell, 3, 4, 3, 5, layers=2, bidirectional=bi, layout=layout)
    fast, plain = module_pair(case)
    for feed in range(len(case.outputs)):
        assert_same(_penalty(fast, case, feed), _penalty(plain, case, feed), rtol=1e-9, atol=1e-9)


def test_third_derivative() -> None:
    """The second backward is itself differentiable."""
    case = Case("gru", 2, 2, 2, 3)
    results = []
    for module in module_pair(case):
        f, leaves = _function(module, case)
        x = leaves["x"].requires_grad_()
        value = f(*leaves.values())[0].square().sum()
        for _ in range(2):
            (d_x,) = torch.autograd.grad(value, x, create_graph=True)
            value = d_x.square().sum()
        results.append(torch.autograd.grad(value, x)[0])
    torch.testing.assert_close(results[0], results[1], rtol=1e-9, atol=1e-9)
