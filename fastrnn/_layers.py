"""What LSTM, GRU and RNN share: from the arguments of torch.nn to a call of :mod:`fastrnn.functional`."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn._autograd import Refused, layer
from fastrnn._base import Base, are_strided, is_alike, is_state, is_uniform
from fastrnn._compat import is_any_autocast_enabled, weight_names
from fastrnn._masks import check_probability
from fastrnn._rows import rows_of_call
from fastrnn._spec import QUIET, cell_of
from fastrnn._stack import Stack, run_stack


def _are_batch_sizes(batch_sizes: Tensor, rows: int) -> bool:
    """Whether they are what pack_padded_sequence makes; a PackedSequence made by hand may hold anything."""
    if batch_sizes.dtype != torch.int64 or batch_sizes.dim() != 1:
        return False
    sizes = batch_sizes.tolist()
    return sum(sizes) == rows and sizes[-1] > 0 and sizes == sorted(sizes, reverse=True)


class Layers(Base, nn.RNNBase):
    """LSTM, GRU and RNN. They are no torch.nn.LSTM, GRU or RNN, because torch.compile refuses those."""

    recompute: bool = False
    weight_dropout: float
    recurrent_dropout: float

    _own_options: ClassVar[dict[str, Any]] = {
        **Base._own_options,
        "weight_dropout": 0.0,
        "recurrent_dropout": 0.0,
    }

    def __init__(
        self,
        *args: Any,
        recompute: bool = False,
        heads: int = 1,
        weight_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._add_heads(heads)
        self.weight_dropout = check_probability("weight_dropout", weight_dropout)
        self.recurrent_dropout = check_probability("recurrent_dropout", recurrent_dropout)
        if recompute:
            self.recompute = True

    def _suffixes(self) -> list[str]:
        """Those of the parameters of each layer and direction."""
        directions = ("", "_reverse") if self.bidirectional else ("",)
        return [f"_l{k}{direction}" for k in range(self.num_layers) for direction in directions]

    def extra_repr(self) -> str:
        return super().extra_repr() + (", recompute=True" if self.recompute else "")

    def _forward_rows(
        self, input: Any, hx: Any, lengths: Any, resets: Any, return_cell_states: bool = False
    ) -> Any:
        given = {"lengths": lengths, "resets": resets, "return_cell_states": return_cell_states}
        if not torch.compiler.is_compiling():
            shown = {name: value for name, value in given.items() if value is not None and value is not False}
            node = self._traced(input, hx, shown)
            if node is not None:
                return node
        return self._forward_any(input, hx, **given)

    def _forward(self, input: Any, hx: Any, resets: Any = None) -> Any:
        if (
            self.num_layers == 1
            and type(input) is Tensor
            and input.is_cpu
            and input.layout is torch.strided
            and input.dim() == 3
            and not torch.compiler.is_compiling()
            and not is_any_autocast_enabled()
        ):
            found = self._forward_one_layer(input, hx, resets)
            if found is not None:
                return found
        elif not torch.compiler.is_compiling():
            node = self._traced(input, hx, {} if resets is None else {"resets": resets})
            if node is not None:
                return node
        return self._forward_any(input, hx, resets=resets)

    def _forward_any(
        self, input: Any, hx: Any, lengths: Any = None, resets: Any = None, return_cell_states: bool = False
    ) -> Any:
        x, batch_sizes, order, inverse = (
            input if isinstance(input, PackedSequence) else (input, None, None, None)
        )
        states, weights = self._states(hx), self._weights()
        if states is None or not self._takes(x, batch_sizes, states, weights):
            found = self._forward_by_torch(input, hx)
            if lengths is not None or resets is not None or return_cell_states:
                raise self._refusal()
            return found
        if order is not None:
            states = [s.index_select(1, order) for s in states]
        spec, sizes = rows_of_call(self._layer_spec(), x, batch_sizes, lengths, resets, return_cell_states)
        outputs = self._run(spec, x, states, weights, sizes, resets)
        final = outputs[1 : 1 + self._cell.states]
        if inverse is not None:
            final = tuple(s.index_select(1, inverse) for s in final)
        sequences: Sequence[Any] = (outputs[0], *outputs[1 + len(final) :])
        if batch_sizes is not None:
            sequences = [PackedSequence(s, batch_sizes, order, inverse) for s in sequences]
        return sequences[0], final[0] if len(final) == 1 else final, *sequences[1:]

    def _forward_one_layer(self, x: Tensor, hx: Any, resets: Any) -> tuple[Any, Any] | None:
        """What the op, whose own checks take no time, makes of the arguments; None where it refuses them."""
        states, weights = self._states(hx), self._weights()
        if states is None or self.recompute or weights[0].dtype != x.dtype or not are_strided(states):
            return None
        if self.training and (self.weight_dropout or self.recurrent_dropout):
            return None
        if resets is not None and not are_strided((resets,)):
            return None
        spec = self._layer_spec()
        if cell_of(spec).operands:
            return None
        try:
            found = layer(spec | QUIET, x, states, weights, None, (), resets)
        except Refused:
            return None
        except RuntimeError:
            if is_uniform(weights):
                raise
            return None  # a weight is no tensor, so there was no call
        return (found[0], found[1]) if len(found) == 2 else (found[0], (found[1], found[2]))

    def _forward_by_torch(self, input: Any, hx: Any) -> Any:
        # what torch.nn cannot run, but it checks the arguments
        if self.heads > 1 or self.coupled_gates or not self._cell.in_torch:
            is_packed = isinstance(input, PackedSequence)
            x, batch_sizes = (input.data, input.batch_sizes) if is_packed else (input, None)
            states = self._states(hx)
            if isinstance(x, Tensor) and states is not None:
                if x.dim() == 2 and not is_packed:
                    x, states = x.unsqueeze(0 if self.batch_first else 1), [s.unsqueeze(1) for s in states]
                self.check_input(x, batch_sizes)
                if states:
                    given: Any = tuple(states) if len(states) > 1 else states[0]
                    self.check_forward_args(x, given, batch_sizes)
                if 0 in x.shape[:-1] and not x.shape[1 if self.batch_first and not is_packed else 0]:
                    raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
            raise self._refusal()
        return super()._forward_by_torch(input, hx)

    def _layer_spec(self) -> int:
        flags = self.bias, self.batch_first, self.bidirectional
        return self._cell.spec(self._choice(), *flags, self.heads, self._is_general())

    def _weights(self) -> list[Tensor]:
        """torch's flat list, read anew: weights may be replaced, parametrized or lent by functional_call."""
        parameters: dict[str, Any] = self._parameters
        try:
            return [parameters[name] for name in weight_names(self)]
        except KeyError:
            return [getattr(self, name) for name in weight_names(self)]

    def _suits(self, x: Any, weights: Sequence[Tensor]) -> bool:
        return isinstance(x, Tensor) and is_uniform(weights) and is_alike(x, weights[0])

    def _takes(
        self, x: Any, batch_sizes: Tensor | None, states: Sequence[Tensor], weights: list[Tensor]
    ) -> bool:
        if not self._suits(x, weights):
            return False
        shape = x.shape
        batch: tuple[int, ...] = ()
        if len(shape) == 3 and batch_sizes is None:
            time, batch = (shape[1], (shape[0],)) if self.batch_first else (shape[0], (shape[1],))
        elif len(shape) == 2:
            time = shape[0]
        else:
            return False
        if time == 0 or shape[-1] != self.input_size:
            return False
        if batch_sizes is not None:
            if torch.compiler.is_compiling():  # it cannot look into a tensor; the op will
                batch = tuple(states[0].shape[1:2]) if states else ()
            elif _are_batch_sizes(batch_sizes, time):
                batch = (int(batch_sizes[0]),)
            else:
                return False
        rows = self.num_layers * (2 if self.bidirectional else 1)
        widths = (self.proj_size or self.hidden_size, self.hidden_size * self._cell.memories)
        return all(is_state(s, (rows, *batch, width), x) for s, width in zip(states, widths, strict=False))

    def _run(
        self,
        spec: int,
        x: Tensor,
        states: Sequence[Tensor],
        weights: list[Tensor],
        batch_sizes: Tensor | None,
        resets: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """(y, *final_states, *cell_states)"""
        dropouts = self.dropout, self.weight_dropout, self.recurrent_dropout
        constants = self._constants()
        stack = Stack(spec, self.num_layers, self.training, *dropouts, self.recompute, constants)
        parameters = self._parameters_of_operands()
        return run_stack(stack, x, states or None, weights, batch_sizes, parameters, resets)
