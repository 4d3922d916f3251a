"""SLSTM, IndRNN, MinGRU and MinLSTM: layers that :mod:`torch.nn` lacks, with its conventions."""

from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from fastrnn import _spec
from fastrnn._compat import set_weight_names
from fastrnn._layers import Layers
from fastrnn._spec import Choice

__all__ = ["SLSTM", "IndRNN", "MinGRU", "MinLSTM"]

_Sequence = TypeVar("_Sequence", Tensor, PackedSequence)


class _OwnLayers(Layers):
    """nn.RNNBase knows no such mode: it takes the arguments of an LSTM or of an RNN, and is given other weights."""

    _own_options: ClassVar[dict[str, Any]] = {"heads": 1, "weight_dropout": 0.0, "recurrent_dropout": 0.0}
    _mode: ClassVar[str]
    layer_norm = False
    zoneout = 0.0

    def _choice(self) -> Choice:
        return ()


class SLSTM(_OwnLayers):
    """A multi-layer sLSTM (Beck et al. 2024, https://arxiv.org/abs/2405.04517): an LSTM with exponential gates::

        i~, f~, z~, o~ = W_ih x + b_ih + W_hh h + b_hh
        m' = max(log sigmoid(f~) + m, i~)
        i = exp(i~ - m')               f = exp(log sigmoid(f~) + m - m')
        c' = f * c + i * tanh(z~)      n' = f * n + i
        h' = sigmoid(o~) * c' / n'

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype:
            as in :class:`torch.nn.LSTM`; ``weight_ih_l{k}`` [4*H, I] and the others have rows in the order i f z o
        heads: the recurrent weights are so many blocks, ``weight_hh_l{k}`` [4*H, H / heads], as in the paper
        recompute, weight_dropout, recurrent_dropout: as in :class:`fastrnn.LSTM`

    Shape:
        - input: [T, B, I], [B, T, I] if batch_first, [T, I], or a PackedSequence
        - hx: (h_0, c_0, n_0, m_0), each [L*D, B, H], without B for input [T, I]; zeros if not given
        - lengths, resets: as in :class:`fastrnn.LSTM`
        - output: like input with D*H features, and (h_n, c_n, n_n, m_n) like hx; D = 2 if bidirectional else 1
    """

    _cell = _spec.SLSTM

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
        heads: int = 1,
        recompute: bool = False,
        weight_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
    ) -> None:
        sizes = input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        super().__init__(
            "LSTM",
            *sizes,
            device=device,
            dtype=dtype,
            heads=heads,
            recompute=recompute,
            weight_dropout=weight_dropout,
            recurrent_dropout=recurrent_dropout,
        )
        self.mode = "SLSTM"

    def forward(
        self,
        input: _Sequence,
        hx: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
        *,
        lengths: Tensor | None = None,
        resets: Tensor | None = None,
    ) -> tuple[_Sequence, tuple[Tensor, Tensor, Tensor, Tensor]]:
        found: Any = (
            self._forward(input, hx, resets)
            if lengths is None
            else self._forward_rows(input, hx, lengths, resets)
        )
        if isinstance(found, Proxy):
            return found  # type: ignore[return-value]
        h_n, joined = found[1]
        c_n, n_n, m_n = joined.chunk(3, -1)
        return found[0], (h_n, c_n, n_n, m_n)

    def _states(self, hx: Any) -> Sequence[Tensor] | None:
        if hx is None:
            return ()
        if not isinstance(hx, (tuple, list)) or len(hx) != 4 or not isinstance(hx[0], Tensor):
            raise TypeError("hx of an SLSTM is a tuple (h_0, c_0, n_0, m_0)")
        h = hx[0]
        for index, state in enumerate(hx):
            if not isinstance(state, Tensor) or state.shape != h.shape:
                shape = list(getattr(state, "shape", ()))
                raise RuntimeError(f"Expected hidden[{index}] size {tuple(h.shape)}, got {shape}")
        return h, torch.cat(hx[1:], -1)

    def check_forward_args(self, input: Tensor, hidden: Any, batch_sizes: Tensor | None) -> None:
        self.check_input(input, batch_sizes)
        expected = self.get_expected_hidden_size(input, batch_sizes)
        self.check_hidden_size(hidden[0], expected, "Expected hidden[0] size {}, got {}")


class _UnitByUnit(_OwnLayers):
    """Layers whose units see each other's h in no product: of torch.nn's weights they have ``weight_ih_l{k}`` and
    ``bias_ih_l{k}`` alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__("RNN_TANH", *args, **kwargs)
        self.mode = self._mode
        names: list[list[str]] = []
        for suffix in self._suffixes():
            weight: Tensor = getattr(self, "weight_ih" + suffix)
            rows = self._cell.gates * self.hidden_size
            self.register_parameter(
                "weight_ih" + suffix, nn.Parameter(weight.new_empty(rows, weight.shape[1]))
            )
            if self.bias:
                self.register_parameter("bias_ih" + suffix, nn.Parameter(weight.new_empty(rows)))
            for name in ("weight_hh", "bias_hh"):
                self._parameters.pop(name + suffix, None)
            names.append([name + suffix for name in ("weight_ih", "bias_ih")[: 1 + bool(self.bias)]])
        set_weight_names(self, names)
        self._add_operands()
        self.reset_parameters()

    def _add_operands(self) -> None:
        """Parameters beside those of the gates."""

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


class IndRNN(_UnitByUnit):
    """A multi-layer independently recurrent network (Li et al. 2018, https://arxiv.org/abs/1803.04831): each unit sees
    its own h alone, h' = act(W_ih x + b_ih + u * h).

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype:
            as in :class:`torch.nn.RNN`, with one bias
        nonlinearity: act, an activation of :class:`fastrnn.LSTM`
        recompute: as in :class:`fastrnn.LSTM`

    ``weight_hh_l{k}`` [H] are u; they begin between 0 and 1. For sequences of T steps the paper begins between 0 and
    2^(1/T), and keeps them there.

    Shape:
        - input: [T, B, I], [B, T, I] if batch_first, [T, I], or a PackedSequence
        - hx: h_0 [L*D, B, H], without B for input [T, I]; zeros if not given
        - lengths, resets: as in :class:`fastrnn.LSTM`
        - output: like input with D*H features, and h_n like hx; D = 2 if bidirectional else 1
    """

    _cell = _spec.INDRNN
    _mode = "INDRNN"

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
        nonlinearity: str = "relu",
        recompute: bool = False,
    ) -> None:
        sizes = input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        super().__init__(*sizes, device=device, dtype=dtype, recompute=recompute)
        self.nonlinearity = self._cell.check("nonlinearity", nonlinearity)

    def _add_operands(self) -> None:
        like: Tensor = next(self.parameters())
        self._operand_names = tuple("weight_hh" + suffix for suffix in self._suffixes())
        for name in self._operand_names:
            self.register_parameter(name, nn.Parameter(like.new_empty(self.hidden_size)))

    def reset_parameters(self) -> None:
        super().reset_parameters()
        for operand in self._parameters_of_operands():
            nn.init.uniform_(operand, 0, 1)

    def _choice(self) -> Choice:
        return (self.nonlinearity,)


class _Minimal(_UnitByUnit):
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
        activation: str = "identity",
        recompute: bool = False,
    ) -> None:
        sizes = input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional
        super().__init__(*sizes, device=device, dtype=dtype, recompute=recompute)
        self.activation = self._cell.check("activation", activation)

    def _choice(self) -> Choice:
        return (self.activation,)


class MinGRU(_Minimal):
    """A multi-layer minGRU (Feng et al. 2024, https://arxiv.org/abs/2410.01201): a GRU whose gates see x alone::

        z = sigmoid(W_z x + b_z)    n = act(W_n x + b_n)    h' = (1 - z) * h + z * n

    Time is linear in T, and nothing but this last line waits for the step before.

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, device, dtype:
            as in :class:`torch.nn.GRU`; ``weight_ih_l{k}`` [2*H, I] and ``bias_ih_l{k}`` [2*H] have their rows in the
            order z n
        activation: act; "identity", or an activation of :class:`fastrnn.LSTM`, of which "half_linear" is the paper's g
            of the form that is computed in logarithms: h stays above 0
        recompute: as in :class:`fastrnn.LSTM`

    Shape:
        as of :class:`IndRNN`
    """

    _cell = _spec.MIN_GRU
    _mode = "MIN_GRU"


class MinLSTM(_Minimal):
    """A multi-layer minLSTM (Feng et al. 2024, https://arxiv.org/abs/2410.01201), whose gates see x alone::

        i = sigmoid(W_i x + b_i)    f = sigmoid(W_f x + b_f)    n = act(W_n x + b_n)
        h' = f / (f + i) * h + i / (f + i) * n

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, activation, recompute, device,
            dtype: as in :class:`MinGRU`; ``weight_ih_l{k}`` [3*H, I] and ``bias_ih_l{k}`` [3*H] have their rows in the
            order i f n

    Shape:
        as of :class:`IndRNN`
    """

    _cell = _spec.MIN_LSTM
    _mode = "MIN_LSTM"
