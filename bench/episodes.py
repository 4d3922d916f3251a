"""Ways to run a layer on rows that begin anew within the batch, as in reinforcement learning, or end before it.

Each is a module with torch.nn's call around a layer, for sequences [T, B, I] and marks [T, B]: where a mark is true,
the row's state is zero before that step.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

State = Tensor | tuple[Tensor, ...]


class _Way(nn.Module):
    def __init__(self, layer: nn.Module, resets: Tensor) -> None:
        super().__init__()
        self.layer, self.resets = layer, resets


class Marked(_Way):
    """fastrnn's own: the layer is told."""

    def forward(self, x: Tensor, state: State) -> Any:
        return self.layer(x, state, resets=self.resets)


class Ended(nn.Module):
    """A padded batch of which the layer is told the rows' lengths [B]."""

    def __init__(self, layer: nn.Module, lengths: Tensor) -> None:
        super().__init__()
        self.layer, self.lengths = layer, lengths

    def forward(self, x: Tensor, state: State | None = None) -> Any:
        return self.layer(x, state, lengths=self.lengths)


class StepByStep(_Way):
    """A call for each step, between which states are cleared, as sb3-contrib's recurrent policies do."""

    def forward(self, x: Tensor, state: State) -> Any:
        outputs = []
        for row, marks in zip(x, self.resets, strict=True):
            state = _cleared(state, marks)
            y, state = self.layer(row[None], state)
            outputs.append(y)
        return torch.cat(outputs), state


class SplitAndPad(_Way):
    """The pieces between the marks as rows of one padded batch, as TorchRL's LSTMModule does. The final states that it
    returns are those behind the padding."""

    def forward(self, x: Tensor, state: State) -> Any:
        time, batch = self.resets.shape
        first = self.resets.clone()
        first[0] = True
        begins = first.T.flatten().nonzero()[:, 0]  # rows one after the other
        lengths = torch.diff(begins, append=torch.tensor([time * batch]))
        longest = int(lengths.max())
        inside = torch.arange(longest) < lengths[:, None]  # [pieces, longest]
        pieces = x.new_zeros(len(begins), longest, x.shape[2])
        pieces[inside] = x.transpose(0, 1).flatten(0, 1)
        y, final = self.layer(
            pieces.transpose(0, 1), _of_pieces(_cleared(state, self.resets[0]), begins, time)
        )
        y = y.transpose(0, 1)[inside]
        return y.view(batch, time, -1).transpose(0, 1), final


def _of_pieces(state: State, begins: Tensor, time: int) -> State:
    """The state that a piece begins with: the row's at its first step, else zero."""
    if isinstance(state, tuple):
        return tuple(torch.as_tensor(_of_pieces(part, begins, time)) for part in state)
    return state[:, begins // time] * (begins % time == 0)[:, None]


def _cleared(state: State, marks: Tensor) -> State:
    if isinstance(state, tuple):
        return tuple(part * ~marks[:, None] for part in state)
    return state * ~marks[:, None]
