"""Options against the formulas of their papers, gate by gate, and against torch.nn where that says the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn._masks import draw, draw_ones
from helpers import F64

EXACT = {"rtol": 1e-10, "atol": 1e-10}
TIME, BATCH, INPUT, HIDDEN = 6, 4, 5, 9
GATES = {"LSTM": "ifgo", "GRU": "rzn", "RNN": "h"}
States = dict[str, Tensor]


def module_of(kind: str, **options: Any) -> nn.RNNBase:
    torch.manual_seed(0)
    module: nn.RNNBase = getattr(fastrnn, kind)(INPUT, HIDDEN, dtype=F64, **options)
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -0.8, 0.8)
    return module


def sigma(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def normalised(z: Tensor, gain: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """LN(z; gain, bias) of Ba et al. 2016, equation 15, with what everybody adds below the root."""
    mu = z.sum(-1, keepdim=True) / z.shape[-1]
    variance = ((z - mu) ** 2).sum(-1, keepdim=True) / z.shape[-1]
    return (z - mu) / torch.sqrt(variance + 1e-5) * gain + bias


class Formulas:
    """A step of a cell, with the parameters of a module of one layer and direction by name."""

    def __init__(self, module: nn.RNNBase) -> None:
        self.module, self.kind = module, type(module).__name__
        self.of = {name.removesuffix("_l0"): p for name, p in module.named_parameters()}

    def products(self, x: Tensor, h: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Of each gate what x and what h bring."""
        from_x, from_h = x @ self.of["weight_ih"].T, h @ self.of["weight_hh"].T
        if self.module.layer_norm:
            from_x = normalised(from_x, self.of["ln_ih_weight"])
            from_h = normalised(from_h, self.of["ln_hh_weight"])
        gates = "igo" if getattr(self.module, "coupled_gates", False) else GATES[self.kind]
        parts = (
            (from_x + self.of["bias_ih"]).chunk(len(gates), 1),
            (from_h + self.of["bias_hh"]).chunk(len(gates), 1),
        )
        return dict(zip(gates, parts[0], strict=True)), dict(zip(gates, parts[1], strict=True))

    def step(self, x: Tensor, state: States) -> States:
        return {"LSTM": self.lstm, "GRU": self.gru, "RNN": self.rnn}[self.kind](x, state)

    def lstm(self, x: Tensor, state: States) -> States:
        h, c = state["h"], state["c"]
        from_x, from_h = self.products(x, h)
        a = {gate: from_x[gate] + from_h[gate] for gate in from_x}
        if self.module.peephole:  # diagonal matrices from the cell to the gates (Gers and Schmidhuber 2000)
            names = "io" if self.module.coupled_gates else "ifo"
            peeps = dict(
                zip(names, map(torch.diag, self.of["weight_peephole"].chunk(len(names))), strict=True)
            )
            a |= {gate: a[gate] + c @ peeps[gate] for gate in names if gate != "o"}
        i = sigma(a["i"])
        f = 1 - i if self.module.coupled_gates else sigma(a["f"])
        new = f * c + i * torch.tanh(a["g"])
        if self.module.cell_clip is not None:
            bound = torch.full_like(new, self.module.cell_clip)
            new = torch.minimum(torch.maximum(new, -bound), bound)
        o = sigma(a["o"] + new @ peeps["o"] if self.module.peephole else a["o"])
        shown = new
        if self.module.layer_norm:
            shown = normalised(new, self.of["ln_c_weight"], self.of["ln_c_bias"])
        return {"h": o * torch.tanh(shown), "c": new}

    def gru(self, x: Tensor, state: States) -> States:
        from_x, from_h = self.products(x, state["h"])
        r, z = (sigma(from_x[gate] + from_h[gate]) for gate in "rz")
        n = torch.tanh(from_x["n"] + r * from_h["n"])
        return {"h": n + z * (state["h"] - n)}

    def rnn(self, x: Tensor, state: States) -> States:
        from_x, from_h = self.products(x, state["h"])
        return {"h": torch.tanh(from_x["h"] + from_h["h"])}


def zoned(made: States, before: States, zones: dict[str, Tensor | float]) -> States:
    """What was made goes where a zone is 0 (Krueger et al. 2017, equation 3; Haste blends the two at inference)."""
    return {name: before[name] + (1 - zones.get(name, 0.0)) * (made[name] - before[name]) for name in made}


Zones = Callable[[int], dict[str, Tensor | float]]


def assert_follows(module: nn.RNNBase, zones: Zones = lambda t: {}) -> None:
    """Outputs, states and every gradient."""
    formulas = Formulas(module)
    x = torch.randn(TIME, BATCH, INPUT, dtype=F64, requires_grad=True)
    names = ("h", "c") if formulas.kind == "LSTM" else ("h",)
    start = {name: (torch.randn(BATCH, HIDDEN, dtype=F64) * 0.5).requires_grad_() for name in names}
    torch.manual_seed(3)
    hx = tuple(start[name][None] for name in names)
    y, final = module(x, hx if len(hx) == 2 else hx[0])
    found = [y, *(s[0] for s in (final if isinstance(final, tuple) else (final,)))]
    state, rows = start, []
    for t, row in enumerate(x):
        state = zoned(formulas.step(row, state), state, zones(t))
        rows.append(state["h"])
    expected = [torch.stack(rows), *(state[name] for name in names)]
    torch.testing.assert_close(found, expected, **EXACT)
    leaves, seeds = [x, *start.values(), *module.parameters()], [torch.randn_like(e) for e in expected]
    torch.testing.assert_close(
        torch.autograd.grad(found, leaves, seeds), torch.autograd.grad(expected, leaves, seeds), **EXACT
    )


PEEPS: list[dict[str, Any]] = [
    {"peephole": True},
    {"coupled_gates": True},
    {"peephole": True, "coupled_gates": True},
    {"cell_clip": 0.15},
    {"peephole": True, "cell_clip": 0.15},
]
NORMED: list[tuple[str, dict[str, Any]]] = [
    (kind, options) for kind in GATES for options in ({}, {"layer_norm": True})
]
named = {"ids": lambda value: value if isinstance(value, str) else "-".join(value) or "plain"}


@pytest.mark.parametrize("options", PEEPS, **named)
def test_lstms_of_the_literature(options: dict[str, Any]) -> None:
    assert_follows(module_of("LSTM", **options))


@pytest.mark.parametrize(("kind", "options"), NORMED, **named)
def test_layer_normalisation(kind: str, options: dict[str, Any]) -> None:
    assert_follows(module_of(kind, **options))


@pytest.mark.parametrize(
    ("kind", "options"), [*NORMED, *(("LSTM", o) for o in PEEPS if "cell_clip" not in o)], **named
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_zoneout(kind: str, options: dict[str, Any], training: bool) -> None:
    p = {"h": 0.3, "c": 0.2} if kind == "LSTM" else {"h": 0.3}
    module = module_of(kind, zoneout=tuple(p.values()) if len(p) > 1 else 0.3, **options).train(training)
    torch.manual_seed(3)
    masks = {name: draw_ones((TIME, BATCH, HIDDEN), q, torch.empty(0, dtype=F64)) for name, q in p.items()}
    assert_follows(module, (lambda t: {name: m[t] for name, m in masks.items()}) if training else lambda t: p)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("kind", GATES)
def test_zoning_everything_out(kind: str, training: bool) -> None:
    both = kind == "LSTM"
    module = module_of(kind, zoneout=(1.0, 1.0) if both else 1.0).train(training)
    h0 = torch.randn(1, BATCH, HIDDEN, dtype=F64)
    y, final = module(torch.randn(TIME, BATCH, INPUT, dtype=F64), (h0, 2 * h0) if both else h0)
    torch.testing.assert_close(y, h0.expand_as(y), rtol=0, atol=0)
    torch.testing.assert_close(final, (h0, 2 * h0) if both else h0, rtol=0, atol=0)


def test_one_step_of_pytorchs_custom_lstm() -> None:
    """That of torch's benchmark has the same gates and the same h; the c that it carries is normalised, ours is not."""
    module = module_of("LSTM", layer_norm=True)
    w = {name.removesuffix("_l0"): p for name, p in module.named_parameters()}
    x, h, c = (torch.randn(BATCH, size, dtype=F64) for size in (INPUT, HIDDEN, HIDDEN))
    norms = nn.LayerNorm(4 * HIDDEN), nn.LayerNorm(4 * HIDDEN), nn.LayerNorm(HIDDEN)
    for norm, gain, bias in zip(norms, ("ih", "hh", "c"), ("bias_ih", "bias_hh", "ln_c_bias"), strict=True):
        norm.weight, norm.bias = w[f"ln_{gain}_weight"], w[bias]
    of_x, of_h, of_c = norms
    i, f, g, o = (of_x(x @ w["weight_ih"].T) + of_h(h @ w["weight_hh"].T)).chunk(4, 1)
    carried = f.sigmoid() * c + i.sigmoid() * g.tanh()
    _, (h_n, c_n) = module(x[None], (h[None], c[None]))
    torch.testing.assert_close(h_n[0], o.sigmoid() * of_c(carried).tanh(), **EXACT)
    torch.testing.assert_close(c_n[0], carried, **EXACT)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", GATES)
def test_recurrent_dropout_is_a_row_with_weights_of_its_own(kind: str, bidirectional: bool) -> None:
    """Gal and Ghahramani 2016: with its mask in the columns of weight_hh, a row runs through torch.nn alone."""
    module = module_of(kind, recurrent_dropout=0.4, bidirectional=bidirectional)
    x = torch.randn(TIME, BATCH, INPUT, dtype=F64)
    torch.manual_seed(3)
    masks = draw((1 + bidirectional, BATCH, HIDDEN), 0.4, x)
    torch.manual_seed(3)
    y, final = module(x)
    for row in range(BATCH):
        alone = getattr(nn, kind)(INPUT, HIDDEN, bidirectional=bidirectional).double()
        alone.load_state_dict(module.state_dict())
        for mask, suffix in zip(masks, ("", "_reverse"), strict=False):
            getattr(alone, f"weight_hh_l0{suffix}").data *= mask[row]
        expected, ends = alone(x[:, row])
        torch.testing.assert_close(y[:, row], expected, **EXACT)
        for got, want in zip(final, ends, strict=True) if kind == "LSTM" else [(final, ends)]:
            torch.testing.assert_close(got[:, row], want, **EXACT)
