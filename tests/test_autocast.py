"""Under torch.autocast on the CPU: torch.nn's dtypes, and values within bfloat16's rounding."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers import (
    BF16,
    CELLS,
    F32,
    F64,
    Case,
    cotangent,
    fast_cell_pair,
    flat_outputs,
    make_inputs,
    module_pair,
    pack,
    relative_error,
    torch_module,
)


def _run(module: nn.Module, case: Case, x_dtype: torch.dtype) -> dict[str, Tensor]:
    inputs = make_inputs(case)
    inputs.x = inputs.x.to(x_dtype).requires_grad_()
    with torch.autocast("cpu", dtype=BF16):
        outputs = flat_outputs(module(pack(inputs.x, inputs.lengths, case.batch_first), inputs.state()))
    results = dict(zip(("y", "h_n", "c_n"), outputs, strict=False))
    targets = {"x": inputs.x} | dict(module.named_parameters())
    seeds = [cotangent(name, value) for name, value in results.items()]
    found = torch.autograd.grad(outputs, list(targets.values()), seeds)
    return results | {f"d_{name}": g for name, g in zip(targets, found, strict=True)}


def _assert_near(ours: dict[str, Tensor], theirs: dict[str, Tensor], exact: dict[str, Tensor]) -> None:
    assert {k: v.dtype for k, v in ours.items()} == {k: v.dtype for k, v in theirs.items()}
    for name, want in exact.items():
        limit = 2 * relative_error(theirs[name], want) + 4 * torch.finfo(BF16).eps
        assert relative_error(ours[name], want) <= limit, name


@pytest.mark.parametrize("x_dtype", [F32, BF16], ids=["f32", "bf16"])
@pytest.mark.parametrize("layout", ["padded", "packed", "unbatched"])
@pytest.mark.parametrize("bi", [False, True], ids=["uni", "bi"])
@pytest.mark.parametrize("cell", CELLS)
def test_layers(cell: str, bi: bool, layout: str, x_dtype: torch.dtype) -> None:
    case = Case(cell, 4, 6, 7, 19, layers=2, bidirectional=bi, layout=layout, dtype=F32, state=False)
    fast, plain = module_pair(case)
    wide = torch_module(case.but(dtype=F64))
    wide.load_state_dict(plain.state_dict())
    exact = _exact(wide, case)
    _assert_near(_run(fast, case, x_dtype), _run(plain, case, x_dtype), exact)


def _exact(wide: nn.Module, case: Case) -> dict[str, Tensor]:
    inputs = make_inputs(case).to(F64)
    inputs.x.requires_grad_()
    outputs = flat_outputs(wide(pack(inputs.x, inputs.lengths, case.batch_first), inputs.state()))
    results = dict(zip(("y", "h_n", "c_n"), outputs, strict=False))
    targets = {"x": inputs.x} | dict(wide.named_parameters())
    seeds = [cotangent(name, value) for name, value in results.items()]
    found = torch.autograd.grad(outputs, list(targets.values()), seeds)
    return results | {f"d_{name}": g for name, g in zip(targets, found, strict=True)}


@pytest.mark.parametrize("cell", CELLS)
def test_float32_state(cell: str) -> None:
    case = Case(cell, 4, 6, 7, 19, dtype=F32)
    fast, plain = module_pair(case)
    inputs = make_inputs(case)
    found = []
    for module in (fast, plain):
        with torch.autocast("cpu", dtype=BF16):
            found.append(flat_outputs(module(inputs.x, inputs.state())))
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("x_dtype", [F32, BF16], ids=["f32", "bf16"])
@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell-tanh", "RNNCell-relu"])
def test_cell_modules(name: str, x_dtype: torch.dtype) -> None:
    fast, plain = fast_cell_pair(name, 7, 19)
    x = torch.randn(4, 7).to(x_dtype)
    found: list[Any] = []
    for module in (fast, plain):
        with torch.autocast("cpu", dtype=BF16):
            found.append(module(x))
    torch.testing.assert_close(*found, rtol=0.05, atol=0.02)  # dtypes too


def _inside(action: Callable[[], Any]) -> tuple[type, str] | None:
    with torch.autocast("cpu", dtype=BF16):
        try:
            action()
        except Exception as error:
            return type(error), str(error)
    return None


@pytest.mark.parametrize("cell", CELLS)
def test_float64_is_refused_as_in_torch(cell: str) -> None:
    case = Case(cell, dtype=F32)
    x = make_inputs(case).x.double()
    outcomes = [_inside(lambda m=module: m(x)) for module in module_pair(case)]
    assert outcomes[0] == outcomes[1]
    assert outcomes[1] is not None


def test_disabled_autocast_changes_nothing() -> None:
    case = Case("gru", dtype=F32)
    fast, _ = module_pair(case)
    inputs = make_inputs(case)
    with torch.autocast("cpu", enabled=False):
        inside = fast(inputs.x)[0]
    assert torch.equal(inside, fast(inputs.x)[0])
    with torch.autocast("cpu", dtype=BF16), torch.autocast("cpu", enabled=False):
        assert torch.equal(fast(inputs.x)[0], inside)
