"""Arguments for the two layer ops, and one way to run both on any case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastrnn import _spec
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
    def spec(self) -> int:
        case = self.case
        return _spec.FAMILIES[self.kind].spec(case.choice, case.bias, case.batch_first, case.bidirectional)

    @property
    def states(self) -> list[Tensor]:
        """All of them, or none for zeros."""
        return [s for s in ((self.h0, self.c0) if self.kind == "lstm" else (self.h0,)) if s is not None]

    def forward_arguments(self, training: bool) -> tuple[Any, ...]:
        return (self.x, self.states, self.weights, self.batch_sizes, [], self.spec, training)

    def reference(self, x: Tensor, states: list[Tensor], weights: list[Tensor]) -> tuple[Tensor, ...]:
        """(y, h_n[, c_n]) of the specification for these tensors."""
        case, family = self.case, _spec.FAMILIES[self.kind]
        flags = (case.bias, case.batch_first, case.bidirectional)
        return family.reference(
            x, *(states or [None] * family.states), weights, self.batch_sizes, (), *flags, *case.choice
        )

    def forward(self, training: bool = True) -> tuple[Tensor, ...]:
        """(y, h_n[, c_n], reserve)."""
        return tuple(OPS.layer_forward(*self.forward_arguments(training)))

    def backward_arguments(
        self,
        outputs: tuple[Tensor, ...],
        gradients: tuple[Tensor | None, ...],
        needs: tuple[bool, bool, bool] = (True, True, True),
    ) -> tuple[Any, ...]:
        bits = (_spec.NEEDS_X, _spec.NEEDS_STATES, _spec.NEEDS_WEIGHTS)
        wanted = sum(bit for bit, needed in zip(bits, needs, strict=True) if needed)
        tensors = (list(gradients), self.x, self.states, self.weights, self.batch_sizes, [])
        return (*tensors, outputs[0], outputs[-1], self.spec, wanted)

    def backward(self, *arguments: Any, **options: Any) -> tuple[Any, ...]:
        """(d_x, *those of the states that are given, d_weights)."""
        found = OPS.layer_backward(*self.backward_arguments(*arguments, **options))
        inputs = 1 + len(self.states)
        return (*found[:inputs], found[inputs:])

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
