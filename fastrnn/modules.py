"""LSTM, GRU and RNN with the contract of :mod:`torch.nn`: arguments, parameter names, results, errors.

A call whose arguments fit goes to :mod:`fastrnn.functional`. Any other goes to torch.nn's own forward, so that what
comes out is torch.nn's error, or torch.nn's result where it takes more than the kernels do.
"""

from typing import Any, Literal, TypeVar, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastrnn import _spec
from fastrnn._base import pair_states
from fastrnn._layers import Layers
from fastrnn._spec import Choice

__all__ = ["GRU", "LSTM", "RNN"]

_Sequence = TypeVar("_Sequence", Tensor, PackedSequence)


def _check_no_projection(arguments: dict[str, Any]) -> None:
    if "proj_size" in arguments:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")


class LSTM(Layers):
    """A multi-layer LSTM: :class:`torch.nn.LSTM`, with its arguments, and options more.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device, dtype:
            as in :class:`torch.nn.LSTM`
        activation: "tanh", "softsign", "relu", "hardtanh", "sigmoid", "identity", "silu", "leaky_relu" (of slope 0.01),
            "hardsigmoid" (relu6(x + 3) / 6, as in torch and Keras 3) or "onnx_hardsigmoid" (max(0, min(1, 0.2 x +
            0.5))), for the candidate g and the output, h = o * act(c)
        recurrent_activation: one of them for the gates i f o; "sigmoid" by default
        layer_norm: normalise both products over all gates of a row, and c on its way to the output (Ba et al. 2016):
            gates = LN(W_ih x) + LN(W_hh h) + biases, with gains ``ln_ih_weight_l{k}`` and ``ln_hh_weight_l{k}`` [4*H],
            and h = o * act(LN(c)), with ``ln_c_weight_l{k}`` and ``ln_c_bias_l{k}`` [H]; suffix ``_reverse``
        coupled_gates: one gate for both, f = 1 - i (Greff et al. 2017): weights and biases have 3*H rows, those of
            i g o; not with layer_norm
        peephole: i and f see c too, and o the new one, each unit through weights of its own (Gers and Schmidhuber
            2000): ``weight_peephole_l{k}`` [3*H] of i f o, or [2*H] of i o with coupled_gates; not with layer_norm
        zoneout: the probability with which, in training, a unit of the new h is kept from the step before (Krueger et
            al. 2017), or (that of h, that of c); drawn for each step, row and unit. At evaluation states are blended by
            it. h is made from the c that has not been zoned out. That of h does not go with proj_size
        cell_clip: the new c is clamped to [-cell_clip, cell_clip], with no gradient beyond; not with layer_norm
        forget_bias: what the forget gate's biases add up to before training, at all units: ``bias_ih`` holds it, and
            ``bias_hh`` zero (Gers et al. 2000 and Jozefowicz et al. 2015 take 1); None: as in torch.nn
        recompute: keep no activations for the backward pass but the outputs; it computes the others again, a piece of
            the sequence at a time (a bidirectional layer's at once)
        heads: the recurrent weights are so many blocks: ``weight_hh_l{k}`` is [4*H, R / heads], and the i-th part of
            the units meets the i-th part of h alone. Divides hidden_size and proj_size; where their parts are
            multiples of 16, recurrent products take so many times less time
        weight_dropout: the probability with which, in training, an element of ``weight_hh`` becomes zero, one mask a
            call (DropConnect; Merity et al. 2018); the others grow by 1 / (1 - weight_dropout)
        recurrent_dropout: the same of the elements of h where it enters the recurrent product, one mask [B, R] a call
            for all steps (Gal and Ghahramani 2016); the h that is carried and returned stays as it is

    Shape:
        - input: [T, B, I], [B, T, I] if batch_first, [T, I], or a PackedSequence
        - hx: (h_0 [L*D, B, R], c_0 [L*D, B, H]), without B for input [T, I]; zeros if not given
        - lengths: of the rows of a padded input, int64 [B], on any device and in any order, from 1 to T. The output is
          zero behind a row's end, its final states are those there, and the reverse direction begins there
        - resets: bool, input's shape without I; for a PackedSequence [N], in the order of its data. A row is cut
          before each step where they are true: h and c are zero there, at the first step too. Outputs and gradients
          are those of the pieces, run one by one; the reverse direction is cut at the same places, so that hx enters
          the last piece, and its final states are those after the first one
        - output: like input with D*R features, and (h_n, c_n) like hx; with return_cell_states=True the last layer's c
          after every step too, like input with D*H features; D = 2 if bidirectional else 1, R = proj_size or H
    """

    activation: str
    recurrent_activation: str

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
        recurrent_activation: str = "sigmoid",
        layer_norm: bool = False,
        coupled_gates: bool = False,
        peephole: bool = False,
        forget_bias: float | None = None,
        zoneout: float | tuple[float, float] = 0.0,
        cell_clip: float | None = None,
        recompute: bool = False,
        heads: int = 1,
        weight_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
    ) -> None: ...
    @overload
    def __init__(
        self,
        *args: Any,
        activation: str = "tanh",
        recurrent_activation: str = "sigmoid",
        layer_norm: bool = False,
        coupled_gates: bool = False,
        peephole: bool = False,
        forget_bias: float | None = None,
        zoneout: float | tuple[float, float] = 0.0,
        cell_clip: float | None = None,
        **kwargs: Any,
    ) -> None: ...
    def __init__(
        self,
        *args: Any,
        activation: str = "tanh",
        recurrent_activation: str = "sigmoid",
        layer_norm: bool = False,
        coupled_gates: bool = False,
        peephole: bool = False,
        forget_bias: float | None = None,
        zoneout: float | tuple[float, float] = 0.0,
        cell_clip: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__("LSTM", *args, **kwargs)
        self.activation = self._cell.check("activation", activation)
        self.recurrent_activation = self._cell.check("recurrent_activation", recurrent_activation)
        self.layer_norm = self._cell.check("layer_norm", layer_norm)
        self.coupled_gates = self._cell.check("coupled_gates", coupled_gates)
        self._add_options(self._suffixes(), zoneout, peephole, cell_clip)
        self._add_forget_bias(forget_bias)

    @overload
    def forward(
        self,
        input: _Sequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_cell_states: Literal[False] = False,
    ) -> tuple[_Sequence, tuple[Tensor, Tensor]]: ...
    @overload
    def forward(
        self,
        input: _Sequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_cell_states: Literal[True],
    ) -> tuple[_Sequence, tuple[Tensor, Tensor], _Sequence]: ...
    def forward(
        self,
        input: Any,
        hx: Any = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
        return_cell_states: bool = False,
    ) -> Any:
        if lengths is None and not return_cell_states:
            return self._forward(input, hx, resets)
        return self._forward_rows(input, hx, lengths, resets, return_cell_states)

    def _choice(self) -> Choice:
        return self.activation, self.recurrent_activation, self.layer_norm, self.coupled_gates


class GRU(Layers):
    """A multi-layer GRU: :class:`torch.nn.GRU`, with its arguments, and options more.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype:
            as in :class:`torch.nn.GRU`
        reset_after: the reset gate acts on the recurrent product, as in torch.nn; False: on h before the product, as
            in Cho et al. 2014, Keras's ``reset_after=False`` and ONNX's ``linear_before_reset=0``
        activation, recurrent_activation: those of :class:`LSTM`, for the candidate n and for the gates r z
        layer_norm: normalise both products over all gates of a row (Ba et al. 2016), with gains ``ln_ih_weight_l{k}``
            and ``ln_hh_weight_l{k}`` [3*H], suffix ``_reverse``; r acts on the n of LN(W_hh h) + b_hh, so it needs
            reset_after
        recompute, heads, weight_dropout, recurrent_dropout: as in :class:`LSTM`
        zoneout: as in :class:`LSTM`, of h

    Shape:
        - input: [T, B, I], [B, T, I] if batch_first, [T, I], or a PackedSequence
        - hx: h_0 [L*D, B, H], without B for input [T, I]; zeros if not given
        - lengths, resets: as in :class:`LSTM`
        - output: like input with D*H features, and h_n like hx; D = 2 if bidirectional else 1
    """

    reset_after: bool
    activation: str
    recurrent_activation: str

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
        recurrent_activation: str = "sigmoid",
        layer_norm: bool = False,
        zoneout: float = 0.0,
        recompute: bool = False,
        heads: int = 1,
        weight_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
    ) -> None: ...
    @overload
    def __init__(
        self,
        *args: Any,
        reset_after: bool = True,
        activation: str = "tanh",
        recurrent_activation: str = "sigmoid",
        layer_norm: bool = False,
        zoneout: float = 0.0,
        **kwargs: Any,
    ) -> None: ...
    def __init__(
        self,
        *args: Any,
        reset_after: bool = True,
        activation: str = "tanh",
        recurrent_activation: str = "sigmoid",
        layer_norm: bool = False,
        zoneout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        _check_no_projection(kwargs)
        super().__init__("GRU", *args, **kwargs)
        self.reset_after = self._cell.check("reset_after", reset_after)
        self.activation = self._cell.check("activation", activation)
        self.recurrent_activation = self._cell.check("recurrent_activation", recurrent_activation)
        self.layer_norm = self._cell.check("layer_norm", layer_norm)
        self._add_options(self._suffixes(), zoneout)

    def forward(
        self,
        input: _Sequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[_Sequence, Tensor]:
        found: tuple[_Sequence, Tensor] = (
            self._forward(input, hx, resets)
            if lengths is None
            else self._forward_rows(input, hx, lengths, resets)
        )
        return found

    def _choice(self) -> Choice:
        return self.reset_after, self.activation, self.recurrent_activation, self.layer_norm


class RNN(Layers):
    """A multi-layer Elman network: :class:`torch.nn.RNN`, with its arguments, and options more.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype:
            as in :class:`torch.nn.RNN`
        nonlinearity: "tanh", "relu", or another activation of :class:`LSTM`
        layer_norm: normalise both products of a row (Ba et al. 2016), with gains ``ln_ih_weight_l{k}`` and
            ``ln_hh_weight_l{k}`` [H], suffix ``_reverse``
        recompute, heads, weight_dropout, recurrent_dropout: as in :class:`LSTM`
        zoneout: as in :class:`LSTM`, of h

    Shape:
        - input: [T, B, I], [B, T, I] if batch_first, [T, I], or a PackedSequence
        - hx: h_0 [L*D, B, H], without B for input [T, I]; zeros if not given
        - lengths, resets: as in :class:`LSTM`
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
        zoneout: float = 0.0,
        recompute: bool = False,
        heads: int = 1,
        weight_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
    ) -> None: ...
    @overload
    def __init__(self, *args: Any, layer_norm: bool = False, zoneout: float = 0.0, **kwargs: Any) -> None: ...
    def __init__(self, *args: Any, layer_norm: bool = False, zoneout: float = 0.0, **kwargs: Any) -> None:
        _check_no_projection(kwargs)
        if len(args) > 3:
            self.nonlinearity = args[3]
            args = args[:3] + args[4:]
        else:
            self.nonlinearity = kwargs.pop("nonlinearity", "tanh")
        self._cell.check("nonlinearity", self.nonlinearity)
        super().__init__("RNN_RELU" if self.nonlinearity == "relu" else "RNN_TANH", *args, **kwargs)
        self.layer_norm = self._cell.check("layer_norm", layer_norm)
        self._add_options(self._suffixes(), zoneout)

    def forward(
        self,
        input: _Sequence,
        hx: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[_Sequence, Tensor]:
        found: tuple[_Sequence, Tensor] = (
            self._forward(input, hx, resets)
            if lengths is None
            else self._forward_rows(input, hx, lengths, resets)
        )
        return found

    def _choice(self) -> Choice:
        return "relu" if self.mode == "RNN_RELU" else self.nonlinearity, self.layer_norm
