"""Layers for inference whose weights are kept in fewer bits."""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from fastrnn import _ops
from fastrnn._compat import set_weight_names, weight_names, weight_names_by_direction
from fastrnn._ops import GATES, STATES
from fastrnn.modules import GRU, LSTM, RNN, Layers

__all__ = ["QuantizedGRU", "QuantizedLSTM", "QuantizedRNN", "quantize"]

MATRIX_DTYPES = {"int8": torch.int8, "bfloat16": torch.bfloat16}
_BLOCK, _QUAD = 16, 4  # of packed int8 weights, see csrc/include/fastrnn/kernels.h


def quantize(module: nn.Module, weights: str = "int8") -> nn.Module:
    """A copy of module for inference in which every LSTM, GRU and RNN keeps its weights in fewer bits.

    A step that reads all weights for a single row is bound by their size, so such layers gain most with a batch of one
    and 512 hidden units or more. States, outputs and biases stay float32.

    - "int8": the rows of ``weight_ih`` and ``weight_hh`` become integers of -127..127 times a scale a row; inputs and
      states are rounded to 16 bits on the way, each row by a scale of its own. A row that holds an infinity makes NaN.
    - "bfloat16": the weights are rounded to bfloat16; all arithmetic is float32.

    No gradients flow through the new layers. Their ``state_dict`` is loaded into what ``quantize`` makes of a module of
    the same sizes. Cells and all other modules are copied as they are.

    Args:
        module: a layer of fastrnn or of torch.nn in float32, or a model that has some
        weights: "int8" or "bfloat16"

    Raises:
        ValueError: an unknown format; a module without such layers; weights that are not finite
        TypeError: weights that are not float32
    """
    if weights not in MATRIX_DTYPES:
        known = ", ".join(f"'{name}'" for name in MATRIX_DTYPES)
        raise ValueError(f"Unknown weights '{weights}'. Select from {known}.")
    made: dict[nn.Module, nn.Module] = {}
    for name, found in module.named_modules():
        if type(found) in _CLASSES:
            try:
                made[found] = _CLASSES[type(found)](found, weights)
            except (TypeError, ValueError) as error:
                raise type(error)(f"{name or 'module'}: {error}") from error
    if not made:
        raise ValueError("quantize found no LSTM, GRU or RNN of fastrnn or torch.nn")
    # deepcopy takes what it finds in the memo for copied already
    quantized: nn.Module = copy.deepcopy(module, {id(old): new for old, new in made.items()})
    return quantized


def packed_shape(gates: int, hidden: int, length: int) -> tuple[int, ...]:
    """The shape that a matrix [G*H, length] of int8 has for the kernels."""
    return -(-hidden // _BLOCK), -(-length // _QUAD), gates, _BLOCK, _QUAD


def pack_int8(w: Tensor, gates: int) -> tuple[Tensor, Tensor]:
    """w [G*H, K] as int8 [blocks of 16 units, K/4 rounded up, G, 16, 4] and the rows' scales [G*H]."""
    if not bool(w.isfinite().all()):
        raise ValueError("weights must be finite")
    hidden, length = w.shape[0] // gates, w.shape[1]
    largest = w.abs().amax(1) if length else w.new_zeros(w.shape[0])
    scale = torch.where(largest > 0, largest / 127, 1.0)
    rows = (w / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
    blocks, quads, *_ = packed_shape(gates, hidden, length)
    padded = rows.new_zeros(gates, blocks * _BLOCK, quads * _QUAD)
    padded[:, :hidden, :length] = rows.view(gates, hidden, length)
    return padded.view(gates, blocks, _BLOCK, quads, _QUAD).permute(1, 3, 0, 2, 4).contiguous(), scale


def unpack_int8(packed: Tensor, scale: Tensor, length: int) -> Tensor:
    """The w [G*H, length] that the result of :func:`pack_int8` stands for."""
    gates = packed.shape[2]
    rows = packed.permute(2, 0, 3, 1, 4).reshape(gates, packed.shape[0] * _BLOCK, packed.shape[1] * _QUAD)
    return rows[:, : scale.shape[0] // gates, :length].flatten(0, 1) * scale[:, None]


class _Quantized(Layers):
    """A layer whose weights are buffers, named like the parameters of the layer that it was made from."""

    weight_format: str
    _plain: ClassVar[type[Layers]]

    def __init__(self, module: nn.RNNBase, weights: str) -> None:
        self._plain.__init__(self, **_arguments(module), device="meta")
        self.dropout = module.dropout  # which the constructor may warn of
        self.weight_format = weights
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
                    weight, scale = pack_int8(weight, GATES[self._cell])
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
        for name in weight_names(plain):
            weight = getattr(self, name)
            if weight.dim() == 5:
                length = getattr(plain, name).shape[1]
                weight = unpack_int8(weight, getattr(self, f"{name}_scale"), length)
            setattr(plain, name, nn.Parameter(weight.to(torch.float32, copy=True)))
        return plain.train(self.training)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, weights={self.weight_format}"

    def reset_parameters(self) -> None:
        if not self._buffers:  # called while the layer is made
            super().reset_parameters()

    def _forward(self, input: Any, hx: Any) -> Any:
        with torch.no_grad():
            return super()._forward(input, hx)

    def _forward_one_layer(self, x: Tensor, hx: Any) -> tuple[Any, Any] | None:
        return None  # the op can check neither the size of x nor the dtype of the weights

    def _suits(self, x: Any, weights: Sequence[Tensor]) -> bool:
        return (
            isinstance(x, Tensor)
            and x.dtype == weights[2].dtype == torch.float32
            and weights[0].dtype == MATRIX_DTYPES[self.weight_format]
            and x.is_cpu
            and all(weight.is_cpu for weight in weights)
        )

    def _run(
        self, x: Tensor, states: Sequence[Tensor], weights: list[Tensor], batch_sizes: Tensor | None
    ) -> tuple[Tensor, ...]:
        if not states and batch_sizes is not None:
            rows = self.num_layers * (2 if self.bidirectional else 1)
            sizes = (self.proj_size or self.hidden_size, self.hidden_size)[: STATES[self._cell]]
            states = [x.new_zeros(rows, int(batch_sizes[0]), size) for size in sizes]
        if not _ops.autocasts(x):
            return super()._run(x, states, weights, batch_sizes)
        with torch.autocast("cpu", enabled=False):  # which would cast the weights
            return super()._run(x, states, weights, batch_sizes)

    def _forward_by_torch(self, input: Any, hx: Any) -> Any:
        return self.dequantize()(input, hx)


def _arguments(module: nn.RNNBase) -> dict[str, Any]:
    """Those of its constructor but for the dropout. A quantized layer has biases, zeros if need be."""
    names = ["input_size", "hidden_size", "num_layers", "batch_first", "bidirectional"]
    names += ["proj_size"] if module.mode == "LSTM" else []
    names += ["nonlinearity"] if module.mode.startswith("RNN") else []
    names += [name for name in ("reset_after", "activation") if hasattr(module, name)]
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
