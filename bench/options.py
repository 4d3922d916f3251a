"""Options of the layers, and layers that torch.nn lacks, beside the plain cell, and beside the loops over steps that
people write for them.

An option is a peer: its time over that of the plain cell is what it costs. The loops have the parameters of the layer,
and are held against it at evaluation, where nothing is drawn.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.cases import CELLS, Case
from bench.own_layers import FourStates, OwnLoop
from bench.problem import TOLERANCE, Problem, torch_step
from bench.runner import Runner, Settings, Unsupported

Build = Callable[[Problem, Settings], Runner]


@dataclass(frozen=True)
class Option:
    """given: the constructor's arguments by cell, for the cells that have it. aim: the most of its time over the plain
    cell's. looped: whether it is held against loops. layer: the class, where it is not the cell's own."""

    name: str
    given: dict[str, dict[str, Any]]
    aim: float = 1.15
    looped: bool = False
    layer: str = ""

    def check(self, case: Case) -> None:
        """Raises Unsupported where there is nothing to measure."""
        if case.cell not in self.given:
            raise Unsupported(f"of {' and '.join(cell.upper() for cell in self.given)} alone")
        if (self.name == "heads4") != (case.hidden >= 512):
            raise Unsupported("heads at 512 units, where recurrent products rule; all else at fewer")


def _for_all(**given: Any) -> dict[str, dict[str, Any]]:
    return dict.fromkeys(CELLS, given)


def _gated(**given: Any) -> dict[str, dict[str, Any]]:
    return dict.fromkeys(("lstm", "gru"), given)


OPTIONS = {
    option.name: option
    for option in (
        Option("softsign", {**_gated(activation="softsign"), "rnn": {"nonlinearity": "softsign"}}),
        Option("silu", {**_gated(activation="silu"), "rnn": {"nonlinearity": "silu"}}),
        Option("hard-gates", _gated(recurrent_activation="hardsigmoid")),
        Option("peephole", {"lstm": {"peephole": True}}, looped=True),
        Option("coupled", {"lstm": {"coupled_gates": True}}),
        Option("clip", {"lstm": {"cell_clip": 3.0}}),
        Option("layer-norm", _for_all(layer_norm=True), aim=1.35, looped=True),
        Option("zoneout", {**_for_all(zoneout=0.1), "lstm": {"zoneout": (0.1, 0.1)}}, looped=True),
        Option("recurrent-dropout", _for_all(recurrent_dropout=0.3), looped=True),
        Option("weight-dropout", _for_all(weight_dropout=0.3)),
        Option("heads4", _for_all(heads=4), aim=0.6),
        Option("slstm", {"lstm": {}}, looped=True, layer="SLSTM"),
        Option("min-gru", {"gru": {}}, looped=True, layer="MinGRU"),
        Option("min-lstm", {"gru": {}}, looped=True, layer="MinLSTM"),
        Option("indrnn", {"rnn": {}}, looped=True, layer="IndRNN"),
    )
}
LOOPED = [name for name, option in OPTIONS.items() if option.looped]
LOOP_AIM, COMPILED_AIM = 10.0, 3.0  # of a loop's time over the layer's


class Loop(nn.Module):
    """A layer of fastrnn as a loop of torch's operations over its steps; the input's product is one of all steps."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, state: Any) -> Any:
        layer = self.layer
        w_hh, b_hh = layer.weight_hh_l0, layer.bias_hh_l0
        states = [s[0] for s in (state if isinstance(state, tuple) else (state,))]
        zones = layer.zoneout if isinstance(layer.zoneout, tuple) else (layer.zoneout, 0.0)
        of_gates = w_hh.shape[:1]
        if layer.layer_norm:
            from_x = F.layer_norm(F.linear(x, layer.weight_ih_l0), of_gates, layer.ln_ih_weight_l0)
            from_x = from_x + layer.bias_ih_l0
        else:
            from_x = F.linear(x, layer.weight_ih_l0, layer.bias_ih_l0)
        dropped = self.training and layer.recurrent_dropout
        mask = F.dropout(torch.ones_like(states[0]), layer.recurrent_dropout) if dropped else None
        outputs = []
        for row in from_x.unbind(0):
            h = states[0] if mask is None else states[0] * mask
            if layer.layer_norm:
                from_h = F.layer_norm(F.linear(h, w_hh), of_gates, layer.ln_hh_weight_l0) + b_hh
            else:
                from_h = F.linear(h, w_hh, b_hh)
            made = self._step(row, from_h, states)
            states = [self._zoned(*pair) for pair in zip(made, states, zones, strict=False)]
            outputs.append(states[0])
        final = [s[None] for s in states]
        return torch.stack(outputs), tuple(final) if len(final) > 1 else final[0]

    def _step(self, from_x: Tensor, from_h: Tensor, states: list[Tensor]) -> list[Tensor]:
        layer = self.layer
        if layer.mode == "GRU":
            (x_r, x_z, x_n), (h_r, h_z, h_n) = from_x.chunk(3, 1), from_h.chunk(3, 1)
            z = torch.sigmoid(x_z + h_z)
            n = torch.tanh(x_n + torch.sigmoid(x_r + h_r) * h_n)
            return [(1 - z) * n + z * states[0]]
        if layer.mode != "LSTM":
            return [torch.tanh(from_x + from_h)]
        i, f, g, o = (from_x + from_h).chunk(4, 1)
        c = states[1]
        peeps = layer.weight_peephole_l0.chunk(3) if layer.peephole else None
        if peeps:
            i, f = i + peeps[0] * c, f + peeps[1] * c
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        if peeps:
            o = o + peeps[2] * c
        shown = c
        if layer.layer_norm:
            shown = F.layer_norm(c, c.shape[1:], layer.ln_c_weight_l0, layer.ln_c_bias_l0)
        return [torch.sigmoid(o) * torch.tanh(shown), c]

    def _zoned(self, made: Tensor, before: Tensor, probability: float) -> Tensor:
        if not probability:
            return made
        if self.training:
            return torch.where(torch.rand_like(made) < probability, before, made)
        return probability * before + (1 - probability) * made


def _layer(problem: Problem, option: Option) -> nn.Module:
    """With the weights that it begins with: those of the problem are not of its shape."""
    option.check(problem.case)
    library: Any = importlib.import_module("fastrnn")
    torch.manual_seed(0)
    case = problem.case
    kind = getattr(library, option.layer or case.cell.upper())
    layer: nn.Module = kind(case.input, case.hidden, **option.given[case.cell])
    return FourStates(layer) if option.layer == "SLSTM" else layer


def _hold(loop: Loop | OwnLoop, problem: Problem) -> None:
    """A ValueError where the loop is not what the layer computes, gradients included."""
    loop.eval()
    names = ("y", "h_n", *(f"gradient {index}" for index in range(99)))

    def flat(result: Any) -> list[Tensor]:
        y, h, grads = result
        return [t.detach() for t in (y, h[0] if isinstance(h, tuple) else h, *grads)]

    found = (flat(torch_step(module, problem)()) for module in (loop, loop.layer))
    for name, got, want in zip(names, *found, strict=False):
        error = float((got - want).abs().max() / want.abs().max().clamp_min(1e-30))
        if not error <= TOLERANCE:
            raise ValueError(f"{name} of the loop: error {error:.1e} of its largest value")
    loop.train()


def _runner(module: nn.Module, problem: Problem) -> Runner:
    return Runner(torch_step(module, problem), lambda _: {}, torch.enable_grad, tuple(problem.reference))


def build_option(name: str) -> Build:
    return lambda problem, _: _runner(_layer(problem, OPTIONS[name]), problem)


def build_loop(name: str, compiled: bool = False) -> Build:
    def build(problem: Problem, _: Settings) -> Runner:
        option = OPTIONS[name]
        layer = _layer(problem, option)
        loop = OwnLoop(layer) if option.layer else Loop(layer)
        _hold(loop, problem)
        if not compiled:
            return _runner(loop, problem)
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # workers would go on using the cores
        torch.compiler.reset()
        runner = _runner(torch.compile(loop, dynamic=False), problem)  # type: ignore[arg-type]
        start = time.perf_counter()
        with torch._inductor.config.patch(fx_graph_cache=False):
            runner.call()
        runner.figures = {"compile": time.perf_counter() - start}
        return runner

    return build
