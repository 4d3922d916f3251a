"""Sequences that arrive one time step at a time."""

import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.utils.dlpack import from_dlpack

from fastrnn._compat import FakeTensor, weight_names
from fastrnn._heads import are_aligned
from fastrnn._library import forward_by_address, own_watch
from fastrnn._options import WITH_OPERANDS
from fastrnn._rows import check_resets
from fastrnn._spec import FACTS, CellSpec, Choice, enumerators_of, family_of_module
from fastrnn.quantized import MATRIX_DTYPES, packed_shape

__all__ = ["Stream"]

_DTYPES = {torch.float32: False, torch.float64: True}
_STEP_CALL = struct.Struct("10q10P")  # of csrc/torch/step.h

_Weight = tuple[tuple[int, ...], torch.dtype]  # shape and dtype


class _Form(NamedTuple):
    """All that a stream takes from its module but the weights."""

    cell: CellSpec
    choice: Choice
    weight_format: str | None
    bias: bool
    input_size: int
    hidden_size: int
    proj_size: int
    num_layers: int
    heads: int
    names: tuple[str, ...]

    @property
    def recurrent(self) -> int:
        return self.proj_size or self.hidden_size

    @property
    def place(self) -> str:
        """Where the module keeps its weights; those of a quantized layer are buffers."""
        return "_parameters" if self.weight_format is None else "_buffers"

    def input_of(self, index: int) -> int:
        return self.input_size if index == 0 else self.recurrent

    def expected(self, dtype: torch.dtype, index: int) -> list[_Weight]:
        """What the weights of a layer must be."""
        stored, gates = self.weight_format, self.cell.gates
        rows = (gates * self.hidden_size,)
        matrix = dtype if stored is None else MATRIX_DTYPES[stored]
        lengths = (self.input_of(index), self.recurrent // self.heads)
        if stored == "int8":
            expected = [(packed_shape(gates, self.hidden_size, length), matrix) for length in lengths]
        else:
            expected = [((*rows, length), matrix) for length in lengths]
        if self.bias:
            expected += [(rows, dtype), (rows, dtype)]
        if self.proj_size:
            expected.append(((self.proj_size, self.hidden_size), dtype if stored == "int8" else matrix))
        if stored == "int8":
            expected += [(rows, dtype), (rows, dtype)]  # scales
        return expected


def _form_of(module: nn.RNNBase) -> _Form:
    return _Form(
        *family_of_module(module),
        getattr(module, "weight_format", None),
        module.bias,
        module.input_size,
        module.hidden_size,
        module.proj_size,
        module.num_layers,
        getattr(module, "heads", 1),
        tuple(weight_names(module)),
    )


class Stream:
    """The layers of an LSTM, GRU or RNN, one time step a call: states and buffers are kept from call to call, and a
    step allocates nothing.

    The weights are read where they are, and every step looks whether they are still there: changes in place are
    followed, and so are parameters that were replaced, moved or put into shared memory. Weights that the stream cannot
    read, of another shape, dtype or device, are an error of the next step. It holds the very parameters, so that
    :func:`torch.utils.swap_tensors` refuses them. Dropout is not applied, nothing is recorded
    for a backward pass, and one stream serves one thread at a time. A copy or a pickle of a stream has its state and a
    copy of the module.

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
        family, _ = family_of_module(module)
        if not family.in_torch:
            found = type(module).__name__
            raise ValueError(
                f"Stream takes an LSTM, GRU or RNN, not {found}: call it with one time step and its states"
            )
        unfit = [name for name in WITH_OPERANDS if getattr(module, name, None)]
        if unfit:
            option = f"{unfit[0]}={getattr(module, unfit[0])}"
            raise ValueError(
                f"Stream does not take a layer with {option}: call it with one time step and its states"
            )
        heads, hidden = getattr(module, "heads", 1), module.hidden_size
        if not are_aligned(heads, hidden, module.proj_size or hidden):
            raise ValueError(
                f"Stream does not take heads that share {hidden} units in parts of no multiple of 16"
            )
        if module.bidirectional:
            raise ValueError(
                "Stream: a bidirectional module reads a sequence from its end too, so it cannot run step by step"
            )
        if batch_size < 1:
            raise ValueError(f"Stream: batch_size must be positive, got {batch_size}")
        form = _form_of(module)
        _, self._dtype = _readable_weights(module, form)
        self._module, self._form = module, form
        self._place = form.place
        self.batch_size = batch_size
        self.input_size = form.input_size
        self._states = [
            self._zeros(form.num_layers, batch_size, size)
            for size in (form.recurrent, form.hidden_size)[: form.cell.states]
        ]
        self._between = [self._zeros(batch_size, form.recurrent) for _ in range(form.num_layers - 1)]
        self._input_shape, self._output_shape = (batch_size, form.input_size), (batch_size, form.recurrent)
        self._input_bytes, self._output_bytes = (
            batch_size * size * self._dtype.itemsize for size in (form.input_size, form.recurrent)
        )
        # they take turns, so that a step may read what the step before returned
        self._outputs = [self._new_output(), self._new_output()]
        self._turn = 0
        self._prepare()

    def step(self, x: Tensor, resets: Tensor | None = None) -> Tensor:
        """The output of one time step.

        Args:
            x: [B, I], of the module's dtype, on the CPU
            resets: bool [B], on the CPU: rows that begin anew with this step, from a state of zeros

        Returns:
            [B, R]; the step after the next overwrites it, so clone what is to be kept or goes to another thread or
            process
        """
        if x.shape != self._input_shape or x.dtype != self._dtype or not x.is_cpu:
            raise ValueError(
                f"Stream.step takes a CPU tensor {list(self._input_shape)} of {self._dtype}, "
                f"got {list(x.shape)} of {x.dtype} on {x.device}"
            )
        if resets is not None:
            check_resets(resets, x)
        if not x.is_contiguous() or x.is_neg():
            x = x.resolve_neg().contiguous()
        address = x.data_ptr() if type(x) is Tensor or not isinstance(x, FakeTensor) else 0
        if not address and x.numel():
            raise ValueError(f"Stream.step takes a tensor with memory of its own, not {type(x).__name__}")
        calls, watch, target, y, _held = self._turns[self._turn]  # their memory stays while the step reads it
        if (
            address < target + self._output_bytes and target < address + self._input_bytes
        ):  # an output of two steps ago
            x = x.clone()
            address = x.data_ptr()
        if resets is not None:
            self.reset(resets)
        module, names = self._module.__dict__, self._form.names
        if y.requires_grad or not forward_by_address(
            calls, watch, address, module[self._place], names, self._weights
        ):
            self._prepare()
            calls, watch, _, y, _held = self._turns[self._turn]
            if not forward_by_address(calls, watch, address, module[self._place], names, self._weights):
                raise RuntimeError("Stream: another thread changes the module's weights")
        increment_version(y)  # a backward pass that still needs the last step's values then says so
        self._turn = 1 - self._turn
        return y

    def _zeros(self, *shape: int) -> Tensor:
        with torch.inference_mode(False):  # a tensor that any mode may change
            return torch.zeros(shape, dtype=self._dtype, device="cpu")

    def _new_output(self) -> tuple[Tensor, Tensor]:
        """Memory that stays the stream's, and the tensor over it that the user gets: to share, resize or set that one
        takes nothing from the stream."""
        memory = self._zeros(*self._output_shape)
        with torch.inference_mode(False):
            return memory, from_dlpack(memory)

    def _prepare(self) -> None:
        """The kernel calls of both turns, from where the weights and the outputs are."""
        _, dtype = _readable_weights(self._module, self._form)
        if dtype != self._dtype or _form_of(self._module) != self._form:
            raise RuntimeError(
                "Stream: the module's dtype, sizes or options are not those of its making; make a new Stream"
            )
        for turn, (memory, y) in enumerate(self._outputs):
            same = y.data_ptr() == memory.data_ptr() and y.shape == self._output_shape and y.is_contiguous()
            if not same or y.requires_grad:
                self._outputs[turn] = self._new_output()
        known = self._module.__dict__[self._place]
        known = tuple(known[name] for name in self._form.names)
        with torch.no_grad():
            watches = [own_watch(torch.ops.fastrnn.watch([*known, y])) for _, y in self._outputs]
        # addresses are taken behind the watches, which see what moves from then on
        weights, _ = _readable_weights(self._module, self._form)
        turns = [
            (self._calls(weights, memory), watch, memory.data_ptr(), y, weights)
            for watch, (memory, y) in zip(watches, self._outputs, strict=True)
        ]
        self._weights, self._turns = known, turns

    def _calls(self, weights: Sequence[Tensor], last: Tensor) -> bytes:
        """For each layer what its step needs but for x."""
        form, calls = self._form, b""
        weight_format = FACTS["weight_formats"].index(form.weight_format or "plain")
        spec = form.cell.spec(form.choice, form.bias)
        kind = (*enumerators_of(spec), _DTYPES[self._dtype], weight_format)
        count = len(weights) // form.num_layers
        for index, output in enumerate((*self._between, last)):
            sizes = (self.batch_size, form.input_of(index), form.hidden_size, form.proj_size, form.heads)
            state = [s[index].data_ptr() for s in self._states]
            given = [w.data_ptr() for w in weights[index * count : (index + 1) * count]]
            scales = [given.pop(-2), given.pop()] if form.weight_format == "int8" else [0, 0]
            w_hr = given.pop() if form.proj_size else 0
            biases = given[2:] or [0, 0]
            addresses = (
                state[0],
                state[1] if len(state) > 1 else 0,
                output.data_ptr(),
                *given[:2],
                *biases,
                w_hr,
                *scales,
            )
            calls += _STEP_CALL.pack(*kind, *sizes, *addresses)
        return calls

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


def _readable_weights(module: nn.RNNBase, form: _Form) -> tuple[list[Tensor], torch.dtype]:
    """Torch's flat list, every element of which the kernels may read, and the dtype of x and the states."""
    known = module.__dict__[form.place]
    if any(known.get(name) is None for name in form.names):
        raise ValueError(
            "Stream: a parametrized module makes its weights anew for each call; remove that first"
        )
    weights = [known[name].detach() for name in form.names]
    dtype = weights[0].dtype if form.weight_format is None else torch.float32
    if dtype not in _DTYPES:
        raise TypeError(f"Stream: weights must be float32 or float64, got {dtype}")
    count = len(weights) // form.num_layers
    for index in range(form.num_layers):
        found = [(tuple(w.shape), w.dtype) for w in weights[index * count : (index + 1) * count]]
        expected = form.expected(dtype, index)
        if found != expected:
            raise ValueError(
                f"Stream: the weights of layer {index} are {_text(found)}, not {_text(expected)}"
            )
    for name, weight in zip(form.names, weights, strict=True):
        if not _is_readable(weight):
            raise ValueError(f"Stream: {name} must be contiguous and have memory of the CPU")
    return weights, dtype


def _text(kinds: Sequence[_Weight]) -> str:
    return ", ".join(f"{list(shape)} {str(dtype).removeprefix('torch.')}" for shape, dtype in kinds)


def _is_readable(weight: Tensor) -> bool:
    if isinstance(weight, FakeTensor) or not weight.is_cpu or weight.layout != torch.strided:
        return False
    end = (weight.storage_offset() + weight.numel()) * weight.element_size()
    return weight.is_contiguous() and not weight.is_neg() and end <= len(weight.untyped_storage())
