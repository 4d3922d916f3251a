"""The table of options beside those that have test files of their own, and a module of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn

# family, and what the constructors of its layer and its cell take
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "lstm-functions": ("LSTM", {"activation": "silu", "recurrent_activation": "hardsigmoid"}),
    "lstm-coupled": ("LSTM", {"coupled_gates": True}),
    "lstm-peephole": ("LSTM", {"peephole": True}),
    "lstm-peephole-coupled": ("LSTM", {"peephole": True, "coupled_gates": True}),
    "lstm-clip": ("LSTM", {"cell_clip": 0.2}),
    "lstm-zoneout": ("LSTM", {"zoneout": (0.3, 0.2)}),
    "lstm-zoneout-norm": ("LSTM", {"zoneout": (0.3, 0.2), "layer_norm": True}),
    "lstm-all": (
        "LSTM",
        {
            "activation": "softsign",
            "recurrent_activation": "silu",
            "peephole": True,
            "cell_clip": 0.3,
            "zoneout": (0.3, 0.2),
        },
    ),
    "gru-functions": ("GRU", {"activation": "silu", "recurrent_activation": "onnx_hardsigmoid"}),
    "gru-zoneout": ("GRU", {"zoneout": 0.3}),
    "gru-zoneout-before": ("GRU", {"zoneout": 0.3, "reset_after": False}),
    "gru-zoneout-norm": ("GRU", {"zoneout": 0.3, "layer_norm": True}),
    "rnn-silu": ("RNN", {"nonlinearity": "silu"}),
    "rnn-zoneout": ("RNN", {"zoneout": 0.3}),
    "rnn-zoneout-norm": ("RNN", {"zoneout": 0.3, "layer_norm": True}),
}
each = pytest.mark.parametrize("option", OPTIONS)
zoned = pytest.mark.parametrize("option", [name for name in OPTIONS if "zoneout" in OPTIONS[name][1]])


def make(option: str, *sizes: int, cell: bool = False, plain: bool = False, **more: Any) -> nn.Module:
    """With parameters unlike those that it begins with. plain: without the options, but the layers' normalisation."""
    kind, options = OPTIONS[option]
    if plain:
        options = {name: value for name, value in options.items() if name == "layer_norm"}
    torch.manual_seed(0)
    module: nn.Module = getattr(fastrnn, kind + "Cell" * cell)(*sizes, **options, **more)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -0.7, 0.7)
    return module


def flat(outputs: Any) -> list[Tensor]:
    """The tensors of a layer's or a cell's result."""
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for part in outputs for tensor in flat(part)]


def gradients(run: Any, *given: Any, module: nn.Module, seed: int = 3) -> list[Tensor]:
    """Outputs of a call with the masks of that seed, and the gradients of the parameters and of the first argument."""
    x = given[0].detach().clone().requires_grad_()
    torch.manual_seed(seed)
    outputs = flat(run(x, *given[1:]))
    generator = torch.Generator().manual_seed(5)
    seeds = [torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.dtype) for o in outputs]
    return [*outputs, *torch.autograd.grad(outputs, [x, *module.parameters()], seeds)]
