"""fastrnn.quantize: the layers that it makes against the layers that they stand for."""

import copy
import io
import math
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
import fastrnn._ops
from fastrnn.quantized import pack_int8, packed_shape, unpack_int8

LAYERS = {
    "lstm": (fastrnn.LSTM, {}),
    "lstm-proj": (fastrnn.LSTM, {"proj_size": 6}),
    "lstm-softsign": (fastrnn.LSTM, {"activation": "softsign"}),
    "gru": (fastrnn.GRU, {}),
    "gru-reset-before": (fastrnn.GRU, {"reset_after": False}),
    "rnn-relu": (fastrnn.RNN, {"nonlinearity": "relu"}),
    "rnn-nobias": (fastrnn.RNN, {"bias": False}),
}
FORMATS = ("int8", "bfloat16")
cells = pytest.mark.parametrize("cell", LAYERS)
formats = pytest.mark.parametrize("weights", FORMATS)


def make(cell, *sizes, **options):
    torch.manual_seed(0)
    cls, own = LAYERS[cell]
    return cls(*sizes, **own, **options)


def outputs(result):
    y, h = result
    return [y.data if isinstance(y, PackedSequence) else y, *(h if isinstance(h, tuple) else (h,))]


def assert_stands_for(quantized, x, hx, exact_x, exact_hx, weights):
    """Its outputs are those of the dequantized layer in float64, but for float32's and the activations' rounding."""
    allowed = 5e-6 if weights == "bfloat16" else 4e-4
    got = outputs(quantized(x, hx))
    want = outputs(quantized.dequantize().double()(exact_x, exact_hx))
    for a, b in zip(got, want, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=allowed, atol=allowed)


def states(module, batch):
    rows = module.num_layers * (2 if module.bidirectional else 1)
    h = torch.randn(rows, *batch, module.proj_size or module.hidden_size)
    return (h, torch.randn(rows, *batch, module.hidden_size)) if module.mode == "LSTM" else h


def doubled(hx):
    return tuple(h.double() for h in hx) if isinstance(hx, tuple) else hx.double()


@formats
@cells
@pytest.mark.parametrize("form", ["B1", "B3", "B40", "batch-first", "unbatched", "bi-L2", "packed", "T1"])
def test_outputs(cell, weights, form):
    bidirectional = form == "bi-L2"
    module = make(
        cell, 5, 19, 2 if bidirectional else 1, bidirectional=bidirectional, batch_first=form == "batch-first"
    )
    quantized = fastrnn.quantize(module, weights)
    shape = {"B1": (7, 1), "B40": (7, 40), "unbatched": (7,), "T1": (1, 2)}.get(form, (7, 3))
    x = torch.randn(*shape, 5)
    batch = () if form == "unbatched" else (shape[0] if form == "batch-first" else shape[1],)
    hx = states(module, batch)
    if form == "packed":
        lengths = torch.tensor([3, 7, 1])
        pack = {"enforce_sorted": False}
        packed, exact = (
            pack_padded_sequence(x, lengths, **pack),
            pack_padded_sequence(x.double(), lengths, **pack),
        )
        assert_stands_for(quantized, packed, hx, exact, doubled(hx), weights)
        assert_stands_for(quantized, packed, None, exact, None, weights)
    else:
        assert_stands_for(quantized, x, hx, x.double(), doubled(hx), weights)
        assert_stands_for(quantized, x, None, x.double(), None, weights)


@formats
@pytest.mark.parametrize("hidden", [1, 15, 16, 130])
def test_large_and_odd_sizes(hidden, weights):
    quantized = fastrnn.quantize(make("gru", 70, hidden), weights)
    x = torch.randn(30, 2, 70)
    assert_stands_for(quantized, x, None, x.double(), None, weights)


def test_int8_rounds_to_the_nearest_step():
    w = torch.randn(3 * 18, 7)
    w[4] = 0
    packed, scale = pack_int8(w, 3)
    assert packed.dtype == torch.int8 and packed.shape == packed_shape(3, 18, 7)
    assert packed.abs().max() == 127
    found = unpack_int8(packed, scale, 7)
    assert torch.equal(found[4], torch.zeros(7))
    assert bool(((found - w).abs() <= scale[:, None] * 0.5001).all())
    again, _ = pack_int8(found, 3)
    assert torch.equal(again, packed)


def test_bfloat16_rounds_weights_alone():
    module = make("lstm", 5, 19)
    plain = fastrnn.quantize(module, "bfloat16").dequantize()
    assert torch.equal(plain.weight_hh_l0, module.weight_hh_l0.bfloat16().float())
    assert torch.equal(plain.bias_hh_l0, module.bias_hh_l0)


@formats
@cells
def test_state_dict_goes_into_a_layer_of_the_same_sizes(cell, weights):
    quantized = fastrnn.quantize(make(cell, 5, 19, 2), weights)
    file = io.BytesIO()
    torch.save(quantized.state_dict(), file)
    file.seek(0)
    cls, own = LAYERS[cell]
    other = fastrnn.quantize(cls(5, 19, 2, **own), weights)
    other.load_state_dict(torch.load(file, weights_only=True), strict=True)
    x = torch.randn(4, 2, 5)
    for copied in (other, copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
        for a, b in zip(outputs(quantized(x)), outputs(copied(x)), strict=True):
            assert torch.equal(a, b)


@formats
def test_a_model_is_copied(weights):
    shared = nn.GRU(8, 8)
    model = nn.ModuleDict({"embed": nn.Linear(3, 8), "a": shared, "b": shared, "cell": nn.GRUCell(8, 8)})
    before = copy.deepcopy(model.state_dict())
    quantized = fastrnn.quantize(model, weights)
    assert quantized["a"] is quantized["b"] and isinstance(quantized["a"], fastrnn.GRU)
    assert type(model["a"]) is nn.GRU and type(quantized["cell"]) is nn.GRUCell
    assert quantized["embed"].weight is not model["embed"].weight
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    with torch.no_grad():
        shared.weight_hh_l0.zero_()
    assert quantized["a"].dequantize().weight_hh_l0.abs().max() > 0


class Recorder(nn.Module):
    """A model that hooks its layers with its own methods."""

    def __init__(self, cls):
        super().__init__()
        self.rnn = cls(3, 4)
        self.seen = []
        self.rnn.register_forward_pre_hook(self.before, with_kwargs=True)
        self.handle = self.rnn.register_forward_hook(self.after)
        self.rnn.register_forward_hook(self.always, always_call=True)
        self.rnn.register_full_backward_hook(self.backward)
        self.rnn.register_state_dict_pre_hook(self.saved)
        self.rnn.register_load_state_dict_post_hook(self.loaded)

    def before(self, module, args, kwargs):
        self.seen.append(("before", module))

    def after(self, module, args, output):
        self.seen.append(("after", module))
        return output[0] + 1, output[1]

    def always(self, module, args, output):
        self.seen.append(("always", module))

    def backward(self, module, grad_input, grad_output):
        self.seen.append(("backward", module))

    def saved(self, module, *rest):
        self.seen.append(("saved", module))

    def loaded(self, module, keys):
        self.seen.append(("loaded", module))

    def forward(self, x):
        return self.rnn(x)[0]


@formats
@pytest.mark.parametrize("cls", [nn.GRU, fastrnn.GRU])
def test_hooks_are_kept(cls, weights):
    model, x = Recorder(cls), torch.randn(5, 2, 3)
    quantized = fastrnn.quantize(model, weights)
    plain = quantized.rnn.dequantize()
    torch.testing.assert_close(quantized(x), plain(x)[0].detach() + 1, rtol=0, atol=1e-3)
    quantized.rnn.load_state_dict(quantized.rnn.state_dict())
    assert [name for name, _ in quantized.seen] == ["before", "after", "always", "saved", "loaded"]
    assert all(module is quantized.rnn for _, module in quantized.seen)
    assert model.seen == []
    assert quantized.rnn._backward_hooks
    model.handle.remove()  # of the model that was copied
    quantized(x)
    assert ("after", quantized.rnn) in quantized.seen[5:]


@pytest.mark.parametrize("cls", [nn.GRU, fastrnn.GRU])
def test_weights_that_are_made_anew_are_refused(cls):
    for change, undo in (
        (parametrizations.weight_norm, lambda m: parametrize.remove_parametrizations(m, "weight_hh_l0")),
        (lambda m, name: prune.l1_unstructured(m, name, 0.5), lambda m: prune.remove(m, "weight_hh_l0")),
    ):
        model = nn.ModuleDict({"plain": cls(3, 4), "rnn": cls(3, 4)})
        change(model["rnn"], "weight_hh_l0")
        with pytest.raises(ValueError, match="rnn: its weights are made anew in each call"):
            fastrnn.quantize(model)
        undo(model["rnn"])
        x = torch.randn(5, 2, 3)
        torch.testing.assert_close(
            fastrnn.quantize(model)["rnn"](x)[0], model["rnn"](x)[0].detach(), rtol=0, atol=1e-2
        )


@formats
def test_no_gradient_flows(weights):
    quantized = fastrnn.quantize(make("lstm", 5, 19), weights)
    assert not list(quantized.parameters()) and not quantized.training
    y, (h, c) = quantized(torch.randn(3, 2, 5, requires_grad=True))
    assert not (y.requires_grad or h.requires_grad or c.requires_grad)


@formats
@cells
def test_the_number_of_threads_changes_nothing(cell, weights):
    quantized = fastrnn.quantize(make(cell, 64, 160), weights)
    x = torch.randn(40, 2, 64)
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(outputs(quantized(x)))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


@formats
def test_compiles(weights):
    quantized = fastrnn.quantize(make("lstm-proj", 5, 19, 2, bidirectional=True), weights)
    x = torch.randn(4, 2, 5)
    compiled = torch.compile(quantized, fullgraph=True, backend="aot_eager")
    for a, b in zip(outputs(quantized(x)), outputs(compiled(x)), strict=True):
        torch.testing.assert_close(a, b)


@formats
@cells
def test_stream(cell, weights):
    quantized = fastrnn.quantize(make(cell, 5, 19, 2), weights)
    stream = fastrnn.Stream(quantized, 3)
    x = torch.randn(6, 3, 5)
    y = torch.stack([stream.step(frame).clone() for frame in x])
    torch.testing.assert_close(y, quantized(x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_row_that_is_not_finite_spoils_no_other(value):
    quantized = fastrnn.quantize(make("gru", 5, 19), "int8")
    x = torch.randn(4, 3, 5)
    expected = quantized(x)[0]
    x[1, 1, 2] = value
    y = quantized(x)[0]
    assert bool(y[1:, 1].isnan().all())
    assert torch.equal(y[:, [0, 2]], expected[:, [0, 2]]) and torch.equal(y[0], expected[0])


def test_refusals():
    with pytest.raises(ValueError, match="Unknown weights 'int4'"):
        fastrnn.quantize(fastrnn.LSTM(3, 4), "int4")
    with pytest.raises(ValueError, match="found no LSTM, GRU or RNN"):
        fastrnn.quantize(nn.Linear(3, 4))
    with pytest.raises(TypeError, match=r"float32 weights, got torch\.float64"):
        fastrnn.quantize(fastrnn.LSTM(3, 4).double())
    broken = nn.Sequential(fastrnn.LSTM(3, 4))
    with torch.no_grad():
        broken[0].weight_hh_l0[0, 0] = math.nan
    with pytest.raises(ValueError, match="0: weights must be finite"):
        fastrnn.quantize(broken)


def test_repr_names_the_format():
    assert repr(fastrnn.quantize(nn.LSTM(3, 4, 2))) == "QuantizedLSTM(3, 4, num_layers=2, weights=int8)"


@pytest.mark.parametrize("bias", [True, False])
def test_weights_of_another_dtype_than_the_input_are_still_refused(bias):
    module, theirs = fastrnn.LSTM(5, 19, bias=bias).bfloat16(), nn.LSTM(5, 19, bias=bias).bfloat16()
    x = torch.randn(4, 3, 5)
    with pytest.raises((RuntimeError, ValueError)) as expected:
        theirs(x)
    with pytest.raises(type(expected.value), match=r"dtype|type"), torch.no_grad():
        module(x)


@cells
def test_a_bfloat16_layer_computes_in_float32(cell):
    module = make(cell, 5, 19).bfloat16()
    x = torch.randn(7, 2, 5).bfloat16()
    with torch.no_grad():
        got, want = outputs(module(x)), outputs(copy.deepcopy(module).float()(x.float()))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b.bfloat16(), rtol=1e-2, atol=1e-2)


@formats
def test_op(weights):
    quantized = fastrnn.quantize(make("lstm-proj", 5, 19), weights)
    spec = fastrnn.LSTM(1, 1)._layer_spec()
    arguments = (torch.randn(4, 3, 5), [], quantized._weights(), None, [], spec, False)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.fastrnn.layer_forward.default, arguments, test_utils=tests)
    with pytest.raises(RuntimeError, match="quantized weights have no gradients"):
        torch.ops.fastrnn.layer_forward(*arguments[:-1], True)


@pytest.mark.parametrize("isa", ["avx512", "avx2", "generic"])
@pytest.mark.parametrize("length", [640, 4100, 70000])
def test_products_of_one_sign_do_not_overflow(isa, length):
    if isa not in fastrnn._ops.supported_isas():
        pytest.skip(f"this CPU has no {isa}")
    torch.ops.fastrnn.force_isa(isa)
    module = fastrnn.RNN(length, 3, nonlinearity="relu")
    with torch.no_grad():
        module.weight_ih_l0.fill_(1 / length)
    quantized = fastrnn.quantize(module)
    for x in (torch.ones(2, 1, length), -torch.ones(2, 1, length)):
        assert_stands_for(quantized, x, None, x.double(), None, "int8")
