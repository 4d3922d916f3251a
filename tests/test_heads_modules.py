"""Modules with heads: parameters, cells, copies, errors, streams, quantized layers."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

import fastrnn
from helpers import F32, F64, flat_outputs, run_cell

EXACT = {"rtol": 1e-10, "atol": 1e-10}
MODULES = [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN]
SINGLE = ["LSTMCell", "GRUCell", "RNNCell"]
of_layers = pytest.mark.parametrize("cls", MODULES, ids=lambda cls: cls.__name__)


@pytest.mark.parametrize("hidden", [32, 10])
@pytest.mark.parametrize("name", SINGLE)
def test_a_cell_is_a_layer_of_one_step(name: str, hidden: int) -> None:
    cell = getattr(fastrnn, name)(5, hidden, heads=2, dtype=F64)
    layer = getattr(fastrnn, name.removesuffix("Cell"))(5, hidden, heads=2, dtype=F64)
    layer.load_state_dict({f"{key}_l0": value for key, value in cell.state_dict().items()})
    x = torch.randn(3, 5, dtype=F64)
    states = [torch.randn(3, hidden, dtype=F64)] * (1 + (name == "LSTMCell"))
    found = run_cell(cell, x, states)
    first = [s[None] for s in states]
    h, *_ = flat_outputs(layer(x[None], tuple(first) if len(first) == 2 else first[0]))
    torch.testing.assert_close(found["h"], h[0], **EXACT)
    torch.testing.assert_close(
        cell(x[0]), cell(x, None)[0] if name != "LSTMCell" else tuple(s[0] for s in cell(x))
    )
    with pytest.raises(RuntimeError):
        cell(torch.randn(3, 6, dtype=F64))


@of_layers
def test_parameters(cls: type[nn.RNNBase]) -> None:
    module, plain = cls(5, 32, 2, bidirectional=True, heads=4), cls(5, 32, 2, bidirectional=True)
    assert list(module.state_dict()) == list(plain.state_dict())
    for name, weight in module.named_parameters():
        rows, *columns = getattr(plain, name).shape
        assert weight.shape == (rows, *(n // 4 if "weight_hh" in name else n for n in columns)), name
    assert "heads=4" in repr(module) and "heads" not in repr(plain)
    before = module.weight_hh_l0.detach().clone()
    module.reset_parameters()
    assert module.weight_hh_l0.shape == before.shape and not torch.equal(module.weight_hh_l0, before)
    projected = fastrnn.LSTM(5, 32, heads=4, proj_size=16)
    assert projected.weight_hh_l0.shape == (128, 4) and projected.weight_hr_l0.shape == (16, 32)


@pytest.mark.parametrize("cls", [*MODULES, fastrnn.LSTMCell, fastrnn.GRUCell, fastrnn.RNNCell])
def test_copies_and_pickles(cls: type[nn.Module]) -> None:
    module, x = cls(5, 32, heads=2), torch.randn(4, 5)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    fresh = cls(5, 32, heads=2)
    fresh.load_state_dict(module.state_dict())
    expected = module(x)
    for other in (copy.deepcopy(module), torch.load(buffer, weights_only=False), fresh):
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
    plain = cls(5, 32)
    old = cls.__new__(cls)
    old.__setstate__({k: v for k, v in plain.__dict__.items() if k != "heads"})
    torch.testing.assert_close(old(x), plain(x), rtol=0, atol=0)


@pytest.mark.parametrize("hidden", [32, 10])
@of_layers
def test_functional(cls: type[nn.RNNBase], hidden: int) -> None:
    module, x = cls(5, hidden, 2, heads=2), torch.randn(4, 3, 5)
    function = getattr(fastrnn.functional, cls.__name__.lower())
    weights = list(module.parameters())
    assert torch.equal(function(x, None, weights, num_layers=2, heads=2)[0], module(x)[0])
    with pytest.raises(RuntimeError, match="w_hh must have shape"):
        function(x, None, weights, num_layers=2)
    with pytest.raises(ValueError, match="heads must divide"):
        function(x, None, weights, num_layers=2, heads=3)
    with pytest.raises(ValueError, match="heads must be an integer from 1"):
        function(x, None, weights, num_layers=2, heads=0)


@pytest.mark.parametrize("weights", ["int8", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 3, 20])
@of_layers
def test_quantized(cls: type[nn.RNNBase], batch: int, weights: str) -> None:
    module, x = cls(24, 96, 2, heads=3), torch.randn(12, batch, 24)
    quantized = fastrnn.quantize(module, weights)
    restored = quantized.dequantize()
    assert restored.heads == 3
    want = restored(x)[0]
    torch.testing.assert_close(quantized(x)[0], want, rtol=2e-3, atol=2e-3)
    fresh = fastrnn.quantize(cls(24, 96, 2, heads=3), weights)
    fresh.load_state_dict(quantized.state_dict())
    assert torch.equal(fresh(x)[0], quantized(x)[0])
    with pytest.raises(ValueError, match="no multiple of 16"):
        fastrnn.quantize(cls(24, 40, heads=4), weights)


@pytest.mark.parametrize("dtype", [F32, F64])
@of_layers
def test_stream(cls: type[nn.RNNBase], dtype: torch.dtype) -> None:
    module, x = cls(5, 64, 2, heads=4, dtype=dtype), torch.randn(6, 3, 5, dtype=dtype)
    stream = fastrnn.Stream(module, 3)
    steps = torch.stack([stream.step(step).clone() for step in x])
    torch.testing.assert_close(steps, module(x)[0])
    with pytest.raises(ValueError, match="no multiple of 16"):
        fastrnn.Stream(cls(5, 40, heads=4))


@of_layers
def test_meta_device(cls: type[nn.RNNBase]) -> None:
    for hidden in (32, 10):
        module = cls(5, hidden, heads=2, device="meta")
        assert module(torch.empty(4, 3, 5, device="meta"))[0].shape == (4, 3, hidden)
        module = module.to_empty(device="cpu")
        module.reset_parameters()
        assert module(torch.randn(4, 3, 5))[0].isfinite().all()


def test_what_it_does_not_go_with() -> None:
    for cls in (*MODULES, fastrnn.LSTMCell, fastrnn.GRUCell, fastrnn.RNNCell):
        with pytest.raises(
            ValueError, match="heads must divide hidden_size and proj_size, but 3 does not divide 8"
        ):
            cls(4, 8, heads=3)
        for bad in (0, -1, 2.0, "2", True, None, 5000):
            with pytest.raises(ValueError, match="heads must be an integer from 1 to 4096"):
                cls(4, 8, heads=bad)
        with pytest.raises(ValueError, match=r"torch\.nn has no heads=2"):
            fastrnn.restore_modules(cls(4, 8, heads=2))
    with pytest.raises(ValueError, match="4 does not divide 6"):
        fastrnn.LSTM(4, 8, heads=4, proj_size=6)


@of_layers
def test_errors_are_torchs(cls: type[nn.RNNBase]) -> None:
    def outcome(module: nn.Module, *arguments: Any) -> tuple[type, str]:
        with pytest.raises((RuntimeError, ValueError)) as caught:
            module(*arguments)
        return caught.type, str(caught.value)

    module, plain = cls(5, 32, heads=2), getattr(nn, cls.__name__)(5, 32)
    state = torch.zeros(1, 3, 33)
    hx = (state, state) if cls is fastrnn.LSTM else state
    for arguments in ((torch.randn(4, 3, 6),), (torch.randn(4, 6),), (torch.randn(4, 3, 5), hx)):
        assert outcome(module, *arguments) == outcome(plain, *arguments)
    with pytest.raises(RuntimeError, match="takes input, hx and weights"):
        module(torch.randn(4, 3, 5).to_sparse())
