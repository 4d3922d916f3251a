"""Layers for inference whose weights are kept in fewer bits."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import type_before_parametrizations
from torch.nn.utils.rnn import PackedSequence

from fastrnn import _ops
from fastrnn._compat import hook_names, set_weight_names, weight_names, weight_names_by_direction
from fastrnn._heads import are_aligned
from fastrnn._layers import Layers
from fastrnn._options import WITH_OPERANDS
from fastrnn._spec import FACTS
from fastrnn.modules import GRU, LSTM, RNN

__all__ = ["QuantizedGRU", "QuantizedLSTM", "QuantizedRNN", "quantize"]

MATRIX_DTYPES = {"int8": torch.int8, "bfloat16": torch.bfloat16}
_BLOCK, _QUAD = int(FACTS["unit_alignment"]), 4  # of packed int8 weights, see csrc/include/fastrnn/kernels.h


def quantize(module: nn.Module, weights: str = "int8") -> nn.Module:
    """A copy of module for inference in which every LSTM, GRU and RNN keeps its weights in fewer bits.

    A step that reads all weights for a single row is bound by their size, so such layers gain most with a batch of one
    and 512 hidden units or more. States, outputs and biases stay float32.

    - "int8": the rows of ``weight_ih`` and ``weight_hh`` become integers of -127..127 times a scale a row; inputs and
      states are rounded to 16 bits on the way, each row by a scale of its own. A row that holds an infinity makes NaN.
    - "bfloat16": the weights are rounded to bfloat16; all arithmetic is float32.

    No gradients flow through the new layers. Their ``state_dict`` is loaded into what ``quantize`` makes of a module of
    the same sizes; in it an int8 matrix is ``weight_* [G*H, K]`` beside ``weight_*_scale [G*H]``. Casts (``.double()``,
    ``.half()``) leave the layers as they are: they take and give float32. Away from the CPU, calls widen their weights.
    Hooks stay; weight_dropout and recurrent_dropout, which are for training, are left out. Cells and all other modules
    are copied as they are.

    Args:
        module: a layer of fastrnn or of torch.nn in float32, or a model that has some
        weights: "int8" or "bfloat16"

    Raises:
        ValueError: an unknown format; a module without such layers; weights that are not finite, or that a
            parametrization or a pruning makes anew in each call; layer_norm, peephole, coupled_gates, zoneout or
            cell_clip; heads of no multiple of 16 units
        TypeError: weights that are not float32
    """
    if weights not in MATRIX_DTYPES:
        known = ", ".join(f"'{name}'" for name in MATRIX_DTYPES)
        raise ValueError(f"Unknown weights '{weights}'. Select from {known}.")
    made: dict[nn.Module, nn.Module] = {}
    for name, found in module.named_modules():
        cls = _CLASSES.get(type_before_parametrizations(found))
        if cls is not None:
            try:
                made[found] = cls(found, weights)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name or 'module'}: {error}") from error
    if not made:
        raise ValueError("quantize found no LSTM, GRU or RNN of fastrnn or torch.nn")
    # deepcopy takes what it finds in the memo for copied already
    memo: dict[int, Any] = {id(old): new for old, new in made.items()}
    for old, new in made.items():
        for name in hook_names(old):
            setattr(new, name, copy.deepcopy(getattr(old, name), memo))
    quantized: nn.Module = copy.deepcopy(module, memo)
    return quantized


def packed_shape(gates: int, hidden: int, length: int) -> tuple[int, ...]:
    """The shape that a matrix [G*H, length] of int8 has for the kernels."""
    return -(-hidden // _BLOCK), -(-length // _QUAD), gates, _BLOCK, _QUAD


def pack_rows(rows: Tensor, gates: int) -> Tensor:
    """rows [G*H, K] as [blocks of 16 units, K/4 rounded up, G, 16, 4], zero beyond the last unit and column."""
    hidden, length = rows.shape[0] // gates, rows.shape[1]
    blocks, quads, *_ = packed_shape(gates, hidden, length)
    padded = rows.new_zeros(gates, blocks * _BLOCK, quads * _QUAD)
    padded[:, :hidden, :length] = rows.view(gates, hidden, length)
    return padded.view(gates, blocks, _BLOCK, quads, _QUAD).permute(1, 3, 0, 2, 4).contiguous()


def unpack_rows(packed: Tensor, hidden: int, length: int) -> Tensor:
    """The rows [G*H, length] that :func:`pack_rows` was given."""
    blocks, quads, gates, *_ = packed.shape
    rows = packed.permute(2, 0, 3, 1, 4).reshape(gates, blocks * _BLOCK, quads * _QUAD)
    return rows[:, :hidden, :length].flatten(0, 1).contiguous()


def pack_int8(w: Tensor, gates: int) -> tuple[Tensor, Tensor]:
    """w [G*H, K] as packed int8, see :func:`pack_rows`, and the rows' scales [G*H]."""
    if not bool(w.isfinite().all()):
        raise ValueError("weights must be finite")
    largest = w.abs().amax(1) if w.shape[1] else w.new_zeros(w.shape[0])
    scale = torch.where(largest > 0, largest / 127, 1.0)
    return pack_rows((w / scale[:, None]).round().clamp(-127, 127).to(torch.int8), gates), scale


def unpack_int8(packed: Tensor, scale: Tensor, length: int) -> Tensor:
    """The w [G*H, length] that the result of :func:`pack_int8` stands for."""
    return unpack_rows(packed, scale.shape[0] // packed.shape[2], length) * scale[:, None]


class _Quantized(Layers):
    """A layer whose weights are buffers, named like the parameters of the layer that it was made from.

    In memory the matrices of int8 have the kernels' private layout; in a state_dict they are [G*H, K].
    """

    _version = 2  # 1: a state_dict had the private layout
    weight_format: str
    _plain: ClassVar[type[Layers]]

    def __init__(self, module: nn.RNNBase, weights: str) -> None:
        unfit = next((name for name in WITH_OPERANDS if getattr(module, name, None)), None)
        if unfit is not None:
            raise ValueError(f"quantize does not take layers with {unfit}={getattr(module, unfit)}")
        heads, hidden = getattr(module, "heads", 1), module.hidden_size
        if not are_aligned(heads, hidden, module.proj_size or hidden):
            raise ValueError(
                f"quantize does not take heads that share {hidden} units in parts of no multiple of 16"
            )
        self._plain.__init__(self, **_arguments(module), device="meta")
        self.dropout = module.dropout  # which the constructor may warn of
        self.weight_format = weights
        if any(module._parameters.get(name) is None for name in weight_names(module)):
            raise ValueError(
                "its weights are made anew in each call; remove the parametrizations, or make the pruning permanent"
            )
        given = {name: getattr(module, name) for name in weight_names(module)}
        if any(weight.dtype != torch.float32 for weight in given.values()):
            found = ", ".join(sorted({str(weight.dtype) for weight in given.values()}))
            raise TypeError(f"quantize takes float32 weights, got {found}")
        all_names = []
        for direction in weight_names_by_direction(self):
            scales = []
            for name in direction:
                shape = getattr(self, name).shape
                delattr(self, name)
                weight = given[name].detach() if name in given else given["weight_hh_l0"].new_zeros(shape)
                if weight.dim() == 2 and weights == "bfloat16":
                    weight = weight.to(torch.bfloat16)
                elif weight.dim() == 2 and "_hr_" not in name:
                    weight, scale = pack_int8(weight, self._cell.gates)
                    scales.append((f"{name}_scale", scale))
                self.register_buffer(name, weight.clone())
            for name, scale in scales:
                self.register_buffer(name, scale)
            all_names.append([*direction, *(name for name, _ in scales)])
        set_weight_names(self, all_names)
        self.train(False)

    def dequantize(self) -> Layers:
        """A layer of fastrnn in float32 with the weights that this one stands for."""
        plain = self._plain(**_arguments(self), device="meta")
        plain.dropout = self.dropout
        weights = dict(zip(weight_names(self), self._weights(), strict=True))
        for name in weight_names(plain):
            weight = weights[name]
            if weight.dim() == 5:
                weight = unpack_int8(weight, weights[f"{name}_scale"], self._length(name))
            setattr(plain, name, nn.Parameter(weight.to(torch.float32, copy=True)))
        return plain.train(self.training)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weights={self.weight_format}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "_Quantized":
        """Casts leave the weights as they are stored, so that the layer goes on taking float32; they may move."""

        def in_its_dtype(tensor: Tensor) -> Tensor:
            applied = fn(tensor)
            return applied if applied.dtype == tensor.dtype else tensor.to(applied.device)

        super()._apply(in_its_dtype, recurse)  # type: ignore[no-untyped-call]
        return self

    def _length(self, name: str) -> int:
        """K of a matrix [G*H, K]."""
        recurrent = self.proj_size or self.hidden_size
        if "_hh_" in name:
            return recurrent // self.heads
        directions = 2 if self.bidirectional else 1
        return self.input_size if name.startswith("weight_ih_l0") else recurrent * directions

    def _packed_names(self) -> list[str]:
        return [name for name, buffer in self._buffers.items() if buffer is not None and buffer.dim() == 5]

    def _weights(self) -> list[Tensor]:
        buffers: dict[str, Any] = self._buffers
        weights = [buffers[name] for name in weight_names(self)]
        # functional_call may lend the matrices of a state_dict
        return [
            pack_rows(weight, self._cell.gates)
            if weight.dtype == torch.int8 and weight.dim() == 2
            else weight
            for weight in weights
        ]

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in self._packed_names():
            packed = destination[prefix + name]
            destination[prefix + name] = unpack_rows(packed, self.hidden_size, self._length(name))

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *arguments: Any, **keywords: Any
    ) -> None:
        gates = self._cell.gates
        for name in self._packed_names():
            given = state_dict.get(prefix + name)
            shape = (gates * self.hidden_size, self._length(name))
            if isinstance(given, Tensor) and given.dtype == torch.int8 and given.shape == shape:
                state_dict[prefix + name] = pack_rows(given, gates)
        super()._load_from_state_dict(state_dict, prefix, *arguments, **keywords)

    def reset_parameters(self) -> None:
        if not self._buffers:  # called while the layer is made
            super().reset_parameters()

    def _forward_any(self, *arguments: Any, **rows: Any) -> Any:
        with torch.no_grad():
            return super()._forward_any(*arguments, **rows)

    def _forward_one_layer(self, x: Tensor, hx: Any, resets: Any) -> tuple[Any, Any] | None:
        return None  # the op can check neither the size of x nor the dtype of the weights

    def _suits(self, x: Any, weights: Sequence[Tensor]) -> bool:
        return (
            isinstance(x, Tensor)
            and x.layout == torch.strided
            and x.dtype == weights[2].dtype == torch.float32
            and weights[0].dtype == MATRIX_DTYPES[self.weight_format]
            and x.is_cpu
            and all(weight.is_cpu for weight in weights)
        )

    def _run(
        self,
        spec: int,
        x: Tensor,
        states: Sequence[Tensor],
        weights: list[Tensor],
        batch_sizes: Tensor | None,
        resets: Tensor | None,
    ) -> tuple[Tensor, ...]:
        if not states and batch_sizes is not None and _ops.is_packed(spec, batch_sizes):
            rows = self.num_layers * (2 if self.bidirectional else 1)
            sizes = (self.proj_size or self.hidden_size, self.hidden_size)[: self._cell.states]
            states = [x.new_zeros(rows, int(batch_sizes[0]), size) for size in sizes]
        with torch.autocast("cpu", enabled=False):  # which would cast the weights
            return super()._run(spec, x, states, weights, batch_sizes, resets)

    def _forward_by_torch(self, input: Any, hx: Any) -> Any:
        x = input.data if isinstance(input, PackedSequence) else input
        if isinstance(x, Tensor) and x.dtype != torch.float32 and not _ops.autocasts(x):
            raise ValueError(f"{self} takes float32 whatever it was cast to, got {x.dtype}")
        return self.dequantize()(input, hx)


def _arguments(module: nn.RNNBase) -> dict[str, Any]:
    """Those of its constructor but for the dropout. A quantized layer has biases, zeros if need be."""
    names = ["input_size", "hidden_size", "num_layers", "batch_first", "bidirectional"]
    names += ["proj_size"] if module.mode == "LSTM" else []
    names += ["nonlinearity"] if module.mode.startswith("RNN") else []
    own = ("reset_after", "activation", "recurrent_activation", "heads")
    names += [name for name in own if hasattr(module, name)]
    return {name: getattr(module, name) for name in names}


class QuantizedLSTM(_Quantized, LSTM):
    """What :func:`quantize` makes of an LSTM."""

    _plain = LSTM


class QuantizedGRU(_Quantized, GRU):
    """What :func:`quantize` makes of a GRU."""

    _plain = GRU


class QuantizedRNN(_Quantized, RNN):
    """What :func:`quantize` makes of an RNN."""

    _plain = RNN


_CLASSES: dict[type[nn.Module], type[_Quantized]] = {
    LSTM: QuantizedLSTM,
    GRU: QuantizedGRU,
    RNN: QuantizedRNN,
    nn.LSTM: QuantizedLSTM,
    nn.GRU: QuantizedGRU,
    nn.RNN: QuantizedRNN,
}
