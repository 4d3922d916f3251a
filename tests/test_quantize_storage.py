"""What fastrnn.quantize stores: casts leave it alone, files hold rows and scales, and no kernel misreads it."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.func import functional_call

import fastrnn
import fastrnn._ops
from fastrnn.quantized import packed_shape

FORMATS = {"int8": torch.int8, "bfloat16": torch.bfloat16}
formats = pytest.mark.parametrize("weights", FORMATS)
LAYERS = {
    "lstm-proj-bi-L2": (fastrnn.LSTM, (5, 19, 2), {"proj_size": 6, "bidirectional": True}),
    "gru-L3": (fastrnn.GRU, (5, 16, 3), {}),
    "rnn-nobias": (fastrnn.RNN, (7, 33), {"bias": False}),
}
layers = pytest.mark.parametrize("layer", LAYERS)


def make(layer, weights="int8"):
    cls, sizes, options = LAYERS[layer]
    return fastrnn.quantize(cls(*sizes, **options), weights)


def run(module):
    torch.manual_seed(1)
    y, _ = module(torch.randn(4, 3, module.input_size))
    return y


def file_of(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


CASTS = {
    "float": lambda m: m.float(),
    "double": lambda m: m.double(),
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.bfloat16(),
    "to": lambda m: m.to(torch.float64),
    "type": lambda m: m.type(torch.float64),
    "to-device-and-dtype": lambda m: m.to("cpu", torch.float64),
}


@pytest.mark.parametrize("cast", CASTS)
@formats
@layers
def test_casts_leave_the_weights_as_they_are(layer, weights, cast):
    quantized = make(layer, weights)
    expected, before = run(quantized), {name: b.clone() for name, b in quantized.named_buffers()}
    model = nn.ModuleDict({"rnn": quantized, "head": nn.Linear(3, 3)})
    CASTS[cast](model)
    for name, buffer in quantized.named_buffers():
        assert buffer.dtype == before[name].dtype
        assert torch.equal(buffer, before[name])
    assert cast == "float" or model["head"].weight.dtype != torch.float32
    assert torch.equal(run(quantized), expected)


@pytest.mark.parametrize("cast", CASTS)
@formats
def test_a_stream_of_a_layer_that_was_cast(cast, weights):
    quantized = make("gru-L3", weights)
    x = torch.randn(3, 5)
    expected = fastrnn.Stream(quantized, 3).step(x).clone()
    assert torch.equal(fastrnn.Stream(CASTS[cast](quantized), 3).step(x), expected)


@formats
def test_a_stream_refuses_matrices_of_another_dtype(weights):
    quantized = make("gru-L3", weights)
    stream = fastrnn.Stream(quantized)
    quantized._buffers["weight_hh_l1"] = quantized.dequantize().weight_hh_l1.detach()
    with pytest.raises(ValueError, match="weights of layer 1"):
        stream.step(torch.zeros(1, 5))
    with pytest.raises(ValueError, match="weights of layer 1"):
        fastrnn.Stream(quantized)


@formats
def test_a_layer_may_move(weights):
    quantized = make("gru-L3", weights)
    kinds = {name: (b.dtype, b.shape) for name, b in quantized.named_buffers()}
    quantized.to("meta", torch.float64)
    assert {name: (b.dtype, b.shape) for name, b in quantized.named_buffers()} == kinds
    assert all(b.is_meta for b in quantized.buffers())
    y, _ = quantized(torch.zeros(4, 3, 5, device="meta"))
    assert y.is_meta and y.shape == (4, 3, 16)


@formats
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_inputs_than_float32_are_refused(weights, dtype):
    quantized = make("gru-L3", weights)
    quantized.to(dtype)
    for x in (torch.zeros(4, 3, 5, dtype=dtype), torch.zeros(4, 5, dtype=dtype)):
        with pytest.raises(ValueError, match=f"takes float32 whatever it was cast to, got {dtype}"):
            quantized(x)
        with pytest.raises(ValueError, match=f"takes float32 whatever it was cast to, got {dtype}"):
            quantized(nn.utils.rnn.pack_sequence([x]) if x.dim() == 2 else x)
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size"):
        quantized(torch.randn(4, 3, 6))


@formats
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_op_refuses_matrices_of_fewer_bits_with_another_x(weights, dtype):
    quantized = make("rnn-nobias", weights)
    rest = [w if w.dtype == FORMATS[weights] else w.to(dtype) for w in quantized._weights()]
    if weights == "bfloat16" and dtype == torch.bfloat16:
        rest[2:] = [w.float() for w in rest[2:]]  # else it is a layer of bfloat16
    spec, x = fastrnn.RNN(1, 1)._layer_spec(), torch.zeros(3, 2, 7, dtype=dtype)
    for training in (False, True):
        with pytest.raises(RuntimeError, match=r"^fastrnn: "):
            fastrnn._ops.forward(spec, x, (), rest, None, (), None, training)


@layers
def test_files_hold_rows_and_scales(layer):
    quantized = make(layer)
    plain, state = quantized.dequantize().state_dict(), quantized.state_dict()
    assert state._metadata[""]["version"] == 2
    for name, value in plain.items():
        assert state[name].shape == value.shape and state[name].is_contiguous()
        if state[name].dtype == torch.int8:
            assert torch.equal(state[name] * state[f"{name}_scale"][:, None], value)
    matrices = [name for name in plain if "weight_ih" in name or "weight_hh" in name]
    assert all(state[name].dtype == torch.int8 for name in matrices)
    assert set(state) == set(plain) | {f"{name}_scale" for name in matrices}


@pytest.mark.parametrize("form", ["rows", "packed"])
@pytest.mark.parametrize("assign", [False, True])
@layers
def test_files_are_read(layer, assign, form):
    """A file without rows is one of before they were written."""
    quantized = make(layer)
    state = file_of(quantized.state_dict() if form == "rows" else dict(quantized.named_buffers()))
    other, kept = make(layer), dict(state)
    expected = run(quantized)
    assert not torch.equal(run(other), expected)
    other.load_state_dict(state, strict=True, assign=assign)
    assert torch.equal(run(other), expected)
    assert all(state[name] is kept[name] for name in kept)
    for name, buffer in quantized.named_buffers():
        assert torch.equal(buffer, other.get_buffer(name))


@pytest.mark.parametrize("form", ["rows", "packed"])
def test_files_of_a_model_are_read(form):
    model = nn.ModuleDict({"a": make("gru-L3"), "b": nn.ModuleList([make("rnn-nobias")])})
    other = nn.ModuleDict({"a": make("gru-L3"), "b": nn.ModuleList([make("rnn-nobias")])})
    other.load_state_dict(file_of(model.state_dict() if form == "rows" else dict(model.named_buffers())))
    assert torch.equal(run(other["a"]), run(model["a"]))
    assert torch.equal(run(other["b"][0]), run(model["b"][0]))


def test_a_layer_without_memory_is_filled():
    quantized, other = make("gru-L3"), make("gru-L3").to("meta")
    other.load_state_dict(quantized.state_dict(), assign=True)
    assert torch.equal(run(other), run(quantized))


def test_files_of_another_form_are_refused():
    quantized = make("gru-L3")
    for other in (quantized.dequantize(), fastrnn.quantize(fastrnn.GRU(5, 16, 3), "bfloat16")):
        with pytest.raises(RuntimeError, match="size mismatch for weight_ih_l0"):
            quantized.load_state_dict(other.state_dict())
        with pytest.raises(RuntimeError, match="size mismatch for weight_ih_l0"):
            quantized.load_state_dict(other.state_dict(), strict=False)
    with pytest.raises(RuntimeError, match="size mismatch"):
        make("gru-L3").load_state_dict(fastrnn.quantize(fastrnn.GRU(6, 17, 3)).state_dict())


@pytest.mark.parametrize("form", ["rows", "packed"])
@layers
def test_weights_lent_by_functional_call(layer, form):
    quantized, other = make(layer), make(layer)
    own = run(quantized)
    lent = other.state_dict() if form == "rows" else dict(other.named_buffers())
    torch.manual_seed(1)
    y, _ = functional_call(quantized, lent, (torch.randn(4, 3, quantized.input_size),))
    assert torch.equal(y, run(other))
    assert torch.equal(run(quantized), own)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "share_memory": lambda module: module.share_memory(),
    "to": lambda module: module.to("cpu"),
    "quantize": lambda module: fastrnn.quantize(nn.ModuleList([module, nn.GRU(2, 2)]))[0],
}


@pytest.mark.parametrize("copied", COPIES)
@layers
def test_copies_compute_the_same(layer, copied):
    quantized = make(layer)
    expected, state = run(quantized), quantized.state_dict()
    other = COPIES[copied](quantized)
    assert torch.equal(run(other), expected)
    assert all(torch.equal(state[name], value) for name, value in other.state_dict().items())


def test_a_stream_follows_what_is_loaded():
    quantized, other = make("gru-L3"), make("gru-L3")
    stream, x = fastrnn.Stream(quantized, 3), torch.randn(3, 5)
    expected = fastrnn.Stream(other, 3).step(x).clone()
    for assign in (False, True):
        quantized.load_state_dict(other.state_dict(), assign=assign)
        stream.reset()
        assert torch.equal(stream.step(x), expected)
        quantized.load_state_dict(make("gru-L3").state_dict())


def test_memory_holds_the_packed_form_alone():
    quantized = make("gru-L3")
    for name, length in (("weight_ih_l0", 5), ("weight_ih_l1", 16), ("weight_hh_l2", 16)):
        assert quantized.get_buffer(name).shape == packed_shape(3, 16, length)
    values = sum(buffer.numel() for buffer in quantized.buffers() if buffer.dtype == torch.int8)
    assert values == 3 * 16 * (8 + 5 * 16)
