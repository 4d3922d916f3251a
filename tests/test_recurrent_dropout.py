"""weight_dropout: against the layer with the weights that are left, and the masks' statistics."""

import copy
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fastrnn
from helpers import (
    CELLS,
    F64,
    LAYOUTS,
    Case,
    Results,
    assert_bitwise,
    assert_same,
    fast_module,
    make_inputs,
    run_module,
    run_reference,
)

EXACT = {"rtol": 1e-10, "atol": 1e-10}
MODULES = [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN]
names = pytest.mark.parametrize("cls", MODULES, ids=lambda cls: cls.__name__)


def run_seeded(module: nn.Module, case: Case, seed: int = 3) -> Results:
    torch.manual_seed(seed)
    return run_module(module, case, make_inputs(case))


# -- weight_dropout ----------------------------------------------------------------------------------------------------


def left_over(module: nn.RNNBase, p: float, seed: int = 3) -> tuple[nn.RNNBase, dict[str, Tensor]]:
    """The layer with the weights that a call with this seed leaves, and what every element of weight_hh is times."""
    torch.manual_seed(seed)
    plain, factors = copy.deepcopy(module), {}
    plain.weight_dropout = 0.0
    for name, weight in plain.named_parameters():
        if name.startswith("weight_hh"):
            factors[name] = F.dropout(torch.ones_like(weight), p)
            weight.data *= factors[name]
    return plain, factors


WEIGHT_CASES = [
    *(Case(cell, layout=layout, bidirectional=True, hidden=9) for cell, layout in product(CELLS, LAYOUTS)),
    *(Case(cell, layers=3, hidden=17, batch_first=True, bias=False, state=False) for cell in CELLS),
    Case("gru", reset_after=False, layers=2, hidden=17),
    Case("lstm", layer_norm=True, layers=2, hidden=17),
]


@pytest.mark.parametrize("case", WEIGHT_CASES, ids=str)
def test_weight_dropout(case: Case) -> None:
    module = fast_module(case)
    module.weight_dropout = 0.4
    plain, factors = left_over(module, 0.4)
    expected = run_reference(plain, case, make_inputs(case))
    for name, factor in factors.items():
        expected[f"d_{name}"] = expected[f"d_{name}"] * factor
    assert_same(run_seeded(module, case), expected, **EXACT)
    module.eval()
    plain = copy.deepcopy(module)
    plain.weight_dropout = 0.0
    assert_bitwise(run_seeded(module, case), run_seeded(plain, case))


def test_weight_dropout_leaves_its_rate() -> None:
    """With x and biases zero and h0 one, the first output of a ReLU layer is a sum over the row of weight_hh."""
    module = fastrnn.RNN(1, 200, nonlinearity="relu", bias=False, weight_dropout=0.3, dtype=F64)
    nn.init.ones_(module.weight_hh_l0)
    x, h0 = torch.zeros(1, 1, 1, dtype=F64), torch.eye(200, dtype=F64)
    with torch.no_grad():
        masks = [
            module(x.expand(1, 200, 1), h0[None])[0][0] for _ in range(2)
        ]  # element [k, u] is of w[u, k]
    for mask in masks:
        kept = mask != 0
        torch.testing.assert_close(mask[kept], torch.full_like(mask[kept], 1 / 0.7))
        assert abs(float(kept.double().mean()) - 0.7) < 5 * (0.3 * 0.7 / 200**2) ** 0.5
        for axis in (0, 1):  # rows and columns are not dropped as a whole
            assert float(kept.double().mean(axis).std()) < 3 * (0.3 * 0.7 / 200) ** 0.5
    assert abs(float(((masks[0] != 0) & (masks[1] != 0)).double().mean()) - 0.49) < 0.02


# -- how either behaves ------------------------------------------------------------------------------------------------

OPTIONS = pytest.mark.parametrize("option", ["weight_dropout"])


def dropping(cls: type[nn.RNNBase], option: str, *sizes: int, p: float = 0.4, **options: Any) -> nn.RNNBase:
    torch.manual_seed(0)
    module: nn.RNNBase = cls(*sizes, **{option: p}, **options)
    return module


@OPTIONS
@names
@pytest.mark.parametrize("shape", [(1, 256, False), (33, 40, True)])
def test_one_result_for_every_number_of_threads(
    cls: type[nn.RNNBase], option: str, shape: tuple[int, int, bool]
) -> None:
    batch, hidden, bidirectional = shape
    module = dropping(cls, option, 7, hidden, bidirectional=bidirectional)
    x, before = torch.randn(8, batch, 7, requires_grad=True), torch.get_num_threads()

    def results(threads: int, seed: int) -> Results:
        torch.set_num_threads(threads)
        torch.manual_seed(seed)
        y, _ = module(x)
        named = {"x": x, **dict(module.named_parameters())}
        return {"y": y, **dict(zip(named, torch.autograd.grad(y.sum(), list(named.values())), strict=True))}

    try:
        first = results(1, 1)
        for threads in (2, 3):
            assert_bitwise(results(threads, 1), first)
        assert not torch.equal(results(1, 2)["y"], first["y"])
    finally:
        torch.set_num_threads(before)


@OPTIONS
@names
def test_recompute_and_checkpoint_see_the_same_masks(cls: type[nn.RNNBase], option: str) -> None:
    module = dropping(cls, option, 5, 9, 2, dtype=F64)
    x = torch.randn(50, 3, 5, dtype=F64)

    def gradients(run: Any) -> list[Tensor]:
        torch.manual_seed(1)
        y = run(x)[0]
        return [y, *torch.autograd.grad((y * y).sum(), list(module.parameters()))]

    expected = gradients(module)
    module.recompute = True
    for found in (gradients(module), gradients(lambda x: checkpoint(module, x, use_reentrant=False))):
        for got, want in zip(found, expected, strict=True):
            torch.testing.assert_close(got, want, **EXACT)


@OPTIONS
@names
def test_dropping_compiled(cls: type[nn.RNNBase], option: str) -> None:
    module, x = dropping(cls, option, 5, 9, 2, bidirectional=True), torch.randn(6, 3, 5)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")

    def gradients(run: Any) -> list[Tensor]:
        torch.manual_seed(1)
        y = run(x)[0]
        return [y, *torch.autograd.grad((y * y).sum(), list(module.parameters()))]

    for got, want in zip(gradients(compiled), gradients(module), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@OPTIONS
@names
def test_dropping_everything_and_nothing(cls: type[nn.RNNBase], option: str) -> None:
    module, x = dropping(cls, option, 5, 9, p=1.0, dtype=F64), torch.randn(6, 3, 5, dtype=F64)
    alone = copy.deepcopy(module)
    setattr(alone, option, 0.0)
    nn.init.zeros_(alone.weight_hh_l0)
    torch.testing.assert_close(module(x)[0], alone(x)[0], **EXACT)
    setattr(module, option, 0.0)
    state = torch.get_rng_state()
    module(x)
    assert torch.equal(state, torch.get_rng_state())


@OPTIONS
@names
def test_dropping_in_other_dtypes(cls: type[nn.RNNBase], option: str) -> None:
    module, x = dropping(cls, option, 5, 8, 2), torch.randn(6, 3, 5)
    torch.manual_seed(1)
    expected = module(x)[0]
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(module(x)[0].float(), expected, rtol=2e-2, atol=2e-2)
    half = copy.deepcopy(module).bfloat16()
    torch.manual_seed(1)
    y = half(x.bfloat16())[0]
    y.sum().backward()
    assert half.weight_hh_l0.grad.isfinite().all() and y.isfinite().all()


@OPTIONS
@names
def test_dropping_functional(cls: type[nn.RNNBase], option: str) -> None:
    module, x = dropping(cls, option, 5, 7, 2), torch.randn(4, 3, 5)
    function = getattr(fastrnn.functional, cls.__name__.lower())
    torch.manual_seed(1)
    expected = module(x)[0]
    torch.manual_seed(1)
    arguments = (x, None, list(module.parameters()))
    assert torch.equal(function(*arguments, num_layers=2, training=True, **{option: 0.4})[0], expected)
    assert torch.equal(function(*arguments, num_layers=2, **{option: 0.4})[0], module.eval()(x)[0])


@OPTIONS
@names
def test_dropping_modules(cls: type[nn.RNNBase], option: str) -> None:
    module = dropping(cls, option, 5, 7)
    assert list(module.state_dict()) == list(getattr(nn, cls.__name__)(5, 7).state_dict())
    assert f"{option}=0.4" in repr(module)
    assert getattr(copy.deepcopy(module), option) == 0.4
    with pytest.raises(ValueError, match=rf"torch\.nn has no {option}=0\.4"):
        fastrnn.restore_modules(module)
    quantized, x = fastrnn.quantize(module, "bfloat16"), torch.randn(4, 3, 5)
    assert torch.equal(quantized.train()(x)[0], quantized.eval()(x)[0])
    for bad in (-0.1, 1.1, float("nan"), "0.5", True, None):
        with pytest.raises(ValueError, match=f"{option} should be a number in range"):
            dropping(cls, option, 3, 4, p=bad)
    old = cls.__new__(cls)
    old.__setstate__({k: v for k, v in cls(5, 7).__dict__.items() if k != option})
    assert getattr(old, option) == 0.0
    assert getattr(fastrnn.replace_modules(getattr(nn, cls.__name__)(5, 7)), option) == 0.0
