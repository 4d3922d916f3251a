"""Differentiation of one layer: the ops where a first derivative is enough, the reference beyond it."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from fastrnn import _ops, _spec
from fastrnn._compat import is_batch_of_gradients, is_in_forward_ad, is_transformed
from fastrnn._ops import Call
from fastrnn._recompute import backward_in_chunks, forward_in_chunks
from fastrnn._reference_loop import Rows


class Refused(Exception):
    """A quiet call's arguments do not fit, and nothing was done."""


def layer(
    spec: int,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    operands: Sequence[Tensor] = (),
    resets: Tensor | None = None,
    recompute: bool = False,
) -> Sequence[Tensor]:
    """One layer, arguments as of a :class:`fastrnn._ops.Call`: (y, *final_states, *cell_states), of a single step
    (*final_states,).

    Raises:
        Refused: of a quiet call alone
    """
    if is_in_forward_ad():
        return reference_layer(spec, x, states, weights, batch_sizes, operands, resets)
    transformed = is_transformed()
    if transformed or (torch.is_grad_enabled() and _differentiates(x, states, weights, operands)):
        inputs = (spec, len(states), batch_sizes, resets, x, *states, *weights, *operands)
        if transformed:
            outputs: tuple[Tensor, ...] = _TransformedLayer.apply(*inputs)[:-1]  # type: ignore[no-untyped-call]
        elif recompute and _may_recompute(spec):
            outputs = _RecomputedLayer.apply(*inputs)  # type: ignore[no-untyped-call]
        else:
            outputs = _Layer.apply(*inputs)  # type: ignore[no-untyped-call]
        return outputs
    found = _ops.forward(spec, x, states, weights, batch_sizes, operands, resets, False)
    if not found:
        raise Refused
    return found


def reference_layer(
    spec: int,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None = None,
    operands: Sequence[Tensor] = (),
    resets: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """:func:`layer` by the reference alone."""
    if spec & _spec.QUIET:
        raise Refused  # it does not check its arguments
    if spec & _spec.SINGLE_STEP:
        whole = spec & ~_spec.SINGLE_STEP
        start, cuts = [s[None] for s in states], None if resets is None else resets[None]
        _, *final = reference_layer(whole, x[None], start, weights, None, operands, cuts)
        return tuple(s[0] for s in final)
    family, choice = _spec.family_of(spec)
    flags = (bool(spec & bit) for bit in (_spec.HAS_BIASES, _spec.BATCH_FIRST, _spec.BIDIRECTIONAL))
    initial = states or (None,) * family.states
    masks: Sequence[Tensor] = ()
    if spec & _spec.RECURRENT_MASK:  # the last one of each direction
        count = _spec.operands_of(spec)
        masks = operands[count - 1 :: count]
        operands = [operand for index, operand in enumerate(operands) if index % count < count - 1]
    ragged = bool(spec & _spec.RAGGED)
    sizes, lengths = (None, batch_sizes) if ragged else (batch_sizes, None)
    rows = Rows(lengths, resets, bool(spec & _spec.CELL_STATES))
    return family.reference(x, *initial, weights, sizes, operands, *flags, *choice, masks, rows)


def _differentiates(x: Tensor, *others: Sequence[Tensor]) -> bool:
    if torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return False  # a trace can hold the ops only
    if x.requires_grad:
        return True
    for tensors in others:
        for tensor in tensors:  # any() takes twice as long
            if tensor.requires_grad:
                return True
    return False


# -- a call as the arguments of a Function ----------------------------------------------------------------------------


def _inputs(call: Call) -> tuple[Tensor, ...]:
    """The tensors that have gradients."""
    return call.x, *call.states, *call.weights, *call.operands


def _with_inputs(call: Call, inputs: Sequence[Tensor]) -> Call:
    """The call with other tensors in their places."""
    x, *rest = inputs
    weights = len(call.states)
    operands = weights + len(call.weights)
    return call._replace(x=x, states=rest[:weights], weights=rest[weights:operands], operands=rest[operands:])


def _flatten(call: Call) -> tuple[Any, ...]:
    """(spec, number of states, batch_sizes, resets, *inputs)"""
    return call.spec, len(call.states), call.batch_sizes, call.resets, *_inputs(call)


def _unflatten(
    spec: int, states: int, batch_sizes: Tensor | None, resets: Tensor | None, *inputs: Tensor
) -> Call:
    directions = 2 if spec & _spec.BIDIRECTIONAL else 1
    operands = len(inputs) - directions * _spec.operands_of(spec)
    x, *rest = inputs[:operands]
    return Call(spec, x, rest[:states], rest[states:], batch_sizes, inputs[operands:], resets)


class _Pass(NamedTuple):
    """What a backward pass is given."""

    call: Call
    needs: int
    y: Tensor
    reserve: Tensor
    d_outputs: Sequence[Tensor | None]

    def run(self) -> tuple[Tensor, ...]:
        return tuple(_ops.backward(self.call, self.y, self.reserve, self.d_outputs, self.needs))


def _flatten_pass(given: _Pass) -> tuple[Any, ...]:
    """(needs, y, reserve, number of gradients of outputs, *those, *flat call)"""
    call, needs, y, reserve, d_outputs = given
    return needs, y, reserve, len(d_outputs), *d_outputs, *_flatten(call)


def _unflatten_pass(needs: int, y: Tensor, reserve: Tensor, count: int, *rest: Any) -> _Pass:
    return _Pass(_unflatten(*rest[count:]), needs, y, reserve, rest[:count])


def _needs(call: Call, wanted: Sequence[bool]) -> int:
    """The needs of layer_backward from whether each input's gradient is wanted."""
    weights = 1 + len(call.states)
    operands = weights + len(call.weights)
    needs = _spec.NEEDS_X if wanted[0] else 0
    if True in wanted[1:weights]:
        needs |= _spec.NEEDS_STATES
    if True in wanted[weights:operands]:
        needs |= _spec.NEEDS_WEIGHTS
    if True in wanted[operands:]:
        needs |= _spec.NEEDS_OPERANDS
    return needs


def _kept(gradients: Sequence[Tensor | None], wanted: Sequence[bool]) -> Sequence[Tensor | None]:
    if False not in wanted:
        return gradients
    return [g if needed else None for g, needed in zip(gradients, wanted, strict=True)]


# -- the Functions ----------------------------------------------------------------------------------------------------


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


def _forward_to_train(inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """(*layer's results, reserve)"""
    outputs = _ops.forward(*_unflatten(*inputs), True)
    if not outputs:
        raise Refused
    return tuple(outputs)


def _keep(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
    spec, ctx.states, *tensors = inputs
    ctx.spec = spec & ~_spec.QUIET
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(outputs[0], outputs[-1], *tensors)


class _Layer(Function):
    """(*flat call) -> layer's results"""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        outputs = _forward_to_train(inputs)
        _keep(ctx, inputs, outputs)
        return outputs[:-1]

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor | None) -> tuple[Any, ...]:
        y, reserve, *tensors = ctx.saved_tensors
        call, wanted = _unflatten(ctx.spec, ctx.states, *tensors), ctx.needs_input_grad[4:]
        if not torch.compiler.is_compiling() and any(map(is_batch_of_gradients, d_outputs)):
            return None, None, None, None, *_batched_gradients(call, d_outputs)
        needs = _needs(call, wanted)
        if torch.is_grad_enabled():
            # y is detached, for its dependence on x and the weights is part of the second derivative below
            gradients: Sequence[Tensor] = _differentiable(_Pass(call, needs, y.detach(), reserve, d_outputs))
        else:
            gradients = _ops.backward(call, y, reserve, d_outputs, needs)
        return None, None, None, None, *_kept(gradients, wanted)


class _TransformedLayer(_MappedOneByOne):
    """(*flat call) -> layer's results, reserve; in the form that torch.func asks for, which takes longer"""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return _forward_to_train(inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _keep(ctx, inputs, output)
        ctx.mark_non_differentiable(output[-1])

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor | None) -> tuple[Any, ...]:
        return _Layer.backward(ctx, *d_outputs[:-1])


class _RecomputedLayer(Function):
    """(*flat call) -> (y, *final_states)"""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, ...]:
        outputs, kept = forward_in_chunks(_unflatten(*inputs))
        ctx.spec, ctx.states, *tensors = inputs
        ctx.set_materialize_grads(False)
        ctx.kept = len(kept)
        ctx.save_for_backward(*kept, *tensors)
        return outputs

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors  # read once, which is all that a checkpoint allows
        kept, tensors = saved[: ctx.kept], saved[ctx.kept :]
        call, wanted = _unflatten(ctx.spec, ctx.states, *tensors), ctx.needs_input_grad[4:]
        if any(map(is_batch_of_gradients, d_outputs)):
            return None, None, None, None, *_batched_gradients(call, d_outputs)
        needs = _needs(call, wanted)
        if torch.is_grad_enabled():  # for a second derivative; it keeps everything
            fixed = _with_inputs(call, [tensor.detach() for tensor in _inputs(call)])
            y, *_, reserve = _ops.forward(*fixed, True)
            gradients = _differentiable(_Pass(call, needs, y, reserve, d_outputs))
        else:
            gradients = backward_in_chunks(call, kept, d_outputs, needs)
        return None, None, None, None, *_kept(gradients, wanted)


class _LayerBackward(_MappedOneByOne):
    """(*flat pass) -> (d_x, *d_states, *d_weights, *d_operands)"""

    @staticmethod
    def forward(*inputs: Any) -> tuple[Tensor, ...]:
        return _unflatten_pass(*inputs).run()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        call, _, _, _, d_outputs = _unflatten_pass(*inputs)
        ctx.spec, ctx.states, *tensors = _flatten(call)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, *d_outputs)

    @staticmethod
    def backward(ctx: Any, *d_gradients: Tensor | None) -> tuple[Any, ...]:
        outputs = _spec.outputs_of(ctx.spec)
        saved = ctx.saved_tensors
        tensors, d_outputs = saved[:-outputs], saved[-outputs:]
        call = _unflatten(ctx.spec, ctx.states, *tensors)
        inputs = _inputs(call)
        before, between = (None,) * 4, (None,) * 4  # in the places of what has no gradient
        if not _present(d_outputs):
            return *before, *d_outputs, *between, *(None for _ in inputs)

        def gradients(*tensors: Tensor) -> tuple[Tensor, ...]:
            return _reference_vjp(call, tensors[: len(inputs)], _spread(tensors[len(inputs) :], d_outputs))

        with torch.autocast(call.x.device.type, enabled=False):
            first, pullback = _vjp(gradients, (*inputs, *_present(d_outputs)))
            second = pullback(
                tuple(
                    torch.zeros_like(g) if d is None else d for d, g in zip(d_gradients, first, strict=True)
                )
            )
        d_d_outputs = _spread(second[len(inputs) :], d_outputs)
        return *before, *d_d_outputs, *between, *second[: len(inputs)]


def _differentiable(given: _Pass) -> tuple[Tensor, ...]:
    """given.run(), with a derivative of its own."""
    gradients: tuple[Tensor, ...] = _LayerBackward.apply(*_flatten_pass(given))  # type: ignore[no-untyped-call]
    return gradients


def _reference_vjp(
    call: Call, inputs: Sequence[Tensor], d_outputs: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """The gradients of the inputs, as a function that torch.func can differentiate."""

    def outputs(*inputs: Tensor) -> tuple[Tensor, ...]:
        found = reference_layer(*_with_inputs(call, inputs))
        return tuple(y for y, d in zip(found, d_outputs, strict=True) if d is not None)

    return _vjp(outputs, inputs)[1](tuple(_present(d_outputs)))


def _batched_gradients(call: Call, d_outputs: Sequence[Tensor | None]) -> list[Tensor | None]:
    """The gradients of the inputs where those of the outputs are batches."""
    leaves = [tensor.detach().requires_grad_() for tensor in _inputs(call)]
    with torch.enable_grad():
        outputs = reference_layer(*_with_inputs(call, leaves))
    used = [(y, d) for y, d in zip(outputs, d_outputs, strict=True) if d is not None]
    return list(torch.autograd.grad([y for y, _ in used], leaves, [d for _, d in used], allow_unused=True))


def _may_recompute(spec: int) -> bool:
    """torch.compile chooses by itself what to recompute; a cell may keep its outputs alone, and a step has no more."""
    return (
        _spec.cell_of(spec).saved > 0 and not spec & _spec.SINGLE_STEP and not torch.compiler.is_compiling()
    )


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


# Function.apply asks for the signature on every call of those with a setup_context; kept here it costs a tenth
_FUNCTIONS: tuple[Any, ...] = (_TransformedLayer, _LayerBackward)
for _function in _FUNCTIONS:
    _function.forward.__signature__ = inspect.signature(_function.forward)
