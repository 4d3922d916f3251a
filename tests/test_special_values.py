"""Infinities, NaN and huge values stay where torch.nn has them, also beside padding and other rows."""

from itertools import product

import pytest
import torch

from fastrnn._spec import ACTIVATIONS
from helpers import (
    CELLS,
    F32,
    F64,
    Case,
    Inputs,
    Results,
    fast_module,
    make_inputs,
    module_pair,
    run_forward,
    run_module,
    run_reference,
)

INF, NAN = float("inf"), float("nan")
SHAPE = {"batch": 3, "time": 4, "input": 5, "layers": 2}


def _assert_equal_kinds(actual: Results, expected: Results) -> None:
    """Equal positions of NaN and of each infinity, and close where finite."""
    assert actual.keys() == expected.keys()
    for name, want in expected.items():
        got = actual[name]
        assert torch.equal(got.isnan(), want.isnan()), f"{name}: NaN at other positions"
        assert torch.equal(got.isposinf(), want.isposinf()), f"{name}: infinity at other positions"
        assert torch.equal(got.isneginf(), want.isneginf()), f"{name}: -infinity at other positions"
        finite = want.isfinite()
        torch.testing.assert_close(got[finite], want[finite], rtol=2e-5, atol=2e-5, msg=name)


def _poison(inputs: Inputs, where: str, value: float) -> None:
    if where == "x":
        inputs.x[1, 1, 2] = value
    elif where == "h0" and inputs.h0 is not None:
        inputs.h0[0, 1, 1] = value
    elif where == "c0" and inputs.c0 is not None:
        inputs.c0[-1, 1, 0] = value


def _places() -> list[object]:
    found = []
    for cell, value, hidden, dtype in product(CELLS, (INF, -INF, NAN), (5, 17), (F32, F64)):
        for where in ("x", "h0", "c0"):
            if where == "c0" and not cell.startswith("lstm"):
                continue
            case = Case(cell, hidden=hidden, dtype=dtype, **SHAPE)
            found.append(pytest.param(case, where, value, id=f"{case}-{value}-in-{where}"))
    return found


@pytest.mark.parametrize(("case", "where", "value"), _places())
def test_in_inputs(case: Case, where: str, value: float) -> None:
    fast, plain = module_pair(case)
    inputs = make_inputs(case)
    _poison(inputs, where, value)
    _assert_equal_kinds(run_forward(fast, case, inputs), run_forward(plain, case, inputs))


@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize("hidden", [1, 5, 16, 33])
@pytest.mark.parametrize("cell", CELLS)
def test_in_weights(cell: str, hidden: int, value: float) -> None:
    """One bad weight: units that do not read it, and the padding behind an odd H, stay clean."""
    if cell == "lstm_proj" and hidden == 1:
        hidden = 3
    case = Case(cell, hidden=hidden, dtype=F32, **SHAPE)
    fast, plain = module_pair(case)
    for name in [name for name, _ in fast.named_parameters()]:
        clean = getattr(fast, name).detach().clone()
        for module in (fast, plain):
            getattr(module, name).data.view(-1)[-1] = value
        inputs = make_inputs(case)
        _assert_equal_kinds(run_forward(fast, case, inputs), run_forward(plain, case, inputs))
        for module in (fast, plain):
            getattr(module, name).data.copy_(clean)


@pytest.mark.parametrize("where", ["x", "h0"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_other_rows_stay_clean(cell: str, layout: str, where: str) -> None:
    """A NaN in one batch row: all results of every other row are those of a clean run, bit for bit."""
    case = Case(cell, 9, 4, 5, 13, layout=layout, dtype=F32)
    module, inputs = fast_module(case), make_inputs(case)
    clean = run_module(module, case, inputs)
    _poison(inputs, where, NAN)
    poisoned = run_module(module, case, inputs)
    others = [row for row in range(9) if row != 1]
    for name in ("h_n", "c_n", "d_h0", "d_c0"):
        if name in clean:
            assert torch.equal(poisoned[name][:, others], clean[name][:, others]), name
    assert torch.equal(poisoned["d_x"][:, others], clean["d_x"][:, others])
    assert poisoned["d_weight_ih_l0" if where == "x" else "d_weight_hh_l0"].isnan().any()


@pytest.mark.parametrize("bi", [False, True], ids=["uni", "bi"])
@pytest.mark.parametrize("cell", CELLS)
def test_nan_gradients(cell: str, bi: bool) -> None:
    """NaN in x: gradients are NaN exactly where torch.nn's are."""
    case = Case(cell, hidden=7, dtype=F64, bidirectional=bi, **SHAPE)
    fast, plain = module_pair(case)
    inputs = make_inputs(case)
    _poison(inputs, "x", NAN)
    _assert_equal_kinds(run_module(fast, case, inputs), run_module(plain, case, inputs))


@pytest.mark.parametrize("size", [50.0, 1e4, 1e30])
@pytest.mark.parametrize("dtype", [F32, F64], ids=["f32", "f64"])
@pytest.mark.parametrize("cell", CELLS)
def test_large_values_saturate(cell: str, dtype: torch.dtype, size: float) -> None:
    case = Case(cell, hidden=19, dtype=dtype, state=False, **SHAPE)
    fast, plain = module_pair(case)
    inputs = make_inputs(case)
    inputs.x *= size
    actual, expected = run_forward(fast, case, inputs), run_forward(plain, case, inputs)
    if cell == "rnn_relu":  # does not saturate: compare at the scale of the input
        actual, expected = ({k: v / size for k, v in r.items()} for r in (actual, expected))
    else:
        assert actual["y"].abs().max() <= 1
    _assert_equal_kinds(actual, expected)


@pytest.mark.parametrize("size", [1e-3, 1e-20, 1e-40])
@pytest.mark.parametrize("cell", CELLS)
def test_tiny_values(cell: str, size: float) -> None:
    """Relative accuracy near zero, where tanh(x) is x; denormals are kept or flushed, never blown up."""
    case = Case(cell, hidden=19, dtype=F32, bias=False, state=False, **SHAPE)
    fast, plain = module_pair(case)
    inputs = make_inputs(case)
    inputs.x *= size
    actual, expected = run_forward(fast, case, inputs), run_forward(plain, case, inputs)
    for name, want in expected.items():
        torch.testing.assert_close(actual[name], want, rtol=1e-3, atol=2e-38, msg=name)


@pytest.mark.parametrize("value", [INF, -INF, NAN])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("reset_after", [True, False], ids=["after", "before"])
def test_options(activation: str, reset_after: bool, value: float) -> None:
    for cell in ("gru", "lstm"):
        if cell == "lstm" and not reset_after:
            continue
        case = Case(cell, hidden=7, activation=activation, reset_after=reset_after, **SHAPE)
        module, inputs = fast_module(case), make_inputs(case)
        _poison(inputs, "x", value)
        actual, expected = run_module(module, case, inputs), run_reference(module, case, inputs)
        outputs = case.outputs
        _assert_equal_kinds({k: actual[k] for k in outputs}, {k: expected[k] for k in outputs})


def test_gradient_through_saturation_is_zero_not_nan() -> None:
    for cell in ("lstm", "gru", "rnn_tanh"):
        case = Case(cell, hidden=19, dtype=F32, **SHAPE)
        fast, plain = module_pair(case)
        inputs = make_inputs(case)
        inputs.x *= 1e4
        actual, expected = run_module(fast, case, inputs), run_module(plain, case, inputs)
        for name, want in expected.items():
            scale = max(1.0, float(want.abs().max()))
            torch.testing.assert_close(actual[name] / scale, want / scale, rtol=1e-4, atol=1e-5, msg=name)
