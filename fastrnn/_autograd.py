"""Differentiation of one layer: the ops where a first derivative is enough, the reference beyond it."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from fastrnn import _ops, reference
from fastrnn._compat import is_batch_of_gradients, is_in_forward_ad, is_transformed
from fastrnn._ops import STATES, Options, State
from fastrnn._recompute import backward_in_chunks, forward_in_chunks

_REFERENCE: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "lstm": reference.lstm_layer,
    "gru": reference.gru_layer,
    "rnn": reference.rnn_layer,
}


def layer(
    cell: str,
    x: Tensor,
    states: Sequence[State],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    options: Options,
    recompute: bool = False,
) -> tuple[Tensor, ...]:
    """One layer: shapes as in :mod:`fastrnn._ops` -> (y, *final_states)."""
    if is_in_forward_ad():
        return reference_layer(cell, x, states, weights, batch_sizes, options)
    if is_transformed() or (torch.is_grad_enabled() and _differentiates(x, *states, *weights)):
        function: Any = _RecomputedLayer if recompute and _may_recompute(cell, x, batch_sizes) else _Layer
        outputs: tuple[Tensor, ...] = function.apply(cell, options, batch_sizes, x, *states, *weights)
        return outputs[: 1 + STATES[cell]]
    return _ops.forward(cell, x, states, weights, batch_sizes, options, False)[:-1]


def reference_layer(
    cell: str,
    x: Tensor,
    states: Sequence[State],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    options: Options,
) -> tuple[Tensor, ...]:
    """:func:`layer` by the reference alone."""
    if x.dim() == 2 and batch_sizes is None:  # a single step
        start = [None if s is None else s[None] for s in states]
        return tuple(y[0] for y in _REFERENCE[cell](x[None], *start, weights, None, *options))
    return _REFERENCE[cell](x, *states, weights, batch_sizes, *options)


def _differentiates(*tensors: Tensor | None) -> bool:
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False  # a trace can hold the ops only
    return any(tensor is not None and tensor.requires_grad for tensor in tensors)


class _MappedOneByOne(Function):
    """torch.vmap over it calls it once for each sample."""

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[Any, ...], *inputs: Any) -> tuple[Any, Any]:
        def sample(index: int) -> Any:
            return cls.apply(  # type: ignore[no-untyped-call]
                *(
                    value if dim is None or not isinstance(value, Tensor) else value.select(dim, index)
                    for value, dim in zip(inputs, in_dims, strict=True)
                )
            )

        outputs = tuple(map(torch.stack, zip(*map(sample, range(info.batch_size)), strict=True)))
        return outputs, (0,) * len(outputs)


class _Layer(_MappedOneByOne):
    """(cell, options, batch_sizes, x, *states, *weights) -> (y, *final_states, reserve)"""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        cell, options, batch_sizes, x, *rest = inputs
        count = STATES[cell]
        return _ops.forward(cell, x, rest[:count], rest[count:], batch_sizes, options, True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.cell, ctx.options, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(output[-1])
        ctx.save_for_backward(output[0], output[-1], *tensors)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor | None) -> tuple[Any, ...]:
        y, reserve, batch_sizes, x, *rest = ctx.saved_tensors
        count = STATES[ctx.cell]
        _, _, _, needs_x, *wanted = ctx.needs_input_grad
        if not torch.compiler.is_compiling() and any(map(is_batch_of_gradients, d_outputs)):
            return None, None, None, *_batched_gradients(ctx, batch_sizes, d_outputs[:-1], (x, *rest))
        needs = needs_x, any(wanted[:count]), any(wanted[count:])
        # y is detached, for its dependence on x and the weights is part of the second derivative below
        arguments = (
            ctx.cell,
            ctx.options,
            needs,
            batch_sizes,
            y.detach(),
            reserve,
            *d_outputs[:-1],
            x,
            *rest,
        )
        gradients = (_LayerBackward.apply if torch.is_grad_enabled() else _gradients)(*arguments)
        kept = (g if needed else None for g, needed in zip(gradients, (needs_x, *wanted), strict=True))
        return None, None, None, *kept


def _batched_gradients(
    ctx: Any, batch_sizes: Tensor | None, d_outputs: Sequence[Tensor | None], inputs: Sequence[Tensor | None]
) -> list[Tensor | None]:
    count = STATES[ctx.cell]
    with torch.enable_grad():
        x, *rest = (None if tensor is None else tensor.detach().requires_grad_() for tensor in inputs)
        assert x is not None
        outputs = reference_layer(ctx.cell, x, rest[:count], _present(rest[count:]), batch_sizes, ctx.options)
    used = [(y, d) for y, d in zip(outputs, d_outputs, strict=True) if d is not None]
    leaves = (x, *rest)
    found = torch.autograd.grad(
        [y for y, _ in used], _present(leaves), [d for _, d in used], allow_unused=True
    )
    return _spread(found, leaves)


def _gradients(*inputs: Any) -> tuple[Tensor, ...]:
    cell, options, needs, batch_sizes, y, reserve, *rest = inputs
    count = STATES[cell]
    d_outputs, x, states = rest[: count + 1], rest[count + 1], rest[count + 2 : 2 * count + 2]
    weights = rest[2 * count + 2 :]
    return _ops.backward(cell, d_outputs, x, states, weights, batch_sizes, y, reserve, options, needs)


def _may_recompute(cell: str, x: Tensor, batch_sizes: Tensor | None) -> bool:
    """torch.compile chooses by itself what to recompute; an RNN keeps its outputs alone, and a step has no more."""
    return (
        cell != "rnn"
        and not is_transformed()
        and not torch.compiler.is_compiling()
        and (x.dim() == 3 or batch_sizes is not None)
    )


class _RecomputedLayer(Function):
    """(cell, options, batch_sizes, x, *states, *weights) -> (y, *final_states)"""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        ctx.cell, ctx.options, batch_sizes, x, *rest = inputs
        count = STATES[ctx.cell]
        outputs, kept = forward_in_chunks(ctx.cell, x, rest[:count], rest[count:], batch_sizes, ctx.options)
        ctx.set_materialize_grads(False)
        ctx.kept = len(kept)
        ctx.save_for_backward(*kept, batch_sizes, x, *rest)
        return outputs

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor | None) -> tuple[Any, ...]:
        kept, (batch_sizes, x, *rest) = ctx.saved_tensors[: ctx.kept], ctx.saved_tensors[ctx.kept :]
        count = STATES[ctx.cell]
        _, _, _, needs_x, *wanted = ctx.needs_input_grad
        if any(map(is_batch_of_gradients, d_outputs)):
            return None, None, None, *_batched_gradients(ctx, batch_sizes, d_outputs, (x, *rest))
        needs = needs_x, any(wanted[:count]), any(wanted[count:])
        states, weights = rest[:count], rest[count:]
        if torch.is_grad_enabled():  # for a second derivative; it keeps everything
            fixed = [None if tensor is None else tensor.detach() for tensor in rest]
            y, *_, reserve = _ops.forward(
                ctx.cell, x.detach(), fixed[:count], _present(fixed[count:]), batch_sizes, ctx.options, True
            )
            gradients = _LayerBackward.apply(  # type: ignore[no-untyped-call]
                ctx.cell, ctx.options, needs, batch_sizes, y, reserve, *d_outputs, x, *rest
            )
        else:
            gradients = backward_in_chunks(
                ctx.cell, d_outputs, x, states, kept, weights, batch_sizes, ctx.options, needs
            )
        found = (g if needed else None for g, needed in zip(gradients, (needs_x, *wanted), strict=True))
        return None, None, None, *found


class _LayerBackward(_MappedOneByOne):
    """(cell, options, needs, batch_sizes, y, reserve, *d_outputs, x, *states, *weights)
    -> (d_x, *d_states, *d_weights)"""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return _gradients(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.cell, ctx.options, _, batch_sizes, _, _, *rest = inputs
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(batch_sizes, *rest)

    @staticmethod
    def backward(ctx: Any, *d_gradients: Tensor | None) -> tuple[Any, ...]:
        batch_sizes, *rest = ctx.saved_tensors
        count = STATES[ctx.cell]

        def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
            values = _spread(tensors, rest)
            d_outputs, inputs = values[: count + 1], values[count + 1 :]

            def outputs(*tensors: Tensor) -> tuple[Tensor, ...]:
                x, *others = _spread(tensors, inputs)
                states, weights = others[:count], others[count:]
                found = reference_layer(ctx.cell, x, states, weights, batch_sizes, ctx.options)
                return tuple(y for y, d in zip(found, d_outputs, strict=True) if d is not None)

            return _vjp(outputs, _present(inputs))[1](tuple(_present(d_outputs)))

        with torch.autocast(rest[count + 1].device.type, enabled=False):
            first, pullback = _vjp(gradients, _present(rest))
            given = [d for d, t in zip(d_gradients, rest[count + 1 :], strict=True) if t is not None]
            second = pullback(
                tuple(torch.zeros_like(g) if d is None else d for d, g in zip(given, first, strict=True))
            )
        return None, None, None, None, None, None, *_spread(second, rest)


def _vjp(
    function: Callable[..., tuple[Tensor, ...]], inputs: Sequence[Tensor]
) -> tuple[tuple[Tensor, ...], Callable[..., tuple[Tensor, ...]]]:
    """The outputs, and the function from their gradients to those of the inputs."""
    outputs, pullback = torch.func.vjp(function, *inputs)  # type: ignore[misc]
    return outputs, pullback


def _present(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _spread(tensors: Sequence[Tensor | None], like: Sequence[Tensor | None]) -> list[Any]:
    """tensors with None where like has None."""
    found = iter(tensors)
    return [None if tensor is None else next(found) for tensor in like]


# Function.apply asks for the signature on every call; kept here it costs a tenth
_FUNCTIONS: tuple[Any, ...] = (_Layer, _LayerBackward, _RecomputedLayer)
for _function in _FUNCTIONS:
    _function.forward.__signature__ = inspect.signature(_function.forward)
