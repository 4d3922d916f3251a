"""LSTMCell, GRUCell and RNNCell with the contract of :mod:`torch.nn`; see :mod:`fastrnn.modules`."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from fastrnn import _ops, functional
from fastrnn._base import Base, check_activation, fits, pair_states

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]


class _Cell(Base, nn.RNNCellBase):
    """One step of one layer."""

    def _forward(self, input: Any, hx: Any) -> Any:
        states, weights = self._states(hx), self._weights()
        if states is None or not self._takes(input, states, weights):
            return self._forward_by_torch(input, hx)
        unbatched = input.dim() == 1
        if unbatched:
            input, states = input.unsqueeze(0), [s.unsqueeze(0) for s in states]
        final = self._run(input.unsqueeze(0), [s.unsqueeze(0) for s in states], weights)
        final = [s[0, 0] if unbatched else s[0] for s in final]
        return tuple(final) if len(final) > 1 else final[0]

    def _weights(self) -> list[Tensor]:
        """[w_ih, w_hh] and the biases that there are, read anew for every call."""
        weights = (self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        return [w for w in weights if w is not None]

    def _takes(self, x: Any, states: Sequence[Tensor], weights: list[Tensor]) -> bool:
        if not isinstance(x, Tensor) or x.dim() not in (1, 2) or len(weights) not in (2, 4):
            return False
        batch = x.shape[:-1]
        if not fits(x, (*batch, self.input_size), weights[0]):
            return False
        for state in states:
            if not fits(state, (*batch, self.hidden_size), x):
                return False
        # torch.nn's cell serves other devices and dtypes, and autocast, unless it lacks an option
        served = _ops.has_kernels(x) and not _ops.autocasts(x)
        return served or bool(self.changed_options())

    def _run(self, x: Tensor, states: Sequence[Tensor], weights: list[Tensor]) -> Sequence[Tensor]:
        """The final states of one step: x [1, B, I], each state [1, B, H]."""
        raise NotImplementedError


class LSTMCell(_Cell, nn.LSTMCell):
    """One step of an LSTM: :class:`torch.nn.LSTMCell`, with its arguments, and the option of :class:`fastrnn.LSTM`.

    Args:
        input_size, hidden_size, bias, device, dtype: as in :class:`torch.nn.LSTMCell`
        activation: "tanh", "softsign", "relu" or "hardtanh", for the candidate and the output

    Shape:
        - input: [B, I] or [I]
        - hx: (h [B, H], c [B, H]), without B for input [I]; zeros if not given
        - output: (h, c) like hx
    """

    own_options = ("activation",)
    activation: str = "tanh"
    _torch_forward = nn.LSTMCell.forward
    _states = pair_states

    def __init__(self, *args: Any, activation: str = "tanh", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.activation = check_activation(activation)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self._forward(input, hx)
        return found

    def _run(self, x: Tensor, states: Sequence[Tensor], weights: list[Tensor]) -> Sequence[Tensor]:
        biases = len(weights) > 2
        return functional.lstm(x, states or None, weights, has_biases=biases, activation=self.activation)[1:]


class GRUCell(_Cell, nn.GRUCell):
    """One step of a GRU: :class:`torch.nn.GRUCell`, with its arguments, and the options of :class:`fastrnn.GRU`.

    Args:
        input_size, hidden_size, bias, device, dtype: as in :class:`torch.nn.GRUCell`
        reset_after: the reset gate acts on the recurrent product, as in torch.nn; False: on h before the product
        activation: "tanh", "softsign", "relu" or "hardtanh", for the candidate

    Shape:
        - input: [B, I] or [I]
        - hx: h [B, H], without B for input [I]; zeros if not given
        - output: h like hx
    """

    own_options = ("reset_after", "activation")
    reset_after: bool = True
    activation: str = "tanh"
    _torch_forward = nn.GRUCell.forward

    def __init__(
        self, *args: Any, reset_after: bool = True, activation: str = "tanh", **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.reset_after = reset_after
        self.activation = check_activation(activation)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        found: Tensor = self._forward(input, hx)
        return found

    def _run(self, x: Tensor, states: Sequence[Tensor], weights: list[Tensor]) -> Sequence[Tensor]:
        return functional.gru(
            x,
            states[0] if states else None,
            weights,
            has_biases=len(weights) > 2,
            reset_after=self.reset_after,
            activation=self.activation,
        )[1:]


class RNNCell(_Cell, nn.RNNCell):
    """One step of an Elman network: :class:`torch.nn.RNNCell`, with its arguments.

    Args:
        input_size, hidden_size, bias, nonlinearity, device, dtype: as in :class:`torch.nn.RNNCell`

    Shape:
        - input: [B, I] or [I]
        - hx: h [B, H], without B for input [I]; zeros if not given
        - output: h like hx
    """

    _torch_forward = nn.RNNCell.forward

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        found: Tensor = self._forward(input, hx)
        return found

    def _takes(self, x: Any, states: Sequence[Tensor], weights: list[Tensor]) -> bool:
        # torch.nn looks at the nonlinearity in forward only
        return self.nonlinearity in ("tanh", "relu") and super()._takes(x, states, weights)

    def _run(self, x: Tensor, states: Sequence[Tensor], weights: list[Tensor]) -> Sequence[Tensor]:
        h0 = states[0] if states else None
        return functional.rnn(x, h0, weights, has_biases=len(weights) > 2, nonlinearity=self.nonlinearity)[1:]
