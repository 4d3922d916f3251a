"""Options of cells against the reference: activations, peepholes, coupled gates, bounds of c, zoneout; each pair."""

from collections.abc import Callable
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn import _stack, reference
from fastrnn._autograd import reference_layer

# values that differ from the default, and those that show most of each
OPTIONS: dict[str, dict[str, Any]] = {
    "LSTM": {
        "activation": "silu",
        "recurrent_activation": "onnx_hardsigmoid",
        "layer_norm": True,
        "coupled_gates": True,
        "peephole": True,
        "zoneout": (0.3, 0.2),
        "cell_clip": 0.2,
        "recurrent_dropout": 0.4,
        "weight_dropout": 0.3,
        "heads": 2,
        "bidirectional": True,
        "bias": False,
        "proj_size": 4,
    },
    "GRU": {
        "activation": "leaky_relu",
        "recurrent_activation": "hardsigmoid",
        "reset_after": False,
        "layer_norm": True,
        "zoneout": 0.3,
        "recurrent_dropout": 0.4,
        "weight_dropout": 0.3,
        "heads": 2,
        "bidirectional": True,
        "bias": False,
    },
    "RNN": {
        "nonlinearity": "silu",
        "layer_norm": True,
        "zoneout": 0.3,
        "recurrent_dropout": 0.4,
        "weight_dropout": 0.3,
        "heads": 2,
        "bidirectional": True,
        "bias": False,
    },
}
# pairs that a sentence refuses
REFUSED = {
    ("LSTM", "layer_norm", "coupled_gates"): "all four gates",
    ("LSTM", "layer_norm", "peephole"): "does not go with peephole",
    ("LSTM", "layer_norm", "cell_clip"): "does not go with cell_clip",
    ("LSTM", "zoneout", "proj_size"): "projection",
    ("GRU", "reset_after", "layer_norm"): "needs reset_after=True",
}
PAIRS = [
    (family, *pair)
    for family, options in OPTIONS.items()
    for pair in [*((name,) for name in options), *combinations(options, 2)]
]


def _seeded(module: nn.Module) -> None:
    torch.manual_seed(7)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -0.8, 0.8)


def _run(module: nn.Module, x: Tensor, **given: Any) -> list[Tensor]:
    """Outputs and gradients, with the masks that a fixed seed draws."""
    x = x.clone().requires_grad_()
    torch.manual_seed(3)
    y, states = module(x, **given)
    outputs = [y, *(states if isinstance(states, tuple) else (states,))]
    torch.manual_seed(4)
    loss = sum((output * torch.randn_like(output)).sum() for output in outputs)
    gradients = torch.autograd.grad(loss, [x, *module.parameters()])
    return [*outputs, *gradients]


@pytest.fixture
def by_reference(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Tensor]]:
    """_run with the reference in the place of the ops."""
    by_kernels = _stack.run_layers

    def run(module: nn.Module, x: Tensor, **given: Any) -> list[Tensor]:
        with monkeypatch.context() as patched:
            patched.setattr(_stack, "run_layers", lambda _, *rest: by_kernels(reference_layer, *rest))
            patched.setattr(type(module), "_forward_one_layer", lambda *_: None)
            return _run(module, x, **given)

    return run


@pytest.mark.parametrize(
    ("family", "names"),
    [(f, names) for f, *names in PAIRS],
    ids=lambda v: v if isinstance(v, str) else "-".join(v),
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_pairs(
    family: str, names: list[str], training: bool, by_reference: Callable[..., list[Tensor]]
) -> None:
    options = {name: OPTIONS[family][name] for name in names}
    if set(names) == {"zoneout", "proj_size"}:
        options["zoneout"] = (0.0, 0.2)
    if (family, *names) in REFUSED and set(names) != {"zoneout", "proj_size"}:
        pytest.skip("refused, see test_refusals")
    module = getattr(fastrnn, family)(5, 12, dtype=torch.float64, **options).train(training)
    _seeded(module)
    x = torch.randn(6, 3, 5, dtype=torch.float64)
    for actual, expected in zip(_run(module, x), by_reference(module, x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("given", "sentence"), REFUSED.items(), ids=lambda v: "-".join(v) if isinstance(v, tuple) else ""
)
def test_refusals(given: tuple[str, str, str], sentence: str) -> None:
    family, *names = given
    with pytest.raises(ValueError, match=sentence):
        getattr(fastrnn, family)(5, 12, **{name: OPTIONS[family][name] for name in names})


@pytest.mark.parametrize("activation", list(reference.ACTIVATIONS))
@pytest.mark.parametrize("family", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("normalised", [False, True], ids=["plain", "layer_norm"])
def test_activations(
    family: str, activation: str, normalised: bool, by_reference: Callable[..., list[Tensor]]
) -> None:
    names = ["nonlinearity"] if family == "RNN" else ["activation", "recurrent_activation"]
    for name in names:
        module = getattr(fastrnn, family)(
            5, 19, 2, dtype=torch.float64, layer_norm=normalised, **{name: activation}
        )
        _seeded(module)
        x = torch.randn(4, 3, 5, dtype=torch.float64)
        for actual, expected in zip(_run(module, x), by_reference(module, x), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
