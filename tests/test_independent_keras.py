"""Options against Keras on torch: outputs and gradients, the masks of recurrent dropout given to both."""

import os
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastrnn
from fastrnn._masks import draw
from helpers import F64

os.environ["KERAS_BACKEND"] = "torch"
pytest.importorskip("keras")

import keras

if keras.config.backend() != "torch":
    pytest.skip("Keras runs on something else than torch", allow_module_level=True)

# Keras on torch multiplies matrices in float32 whatever the layer's dtype; all else is float64 on both sides
CLOSE = {"rtol": 3e-6, "atol": 3e-6}
# z r h from r z n
GATES = {"LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2), "RNN": (0,)}
# ours to Keras's; its hard_sigmoid is relu6(x + 3) / 6
ACTIVATIONS: dict[str, Any] = {
    "tanh": "tanh",
    "sigmoid": "sigmoid",
    "relu": "relu",
    "silu": "silu",
    "softsign": "softsign",
    "hardtanh": "hard_tanh",
    "hardsigmoid": "hard_sigmoid",
    "identity": "linear",
    "leaky_relu": lambda x: F.leaky_relu(x, 0.01),
}


def module_of(kind: str, **options: Any) -> nn.RNNBase:
    torch.manual_seed(0)
    module: nn.RNNBase = getattr(fastrnn, kind)(5, 9, batch_first=True, dtype=F64, **options)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -0.6, 0.6)
    return module


def in_keras_order(kind: str, rows: Tensor) -> Tensor:
    order = GATES[kind]
    return rows.detach().unflatten(0, (len(order), -1))[list(order)].flatten(0, 1)


def layer_of(kind: str, module: nn.RNNBase) -> Any:
    """Keras's layer of the module's weights and options."""
    options: dict[str, Any] = {"return_sequences": True, "return_state": True, "dtype": "float64"}
    if kind == "RNN":
        options["activation"] = ACTIVATIONS[module.nonlinearity]
    else:
        options["activation"] = ACTIVATIONS[module.activation]
        options["recurrent_activation"] = ACTIVATIONS[module.recurrent_activation]
    if kind == "GRU":
        options["reset_after"] = module.reset_after
    name = "SimpleRNN" if kind == "RNN" else kind
    layer = getattr(keras.layers, name)(9, recurrent_dropout=module.recurrent_dropout, **options)
    layer.build((None, None, 5))
    w_ih, w_hh, b_ih, b_hh = (in_keras_order(kind, p) for p in module.parameters())
    keeps_both = kind == "GRU" and module.reset_after
    layer.set_weights([w_ih.T, w_hh.T, torch.stack([b_ih, b_hh]) if keeps_both else b_ih + b_hh])
    return layer


def assert_agrees(kind: str, module: nn.RNNBase) -> None:
    x = torch.randn(4, 6, 5, dtype=F64)  # [B, T, I]
    states = [torch.randn(4, 9, dtype=F64) * 0.5 for _ in range(1 + (kind == "LSTM"))]
    layer, mask = layer_of(kind, module), torch.ones(4, 9, dtype=F64)
    torch.manual_seed(3)
    if module.recurrent_dropout and module.training:
        (mask,) = draw((1, 4, 9), module.recurrent_dropout, x)
        assert 0 < (mask == 0).sum() < mask.numel()
    # one for all gates, where Keras draws one for each
    gates = len(GATES[kind])
    layer.cell.get_recurrent_dropout_mask = lambda _: [mask] * gates if gates > 1 else mask

    ours, theirs = ([t.clone().requires_grad_() for t in (x, *states)] for _ in range(2))
    torch.manual_seed(3)
    hx = [s[None] for s in ours[1:]]
    y, final = module(ours[0], tuple(hx) if len(hx) == 2 else hx[0])
    found = [y, *(s[0] for s in (final if isinstance(final, tuple) else (final,)))]
    expected = list(layer(theirs[0], initial_state=theirs[1:], training=module.training))
    seeds = [torch.randn_like(t) for t in found]
    weights = [w.value for w in layer.trainable_weights]
    got = torch.autograd.grad(found, [*ours, *module.parameters()], seeds)
    want = torch.autograd.grad(expected, [*theirs, *weights], seeds)
    count = len(ours)
    torch.testing.assert_close([*found, *got[:count]], [*expected, *want[:count]], **CLOSE)
    d_ih, d_hh, *d_biases = (in_keras_order(kind, d) for d in got[count:])
    torch.testing.assert_close([d_ih.T, d_hh.T], list(want[count : count + 2]), **CLOSE)
    for index, d_bias in enumerate(d_biases):
        theirs_bias = want[-1] if want[-1].dim() == 1 else want[-1][index]
        torch.testing.assert_close(d_bias, theirs_bias, **CLOSE)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(kind: str, activation: str) -> None:
    name = "nonlinearity" if kind == "RNN" else "activation"
    assert_agrees(kind, module_of(kind, **{name: activation}))


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_recurrent_activations(kind: str, activation: str) -> None:
    assert_agrees(kind, module_of(kind, recurrent_activation=activation, activation="softsign"))


@pytest.mark.parametrize("recurrent_activation", ["sigmoid", "hardsigmoid"])
@pytest.mark.parametrize("reset_after", [False, True])
def test_reset_after(reset_after: bool, recurrent_activation: str) -> None:
    assert_agrees("GRU", module_of("GRU", reset_after=reset_after, recurrent_activation=recurrent_activation))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [("LSTM", {}), ("GRU", {}), ("GRU", {"reset_after": False}), ("RNN", {})],
    ids=["LSTM", "GRU", "GRU-reset-before", "RNN"],
)
@pytest.mark.parametrize("p", [0.0, 0.4])
def test_recurrent_dropout(p: float, kind: str, options: dict[str, Any], training: bool) -> None:
    assert_agrees(kind, module_of(kind, recurrent_dropout=p, **options).train(training))
