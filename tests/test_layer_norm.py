"""layer_norm: against the reference, finite differences, and the formulas written out with F.layer_norm."""

import copy
import io
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

import fastrnn
from fastrnn import _spec
from fastrnn._options import NONE, operands_of_call
from fastrnn._spec import ACTIVATIONS
from helpers import (
    BF16,
    CELLS,
    F16,
    F32,
    F64,
    LAYOUTS,
    Case,
    Results,
    assert_bitwise,
    assert_same,
    cotangent,
    fast_module,
    flat_outputs,
    make_inputs,
    pack,
    relative_error,
    run,
    run_cell,
    run_forward,
    run_module,
    run_reference,
)

EXACT = {"rtol": 1e-10, "atol": 1e-10}
MODULES = [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN]
SINGLE = ["LSTMCell", "GRUCell", "RNNCell"]


def normed(cell: str = "lstm", **options: Any) -> Case:
    return Case(cell, layer_norm=True, **options)


def _cases() -> list[Case]:
    shapes = [
        normed(cell, layout=layout, bidirectional=bi, hidden=9)
        for cell, layout, bi in product(CELLS, LAYOUTS, (False, True))
    ]
    stacks = [
        normed(cell, layers=3, hidden=17, bidirectional=True, batch_first=True, bias=False, state=False)
        for cell in CELLS
    ]
    sizes = [
        normed(cell, hidden=hidden, input=inputs, batch=batch, time=time)
        for cell in CELLS
        for hidden, inputs, batch, time in [(7, 1, 1, 1), (33, 3, 19, 2), (16, 5, 4, 60), (130, 9, 3, 3)]
    ]
    activations = [
        normed(cell, activation=a, layout="unsorted") for cell in ("lstm", "gru") for a in ACTIVATIONS[1:]
    ]
    return shapes + stacks + sizes + activations


@pytest.mark.parametrize("case", _cases(), ids=str)
def test_outputs_and_gradients_are_the_references(case: Case) -> None:
    module, inputs = fast_module(case), make_inputs(case)
    expected = run_reference(module, case, inputs)
    assert_same(run_module(module, case, inputs), expected, **EXACT)
    outputs = run_forward(module, case, inputs)
    assert_same(outputs, {name: expected[name] for name in outputs}, **EXACT)


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_one_unit(cell: str) -> None:
    """A product of few values has little variance, which magnifies rounding."""
    case = normed(cell, hidden=1, time=4)
    module, inputs = fast_module(case), make_inputs(case)
    assert_same(run_module(module, case, inputs), run_reference(module, case, inputs), rtol=1e-7, atol=1e-7)


# -- the formulas again, as the papers and PyTorch's benchmark of custom LSTMs have them -------------------------------


def written_out(module: nn.RNNBase, x: Tensor) -> Tensor:
    """y [T, B, H] of a module of one layer and direction."""
    w = {name.removesuffix("_l0"): p for name, p in module.named_parameters()}
    kind, hidden = type(module).__name__, module.hidden_size
    h = c = x.new_zeros(x.shape[1], hidden)
    outputs = []
    for step in x:
        rows = (w["weight_ih"].shape[0],)
        from_x = F.layer_norm(step @ w["weight_ih"].T, rows, w["ln_ih_weight"], eps=1e-5) + w["bias_ih"]
        from_h = F.layer_norm(h @ w["weight_hh"].T, rows, w["ln_hh_weight"], eps=1e-5) + w["bias_hh"]
        if kind == "LSTM":
            i, f, g, o = (from_x + from_h).split(hidden, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * F.layer_norm(c, (hidden,), w["ln_c_weight"], w["ln_c_bias"], 1e-5).tanh()
        elif kind == "GRU":
            (x_r, x_z, x_n), (h_r, h_z, h_n) = from_x.split(hidden, 1), from_h.split(hidden, 1)
            z = (x_z + h_z).sigmoid()
            h = (1 - z) * (x_n + (x_r + h_r).sigmoid() * h_n).tanh() + z * h
        else:
            h = (from_x + from_h).tanh()
        outputs.append(h)
    return torch.stack(outputs)


def _randomised(module: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, 0.5, 0.3)
    return module


@pytest.mark.parametrize("cls", MODULES, ids=lambda cls: cls.__name__)
def test_the_formulas_written_out(cls: type[nn.RNNBase]) -> None:
    module = _randomised(cls(5, 13, layer_norm=True, dtype=F64))
    x = torch.randn(7, 4, 5, dtype=F64, requires_grad=True)
    targets = [x, *module.parameters()]
    got, want = module(x)[0], written_out(module, x)
    torch.testing.assert_close(got, want, **EXACT)
    seed = torch.randn_like(want)
    found, expected = torch.autograd.grad(got, targets, seed), torch.autograd.grad(want, targets, seed)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("cls", MODULES, ids=lambda cls: cls.__name__)
def test_float32_is_as_exact_as_a_loop(cls: type[nn.RNNBase]) -> None:
    exact = _randomised(cls(40, 96, layer_norm=True, dtype=F64))
    module = copy.deepcopy(exact).float()
    x = torch.randn(20, 8, 40)

    def gradients(module: nn.Module, y: Tensor, x: Tensor) -> list[Tensor]:
        seed = cotangent("y", y)
        return [y, *torch.autograd.grad(y, [x, *module.parameters()], seed)]

    x64, x32 = x.double().requires_grad_(), x.requires_grad_()
    want = gradients(exact, written_out(exact, x64), x64)
    ours = gradients(module, module(x32)[0], x32)
    loop = gradients(module, written_out(module, x32), x32)
    for index, (a, b, e) in enumerate(zip(ours, loop, want, strict=True)):
        assert relative_error(a, e) <= 3 * relative_error(b, e) + 1e-6, index


# -- derivatives -------------------------------------------------------------------------------------------------------

SMALL = {"batch": 2, "time": 3, "input": 3, "hidden": 4}


@pytest.mark.parametrize("layout", ["padded", "unsorted"])
@pytest.mark.parametrize("cell", CELLS)
def test_gradcheck(cell: str, layout: str) -> None:
    case = normed(cell, layout=layout, bidirectional=True, **SMALL)
    module, inputs = fast_module(case), make_inputs(case)
    leaves = [t for t in (inputs.x, inputs.h0, inputs.c0) if t is not None]
    names = [name for name, _ in module.named_parameters()]

    def f(*values: Tensor) -> tuple[Tensor, ...]:
        x, *states = values[: len(leaves)]
        weights = dict(zip(names, values[len(leaves) :], strict=True))
        arguments = pack(x, inputs.lengths, False), states[0] if len(states) == 1 else tuple(states)
        return flat_outputs(functional_call(module, weights, arguments))

    values = [t.detach().clone().requires_grad_() for t in (*leaves, *module.parameters())]
    kink = cell == "rnn_relu"
    assert gradcheck(f, values, eps=1e-6, atol=1e-4 if kink else 1e-6, rtol=1e-4 if kink else 1e-5)
    if layout == "padded" and cell != "lstm_proj":
        assert gradgradcheck(f, values, atol=1e-4, rtol=1e-4)


# -- everything a layer goes through -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 30, 16, 256), (64, 6, 12, 24), (16, 8, 40, 130), (2, 5, 3, 7)])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "lstm_proj", "gru", "rnn_tanh"])
def test_one_result_for_every_number_of_threads(
    cell: str, bidirectional: bool, shape: tuple[int, int, int, int]
) -> None:
    batch, time, inputs, hidden = shape
    case = normed(
        cell, batch=batch, time=time, input=inputs, hidden=hidden, dtype=F32, bidirectional=bidirectional
    )
    module, given, before = fast_module(case), make_inputs(case), torch.get_num_threads()
    found: list[Results] = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(module, module.named_parameters(), given))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert_bitwise(other, found[0])


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_recompute(cell: str, layout: str) -> None:
    case = normed(cell, time=50, layers=2, layout=layout)
    module, inputs = fast_module(case), make_inputs(case)
    expected = run_module(module, case, inputs)
    module.recompute = True
    assert_same(run_module(module, case, inputs), expected, **EXACT)


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_half_precision_is_rounded_once(cell: str, dtype: torch.dtype) -> None:
    case = normed(cell, dtype=dtype)
    module, inputs = fast_module(case), make_inputs(case)
    wide = copy.deepcopy(module).float()
    expected = run_forward(wide, case.but(dtype=F32), inputs.to(F32))
    found = run_module(module, case, inputs)
    for name, value in expected.items():
        assert torch.equal(found[name], value.to(dtype)), name
    for name, value in run_module(wide, case.but(dtype=F32), inputs.to(F32)).items():
        assert relative_error(found[name], value) < 0.02, name


@pytest.mark.parametrize("cls", MODULES, ids=lambda cls: cls.__name__)
def test_autocast(cls: type[nn.RNNBase]) -> None:
    module, x = cls(5, 8, 2, layer_norm=True), torch.randn(6, 3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)[0]
    torch.testing.assert_close(y.float(), module(x)[0], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_compiled(cell: str) -> None:
    case = normed(cell, layers=2, bidirectional=True, dtype=F32)
    module, inputs = fast_module(case), make_inputs(case)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    expected = run(module, module.named_parameters(), inputs)
    found = run(compiled, module.named_parameters(), inputs)
    assert_same(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cls", MODULES, ids=lambda cls: cls.__name__)
def test_opcheck(cls: type[nn.RNNBase]) -> None:
    module = cls(5, 7, layer_norm=True)
    both = module._weights(), module._parameters_of_operands()
    weights, operands = ([p.detach() for p in given] for given in both)
    spec, x, ops = module._layer_spec(), torch.randn(4, 3, 5), torch.ops.fastrnn
    operands = list(operands_of_call(spec, operands, 1, NONE, False, x, (4, 3, 7)))
    for training in (True, False):
        arguments = (x, [], weights, None, operands, spec, training)
        assert set(torch.library.opcheck(ops.layer_forward.default, arguments).values()) == {"SUCCESS"}
    y, *finals, reserve = ops.layer_forward(x, [], weights, None, operands, spec, True)
    d_outputs = [torch.ones_like(y), *(None for _ in finals)]
    needs = _spec.NEEDS_X | _spec.NEEDS_WEIGHTS | _spec.NEEDS_OPERANDS
    arguments = (d_outputs, x, [], weights, None, operands, y, reserve, spec, needs)
    assert set(torch.library.opcheck(ops.layer_backward.default, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize("cls", MODULES, ids=lambda cls: cls.__name__)
def test_operands_are_checked(cls: type[nn.RNNBase]) -> None:
    module, x = cls(5, 7, layer_norm=True), torch.randn(4, 3, 5)
    for name in module._operand_names:
        good = getattr(module, name)
        for bad in (good[:-1], good[None], good.double()):
            setattr(module, name, nn.Parameter(bad.detach().clone()))
            with pytest.raises(RuntimeError, match="operand"):
                module(x)
        setattr(module, name, good)
    module(x)


@pytest.mark.parametrize("cls", MODULES, ids=lambda cls: cls.__name__)
def test_empty_batch(cls: type[nn.RNNBase]) -> None:
    module = cls(5, 7, layer_norm=True)
    y = module(torch.randn(4, 0, 5))[0]
    assert y.shape == (4, 0, 7)
    y.sum().backward()
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in module.parameters())


@pytest.mark.parametrize("wanted", ["ln_ih_weight_l0", "ln_hh_weight_l0", "ln_c_weight_l0", "ln_c_bias_l0"])
def test_a_single_parameter_is_trained(wanted: str) -> None:
    module, x = _randomised(fastrnn.LSTM(5, 7, layer_norm=True, dtype=F64)), torch.randn(4, 3, 5, dtype=F64)
    expected = torch.autograd.grad(module(x)[0].sum(), [getattr(module, wanted)])[0]
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name == wanted)
    module(x)[0].sum().backward()
    torch.testing.assert_close(getattr(module, wanted).grad, expected, **EXACT)


# -- modules -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["tanh", "softsign"])
@pytest.mark.parametrize("name", SINGLE)
def test_a_cell_is_a_layer_of_one_step(name: str, activation: str) -> None:
    options = {} if name == "RNNCell" else {"activation": activation}
    cell = _randomised(getattr(fastrnn, name)(5, 9, layer_norm=True, dtype=F64, **options))
    layer = getattr(fastrnn, name.removesuffix("Cell"))(5, 9, layer_norm=True, dtype=F64, **options)
    layer.load_state_dict({f"{key}_l0": value for key, value in cell.state_dict().items()})
    x, states = torch.randn(3, 5, dtype=F64), [torch.randn(3, 9, dtype=F64)] * (1 + (name == "LSTMCell"))
    found = run_cell(cell, x, states)
    first = [s[None] for s in states]
    h, *rest = flat_outputs(layer(x[None], tuple(first) if len(first) == 2 else first[0]))
    torch.testing.assert_close(found["h"], h[0], **EXACT)
    gradients = torch.autograd.grad(
        [h[0], *(c[0] for c in rest[1:])],
        list(layer.parameters()),
        [cotangent(key, found[key]) for key in ("h", "c") if key in found],
    )
    for (key, _), want in zip(layer.named_parameters(), gradients, strict=True):
        torch.testing.assert_close(found[f"d_{key.removesuffix('_l0')}"], want, **EXACT)


@pytest.mark.parametrize("cls", MODULES, ids=lambda cls: cls.__name__)
def test_parameters(cls: type[nn.RNNBase]) -> None:
    module = cls(5, 7, 2, bidirectional=True, layer_norm=True)
    plain = cls(5, 7, 2, bidirectional=True)
    assert list(plain.state_dict()) == list(
        getattr(nn, cls.__name__)(5, 7, 2, bidirectional=True).state_dict()
    )
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[cls.__name__]
    expected = {"ln_ih_weight": gates * 7, "ln_hh_weight": gates * 7}
    if cls is fastrnn.LSTM:
        expected |= {"ln_c_weight": 7, "ln_c_bias": 7}
    found = {name: p for name, p in module.named_parameters() if name.startswith("ln_")}
    suffixes = ["_l0", "_l0_reverse", "_l1", "_l1_reverse"]
    assert {name: tuple(p.shape) for name, p in found.items()} == {
        name + suffix: (size,) for suffix in suffixes for name, size in expected.items()
    }
    for p in found.values():
        nn.init.constant_(p, 3.0)
    module.reset_parameters()
    for name, p in found.items():
        assert torch.equal(p, torch.full_like(p, 0.0 if "bias" in name else 1.0)), name
    assert "layer_norm=True" in repr(module)
    assert "layer_norm" not in repr(plain)


@pytest.mark.parametrize("cls", [*MODULES, fastrnn.LSTMCell, fastrnn.GRUCell, fastrnn.RNNCell])
def test_copies_and_pickles(cls: type[nn.Module]) -> None:
    module, x = _randomised(cls(5, 7, layer_norm=True)), torch.randn(4, 5)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    fresh = cls(5, 7, layer_norm=True)
    fresh.load_state_dict(module.state_dict())
    expected = module(x)
    for other in (copy.deepcopy(module), torch.load(buffer, weights_only=False), fresh):
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("cls", MODULES, ids=lambda cls: cls.__name__)
def test_a_module_of_an_older_pickle(cls: type[nn.RNNBase]) -> None:
    module = cls(5, 7)
    state = {k: v for k, v in module.__dict__.items() if k not in ("layer_norm", "_operand_names")}
    old = cls.__new__(cls)
    old.__setstate__(state)
    x = torch.randn(4, 3, 5)
    assert torch.equal(old(x)[0], module(x)[0])


@pytest.mark.parametrize("cls", MODULES, ids=lambda cls: cls.__name__)
def test_functional(cls: type[nn.RNNBase]) -> None:
    module, x = _randomised(cls(5, 7, 2, layer_norm=True)), torch.randn(4, 3, 5)
    function = getattr(fastrnn.functional, cls.__name__.lower())
    weights = [p for name, p in module.named_parameters() if not name.startswith("ln_")]
    operands = [p for name, p in module.named_parameters() if name.startswith("ln_")]
    y, *_ = function(x, None, weights, num_layers=2, layer_norm=True, operands=operands)
    assert torch.equal(y, module(x)[0])


def test_meta_device_and_moves() -> None:
    module = fastrnn.LSTM(5, 7, layer_norm=True, device="meta")
    assert module.ln_c_bias_l0.is_meta
    assert module(torch.empty(4, 3, 5, device="meta"))[0].shape == (4, 3, 7)
    module = module.to_empty(device="cpu").double()
    module.reset_parameters()
    assert module(torch.randn(4, 3, 5, dtype=F64))[0].isfinite().all()


def test_what_it_does_not_go_with() -> None:
    for cls in (fastrnn.GRU, fastrnn.GRUCell):
        with pytest.raises(ValueError, match="needs reset_after=True"):
            cls(3, 4, layer_norm=True, reset_after=False)
    with pytest.raises(ValueError, match="layer_norm"):
        fastrnn.LSTM(3, 4, layer_norm="yes")  # type: ignore[call-overload]
    module = fastrnn.LSTM(3, 4, layer_norm=True)
    with pytest.raises(ValueError, match="Stream does not take a layer with layer_norm"):
        fastrnn.Stream(module)
    with pytest.raises(ValueError, match="quantize does not take layers with layer_norm"):
        fastrnn.quantize(module)
    with pytest.raises(ValueError, match=r"torch\.nn has no layer_norm=True"):
        fastrnn.restore_modules(module)
