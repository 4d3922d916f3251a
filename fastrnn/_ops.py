"""Loads the compiled extension; typed access to its ops; their fake kernels.

An op runs one layer, both directions in one call. The three cells share one order of arguments:

- ``<cell>_forward(x, *states, weights, batch_sizes, *options, training) -> (y, *final_states, reserve)``
- ``<cell>_backward(*d_outputs, x, *states, weights, batch_sizes, y, reserve, *options, needs_x, needs_state,
  needs_weights) -> (d_x, *d_states, d_weights)``

x is [T, B, I], [B, T, I] if batch_first, or [N, I] if batch_sizes [T] is given, with any strides; or [B, I], a single
step, and then the states and their gradients lack their first dimension. states are h0 [D, B, R] and, for an LSTM,
c0 [D, B, H], or None for zeros; packed input needs h0. weights are torch's flat list of the layer. Without training the
matrices may be bfloat16, or int8 as :mod:`fastrnn.quantized` packs them, with the scales of w_ih and w_hh behind the
other weights of the direction; x and the rest are then float32. y has x's layout and D*R features. reserve
[D, N, S, padded_units(H)] is what backward needs to know, [0] without training. A gradient of an output may be None;
gradients that are not needed come back with shape [0].
"""

import importlib
import os
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastrnn._compat import FakeTensor, direct

try:
    _extension = importlib.import_module("fastrnn._C")
except ImportError as error:
    raise ImportError(
        f"fastrnn's compiled extension cannot be loaded: {error}. Build it with `pip install .` or `pip install -e .` "
        "in fastrnn's source tree, for this Python and a torch of 2.11 or later. An installed fastrnn is hidden by "
        "the fastrnn/ folder of the source tree where Python is started there."
    ) from error

forward_by_address = _extension.forward  # csrc/torch/step.h
library_path = Path(str(_extension.__file__)).with_name(
    "libfastrnn_ops.so"
)  # the ops, for programs without Python

State = Tensor | None
Options = tuple[bool | str, ...]  # has_biases, batch_first, bidirectional and those of the cell

GATES = {"lstm": 4, "gru": 3, "rnn": 1}
STATES = {"lstm": 2, "gru": 1, "rnn": 1}
_SAVED = {"lstm": 5, "gru": 4, "rnn": 0}  # S; a GRU that resets before the product keeps one value less

_ops = torch.ops.fastrnn
_FORWARD = {
    "lstm": _ops.lstm_forward.default,
    "gru": _ops.gru_forward.default,
    "rnn": _ops.rnn_forward.default,
}
_DIRECT_FORWARD = {cell: direct(op) for cell, op in _FORWARD.items()}
_BACKWARD = {
    "lstm": _ops.lstm_backward.default,
    "gru": _ops.gru_backward.default,
    "rnn": _ops.rnn_backward.default,
}
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


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
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
    cell: str,
    x: Tensor,
    states: Sequence[State],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    options: Options,
    training: bool,
) -> tuple[Tensor, ...]:
    """(y, *final_states, reserve)"""
    result: tuple[Tensor, ...]
    call = _FORWARD[cell] if torch.compiler.is_compiling() else _DIRECT_FORWARD[cell]
    result = call(x, *states, weights, batch_sizes, *options, training)
    return result


def backward(
    cell: str,
    d_outputs: Sequence[Tensor | None],
    x: Tensor,
    states: Sequence[State],
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    y: Tensor,
    reserve: Tensor,
    options: Options,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, ...]:
    """(d_x, *d_states, *d_weights); needs says which of x, the states and the weights to differentiate."""
    *d_inputs, d_weights = _BACKWARD[cell](
        *d_outputs, x, *states, weights, batch_sizes, y, reserve, *options, *needs
    )
    return *d_inputs, *d_weights


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


def padded_units(hidden: int) -> int:
    """The units of a row in the reserve, as csrc/include/fastrnn/kernels.h has them."""
    aligned = -(-hidden // 16) * 16
    return aligned + 16 if aligned > 0 and aligned % 256 == 0 else aligned


def _sizes(
    cell: str, x: Tensor, h0: State, weights: Sequence[Tensor], packed: bool, batch_first: bool
) -> tuple[int, ...]:
    """(B, R, H)"""
    if packed:
        if h0 is None:
            raise RuntimeError("fastrnn: packed input needs h0")
        batch = h0.shape[1]
    elif x.dim() == 2:
        batch = x.shape[0]
    else:
        batch = x.shape[0 if batch_first else 1]
    if (
        weights[1].dtype == torch.int8
    ):  # packed; the scales have a value a row, and a projection comes before them
        hidden = weights[-1].shape[0] // GATES[cell]
        return batch, weights[4].shape[0] if weights[4].dim() == 2 else hidden, hidden
    return batch, weights[1].shape[1], weights[1].shape[0] // GATES[cell]


def _check_fake(x: Tensor) -> None:
    """A real x comes here where another argument is on the meta device."""
    if x.is_cpu and not isinstance(x, FakeTensor):
        raise RuntimeError("fastrnn: every tensor and x must be on the same device")


def _fake_forward(cell: str, x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    count = STATES[cell]
    _check_fake(x)
    weights, batch_sizes, _, batch_first, bidirectional, *options, training = arguments[count:]
    packed = batch_sizes is not None
    batch, recurrent, hidden = _sizes(cell, x, arguments[0], weights, packed, batch_first)
    directions = 2 if bidirectional else 1
    single = x.dim() == 2 and not packed
    rows = x.shape[0] if x.dim() == 2 else x.shape[0] * x.shape[1]
    saved = _SAVED[cell] if options[0] is not False else _SAVED[cell] - 1
    reserve = x.new_empty(
        (directions, rows, saved, padded_units(hidden)) if training else (0,),
        dtype=torch.float64 if x.dtype == torch.float64 else torch.float32,
    )
    y = x.new_empty((*x.shape[:-1], directions * recurrent))
    leading = (batch,) if single else (directions, batch)
    finals = [x.new_empty((*leading, size)) for size in (recurrent, hidden)[:count]]
    return y, *finals, reserve


def _fake_backward(cell: str, *arguments: Any) -> tuple[Tensor | list[Tensor], ...]:
    count = STATES[cell]
    x, h0 = arguments[count + 1 : count + 3]
    _check_fake(x)
    weights, batch_sizes, _, _, _, batch_first, bidirectional, *_ = arguments[2 * count + 2 :]
    needs_x, needs_state, needs_weights = arguments[-3:]
    batch, recurrent, hidden = _sizes(cell, x, h0, weights, batch_sizes is not None, batch_first)
    leading = (batch,) if x.dim() == 2 and batch_sizes is None else (2 if bidirectional else 1, batch)

    def gradient(shape: Sequence[int], needed: bool) -> Tensor:
        found: Tensor = x.new_empty(shape if needed else (0,))
        return found

    d_states = [gradient((*leading, size), needs_state) for size in (recurrent, hidden)[:count]]
    return gradient(x.shape, needs_x), *d_states, [gradient(w.shape, needs_weights) for w in weights]


for _cell in GATES:
    torch.library.register_fake(f"fastrnn::{_cell}_forward", partial(_fake_forward, _cell))
    torch.library.register_fake(f"fastrnn::{_cell}_backward", partial(_fake_backward, _cell))
