"""A call of a stack of layers: what serves it, and the way from layer to layer."""

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from fastrnn import _cuda, _ops
from fastrnn._autograd import layer, reference_layer
from fastrnn._heads import have_kernels, joined
from fastrnn._masks import add_recurrent_masks, drop_weights
from fastrnn._ops import is_packed
from fastrnn._options import NONE, Constants, operands_of_call
from fastrnn._spec import (
    BATCH_FIRST,
    BIDIRECTIONAL,
    CELL_STATES,
    GRU,
    HAS_BIASES,
    LSTM,
    RAGGED,
    RECURRENT_MASK,
    RNN,
    cell_of,
    family_of,
    has_cuda_engine,
    heads_of,
)

# cuDNN copies weights that do not lie in one chunk of memory, as a list of them need not, and says so. One filter for
# the calls below, behind any that is set later: changing filters around a call makes every thread forget what it has
# shown once.
warnings.filterwarnings(
    "ignore", "RNN module weights are not part", category=UserWarning, module=r"fastrnn\._stack$"
)


class Stack(NamedTuple):
    """All that describes a stack but its tensors."""

    spec: int  # of its layers, see fastrnn/_spec.py
    num_layers: int
    training: bool
    dropout: float  # of the outputs of every layer but the last
    weight_dropout: float = 0.0
    recurrent_dropout: float = 0.0
    recompute: bool = False
    constants: Constants = NONE

    @property
    def directions(self) -> int:
        return 2 if self.spec & BIDIRECTIONAL else 1


_States = Sequence[Tensor] | None


def run_stack(
    stack: Stack,
    x: Tensor,
    states: _States,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    operands: Sequence[Tensor] = (),
    resets: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """(y, *final_states, *cell_states) from what serves x's device and dtype: the ops, else torch, else the reference.
    batch_sizes, which may be lengths, and resets are a layer's (fastrnn/_ops.py), operands are such, layer by layer."""
    if x.dim() == 2 and not is_packed(stack.spec, batch_sizes):
        dim = 0 if stack.spec & BATCH_FIRST else 1
        batch = None if states is None else [s.unsqueeze(1) for s in states]
        lengths = None if batch_sizes is None else batch_sizes.unsqueeze(0)
        cuts = None if resets is None else resets.unsqueeze(dim)
        y, *final = run_stack(stack, x.unsqueeze(dim), batch, weights, lengths, operands, cuts)
        cell_states = [final.pop().squeeze(dim)] if stack.spec & CELL_STATES else []
        return y.squeeze(dim), *(s.squeeze(1) for s in final), *cell_states
    if stack.training and stack.weight_dropout:
        weights = drop_weights(weights, stack.num_layers * stack.directions, stack.weight_dropout)
    if not have_kernels(stack.spec, x, weights):
        spec, weights = joined(stack.spec, weights, stack.num_layers)
        stack = stack._replace(spec=spec)
    if cell_of(stack.spec).operands:
        rows, _, hidden = _sizes(stack, x, states, weights, batch_sizes)
        time = x.shape[1 if stack.spec & BATCH_FIRST else 0]
        if batch_sizes is not None and is_packed(stack.spec, batch_sizes):
            time = batch_sizes.shape[0]
        directions, sizes = stack.num_layers * stack.directions, (time, rows, hidden)
        operands = operands_of_call(
            stack.spec, operands, directions, stack.constants, stack.training, x, sizes
        )
    if stack.training and stack.recurrent_dropout:
        rows, width, _ = _sizes(stack, x, states, weights, batch_sizes)
        directions = stack.num_layers * stack.directions
        operands = add_recurrent_masks(operands, directions, stack.recurrent_dropout, x, rows, width)
        stack = stack._replace(spec=stack.spec | RECURRENT_MASK)
    family, choice = family_of(stack.spec)
    has_engine = not operands and resets is None and not stack.spec & (RAGGED | CELL_STATES)  # on CUDA
    has_engine = has_engine and has_cuda_engine(stack.spec)
    has_torch = family.is_torchs(choice) and has_engine
    if not _ops.has_kernels(x) or (x.is_cuda and not has_engine):
        if has_torch:
            return _run_torch(stack, x, states, weights, batch_sizes)
        plain = stack._replace(recompute=False)
        return run_layers(reference_layer, plain, x, states, weights, batch_sizes, operands, resets)
    casts = _ops.autocasts(x) and x.dtype != torch.float64
    if x.is_cuda and has_torch and (casts or _cuda.torch_is_quicker(stack, x, states, weights, batch_sizes)):
        return _run_torch(stack, x, states, weights, batch_sizes)
    if casts:
        return _run_autocast(stack, x, states, weights, batch_sizes, operands, resets)
    return run_layers(layer, stack, x, states, weights, batch_sizes, operands, resets)


def run_layers(
    run_layer: Callable[..., Sequence[Tensor]],
    stack: Stack,
    x: Tensor,
    states: _States,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    operands: Sequence[Tensor] = (),
    resets: Tensor | None = None,
) -> tuple[Tensor, ...]:
    spec, num_layers, training, dropout, *_ = stack
    if stack.recompute:
        run_layer = partial(run_layer, recompute=True)
    initial: Sequence[Tensor] = ()
    if states is not None:
        initial = states
    elif is_packed(spec, batch_sizes):
        initial = _zeros(stack, x, weights, batch_sizes)
    if num_layers == 1:
        return tuple(run_layer(spec, x, initial, weights, batch_sizes, operands, resets))

    # between layers time comes first: rows of a step lie together, and dropout draws in torch's order
    batch_first = 0 if is_packed(spec, batch_sizes) else spec & BATCH_FIRST
    if batch_first:
        x, resets = x.transpose(0, 1), None if resets is None else resets.transpose(0, 1)
    has_cell_states = spec & CELL_STATES
    spec ^= batch_first | has_cell_states
    directions = stack.directions

    def of_layer(tensors: Sequence[Tensor], index: int) -> Sequence[Tensor]:
        count = len(tensors) // num_layers
        return tensors[index * count : (index + 1) * count]

    finals = []
    for index in range(num_layers):
        if index > 0 and training and dropout > 0:
            x = torch.dropout(x, dropout, True)
        if index == num_layers - 1:
            spec |= batch_first | has_cell_states
            if batch_first:
                x, resets = x.transpose(0, 1), None if resets is None else resets.transpose(0, 1)
        start = [s[index * directions : (index + 1) * directions] for s in initial]
        given = of_layer(weights, index), batch_sizes, of_layer(operands, index), resets
        x, *final = run_layer(spec, x, start, *given)
        finals.append(final)
    cell_states = [finals[-1].pop()] if has_cell_states else []
    return x, *(torch.cat(parts) for parts in zip(*finals, strict=True)), *cell_states


def _run_torch(
    stack: Stack, x: Tensor, states: _States, weights: Sequence[Tensor], batch_sizes: Tensor | None
) -> tuple[Tensor, ...]:
    spec, num_layers, training, dropout, *_ = stack
    family, choice = family_of(spec)
    function = getattr(torch, f"rnn_{choice[0]}" if family is RNN else family.name)
    if states is None:
        states = _zeros(stack, x, weights, batch_sizes)
    hx = tuple(states) if family is LSTM else states[0]
    has_biases, batch_first, bidirectional = (
        bool(spec & bit) for bit in (HAS_BIASES, BATCH_FIRST, BIDIRECTIONAL)
    )
    common = (list(weights), has_biases, num_layers, dropout, training, bidirectional)
    arguments = (x, hx, *common, batch_first) if batch_sizes is None else (x, batch_sizes, hx, *common)
    outputs: tuple[Tensor, ...] = function(*arguments)
    return outputs


def _run_autocast(
    stack: Stack,
    x: Tensor,
    states: _States,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    operands: Sequence[Tensor],
    resets: Tensor | None,
) -> tuple[Tensor, ...]:
    """Computes in the weights' dtype, which loses nothing, and gives every output the dtype that torch.nn gives it; but
    in autocast's dtype on CUDA, where the tensor cores are."""
    low = torch.get_autocast_dtype(x.device.type)
    dtype = low if x.is_cuda else torch.promote_types(x.dtype, weights[0].dtype)
    state = x.dtype if states is None else states[-1].dtype
    per_direction = len(weights) // stack.num_layers // stack.directions
    family, _ = family_of(stack.spec)
    projected = cell_of(stack.spec).may_project and per_direction % 2 == 1
    if x.is_cuda:
        sequence = last = low
    elif family is GRU or (family is LSTM and is_packed(stack.spec, batch_sizes) and not projected):
        sequence = last = state
    else:
        sequence, last = low, state if projected else low
    y, *finals = run_layers(
        layer,
        stack,
        x.to(dtype),
        None if states is None else [s.to(dtype) for s in states],
        [w.to(dtype) for w in weights],
        batch_sizes,
        [operand.to(dtype) for operand in operands],
        resets,
    )
    count = family.states
    return y.to(sequence), *(f.to(sequence if i + 1 < count else last) for i, f in enumerate(finals))


def _zeros(
    stack: Stack, x: Tensor, weights: Sequence[Tensor], batch_sizes: Tensor | None
) -> tuple[Tensor, ...]:
    batch, *widths = _sizes(stack, x, None, weights, batch_sizes)
    rows, cell = stack.num_layers * stack.directions, cell_of(stack.spec)
    widths[1] *= cell.memories
    return tuple(x.new_zeros(rows, batch, width) for width in widths[: cell.states])


def _sizes(
    stack: Stack, x: Tensor, states: _States, weights: Sequence[Tensor], batch_sizes: Tensor | None
) -> tuple[int, int, int]:
    """(B, R, H)"""
    if states is not None:
        batch = states[0].shape[1]
    elif batch_sizes is not None and is_packed(stack.spec, batch_sizes):
        batch = int(batch_sizes[0])
    else:
        batch = x.shape[0 if stack.spec & BATCH_FIRST else 1]
    cell = cell_of(stack.spec)
    hidden = weights[0].shape[0] // cell.gates
    return batch, weights[1].shape[1] * heads_of(stack.spec) if cell.recurrent else hidden, hidden
