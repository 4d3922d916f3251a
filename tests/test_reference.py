"""The reference against torch.nn and formulas written another way; the fast modules against the reference."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fastrnn import reference
from fastrnn._spec import ACTIVATIONS
from helpers import (
    CELLS,
    F32,
    F64,
    LAYOUTS,
    Case,
    assert_same,
    fast_module,
    flat_outputs,
    make_inputs,
    pack,
    reference_forward,
    run,
    run_module,
    run_reference,
    torch_module,
)

PLAIN = [
    Case(cell, layout=layout, bidirectional=bi, layers=2, bias=bias)
    for cell, layout, bi, bias in product(CELLS, LAYOUTS, (False, True), (True, False))
]


@pytest.mark.parametrize("case", PLAIN, ids=str)
def test_reference_is_torch(case: Case) -> None:
    module = torch_module(case)
    inputs = make_inputs(case)
    assert_same(run_reference(module, case, inputs), run_module(module, case, inputs), rtol=1e-12, atol=1e-12)


FORMULAS = {
    "tanh": lambda v: 2 / (1 + torch.exp(-2 * v)) - 1,
    "softsign": functional.softsign,
    "relu": lambda v: (v + v.abs()) / 2,
    "hardtanh": functional.hardtanh,
    "sigmoid": lambda v: (torch.tanh(v / 2) + 1) / 2,
    "identity": lambda v: v,
    "silu": lambda v: v / (1 + torch.exp(-v)),
    "leaky_relu": lambda v: torch.maximum(v, v / 100),
    "hardsigmoid": lambda v: functional.relu6(v + 3) / 6,
    "onnx_hardsigmoid": lambda v: torch.clamp(0.2 * v + 0.5, 0, 1),
    "half_linear": lambda v: torch.relu(v) + 1 / (1 + torch.exp(torch.relu(-v))),
}


def _sigmoid(value: Tensor) -> Tensor:
    return (torch.tanh(value / 2) + 1) / 2


def _split(weights: list[Tensor], gates: int) -> list[list[Tensor]]:
    return [list(w.chunk(gates)) for w in weights]


def _lstm_by_hand(x: Tensor, h: Tensor, c: Tensor, weights: list[Tensor], activation: str) -> list[Tensor]:
    """One sample, one gate at a time: x [T, I], h [H], c [H]."""
    act = FORMULAS[activation]
    w, u, b, d = _split(weights, 4)
    ys = []
    for row in x:
        i, f, g, o = (w[k] @ row + b[k] + u[k] @ h + d[k] for k in range(4))
        c = _sigmoid(f) * c + _sigmoid(i) * act(g)
        h = _sigmoid(o) * act(c)
        ys.append(h)
    return [torch.stack(ys), h, c]


def _gru_by_hand(x: Tensor, h: Tensor, weights: list[Tensor], after: bool, activation: str) -> list[Tensor]:
    """One sample: Cho et al. 2014 where the reset gate acts before the product."""
    act = FORMULAS[activation]
    w, u, b, d = _split(weights, 3)
    ys = []
    for row in x:
        r = _sigmoid(w[0] @ row + b[0] + u[0] @ h + d[0])
        z = _sigmoid(w[1] @ row + b[1] + u[1] @ h + d[1])
        recurrent = r * (u[2] @ h + d[2]) if after else u[2] @ (r * h) + d[2]
        h = h + (1 - z) * (act(w[2] @ row + b[2] + recurrent) - h)
        ys.append(h)
    return [torch.stack(ys), h]


def _by_hand(x: Tensor, state: tuple[Tensor, ...], weights: list[Tensor], case: Case) -> list[Tensor]:
    samples = []
    for row in range(x.shape[1]):
        start = [s[0, row] for s in state]
        if case.kind == "lstm":
            samples.append(_lstm_by_hand(x[:, row], *start, weights, case.activation))
        else:
            samples.append(_gru_by_hand(x[:, row], *start, weights, case.reset_after, case.activation))
    y, *ends = zip(*samples, strict=True)
    return [torch.stack(y, 1), *(torch.stack(end)[None] for end in ends)]


def _options() -> list[Case]:
    """Every option that torch.nn lacks, and the defaults beside them."""
    lstm = [Case("lstm", activation=a) for a in ACTIVATIONS]
    gru = [Case("gru", activation=a, reset_after=r) for a in ACTIVATIONS for r in (True, False)]
    return lstm + gru


OPTIONS = _options()
PROJECTED = [Case("lstm_proj", activation=a) for a in ACTIVATIONS]


@pytest.mark.parametrize("case", OPTIONS, ids=str)
def test_reference_is_the_formula(case: Case) -> None:
    module = torch_module(case)
    inputs = make_inputs(case)
    weights = list(module.parameters())

    def forward(x: Tensor, state: Any) -> Any:
        states = state if isinstance(state, tuple) else (state,)
        y, *ends = _by_hand(x, states, weights, case)
        return y, tuple(ends) if case.kind == "lstm" else ends[0]

    expected = run(forward, module.named_parameters(), inputs)
    assert_same(run_reference(module, case, inputs), expected, rtol=1e-12, atol=1e-12)


def test_reset_before_differs_from_reset_after() -> None:
    case = Case("gru")
    module, inputs = torch_module(case), make_inputs(case)
    after = run_reference(module, case, inputs)["y"]
    before = run_reference(module, case.but(reset_after=False), inputs)["y"]
    assert (after - before).abs().max() > 1e-3


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_one_step(activation: str) -> None:
    x, h, c = (torch.randn(2, n, dtype=F64) for n in (3, 4, 4))
    for case in (Case("lstm"), Case("gru"), Case("gru", reset_after=False)):
        case = case.but(batch=2, time=1, input=3, hidden=4, activation=activation)
        weights = list(torch_module(case).parameters())
        states = (h, c) if case.kind == "lstm" else (h,)
        if case.kind == "lstm":
            found = reference.lstm_step(x, h, c, *weights, activation=activation)
        else:
            found = (reference.gru_step(x, h, *weights, case.reset_after, activation),)
        _, *expected = _by_hand(x[None], tuple(s[None] for s in states), weights, case)
        torch.testing.assert_close(list(found), [e[0] for e in expected], rtol=1e-12, atol=1e-12)


def _fast() -> list[Case]:
    found = []
    for case, layout, bi in product([*OPTIONS, *PROJECTED], LAYOUTS, (False, True)):
        found.append(case.but(layout=layout, bidirectional=bi, layers=2 if bi else 1, hidden=19))
    return found


@pytest.mark.parametrize("case", _fast(), ids=str)
def test_fast_is_reference(case: Case) -> None:
    module = fast_module(case)
    inputs = make_inputs(case)
    actual = run_module(module, case, inputs)
    assert_same(actual, run_reference(module, case, inputs), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", [c for c in [*OPTIONS, *PROJECTED] if not c.plain], ids=str)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
def test_fast_is_reference_in_float32(case: Case, bias: bool) -> None:
    case = case.but(dtype=F32, bias=bias, batch=6, time=9, input=11, hidden=37, state=bias)
    module = fast_module(case)
    inputs = make_inputs(case)
    wide = fast_module(case.but(dtype=F64))
    wide.load_state_dict(module.state_dict())
    exact = run_reference(wide, case.but(dtype=F64), inputs.to(F64))
    for name, value in run_module(module, case, inputs).items():
        scale = max(1.0, float(exact[name].abs().max()))
        error = float((value.double() - exact[name]).abs().max())
        assert error <= 2e-6 * scale, f"{name}: {error:.3g} at a scale of {scale:.3g}"


@pytest.mark.parametrize("layout", ["padded", "unsorted"])
@pytest.mark.parametrize(
    "case", [Case("gru", reset_after=False), Case("lstm_proj"), Case("rnn_tanh")], ids=str
)
def test_reference_is_differentiable_twice(case: Case, layout: str) -> None:
    case = case.but(layout=layout, time=3, batch=2, input=2, hidden=3)
    module = torch_module(case)
    inputs = make_inputs(case)
    names = [name for name, _ in module.named_parameters()]

    def outputs(*weights: Tensor) -> Any:
        x = pack(inputs.x, inputs.lengths, case.batch_first)
        forward = reference_forward(case, dict(zip(names, weights, strict=True)))
        return flat_outputs(forward(x, inputs.state()))

    weights = [p.detach().requires_grad_() for p in module.parameters()]
    assert torch.autograd.gradgradcheck(outputs, weights, fast_mode=True)
