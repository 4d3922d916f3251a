"""Arguments for the six layer ops, and one way to run forward and backward of any of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from helpers import Case, cotangent, torch_module

OPS = torch.ops.fastrnn


@dataclass
class OpCase:
    """One layer's tensors in the ops' own form: packed input is [N, I] with batch_sizes."""

    case: Case
    x: Tensor
    h0: Tensor | None
    c0: Tensor | None
    weights: list[Tensor]
    batch_sizes: Tensor | None

    @property
    def kind(self) -> str:
        return self.case.kind

    @property
    def flags(self) -> tuple[Any, ...]:
        """has_biases, batch_first, bidirectional and the cell's own options."""
        case = self.case
        options: dict[str, tuple[Any, ...]] = {
            "lstm": (case.activation,),
            "gru": (case.reset_after, case.activation),
            "rnn": (case.cell.removeprefix("rnn_"),),
        }
        return (case.bias, case.batch_first, case.bidirectional, *options[self.kind])

    @property
    def states(self) -> tuple[Tensor | None, ...]:
        return (self.h0, self.c0) if self.kind == "lstm" else (self.h0,)

    def forward_arguments(self, training: bool) -> tuple[Any, ...]:
        return (self.x, *self.states, self.weights, self.batch_sizes, *self.flags, training)

    def forward(self, training: bool = True) -> tuple[Tensor, ...]:
        """(y, h_n[, c_n], reserve)."""
        return getattr(OPS, f"{self.kind}_forward")(*self.forward_arguments(training))

    def backward_arguments(
        self,
        outputs: tuple[Tensor, ...],
        gradients: tuple[Tensor | None, ...],
        needs: tuple[bool, bool, bool] = (True, True, True),
    ) -> tuple[Any, ...]:
        tensors = (*gradients, self.x, *self.states, self.weights, self.batch_sizes, outputs[0], outputs[-1])
        return (*tensors, *self.flags, *needs)

    def backward(self, *arguments: Any, **options: Any) -> tuple[Any, ...]:
        """(d_x, d_h0[, d_c0], d_weights)."""
        return getattr(OPS, f"{self.kind}_backward")(*self.backward_arguments(*arguments, **options))

    def gradients(self, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(cotangent(n, o) for n, o in zip(self.case.outputs, outputs, strict=False))


def op_case(case: Case, seed: int = 0) -> OpCase:
    assert case.layers == 1
    torch.manual_seed(seed)
    weights = [p.detach().clone() for p in torch_module(case).parameters()]
    batch_sizes = None
    if case.packed:
        lengths = [max(1, case.time - 2 * row) for row in range(case.batch)]
        batch_sizes = torch.tensor([sum(n > t for n in lengths) for t in range(case.time)])
        x = torch.randn(sum(lengths), case.input)
    else:
        lead = (case.batch, case.time) if case.batch_first else (case.time, case.batch)
        x = torch.randn(*lead, case.input)
    h0 = torch.randn(case.directions, case.batch, case.width) if case.state else None
    c0 = torch.randn(case.directions, case.batch, case.hidden) if case.state else None

    def cast(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(case.dtype)

    return OpCase(case, x.to(case.dtype), cast(h0), cast(c0), weights, batch_sizes)
