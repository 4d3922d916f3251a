"""Layers that torch.nn lacks as loops over steps: sLSTM's is the package xlstm's own, where that is installed."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class FourStates(nn.Module):
    """An SLSTM with the two states of an LSTM: n begins at one, m at zero."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c = state
        y, (h_n, c_n, _, _) = self.layer(x, (h, c, torch.ones_like(c), torch.zeros_like(c)))
        return y, (h_n, c_n)


class OwnLoop(nn.Module):
    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer
        inner = layer.layer if isinstance(layer, FourStates) else layer
        self._kind = type(inner).__name__
        self._of_package = importlib.util.find_spec("xlstm") is not None

    def forward(self, x: Tensor, state: Any) -> Any:
        if self._kind == "SLSTM":
            return self._slstm(x, *state)
        layer = self.layer
        seen = F.linear(x, layer.weight_ih_l0, layer.bias_ih_l0)
        h, outputs = state[0], []
        if self._kind == "IndRNN":
            for step in seen.unbind(0):
                h = torch.relu(step + layer.weight_hh_l0 * h)
                outputs.append(h)
            return torch.stack(outputs), h[None]
        *gates, n = seen.chunk(2 if self._kind == "MinGRU" else 3, -1)
        taken = torch.sigmoid(gates[0])
        if self._kind == "MinLSTM":
            taken = taken / (torch.sigmoid(gates[1]) + taken)
        kept, new = 1 - taken, taken * n
        for kept_step, new_step in zip(kept.unbind(0), new.unbind(0), strict=True):
            h = kept_step * h + new_step
            outputs.append(h)
        return torch.stack(outputs), h[None]

    def _slstm(self, x: Tensor, h: Tensor, c: Tensor) -> Any:
        layer = self.layer.layer
        seen = F.linear(x, layer.weight_ih_l0)
        bias = layer.bias_ih_l0 + layer.bias_hh_l0
        states = torch.cat([h, c, torch.ones_like(c), torch.zeros_like(c)])
        if self._of_package:
            vanilla: Any = importlib.import_module("xlstm.blocks.slstm.src.vanilla")
            pointwise = vanilla.slstm_pointwise_function_registry["slstm"]
            made, last, _ = vanilla.slstm_forward(seen, states, layer.weight_hh_l0[None], bias, pointwise)
            return made[0, 1:], (last[0][None], last[1][None])
        outputs = []
        h, c, n, m = states.unbind(0)
        for step in seen.unbind(0):
            to_i, f, z, o = (step + F.linear(h, layer.weight_hh_l0, bias)).chunk(4, -1)
            to_f = F.logsigmoid(f) + m
            m = torch.maximum(to_f, to_i)
            i, f = torch.exp(to_i - m), torch.exp(to_f - m)
            c, n = f * c + i * torch.tanh(z), f * n + i
            h = torch.sigmoid(o) * c / n
            outputs.append(h)
        return torch.stack(outputs), (h[None], c[None])
