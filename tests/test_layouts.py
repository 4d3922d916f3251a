"""Tensors without strides: torch.nn's exception or torch.nn's result."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fastrnn

pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta state")

LAYOUTS = {"coo": Tensor.to_sparse, "csr": Tensor.to_sparse_csr, "mkldnn": Tensor.to_mkldnn}
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def outcome(library: Any, name: str, inputs: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """What the module makes of them: tensors, or the exception."""
    torch.manual_seed(0)
    module = getattr(library, name)(3, 5, **options)
    try:
        result = module(*inputs)
    except Exception as error:
        return type(error), str(error)
    y, *states = result if isinstance(result, tuple) else (result,)
    return [y, *(s for state in states for s in (state if isinstance(state, tuple) else (state,)))]


def assert_alike(name: str, *inputs: Any, **options: Any) -> None:
    expected, found = (outcome(library, name, inputs, options) for library in (nn, fastrnn))
    if isinstance(expected, list):
        torch.testing.assert_close(found, expected)
    else:
        assert found == expected


@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "bidirectional": True}], ids=["L1", "L2-bi"])
@pytest.mark.parametrize("shape", [(4, 2, 3), (4, 3)], ids=["batch", "unbatched"])
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@layouts
def test_layers(layout: str, name: str, shape: tuple[int, ...], options: dict[str, Any]) -> None:
    x = LAYOUTS[layout](torch.randn(shape))
    assert_alike(name, x, **options)
    with torch.no_grad():
        assert_alike(name, x, **options)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_packed_layers(name: str) -> None:
    assert_alike(name, PackedSequence(torch.randn(5, 3).to_sparse(), torch.tensor([2, 2, 1])))


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
@layouts
def test_cells(layout: str, name: str) -> None:
    assert_alike(name, LAYOUTS[layout](torch.randn(4, 3)))


@pytest.mark.parametrize("name", ["GRU", "RNN", "GRUCell", "RNNCell"])
@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_states(layout: str, name: str) -> None:
    dims = 2 if name.endswith("Cell") else 3
    assert_alike(name, torch.randn((1, 4, 3)[-dims:]), LAYOUTS[layout](torch.randn((1, 4, 5)[-dims:])))


@layouts
def test_what_torch_lacks_is_refused(layout: str) -> None:
    x = LAYOUTS[layout](torch.randn(4, 3))
    for module in (fastrnn.GRUCell(3, 5, reset_after=False), fastrnn.LSTM(3, 5, activation="relu")):
        with pytest.raises(RuntimeError):
            module(x)


@pytest.mark.parametrize("weights", ["int8", "bfloat16"])
def test_quantized_layers(weights: str) -> None:
    quantized = fastrnn.quantize(nn.GRU(3, 5), weights)
    x = torch.randn(4, 2, 3).to_sparse()
    with pytest.raises(RuntimeError) as expected:
        nn.GRU(3, 5)(x)
    with pytest.raises(type(expected.value)) as found:
        quantized(x)
    assert type(found.value) is type(expected.value)
