"""LSTM, GRU and RNN with the contract of :mod:`torch.nn`: arguments, parameter names, results, errors.

A call whose arguments fit goes to :mod:`fastrnn.functional`. Any other goes to torch.nn's own forward, so that what
comes out is torch.nn's error, or torch.nn's result where it takes more than the kernels do.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn import _spec
from fastrnn._autograd import Refused, layer
from fastrnn._base import Base, are_strided, is_alike, is_state, is_uniform, pair_states
from fastrnn._compat import is_any_autocast_enabled, weight_names
from fastrnn._masks import check_probability
from fastrnn._spec import QUIET, Choice
from fastrnn.functional import Stack, run_stack

__all__ = ["GRU", "LSTM", "RNN"]


def _check_no_projection(arguments: dict[str, Any]) -> None:
    if "proj_size" in arguments:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


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

    _own_options: ClassVar[dict[str, Any]] = {"weight_dropout": 0.0}

    def __init__(
        self, *args: Any, recompute: bool = False, weight_dropout: float = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.weight_dropout = check_probability("weight_dropout", weight_dropout)
        if recompute:
            self.recompute = True

    def _add_layer_norm(self, layer_norm: bool) -> None:
        self.layer_norm = self._cell.check("layer_norm", layer_norm)
        directions = ("", "_reverse") if self.bidirectional else ("",)
        self._add_operands([f"_l{k}{direction}" for k in range(self.num_layers) for direction in directions])

    def extra_repr(self) -> str:
        return super().extra_repr() + (", recompute=True" if self.recompute else "")

    def _forward(self, input: Any, hx: Any) -> Any:
        if (
            self.num_layers == 1
            and type(input) is Tensor
            and input.is_cpu
            and input.layout is torch.strided
            and input.dim() == 3
            and not torch.compiler.is_compiling()
            and not is_any_autocast_enabled()
        ):
            found = self._forward_one_layer(input, hx)
            if found is not None:
                return found
        elif not torch.compiler.is_compiling() and (node := self._traced(input, hx)) is not None:
            return node
        x, batch_sizes, order, inverse = (
            input if isinstance(input, PackedSequence) else (input, None, None, None)
        )
        states, weights = self._states(hx), self._weights()
        if states is None or not self._takes(x, batch_sizes, states, weights):
            return self._forward_by_torch(input, hx)
        y: Any
        if batch_sizes is not None:
            if order is not None:
                states = [s.index_select(1, order) for s in states]
            y, *final = self._run(x, states, weights, batch_sizes)
            if inverse is not None:
                final = [s.index_select(1, inverse) for s in final]
            y = PackedSequence(y, batch_sizes, order, inverse)
        else:
            y, *final = self._run(x, states, weights, None)
        return y, final[0] if len(final) == 1 else tuple(final)

    def _forward_one_layer(self, x: Tensor, hx: Any) -> tuple[Any, Any] | None:
        """What the op, whose own checks take no time, makes of the arguments; None where it refuses them."""
        states, weights = self._states(hx), self._weights()
        if states is None or self.recompute or weights[0].dtype != x.dtype or not are_strided(states):
            return None
        if self.training and self.weight_dropout:
            return None
        try:
            operands = self._operands() if self._operand_names else ()
            found = layer(self._layer_spec() | QUIET, x, states, weights, None, operands)
        except Refused:
            return None
        except RuntimeError:
            if is_uniform(weights):
                raise
            return None  # a weight is no tensor, so there was no call
        return (found[0], found[1]) if len(found) == 2 else (found[0], (found[1], found[2]))

    def _layer_spec(self) -> int:
        return self._cell.spec(self._choice(), self.bias, self.batch_first, self.bidirectional)

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
        sizes = (self.proj_size or self.hidden_size, self.hidden_size)
        return all(is_state(s, (rows, *batch, size), x) for s, size in zip(states, sizes, strict=False))

    def _run(
        self, x: Tensor, states: Sequence[Tensor], weights: list[Tensor], batch_sizes: Tensor | None
    ) -> tuple[Tensor, ...]:
        """(y, *final_states)"""
        return run_stack(self._stack(), x, states or None, weights, batch_sizes, self._operands())

    def _stack(self) -> Stack:
        spec, dropouts = self._layer_spec(), (self.dropout, self.weight_dropout)
        return Stack(spec, self.num_layers, self.training, *dropouts, self.recompute)


class LSTM(Layers):
    """A multi-layer LSTM: :class:`torch.nn.LSTM`, with its arguments, and four options more.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype:
            as in :class:`torch.nn.LSTM`
        activation: "tanh", "softsign", "relu" or "hardtanh", for the candidate g and the output, h = o * act(c)
        layer_norm: normalise both products over all gates of a row, and c on its way to the output (Ba et al. 2016):
            gates = LN(W_ih x) + LN(W_hh h) + biases, with gains ``ln_ih_weight_l{k}`` and ``ln_hh_weight_l{k}`` [4*H],
            and h = o * act(LN(c)), with ``ln_c_weight_l{k}`` and ``ln_c_bias_l{k}`` [H]; suffix ``_reverse``
        recompute: keep no activations for the backward pass but the outputs; it computes the others again, a piece of
            the sequence at a time (a bidirectional layer's at once)
        weight_dropout: the probability with which, in training, an element of ``weight_hh`` becomes zero, one mask a
            call (DropConnect; Merity et al. 2018); the others grow by 1 / (1 - weight_dropout)

    Shape:
        - input: [T, B, I], [B, T, I] if batch_first, [T, I], or a PackedSequence
        - hx: (h_0 [L*D, B, R], c_0 [L*D, B, H]), without B for input [T, I]; zeros if not given
        - output: like input with D*R features, and (h_n, c_n) like hx; D = 2 if bidirectional else 1,
          R = proj_size or H
    """

    activation: str

    _cell = _spec.LSTM
    _torch_forward = nn.LSTM.forward
    _states = pair_states
    check_forward_args = nn.LSTM.check_forward_args  # type: ignore[assignment]
    get_expected_cell_size = nn.LSTM.get_expected_cell_size
    permute_hidden = nn.LSTM.permute_hidden  # type: ignore[assignment]

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "tanh",
        layer_norm: bool = False,
        recompute: bool = False,
        weight_dropout: float = 0.0,
    ) -> None: ...
    @overload
    def __init__(
        self, *args: Any, activation: str = "tanh", layer_norm: bool = False, **kwargs: Any
    ) -> None: ...
    def __init__(self, *args: Any, activation: str = "tanh", layer_norm: bool = False, **kwargs: Any) -> None:
        super().__init__("LSTM", *args, **kwargs)
        self.activation = self._cell.check("activation", activation)
        self._add_layer_norm(layer_norm)

    @overload
    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...
    @overload
    def forward(
        self, input: PackedSequence, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...
    def forward(self, input: Any, hx: Any = None) -> Any:
        return self._forward(input, hx)

    def _choice(self) -> Choice:
        return self.activation, self.layer_norm


class GRU(Layers):
    """A multi-layer GRU: :class:`torch.nn.GRU`, with its arguments, and five options more.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype:
            as in :class:`torch.nn.GRU`
        reset_after: the reset gate acts on the recurrent product, as in torch.nn; False: on h before the product, as
            in Cho et al. 2014, Keras's ``reset_after=False`` and ONNX's ``linear_before_reset=0``
        activation: "tanh", "softsign", "relu" or "hardtanh", for the candidate n
        layer_norm: normalise both products over all gates of a row (Ba et al. 2016), with gains ``ln_ih_weight_l{k}``
            and ``ln_hh_weight_l{k}`` [3*H], suffix ``_reverse``; r acts on the n of LN(W_hh h) + b_hh, so it needs
            reset_after
        recompute, weight_dropout: as in :class:`LSTM`

    Shape:
        - input: [T, B, I], [B, T, I] if batch_first, [T, I], or a PackedSequence
        - hx: h_0 [L*D, B, H], without B for input [T, I]; zeros if not given
        - output: like input with D*H features, and h_n like hx; D = 2 if bidirectional else 1
    """

    reset_after: bool
    activation: str

    _cell = _spec.GRU
    _torch_forward = nn.GRU.forward

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        reset_after: bool = True,
        activation: str = "tanh",
        layer_norm: bool = False,
        recompute: bool = False,
        weight_dropout: float = 0.0,
    ) -> None: ...
    @overload
    def __init__(
        self,
        *args: Any,
        reset_after: bool = True,
        activation: str = "tanh",
        layer_norm: bool = False,
        **kwargs: Any,
    ) -> None: ...
    def __init__(
        self,
        *args: Any,
        reset_after: bool = True,
        activation: str = "tanh",
        layer_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        _check_no_projection(kwargs)
        super().__init__("GRU", *args, **kwargs)
        self.reset_after = self._cell.check("reset_after", reset_after)
        self.activation = self._cell.check("activation", activation)
        self._add_layer_norm(layer_norm)

    @overload
    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]: ...
    @overload
    def forward(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]: ...
    def forward(self, input: Any, hx: Any = None) -> Any:
        return self._forward(input, hx)

    def _choice(self) -> Choice:
        return self.reset_after, self.activation, self.layer_norm


class RNN(Layers):
    """A multi-layer Elman network: :class:`torch.nn.RNN`, with its arguments, and three options more.

    Args:
        input_size, hidden_size, num_layers, nonlinearity, bias, batch_first, dropout, bidirectional, device, dtype:
            as in :class:`torch.nn.RNN`
        layer_norm: normalise both products of a row (Ba et al. 2016), with gains ``ln_ih_weight_l{k}`` and
            ``ln_hh_weight_l{k}`` [H], suffix ``_reverse``
        recompute, weight_dropout: as in :class:`LSTM`

    Shape:
        - input: [T, B, I], [B, T, I] if batch_first, [T, I], or a PackedSequence
        - hx: h_0 [L*D, B, H], without B for input [T, I]; zeros if not given
        - output: like input with D*H features, and h_n like hx; D = 2 if bidirectional else 1
    """

    _cell = _spec.RNN
    _torch_forward = nn.RNN.forward

    @overload
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        layer_norm: bool = False,
        recompute: bool = False,
        weight_dropout: float = 0.0,
    ) -> None: ...
    @overload
    def __init__(self, *args: Any, layer_norm: bool = False, **kwargs: Any) -> None: ...
    def __init__(self, *args: Any, layer_norm: bool = False, **kwargs: Any) -> None:
        _check_no_projection(kwargs)
        if len(args) > 3:
            self.nonlinearity = args[3]
            args = args[:3] + args[4:]
        else:
            self.nonlinearity = kwargs.pop("nonlinearity", "tanh")
        self._cell.check("nonlinearity", self.nonlinearity)
        super().__init__(f"RNN_{self.nonlinearity.upper()}", *args, **kwargs)
        self._add_layer_norm(layer_norm)

    @overload
    def forward(self, input: Tensor, hx: Tensor | None = None) -> tuple[Tensor, Tensor]: ...
    @overload
    def forward(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]: ...
    def forward(self, input: Any, hx: Any = None) -> Any:
        return self._forward(input, hx)

    def _choice(self) -> Choice:
        return "tanh" if self.mode == "RNN_TANH" else "relu", self.layer_norm
