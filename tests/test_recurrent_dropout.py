"""weight_dropout and recurrent_dropout: against the layer with the weights that are left, the reference with the same
masks, and the masks' statistics."""

import copy
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

import fastrnn
from fastrnn import _spec
from fastrnn._masks import draw
from helpers import (
    BF16,
    CELLS,
    F32,
    F64,
    LAYOUTS,
    Case,
    Results,
    assert_bitwise,
    assert_same,
    fast_module,
    flat_outputs,
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


@pytest.mark.parametrize("p", [0.0, 1e-7, 2**-16, 0.3, 0.5, 1 - 2**-16, 1.0])
def test_a_mask(p: float) -> None:
    torch.manual_seed(0)
    count = 1 << 20
    mask = draw((2, count // 2), p, torch.empty(0, dtype=F64))
    share = round(p * 2**16) / 2**16
    assert set(mask.unique().tolist()) <= {0.0, 1 / (1 - share) if share < 1 else 0.0}
    assert abs(float((mask == 0).double().mean()) - share) <= 5 * (share * (1 - share) / count) ** 0.5
    assert draw((3, 0, 5), p, torch.empty(0, dtype=BF16)).shape == (3, 0, 5)
    half = draw((9,), p, torch.empty(0, dtype=BF16))
    assert half.dtype == BF16 and half.isfinite().all()


# -- weight_dropout ----------------------------------------------------------------------------------------------------


def left_over(module: nn.RNNBase, p: float, seed: int = 3) -> tuple[nn.RNNBase, dict[str, Tensor]]:
    """The layer with the weights that a call with this seed leaves, and what every element of weight_hh is times."""
    torch.manual_seed(seed)
    plain, factors = copy.deepcopy(module), {}
    plain.weight_dropout = 0.0
    for name, weight in plain.named_parameters():
        if name.startswith("weight_hh"):
            factors[name] = draw(weight.shape, p, weight)
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
    p = 0.25
    spread = (p * (1 - p)) ** 0.5
    module = fastrnn.RNN(1, 200, nonlinearity="relu", bias=False, weight_dropout=p, dtype=F64)
    nn.init.ones_(module.weight_hh_l0)
    torch.manual_seed(7)
    x, h0 = torch.zeros(1, 1, 1, dtype=F64), torch.eye(200, dtype=F64)
    with torch.no_grad():
        masks = [
            module(x.expand(1, 200, 1), h0[None])[0][0] for _ in range(2)
        ]  # element [k, u] is of w[u, k]
    for mask in masks:
        kept = mask != 0
        torch.testing.assert_close(mask[kept], torch.full_like(mask[kept], 1 / (1 - p)))
        assert abs(float(kept.double().mean()) - (1 - p)) < 5 * spread / 200
        for axis in (0, 1):  # rows and columns are not dropped as a whole
            assert float(kept.double().mean(axis).std()) < 1.3 * spread / 200**0.5
    assert abs(float(((masks[0] != 0) & (masks[1] != 0)).double().mean()) - (1 - p) ** 2) < 0.02


# -- recurrent_dropout -------------------------------------------------------------------------------------------------


def masks_of(case: Case, p: float, seed: int = 3) -> list[Tensor]:
    """Those of a call with this seed, of each layer and direction; rows are in the order of a packed sequence."""
    torch.manual_seed(seed)
    batch = 1 if case.layout == "unbatched" else case.batch
    return list(draw((case.layers * case.directions, batch, case.width), p, torch.empty(0, dtype=case.dtype)))


MASKED_CASES = [
    *(Case(cell, layout=layout, bidirectional=True, hidden=9) for cell, layout in product(CELLS, LAYOUTS)),
    *(Case(cell, layers=3, hidden=17, batch_first=True, bias=False, state=False) for cell in CELLS),
    *(
        Case(cell, hidden=hidden, batch=batch, time=time)
        for cell in CELLS
        for hidden, batch, time in [(2, 1, 1), (33, 19, 2), (16, 4, 150), (130, 3, 3), (9, 530, 3)]
    ),
    *(
        Case("gru", reset_after=False, layout=layout, bidirectional=bi, layers=2, hidden=17)
        for layout in LAYOUTS
        for bi in (False, True)
    ),
    *(Case(cell, layer_norm=True, layout="unsorted", layers=2, hidden=17) for cell in CELLS),
    *(Case(cell, heads=2, bidirectional=True, layout="unsorted", hidden=64) for cell in CELLS),
    *(Case(cell, heads=2, layers=2, hidden=12, reset_after=cell != "gru") for cell in CELLS),
    Case("lstm", activation="softsign", hidden=9),
]


@pytest.mark.parametrize("case", MASKED_CASES, ids=str)
def test_recurrent_dropout(case: Case) -> None:
    module, inputs = fast_module(case), make_inputs(case)
    module.recurrent_dropout = 0.4
    assert_same(run_seeded(module, case), run_reference(module, case, inputs, masks_of(case, 0.4)), **EXACT)
    expected = run_reference(module.eval(), case, inputs)
    assert_same(run_seeded(module, case), expected, **EXACT)


def test_recurrent_masks_hold_and_are_independent() -> None:
    """With w_ih and x zero and w_hh the identity, a ReLU layer's state is h0 times a power of the mask."""
    p, layers, batch, hidden = 0.25, 2, 150, 100
    module = fastrnn.RNN(
        hidden, hidden, layers, nonlinearity="relu", bias=False, bidirectional=True, dtype=F64
    )
    module.recurrent_dropout = p
    for name, weight in module.named_parameters():
        nn.init.eye_(weight) if "weight_hh" in name else nn.init.zeros_(weight)
    x, h0 = torch.zeros(4, batch, hidden, dtype=F64), torch.ones(2 * layers, batch, hidden, dtype=F64)
    torch.manual_seed(7)
    with torch.no_grad():
        y, h_n = module(x, h0)
    masks = (h_n > 0).double() / (1 - p)
    torch.testing.assert_close(h_n, masks**4)
    forward, backward = masks[2], masks[3]  # of the last layer
    powers = torch.arange(1, 5)[:, None, None]
    torch.testing.assert_close(y, torch.cat([forward**powers, backward ** powers.flip(0)], -1))
    kept = (masks > 0).double()
    spread = (p * (1 - p)) ** 0.5
    assert abs(float(kept.mean()) - (1 - p)) < 5 * spread / kept.numel() ** 0.5
    of_masks = torch.corrcoef(kept.flatten(1))  # of layers and directions
    assert float((of_masks - torch.eye(2 * layers)).abs().max()) < 5 / (batch * hidden) ** 0.5
    for mask in kept:
        for axis in (0, 1):  # neither rows nor units are dropped as a whole
            assert abs(float(mask.mean(axis).std()) / (spread / mask.shape[axis] ** 0.5) - 1) < 0.3
        of_rows = torch.corrcoef(mask)
        assert float((of_rows - torch.eye(batch)).abs().max()) < 6 / hidden**0.5


@pytest.mark.parametrize("cell", [*CELLS, "gru_before"])
def test_gradients_of_gradients(cell: str) -> None:
    before = cell == "gru_before"
    case = Case("gru" if before else cell, batch=2, time=3, input=3, hidden=4, reset_after=not before)
    module, inputs = fast_module(case), make_inputs(case)
    module.recurrent_dropout = module.weight_dropout = 0.3
    leaves = [t for t in (inputs.x, inputs.h0, inputs.c0) if t is not None]
    names = [name for name, _ in module.named_parameters()]

    def f(*values: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(5)
        x, *states = values[: len(leaves)]
        weights = dict(zip(names, values[len(leaves) :], strict=True))
        arguments = x, states[0] if len(states) == 1 else tuple(states)
        return flat_outputs(functional_call(module, weights, arguments))

    values = [t.detach().clone().requires_grad_() for t in (*leaves, *module.parameters())]
    kink = cell == "rnn_relu"
    assert gradcheck(f, values, eps=1e-6, atol=1e-4 if kink else 1e-6, rtol=1e-4 if kink else 1e-5)
    if not kink:
        assert gradgradcheck(f, values, fast_mode=True, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cell", ["lstm", "lstm_proj", "gru", "rnn_tanh"])
def test_opcheck_and_checks_of_the_mask(cell: str) -> None:
    module = fast_module(Case(cell, input=5, hidden=6, bidirectional=True, dtype=F32))
    weights = [p.detach() for p in module._weights()]
    spec, x, ops = module._layer_spec() | _spec.RECURRENT_MASK, torch.randn(4, 3, 5), torch.ops.fastrnn
    masks = [torch.rand(3, module.proj_size or 6) for _ in range(2)]
    for training in (True, False):
        arguments = (x, [], weights, None, masks, spec, training)
        assert set(torch.library.opcheck(ops.layer_forward.default, arguments).values()) == {"SUCCESS"}
    y, *finals, reserve = ops.layer_forward(x, [], weights, None, masks, spec, True)
    needs = _spec.NEEDS_X | _spec.NEEDS_WEIGHTS | _spec.NEEDS_OPERANDS
    d_outputs = [torch.ones_like(y), *(None for _ in finals)]
    arguments = (d_outputs, x, [], weights, None, masks, y, reserve, spec, needs)
    assert set(torch.library.opcheck(ops.layer_backward.default, arguments).values()) == {"SUCCESS"}
    first, second = masks
    for bad in (second[:2], second[:, :2], second[0], second[None], second.double()):
        with pytest.raises(RuntimeError, match=r"operand|recurrent mask"):
            ops.layer_forward(x, [], weights, None, [first, bad], spec, False)
    with pytest.raises(RuntimeError, match="expected 2 operands"):
        ops.layer_forward(x, [], weights, None, [first], spec, False)


# -- how either behaves ------------------------------------------------------------------------------------------------

OPTIONS = pytest.mark.parametrize("option", ["weight_dropout", "recurrent_dropout"])


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
