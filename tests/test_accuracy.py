"""Rounding: float32 beside torch.nn's own error, half types beside a float64 run."""

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import nn

import fastrnn
from helpers import (
    BF16,
    CELLS,
    F16,
    F32,
    F64,
    Case,
    Results,
    make_inputs,
    module_pair,
    relative_error,
    run_forward,
    run_module,
    torch_module,
)

SEEDS = range(4)


def _exact(plain: nn.Module, case: Case, seed: int) -> Results:
    """torch.nn in float64 with the very weights and inputs of the narrow run."""
    wide = case.but(dtype=F64)
    module = torch_module(wide)
    module.load_state_dict(plain.state_dict())
    return run_module(module, wide, make_inputs(case, seed).to(F64))


def _errors(case: Case) -> dict[str, tuple[float, float]]:
    """The worst relative error over the seeds of (fastrnn, torch.nn) by name."""
    worst: dict[str, tuple[float, float]] = {}
    for seed in SEEDS:
        torch.manual_seed(seed)
        fast, plain = module_pair(case)
        inputs = make_inputs(case, seed)
        exact = _exact(plain, case, seed)
        runs = run_module(fast, case, inputs), run_module(plain, case, inputs)
        for name, want in exact.items():
            found = [relative_error(results[name], want) for results in runs]
            before = worst.get(name, (0.0, 0.0))
            worst[name] = (max(before[0], found[0]), max(before[1], found[1]))
    return worst


SHAPES = [
    {"batch": 4, "time": 20, "input": 16, "hidden": 48},
    {"batch": 3, "time": 100, "input": 9, "hidden": 33},
    {"batch": 32, "time": 6, "input": 40, "hidden": 128},
]


def _cases(dtype: torch.dtype) -> list[Case]:
    plain = [Case(cell, dtype=dtype, **shape) for cell, shape in product(CELLS, SHAPES)]
    deep = {"layers": 2, "bidirectional": True, "batch_first": True}
    stacked = [Case(cell, dtype=dtype, **SHAPES[0], **deep) for cell in CELLS]
    packed = [Case(cell, dtype=dtype, **SHAPES[1], layout="unsorted") for cell in CELLS]
    return plain + stacked + packed


@pytest.mark.parametrize("case", _cases(F32), ids=str)
def test_float32_error_beside_torch(case: Case) -> None:
    for name, (fast, plain) in _errors(case).items():
        assert fast <= 2 * plain + 1e-7, f"{name}: {fast:.3g}, torch.nn {plain:.3g}"


def test_float32_error_with_large_values() -> None:
    """Inputs that drive the gates deep into saturation, where a poor exp or tanh shows."""
    for cell in CELLS:
        case = Case(cell, dtype=F32, **SHAPES[0])
        fast, plain = module_pair(case)
        inputs = make_inputs(case)
        inputs.x *= 20
        wide = torch_module(case.but(dtype=F64))
        wide.load_state_dict(plain.state_dict())
        exact = run_module(wide, case.but(dtype=F64), inputs.to(F64))
        ours, theirs = run_module(fast, case, inputs), run_module(plain, case, inputs)
        for name, want in exact.items():
            limit = 2 * relative_error(theirs[name], want) + 1e-7
            assert relative_error(ours[name], want) <= limit, f"{cell} {name}"


@pytest.mark.parametrize("scale", [20, 100])
@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_gradients_near_saturation_are_as_good_as_torchs(kind: str, scale: int) -> None:
    """With one input the sums hardly round: what is left is the gates' rounding, which 1 - y^2 multiplies."""
    logs = []
    for seed in range(40):
        torch.manual_seed(seed)
        plain = getattr(nn, kind)(1, 48)
        x, d_h = torch.randn(4, 1) * scale, torch.randn(4, 48)
        gradients = []
        for cell in (getattr(fastrnn, kind)(1, 48), plain, getattr(nn, kind)(1, 48).double()):
            cell.load_state_dict(plain.state_dict())
            dtype = cell.weight_ih.dtype
            outputs = cell(x.to(dtype))
            h = outputs[0] if kind == "LSTMCell" else outputs
            gradients += torch.autograd.grad(h, cell.weight_ih, d_h.to(dtype))
        ours, theirs, exact = gradients
        logs.append(math.log(relative_error(ours, exact) / relative_error(theirs, exact)))
    assert math.exp(sum(logs) / len(logs)) <= 1.2


# Weights and inputs are exact here. A half type is rounded once on its way out, and where a stored y is read
# again: by the next layer and by the backward pass. Errors are over the largest value.
HALF = [
    pytest.param(case, id=str(case))
    for case in (
        Case(cell, 4, 12, 16, 40, dtype=dtype, layout=layout, layers=layers, bidirectional=layers > 1)
        for cell, dtype, layers, layout in product(CELLS, (BF16, F16), (1, 2), ("padded", "packed"))
    )
]


@pytest.mark.parametrize("case", HALF)
def test_half_types_within_their_rounding(case: Case) -> None:
    unit = torch.finfo(case.dtype).eps / 2
    for name, (fast, plain) in _errors(case).items():
        limit = (3 if name.startswith("d_") else 1.01) * case.layers * unit
        if case.cell == "rnn_relu" and case.layers > 1 and name.startswith("d_"):
            continue  # a rounded y may move the next layer's sums across relu's kink: the gradient jumps
        assert fast <= limit, f"{name}: {fast:.3g} is over {limit:.3g}"
        assert fast <= 2 * plain + unit, f"{name}: {fast:.3g}, torch.nn {plain:.3g}"


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
@pytest.mark.parametrize("cell", CELLS)
def test_half_types_carry_the_state_in_float32(cell: str, dtype: torch.dtype) -> None:
    """After a long sequence the error is still one rounding: nothing is rounded between steps."""
    case = Case(cell, 2, 300, 4, 16, dtype=dtype, bias=False)
    fast, plain = module_pair(case)
    inputs = make_inputs(case)
    wide = torch_module(case.but(dtype=F64))
    wide.load_state_dict(plain.state_dict())
    found, exact = run_forward(fast, case, inputs), run_forward(wide, case, inputs.to(F64))
    assert relative_error(found["y"], exact["y"]) <= 1.01 * torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("cell", CELLS)
def test_bfloat16_batches_beside_torch(cell: str) -> None:
    """Where products are bfloat16's they round h in every step, and nothing else; torch.nn rounds what a step makes."""
    case = Case(cell, 20, 60, 64, 96, dtype=BF16)
    fast, plain = module_pair(case)
    inputs = make_inputs(case)
    wide = torch_module(case.but(dtype=F64))
    wide.load_state_dict(plain.state_dict())
    exact = run_forward(wide, case, inputs.to(F64))
    ours, theirs = run_forward(fast, case, inputs), run_forward(plain, case, inputs)
    for name, want in exact.items():
        assert relative_error(ours[name], want) <= relative_error(theirs[name], want), name


@pytest.mark.parametrize(
    "change", [lambda m: m.to(BF16), lambda m: m.half(), lambda m: m.double()], ids=["bf16", "f16", "f64"]
)
def test_conversion_to_another_dtype(change: Callable[[nn.Module], nn.Module]) -> None:
    case = Case("gru", 3, 7, 5, 19, layers=2, dtype=F32)
    fast, plain = (change(module) for module in module_pair(case))
    dtype = next(fast.parameters()).dtype
    inputs = make_inputs(case).to(dtype)
    ours, theirs = run_module(fast, case, inputs), run_module(plain, case, inputs)
    for name, want in theirs.items():
        assert ours[name].dtype == want.dtype == dtype
        assert relative_error(ours[name], want.double()) <= 8 * torch.finfo(dtype).eps, name
