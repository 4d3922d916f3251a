"""The numbers of one case: weights, input, lengths, and what every peer must compute, in float64."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from bench.cases import Case, Mode
from bench.episodes import StepByStep

STREAM_STEPS = 100  # steps in one timed call of the stream mode
# largest error of an output against float64, in units of that output's largest value
TOLERANCE, QUANTIZED_TOLERANCE = 2e-4, 0.1


@dataclass
class Problem:
    """One case in one mode. x: [T, B, I]; d_y: [T, B, D*H]; h0, c0: [L*D, B, H]; lengths: [B], falling;
    resets: [T, B].

    Rows past a sequence's length hold zeros in x and in d_y.
    """

    case: Case
    mode: Mode
    weights: dict[str, Tensor]
    x: Tensor
    d_y: Tensor
    state: tuple[Tensor, ...]
    lengths: Tensor | None = None
    resets: Tensor | None = None
    name: str = field(init=False)

    def __post_init__(self) -> None:
        self.name = f"{self.case.id} {self.mode.name}"

    @property
    def repeats(self) -> int:
        """Runs of the case in one timed call, which times are divided by."""
        return STREAM_STEPS if self.mode.stream else 1

    @property
    def state_given(self) -> bool:
        return self.mode.training or self.mode.stream

    @cached_property
    def batch_sizes(self) -> list[int]:
        """Rows at work in each time step."""
        if self.lengths is None:
            return [self.case.batch] * self.case.time
        return [int((self.lengths > t).sum()) for t in range(self.case.time)]

    def layer_weights(self, layer: int) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """(w_ih, w_hh, b_ih, b_hh) of each direction of one layer, in torch's gate order."""
        suffixes = ["", "_reverse"][: self.case.directions]
        kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        picked = [tuple(self.weights[f"{kind}_l{layer}{suffix}"] for kind in kinds) for suffix in suffixes]
        return [(w[0], w[1], w[2], w[3]) for w in picked]

    def pack(self, padded: Tensor) -> PackedSequence:
        assert self.lengths is not None
        return pack_padded_sequence(padded, self.lengths)

    @cached_property
    def reference(self) -> dict[str, np.ndarray]:
        """Every output by name, from torch.nn in float64."""
        module = make_module(torch.nn, self).double()
        if self.resets is not None:
            module = StepByStep(module, self.resets)
        with torch.set_grad_enabled(self.mode.training):
            return outputs_of(torch_step(module, self, torch.float64)(), self)

    def check(self, outputs: dict[str, np.ndarray], skip: tuple[str, ...] = ()) -> float:
        """The largest error over all outputs but those skipped, in units of each output's largest value.

        Raises ValueError where an output is missing, misshapen or further off than the tolerance.
        """
        worst, allowed = 0.0, QUANTIZED_TOLERANCE if self.mode.quantized else TOLERANCE
        for name, expected in self.reference.items():
            if name in skip:
                continue
            got = outputs.get(name)
            if got is None or got.shape != expected.shape:
                raise ValueError(f"{name}: shape {None if got is None else got.shape}, not {expected.shape}")
            scale = max(float(np.abs(expected).max(initial=0.0)), 1e-30)
            error = float(np.abs(got.astype(np.float64) - expected).max(initial=0.0)) / scale
            if not error <= allowed:
                raise ValueError(f"{name}: error {error:.1e} of its largest value, more than {allowed:.0e}")
            worst = max(worst, error)
        return worst


def make_problem(case: Case, mode: Mode) -> Problem:
    """The same numbers for the same case, whoever asks."""
    generator = torch.Generator().manual_seed(zlib.crc32(case.id.encode()))

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    bound = case.hidden**-0.5
    with torch.device("meta"):
        shapes = {name: p.shape for name, p in _construct(torch.nn, case, mode).named_parameters()}
    weights = {
        name: torch.empty(shape).uniform_(-bound, bound, generator=generator)
        for name, shape in shapes.items()
    }
    x = normal(case.time, case.batch, case.input)
    d_y = normal(case.time, case.batch, case.directions * case.hidden)
    states = 2 if case.cell == "lstm" else 1
    state = tuple(normal(case.layers * case.directions, case.batch, case.hidden) * 0.5 for _ in range(states))
    lengths = None
    if mode.ragged:
        # one draw from each of B equal strata of (0, T]: random, yet of mean T/2 for small batches too
        place = (torch.arange(case.batch) + torch.rand(case.batch, generator=generator)) / case.batch
        lengths = (place * case.time).ceil().long().clamp(1, case.time).flip(0)
        lengths[0] = case.time
        past_end = torch.arange(case.time)[:, None] >= lengths
        x[past_end] = 0
        d_y[past_end] = 0
    resets = None
    if mode.resets:
        resets = torch.rand(case.time, case.batch, generator=generator) < 0.02
        resets[case.time // 2, 0] = True
    return Problem(case, mode, weights, x, d_y, state, lengths, resets)


def _construct(library: Any, case: Case, mode: Mode) -> torch.nn.Module:
    name = case.cell.upper()
    module: torch.nn.Module
    if mode.cell:
        module = getattr(library, f"{name}Cell")(case.input, case.hidden)
    else:
        module = getattr(library, name)(
            case.input, case.hidden, num_layers=case.layers, bidirectional=case.bidirectional
        )
    return module


def make_module(library: Any, problem: Problem) -> torch.nn.Module:
    """The module of the case's sizes, from torch.nn or what has its names, with the problem's weights."""
    module = _construct(library, problem.case, problem.mode)
    module.load_state_dict(problem.weights)
    return module


def torch_step(
    module: torch.nn.Module, problem: Problem, dtype: torch.dtype = torch.float32, padded: bool = False
) -> Callable[[], Any]:
    """The call that is timed for any module with torch.nn's interface; it returns what `outputs_of` takes.

    padded: run the rows past a sequence's end as well, as without packing.
    """
    mode = problem.mode
    x, d_y = problem.x.to(dtype), problem.d_y.to(dtype)
    state = tuple(s.to(dtype) for s in problem.state)
    lstm = len(state) == 2
    packed = mode.ragged and not padded

    if mode.cell:
        return _cell_steps(module, problem, x, d_y, tuple(s[0] for s in state))

    if mode.stream:

        def stream() -> Any:
            h = state if lstm else state[0]
            for _ in range(problem.repeats):
                y, h = module(x, h)
            return y, h

        return stream

    if not mode.training:
        rows = problem.pack(x) if packed else x
        return lambda: module(rows)

    state = tuple(s.clone().requires_grad_() for s in state)
    h0 = state if lstm else state[0]
    batch_sizes = None
    if packed:
        sequence = problem.pack(x)
        x, batch_sizes = sequence.data.requires_grad_(), sequence.batch_sizes
        d_y = problem.pack(d_y).data
    else:
        x = x.clone().requires_grad_()
    wanted = [x, *state, *module.parameters()]

    def train() -> Any:
        if batch_sizes is None:
            y, h = module(x, h0)
        else:
            y, h = module(PackedSequence(x, batch_sizes), h0)
            y = y.data
        return y.detach(), h, torch.autograd.grad(y, wanted, d_y)

    return train


def _cell_steps(
    cell: torch.nn.Module, problem: Problem, x: Tensor, d_y: Tensor, state: tuple[Tensor, ...]
) -> Callable[[], Any]:
    """`torch_step` of a cell, which a loop calls. state: [B, H]."""
    lstm = len(state) == 2
    if problem.mode.training:
        x = x.clone().requires_grad_()
        state = tuple(s.clone().requires_grad_() for s in state)
    h0 = state if lstm else state[0]
    wanted = [x, *state, *cell.parameters()]

    def loop(rows: Iterable[Tensor]) -> Any:
        y, h = [], h0
        for row in rows:
            h = cell(row, h)
            y.append(h[0] if lstm else h)
        return y, h

    def train() -> Any:
        for leaf in wanted:
            leaf.grad = None
        rows, h = loop(x)
        y = torch.stack(rows)
        y.backward(d_y)
        return y.detach(), h, [leaf.grad for leaf in wanted]

    if problem.mode.training:
        return train
    rows = list(x)
    return lambda: loop(rows)


def outputs_of(result: Any, problem: Problem) -> dict[str, np.ndarray]:
    """The outputs by name, in padded layout, of what `torch_step` returned."""

    def rows(y: Tensor | PackedSequence | list[Tensor]) -> Tensor:
        if isinstance(y, list):
            return torch.stack(y)
        if isinstance(y, Tensor):
            if problem.lengths is None or y.dim() == 3:
                return y
            y = PackedSequence(y, problem.pack(problem.x).batch_sizes)
        return pad_packed_sequence(y, total_length=problem.case.time)[0]

    y, h, *grads = result
    states = h if isinstance(h, tuple) else (h,)
    named = {"y": rows(y)} | dict(zip(("h_n", "c_n"), states, strict=False))
    if grads:
        d_x, *rest = grads[0]
        d_state, d_weights = rest[: len(states)], rest[len(states) :]
        named |= {"d_x": rows(d_x)} | dict(zip(("d_h0", "d_c0"), d_state, strict=False))
        named |= {f"d_{name}": grad for name, grad in zip(problem.weights, d_weights, strict=True)}
    outputs = {
        name: tensor.detach().float().numpy() if tensor.dtype == torch.bfloat16 else tensor.detach().numpy()
        for name, tensor in named.items()
    }
    if problem.lengths is not None:
        outputs["y"] = np.where(past_end(problem), 0, outputs["y"])
    return outputs


def past_end(problem: Problem) -> np.ndarray:
    """[T, B, 1]: True for the rows past a sequence's end."""
    assert problem.lengths is not None
    return (np.arange(problem.case.time)[:, None] >= problem.lengths.numpy())[:, :, None]
