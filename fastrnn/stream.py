"""Sequences that arrive one time step at a time."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version

from fastrnn._compat import FakeTensor, weight_names
from fastrnn._ops import GATES, STATES, forward_by_address
from fastrnn.quantized import packed_shape

__all__ = ["Stream"]

# the enumerators of csrc/include/fastrnn/kernels.h
_CELLS = {"LSTM": 0, "GRU": 1, "RNN_TANH": 3, "RNN_RELU": 3}
_GRU_RESET_BEFORE = 2
_ACTIVATIONS = ("tanh", "softsign", "relu", "hardtanh")
_DTYPES = {torch.float32: False, torch.float64: True}
_FORMATS = {None: 0, "bfloat16": 1, "int8": 2}

_Call = tuple[tuple[int, ...], tuple[int, ...], int]


class Stream:
    """The layers of an LSTM, GRU or RNN, one time step a call: states and buffers are kept from call to call, and a
    step allocates nothing.

    The weights are read where they are: changes in place are followed, those of an optimizer or ``load_state_dict``
    among them. A module whose parameters were replaced, moved or put into shared memory needs a new Stream. Dropout is
    not applied, nothing is recorded for a backward pass, and one stream serves one thread at a time. A copy or a pickle
    of a stream has its state and a copy of the module.

    Args:
        module: a layer of fastrnn or of torch.nn, not bidirectional, float32 or float64 on the CPU; or what
            :func:`fastrnn.quantize` made of one
        batch_size: sequences that advance together, B

    Example::

        stream = fastrnn.Stream(lstm, batch_size=1)
        for x in frames:      # [B, I]
            y = stream.step(x)  # [B, R]
    """

    def __init__(self, module: nn.RNNBase, batch_size: int = 1) -> None:
        if not isinstance(module, nn.RNNBase):
            found = type(module).__name__
            raise TypeError(f"Stream takes an LSTM, GRU or RNN of fastrnn or torch.nn, not {found}")
        if module.bidirectional:
            raise ValueError(
                "Stream: a bidirectional module reads a sequence from its end too, so it cannot run step by step"
            )
        if batch_size < 1:
            raise ValueError(f"Stream: batch_size must be positive, got {batch_size}")
        stored = getattr(module, "weight_format", None)
        known = module._parameters if stored is None else module._buffers
        if any(name not in known for name in weight_names(module)):
            raise ValueError(
                "Stream: a parametrized module makes its weights anew for each call; remove that first"
            )
        weights = [getattr(module, name).detach() for name in weight_names(module)]
        first = weights[0] if stored is None else weights[2]  # a bias
        if first.dtype not in _DTYPES:
            raise TypeError(f"Stream: weights must be float32 or float64, got {first.dtype}")
        for weight in weights:
            if not weight.is_cpu or not weight.is_contiguous() or not (stored or weight.dtype == first.dtype):
                raise ValueError("Stream: all weights must be contiguous, on the CPU and of one dtype")
        cell = "lstm" if module.mode == "LSTM" else "gru" if module.mode == "GRU" else "rnn"
        self._module = module
        self.batch_size = batch_size
        self.input_size = module.input_size
        self._dtype = first.dtype
        recurrent = module.proj_size or module.hidden_size
        sizes = (recurrent, module.hidden_size)[: STATES[cell]]
        with torch.inference_mode(False):  # tensors that any mode may change
            self._states = [first.new_zeros(module.num_layers, batch_size, size) for size in sizes]
            # two for the last layer, which take turns: a step may read what the step before returned
            self._outputs = [first.new_zeros(batch_size, recurrent) for _ in range(module.num_layers + 1)]
        self._weights = weights  # keeps their memory
        self._first_address = weights[0].data_ptr()
        self._turns: list[tuple[list[_Call], Tensor]] = [
            (_calls(module, cell, stored, weights, batch_size, self._states, [*self._outputs[:-2], y]), y)
            for y in self._outputs[-2:]
        ]

    def step(self, x: Tensor) -> Tensor:
        """The output of one time step.

        Args:
            x: [B, I], of the module's dtype, on the CPU

        Returns:
            [B, R]; the step after the next overwrites it, so clone what is to be kept
        """
        if x.shape != (self.batch_size, self.input_size) or x.dtype != self._dtype or not x.is_cpu:
            raise ValueError(
                f"Stream.step takes a CPU tensor [{self.batch_size}, {self.input_size}] of {self._dtype}, "
                f"got {list(x.shape)} of {x.dtype} on {x.device}"
            )
        if not x.is_contiguous() or x.is_neg():
            x = x.resolve_neg().contiguous()
        if isinstance(x, FakeTensor):
            self._refuse(x)
        self._turns.reverse()
        calls, y = self._turns[0]
        address, threads = x.data_ptr(), torch.get_num_threads()
        if (not address and x.numel()) or self._weights[0].data_ptr() != self._first_address:
            self._refuse(x)
        target = y.data_ptr()
        if address < target + y.nbytes and target < address + x.nbytes:  # an output of two steps ago
            x = x.clone()
            address = x.data_ptr()
        for before, after, output in calls:
            forward_by_address(*before, address, *after, threads)
            address = output
        increment_version(y)  # a backward pass that still needs the last step's values then says so
        return y

    def _refuse(self, x: Tensor) -> None:
        if isinstance(x, FakeTensor) or not x.data_ptr():
            raise ValueError(f"Stream.step takes a tensor with memory of its own, not {type(x).__name__}")
        raise RuntimeError("Stream: the module's weights were moved to other memory; make a new Stream of it")

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, (self._module, self.batch_size, self.state)

    @torch.inference_mode()
    def reset(self, rows: Any = None) -> None:
        """Begins new sequences: zero states, in all rows of the batch or in those that ``rows`` (an index, a list, a
        slice or a mask) selects."""
        for state in self._states:
            if rows is None:
                state.zero_()
            else:
                state[:, rows] = 0

    @property
    def state(self) -> Tensor | tuple[Tensor, ...]:
        """A copy of the states, in the form of the module's hx: h [L, B, R], or (h, c [L, B, H]) of an LSTM."""
        copies = tuple(state.clone() for state in self._states)
        return copies if len(copies) > 1 else copies[0]

    @state.setter
    def state(self, hx: Tensor | Sequence[Tensor]) -> None:
        given = [hx] if isinstance(hx, Tensor) else list(hx)
        expected = [tuple(state.shape) for state in self._states]
        if [tuple(s.shape) for s in given] != expected:
            raise ValueError(f"Stream.state takes shapes {expected}, got {[tuple(s.shape) for s in given]}")
        with torch.inference_mode():
            for state, value in zip(self._states, given, strict=True):
                state.copy_(value)


def _restored(module: nn.RNNBase, batch_size: int, state: Tensor | tuple[Tensor, ...]) -> Stream:
    stream = Stream(module, batch_size)
    stream.state = state
    return stream


def _calls(
    module: nn.RNNBase,
    cell: str,
    stored: str | None,
    weights: list[Tensor],
    batch_size: int,
    states: list[Tensor],
    outputs: list[Tensor],
) -> list[_Call]:
    """For each layer the arguments of a kernel call before and after the address of x, and the output's address."""
    code = _CELLS[module.mode]
    if cell == "gru" and not getattr(module, "reset_after", True):
        code = _GRU_RESET_BEFORE
    activation = _ACTIVATIONS.index(getattr(module, "activation", getattr(module, "nonlinearity", "tanh")))
    calls: list[_Call] = []
    count = len(weights) // module.num_layers
    for index in range(module.num_layers):
        layer = weights[index * count : (index + 1) * count]
        input_size = module.input_size if index == 0 else module.proj_size or module.hidden_size
        _check(layer, GATES[cell], stored, module, input_size, index)
        before = (
            code,
            activation,
            _DTYPES[outputs[0].dtype],
            _FORMATS[stored],
            1,
            batch_size,
            input_size,
            module.hidden_size,
            module.proj_size,
            False,
        )
        h, c = states[0][index].data_ptr(), states[-1][index].data_ptr() if len(states) > 1 else 0
        y = outputs[index].data_ptr()
        addresses = [w.data_ptr() for w in layer]
        scales = [addresses.pop(-2), addresses.pop()] if stored == "int8" else [0, 0]
        w_hr = addresses.pop() if module.proj_size else 0
        biases = addresses[2:] or [0, 0]
        calls.append((before, (h, c, y, h, c, *addresses[:2], *biases, w_hr, *scales), y))
    return calls


def _check(
    layer: Sequence[Tensor], gates: int, stored: str | None, module: nn.RNNBase, input_size: int, index: int
) -> None:
    rows = gates * module.hidden_size
    expected: list[tuple[int, ...]] = [
        packed_shape(gates, module.hidden_size, length) if stored == "int8" else (rows, length)
        for length in (input_size, module.proj_size or module.hidden_size)
    ]
    if module.bias:
        expected += [(rows,), (rows,)]
    if module.proj_size:
        expected.append((module.proj_size, module.hidden_size))
    if stored == "int8":
        expected += [(rows,), (rows,)]
    found = [tuple(w.shape) for w in layer]
    if found != expected:
        raise ValueError(f"Stream: the weights of layer {index} have shapes {found}, not {expected}")
