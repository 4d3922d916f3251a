"""The layers that torch.nn lacks, each in its forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import fastrnn
from fastrnn import _stack
from fastrnn._autograd import reference_layer

EXACT = {"rtol": 1e-10, "atol": 1e-10}
LAYERS: dict[str, tuple[type[nn.RNNBase], dict[str, Any]]] = {
    "slstm": (fastrnn.SLSTM, {}),
    "slstm-heads": (fastrnn.SLSTM, {"heads": 2}),
    "indrnn": (fastrnn.IndRNN, {}),
    "indrnn-silu": (fastrnn.IndRNN, {"nonlinearity": "silu"}),
    "min-gru": (fastrnn.MinGRU, {}),
    "min-gru-g": (fastrnn.MinGRU, {"activation": "half_linear"}),
    "min-lstm": (fastrnn.MinLSTM, {}),
    "min-lstm-tanh": (fastrnn.MinLSTM, {"activation": "tanh"}),
}
each = pytest.mark.parametrize("name", LAYERS)
kinds = pytest.mark.parametrize("name", ["slstm", "indrnn", "min-gru", "min-lstm"])


def make(name: str, *sizes: int, **more: Any) -> Any:
    """With weights that neither saturate the gates nor make an IndRNN's h grow without bound."""
    kind, options = LAYERS[name]
    torch.manual_seed(0)
    module = kind(*sizes, **{**options, **more})
    for parameter_name, parameter in module.named_parameters():
        low = 0.0 if kind is fastrnn.IndRNN and "hh" in parameter_name else -0.9
        nn.init.uniform_(parameter, low, 0.9)
    return module


def states_of(module: nn.RNNBase, batch: int) -> Any:
    rows = module.num_layers * (1 + module.bidirectional)
    h = torch.randn(rows, batch, module.hidden_size, dtype=module.weight_ih_l0.dtype) * 0.5
    if not isinstance(module, fastrnn.SLSTM):
        return h
    return h, h.flip(2), h.abs() + 0.5, h.flip(1)  # n is above 0


def by_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    run_layers = _stack.run_layers
    monkeypatch.setattr(_stack, "run_layers", lambda _, *rest: run_layers(reference_layer, *rest))
