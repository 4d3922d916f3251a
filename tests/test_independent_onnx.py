"""Options against onnxruntime, which has an arithmetic of its own for ONNX's LSTM, GRU and RNN."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

import numpy as np
import onnx
import onnxruntime

from bench.peers_onnx import OPSET, in_onnx_order

# What onnxruntime's float32 leaves of a few steps, and its sigmoid and tanh, which are rational functions. Ours is
# computed in float64, so that nothing of the difference is our own.
CLOSE = {"rtol": 2e-6, "atol": 2e-6}

# the function's name in ONNX, its alpha and its beta; silu and hardtanh have none
ACTIVATIONS: dict[str, tuple[str, float | None, float | None]] = {
    "tanh": ("Tanh", None, None),
    "sigmoid": ("Sigmoid", None, None),
    "relu": ("Relu", None, None),
    "softsign": ("Softsign", None, None),
    "identity": ("Affine", 1.0, 0.0),
    "leaky_relu": ("LeakyRelu", 0.01, None),
    "onnx_hardsigmoid": ("HardSigmoid", 0.2, 0.5),
    "hardsigmoid": ("HardSigmoid", 1 / 6, 0.5),
}


def module_of(kind: str, *sizes: int, **options: Any) -> nn.RNNBase:
    """In float64, with weights that float32 has too."""
    torch.manual_seed(0)
    module: nn.RNNBase = getattr(fastrnn, kind.upper())(*sizes, **options).double()
    bound = 1.8 * module.hidden_size**-0.5
    for parameter in module.parameters():
        parameter.data.uniform_(-bound, bound).copy_(parameter.float())
    return module


def functions_of(kind: str, module: nn.RNNBase) -> list[str]:
    if kind == "rnn":
        return [module.nonlinearity]
    candidate = [module.activation] * (2 if kind == "lstm" else 1)  # of g and of the output
    return [module.recurrent_activation, *candidate]


def all_gates(module: nn.RNNBase, rows: Tensor) -> Tensor:
    """Where i stands for f too, ONNX has rows of f all the same, and reads none of them."""
    if not getattr(module, "coupled_gates", False):
        return rows
    i, g, o = rows.chunk(3)
    return torch.cat([i, torch.full_like(i, 7.0), g, o])


def peepholes(module: nn.RNNBase, weight: Tensor) -> np.ndarray:
    """[3*H] of i o f from ours, i f o."""
    if module.coupled_gates:
        i, o = weight.chunk(2)
        f = torch.full_like(i, 7.0)
    else:
        i, f, o = weight.chunk(3)
    return torch.cat([i, o, f]).numpy()


def by_onnxruntime(
    module: nn.RNNBase, x: Tensor, states: tuple[Tensor, ...], lengths: Tensor | None = None
) -> tuple[Tensor, ...]:
    """(y, h_n[, c_n]) of a module of one layer, as one node."""
    kind = type(module).__name__.lower()
    parameters = {name: p.detach().float() for name, p in module.named_parameters()}
    suffixes = ("_l0", "_l0_reverse") if module.bidirectional else ("_l0",)

    def stacked(*names: str) -> np.ndarray:
        return np.stack(
            [
                np.concatenate([in_onnx_order(kind, all_gates(module, parameters[n + s])) for n in names])
                for s in suffixes
            ]
        )

    given = {
        "X": x.float().numpy(),
        "W": stacked("weight_ih"),
        "R": stacked("weight_hh"),
        "B": stacked("bias_ih", "bias_hh"),
        "sequence_lens": None if lengths is None else lengths.int().numpy(),
        "initial_h": states[0].float().numpy(),
    }
    attributes: dict[str, Any] = {"hidden_size": module.hidden_size}
    if kind == "lstm":
        given["initial_c"] = states[1].float().numpy()
        attributes["input_forget"] = int(module.coupled_gates)
        if module.peephole:
            given["P"] = np.stack(
                [peepholes(module, parameters["weight_peephole" + suffix]) for suffix in suffixes]
            )
    if kind == "gru":
        attributes["linear_before_reset"] = int(module.reset_after)
    found = [ACTIVATIONS[name] for name in functions_of(kind, module) * len(suffixes)]
    attributes["activations"] = [name for name, _, _ in found]
    attributes["activation_alpha"] = [alpha for _, alpha, _ in found if alpha is not None]
    attributes["activation_beta"] = [beta for _, _, beta in found if beta is not None]
    attributes["direction"] = "bidirectional" if module.bidirectional else "forward"

    outputs = ["Y", "Y_h", "Y_c"][: 1 + len(states)]
    value = onnx.helper.make_tensor_value_info
    types = {np.dtype("float32"): onnx.TensorProto.FLOAT, np.dtype("int32"): onnx.TensorProto.INT32}
    inputs = {name: array for name, array in given.items() if array is not None}
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node(
                kind.upper(),
                [name if name in inputs else "" for name in given],
                outputs,
                **{name: v for name, v in attributes.items() if v != []},
            )
        ],
        "layer",
        [value(name, types[array.dtype], array.shape) for name, array in inputs.items()],
        [value(name, onnx.TensorProto.FLOAT, [None] * (4 if name == "Y" else 3)) for name in outputs],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", OPSET)], ir_version=9)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    y, *finals = (torch.from_numpy(array) for array in session.run(None, inputs))
    return y.transpose(1, 2).flatten(2), *finals  # from [T, D, B, H]


def assert_agrees(module: nn.RNNBase, time: int = 7, batch: int = 4, lengths: Tensor | None = None) -> None:
    torch.manual_seed(1)
    directions = 2 if module.bidirectional else 1
    x = torch.randn(time, batch, module.input_size)
    states = tuple(
        torch.randn(directions, batch, module.hidden_size) * 0.5 for _ in range(1 + (module.mode == "LSTM"))
    )
    hx = tuple(s.double() for s in states)
    with torch.no_grad():
        y, final = module(x.double(), hx if len(hx) == 2 else hx[0], lengths=lengths)
    final = final if isinstance(final, tuple) else (final,)
    for got, want in zip((y, *final), by_onnxruntime(module, x, states, lengths), strict=True):
        assert want.abs().max() > 0.05
        torch.testing.assert_close(got, want.double(), **CLOSE)


bidirectional = pytest.mark.parametrize("bidirectional", [False, True], ids=["one-way", "both-ways"])


@bidirectional
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_the_plain_cells(kind: str, bidirectional: bool) -> None:
    assert_agrees(module_of(kind, 5, 9, bidirectional=bidirectional))


@bidirectional
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_activations(kind: str, activation: str, bidirectional: bool) -> None:
    name = "nonlinearity" if kind == "rnn" else "activation"
    assert_agrees(module_of(kind, 5, 9, bidirectional=bidirectional, **{name: activation}), time=4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_recurrent_activations(kind: str, activation: str) -> None:
    module = module_of(kind, 5, 9, bidirectional=True, recurrent_activation=activation, activation="softsign")
    assert_agrees(module, time=4)


@pytest.mark.parametrize("activation", ["tanh", "onnx_hardsigmoid"])
@pytest.mark.parametrize("reset_after", [False, True])
def test_linear_before_reset(reset_after: bool, activation: str) -> None:
    for both_ways in (False, True):
        module = module_of(
            "gru", 5, 9, bidirectional=both_ways, reset_after=reset_after, activation=activation
        )
        assert_agrees(module)


@bidirectional
@pytest.mark.parametrize("gates", ["sigmoid", "hardsigmoid"])
@pytest.mark.parametrize("coupled", [False, True], ids=["", "coupled"])
def test_peepholes(coupled: bool, gates: str, bidirectional: bool) -> None:
    options = {"coupled_gates": coupled, "recurrent_activation": gates}
    assert_agrees(module_of("lstm", 5, 9, bidirectional=bidirectional, peephole=True, **options))


@bidirectional
def test_coupled_gates(bidirectional: bool) -> None:
    assert_agrees(module_of("lstm", 5, 9, bidirectional=bidirectional, coupled_gates=True))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("lstm", {}),
        ("lstm", {"peephole": True, "coupled_gates": True}),
        ("lstm", {"peephole": True, "activation": "softsign"}),
        ("gru", {}),
        ("gru", {"reset_after": False, "recurrent_activation": "onnx_hardsigmoid"}),
        ("rnn", {"nonlinearity": "leaky_relu"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value) or "plain",
)
@bidirectional
def test_sequence_lens(kind: str, options: dict[str, Any], bidirectional: bool) -> None:
    """In any order; the reverse direction begins at a row's end."""
    assert_agrees(
        module_of(kind, 5, 9, bidirectional=bidirectional, **options), lengths=torch.tensor([3, 7, 1, 5])
    )


def test_sizes_that_fill_vectors_and_threads() -> None:
    for kind, hidden in product(("lstm", "gru", "rnn"), (16, 64, 130)):
        assert_agrees(module_of(kind, 8, hidden), batch=17)
    assert_agrees(module_of("lstm", 8, 64, peephole=True, bidirectional=True), batch=17)
