"""Typed access to the compiled ops; their fake kernels.

An op runs one layer, both directions in one call:

- ``layer_forward(x, states, weights, batch_sizes, operands, spec, training) -> [y, *final_states, *cell_states]``
- ``layer_backward(d_outputs, x, states, weights, batch_sizes, operands, y, reserve, spec, needs)
  -> [d_x, *d_states, *d_weights, *d_operands]``

x is [T, B, I], [B, T, I] if batch_first, or [N, I] if batch_sizes [T] is given, with any strides; or [B, I] if the spec
says single step, and then the states and their gradients lack their first dimension, and y, which is h, is not returned
by itself. states are h0 [D, B, R] and, for an LSTM, c0 [D, B, H], or none at all for zeros; packed input needs them.
weights are torch's flat list of the layer; with several heads w_hh is [G*H, R / heads]. Without training the matrices
may be bfloat16, or int8 as :mod:`fastrnn.quantized` packs them, with the scales of w_ih and w_hh behind the other
weights of the direction; x and the rest are then float32. operands are what a cell takes beside its gates, for each
direction, each [H], [B, H] or [T, B, H], and last, if the spec has a recurrent mask, the mask [B, R] that h is times
where it enters the recurrent product.

If the spec is ragged, batch_sizes are the lengths, int64 [B] on the CPU from 0 to T, of the rows of an x that is not
packed, and y is zero behind them. If it has resets, the last of all operands is bool, x's shape without I: a row's
state is zero before the steps where it is true; it has no gradient. If it has cell states, c after every step is an
output, with y's layout and D*H features.

spec is made by :mod:`fastrnn._spec`; a quiet layer_forward returns [] instead of an error for arguments that do not
fit. y has x's layout and D*R features. Without training there is no reserve [D, N, S, padded_units(H)], N being T*B if
the spec is ragged, which is what backward needs to know. d_outputs are the gradients of the outputs but of reserve,
None for zeros. needs says which gradients to compute; those that are not needed come back with shape [0].
"""

import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastrnn import _spec
from fastrnn._compat import FakeTensor, constant_when_compiled, direct

_ops = torch.ops.fastrnn
_FORWARD, _BACKWARD = _ops.layer_forward.default, _ops.layer_backward.default
_DIRECT_FORWARD, _DIRECT_BACKWARD = direct(_FORWARD), direct(_BACKWARD)


class Call(NamedTuple):
    """A layer and its tensors, as the ops take them."""

    spec: int
    x: Tensor
    states: Sequence[Tensor]
    weights: Sequence[Tensor]
    batch_sizes: Tensor | None = None  # or lengths
    operands: Sequence[Tensor] = ()  # but for the resets
    resets: Tensor | None = None


def is_packed(spec: int, batch_sizes: Tensor | None) -> bool:
    return batch_sizes is not None and not spec & _spec.RAGGED


_DTYPES = frozenset({torch.float32, torch.float64, torch.bfloat16, torch.float16})
_DEVICES = {"cpu", "meta"}
_CUDA_ENGINES = ("torch", "auto", "steps", "grid")


def _read_cuda_engine() -> str:
    engine = os.environ.get("FASTRNN_CUDA_ENGINE") or "torch"
    if engine not in _CUDA_ENGINES:
        known = ", ".join(_CUDA_ENGINES)
        raise ValueError(f"FASTRNN_CUDA_ENGINE: unknown engine '{engine}'; there are {known}")
    return engine


# "torch": its own kernels serve CUDA tensors; docs/gpu.md
cuda_engine = _read_cuda_engine()
if cuda_engine != "torch":
    if not _ops.cuda_compiled():
        raise RuntimeError(f"FASTRNN_CUDA_ENGINE is '{cuda_engine}', but this build has no CUDA kernels")
    _DEVICES.add("cuda")


def has_kernels(x: Tensor) -> bool:
    """Whether the ops run on x's device and dtype."""
    if x.dtype not in _DTYPES:
        return False
    if x.is_cpu:  # 50 ns, where device.type costs 300
        return True
    return x.device.type in _DEVICES and not (x.is_cuda and _is_too_old(x.device.index))


@lru_cache
def cuda_properties(index: int) -> tuple[int, int, int, int]:
    """Of a CUDA device, as :func:`cuda_plan` takes them."""
    found: Any = torch.cuda.get_device_properties(index)  # torch's stubs lack some
    capability = 10 * found.major + found.minor
    return capability, found.multi_processor_count, found.shared_memory_per_block_optin, found.L2_cache_size


@constant_when_compiled
def _is_too_old(index: int) -> bool:
    return cuda_properties(index)[0] < int(_ops.cuda_capability())


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on for x's device."""
    if x.is_cpu:
        return torch.is_autocast_enabled("cpu")
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


def device_has_kernels(device: str) -> bool:
    return device in _DEVICES


def forward(
    spec: int,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    operands: Sequence[Tensor],
    resets: Tensor | None,
    training: bool,
) -> list[Tensor]:
    """[y, *final_states, *cell_states], with a reserve if training; or [] if the op, being quiet, refuses the
    arguments. The others are those of a :class:`Call`."""
    if resets is not None:
        spec, operands = spec | _spec.RESETS, [*operands, resets]
    op = _FORWARD if torch.compiler.is_compiling() else _DIRECT_FORWARD
    found: list[Tensor] = op(x, states, weights, batch_sizes, operands, spec, training)
    return found


def backward(
    call: Call, y: Tensor, reserve: Tensor, d_outputs: Sequence[Tensor | None], needs: int
) -> list[Tensor]:
    """[d_x, *d_states, *d_weights, *d_operands]; needs is made of :mod:`fastrnn._spec`'s bits."""
    spec, x, states, weights, batch_sizes, operands, resets = call
    if resets is not None:
        spec, operands = spec | _spec.RESETS, [*operands, resets]
    op = _BACKWARD if torch.compiler.is_compiling() else _DIRECT_BACKWARD
    found: list[Tensor] = op(d_outputs, x, states, weights, batch_sizes, operands, y, reserve, spec, needs)
    return found


def draw_mask(mask: Tensor, seed: Tensor, ones: int, value: float) -> None:
    """Fills a mask, float32 or float64, contiguous: value with probability ones / 2^16, elsewhere 0. The seed, int64
    [1], says which."""
    _ops.draw_mask_(mask, seed, ones, value)


def active_isa() -> str:
    """The instruction set that the kernels run with."""
    return str(_ops.active_isa())


def compiled_isas() -> list[str]:
    """The instruction sets in this build, best first."""
    return str(_ops.compiled_isas()).split(",")


def supported_isas() -> list[str]:
    """Those of them that this CPU has, best first."""
    return str(_ops.supported_isas()).split(",")


def release_memory() -> None:
    """Gives back the memory that the CPU kernels keep from call to call: the workspace of the calling thread and the
    reserves of finished training steps now, the workspaces of other threads at their next call. Results do not change;
    the next calls take new memory."""
    _ops.release_memory()


def kept_memory() -> tuple[int, int]:
    """Bytes that are kept, and how many may be."""
    kept, limit = _ops.kept_memory()
    return int(kept), int(limit)


def cuda_compiled() -> bool:
    return bool(_ops.cuda_compiled())


def cuda_plan(
    cell: str,
    dtype: str,
    sizes: tuple[int, int, int, int, int, int, int],
    packed: bool,
    backward: bool,
    wanted: str,
    device: str,
    properties: Sequence[int] = (),
) -> str:
    """What the CUDA kernels would do, one fact a line. sizes are T, B, I, H, P, D, and the stack's L; device is "h100",
    "h200", "a100", or any name with its properties: 10 * major + minor of its compute capability, multiprocessors,
    bytes of shared memory that a block may have, bytes of L2 cache."""
    return str(_ops.cuda_plan(cell, dtype, sizes, packed, backward, wanted, device, properties))


def torch_is_quicker(
    cell: str,
    dtype: str,
    sizes: tuple[int, int, int, int, int, int, int],
    packed: bool,
    training: bool,
    device: str,
    properties: Sequence[int] = (),
) -> bool:
    """Whether the cost model puts torch's own CUDA kernels before fastrnn's, arguments as in :func:`cuda_plan`."""
    return bool(_ops.torch_is_quicker(cell, dtype, sizes, packed, training, device, properties))


def _sizes(call: Call) -> tuple[int, int, int]:
    """(B, R, H)"""
    spec, x, states, weights, batch_sizes, *_ = call
    if is_packed(spec, batch_sizes):
        if not states:
            raise RuntimeError("fastrnn: packed input needs its initial states")
        batch = states[0].shape[1]
    elif spec & (_spec.SINGLE_STEP | _spec.BATCH_FIRST):
        batch = x.shape[0]
    else:
        batch = x.shape[1]
    cell = _spec.cell_of(spec)
    # packed; the scales have a value a row, a projection comes before them
    if weights[0].dtype == torch.int8:
        hidden = weights[-1].shape[0] // cell.gates
        projected = cell.may_project and weights[4].dim() == 2
        return batch, weights[4].shape[0] if projected else hidden, hidden
    hidden = weights[0].shape[0] // cell.gates
    recurrent = weights[1].shape[1] * _spec.heads_of(spec) if cell.recurrent else hidden
    return batch, recurrent, hidden


def _is_real(x: Tensor) -> bool:
    """Whether it has memory; a real x comes to a fake kernel where another argument is on the meta device."""
    return x.is_cpu and not isinstance(x, FakeTensor)


def _check_fake(x: Tensor) -> None:
    if _is_real(x):
        raise RuntimeError("fastrnn: every tensor and x must be on the same device")


def _empty_states(call: Call) -> list[Tensor]:
    batch, *widths = _sizes(call)
    if call.spec & _spec.SINGLE_STEP:
        leading: tuple[int, ...] = (batch,)
    else:
        leading = 2 if call.spec & _spec.BIDIRECTIONAL else 1, batch
    cell = _spec.cell_of(call.spec)
    widths[1] *= cell.memories
    return [call.x.new_empty((*leading, width)) for width in widths[: cell.states]]


def _fake_forward(
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    operands: Sequence[Tensor],
    spec: int,
    training: bool,
) -> list[Tensor]:
    if spec & _spec.QUIET and _is_real(x):
        return []
    _check_fake(x)
    call = Call(spec, x, states, weights, batch_sizes, operands)
    _, recurrent, hidden = _sizes(call)
    directions = 2 if spec & _spec.BIDIRECTIONAL else 1
    outputs = _empty_states(call)
    if not spec & _spec.SINGLE_STEP:
        outputs.insert(0, x.new_empty((*x.shape[:-1], directions * recurrent)))
    if spec & _spec.CELL_STATES:
        outputs.append(x.new_empty((*x.shape[:-1], directions * hidden)))
    if training:
        rows = x.shape[0] if x.dim() == 2 else x.shape[0] * x.shape[1]
        shape = (directions, rows, _spec.cell_of(spec).saved, _spec.padded_units(hidden))
        outputs.append(x.new_empty(shape, dtype=torch.float64 if x.dtype == torch.float64 else torch.float32))
    return outputs


def _fake_backward(
    d_outputs: Sequence[Tensor | None],
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    operands: Sequence[Tensor],
    y: Tensor,
    reserve: Tensor,
    spec: int,
    needs: int,
) -> list[Tensor]:
    _check_fake(x)
    if spec & _spec.RESETS:
        operands = operands[:-1]
    call = Call(spec, x, states, weights, batch_sizes, operands)

    learned = _spec.cell_of(spec).learned
    places = ((operand, index % _spec.operands_of(spec)) for index, operand in enumerate(operands))

    def gradient(shape: Sequence[int], needed: int) -> Tensor:
        return x.new_empty(shape if needed else (0,))

    d_states = [gradient(s.shape, needs & _spec.NEEDS_STATES) for s in _empty_states(call)[: len(states)]]
    return [
        gradient(x.shape, needs & _spec.NEEDS_X),
        *d_states,
        *(gradient(w.shape, needs & _spec.NEEDS_WEIGHTS) for w in weights),
        *(gradient(o.shape, needs & _spec.NEEDS_OPERANDS and of < learned) for o, of in places),
    ]


torch.library.register_fake("fastrnn::layer_forward", _fake_forward)
torch.library.register_fake("fastrnn::layer_backward", _fake_backward)

torch.library.register_fake("fastrnn::draw_mask_", lambda mask, seed, ones, value: None)
