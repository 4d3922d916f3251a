"""LSTMCell, GRUCell and RNNCell with the contract of :mod:`torch.nn`; see :mod:`fastrnn.modules`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastrnn import _ops, _spec
from fastrnn._autograd import Refused, layer, reference_layer
from fastrnn._base import Base, are_strided, is_alike, is_state, is_uniform, pair_states
from fastrnn._compat import is_any_autocast_enabled
from fastrnn._heads import have_kernels, joined
from fastrnn._options import operands_of_call
from fastrnn._rows import check_resets
from fastrnn._spec import QUIET, SINGLE_STEP, Choice, cell_of, has_cuda_engine

__all__ = ["GRUCell", "LSTMCell", "RNNCell"]

_NAMES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


class _Cell(Base, nn.RNNCellBase):
    """One step of one layer."""

    def __init__(self, *args: Any, heads: int = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._add_heads(heads)

    def _forward(self, input: Any, hx: Any, resets: Any = None) -> Any:
        if (
            type(input) is Tensor
            and input.is_cpu
            and input.layout is torch.strided
            and input.dim() == 2
            and not torch.compiler.is_compiling()
            and not is_any_autocast_enabled()
        ):
            found = self._forward_step(input, hx, resets)
            if found is not None:
                return found
        elif not torch.compiler.is_compiling():
            node = self._traced(input, hx, {} if resets is None else {"resets": resets})
            if node is not None:
                return node
        states, weights = self._states(hx), self._weights()
        if states is None or not self._takes(input, states, weights):
            found = self._forward_by_torch(input, hx)
            if resets is not None:
                raise self._refusal()
            return found
        if resets is not None:
            check_resets(resets, input)
        spec = self._layer_spec(weights)
        if not have_kernels(spec, input, weights):
            spec, weights = joined(spec, weights, 1)
        run: Callable[..., Sequence[Tensor]]
        operands = self._parameters_of_operands()
        batch = input.shape[0] if input.dim() == 2 else 1
        sizes = 1, batch, self.hidden_size
        operands = operands_of_call(spec, operands, 1, self._constants(), self.training, input, sizes)
        has_engine = not input.is_cuda or not (operands or resets is not None or not has_cuda_engine(spec))
        if _ops.has_kernels(input) and not _ops.autocasts(input) and has_engine:
            run = layer
        elif self._changed_options() or resets is not None:
            run = reference_layer
        else:
            return self._forward_by_torch(input, hx)
        unbatched = input.dim() == 1
        if unbatched:
            input, states = input[None], [s[None] for s in states]
            resets = None if resets is None else resets[None]
        final = run(spec, input, states, weights, None, operands, resets)
        if unbatched:
            final = [s[0] for s in final]
        return tuple(final) if len(final) > 1 else final[0]

    def _forward_step(self, x: Tensor, hx: Any, resets: Any) -> Any:
        """What the op, whose own checks take no time, makes of the arguments; None where it refuses them."""
        states, weights = self._states(hx), self._weights()
        if states is None or weights[0].dtype != x.dtype or not are_strided(states):
            return None
        if resets is not None and not are_strided((resets,)):
            return None
        spec = self._layer_spec(weights)
        if cell_of(spec).operands:
            return None
        try:
            final = layer(spec | QUIET, x, states, weights, None, (), resets)
        except Refused:
            return None
        except RuntimeError:
            if is_uniform(weights):
                raise
            return None  # a weight is no tensor, so there was no call
        return tuple(final) if len(final) > 1 else final[0]

    def _layer_spec(self, weights: list[Tensor]) -> int:
        general = self._is_general()
        return (
            self._cell.spec(self._choice(), len(weights) > 2, heads=self.heads, general=general) | SINGLE_STEP
        )

    def _weights(self) -> list[Tensor]:
        """[w_ih, w_hh] and the biases that there are, read anew for every call."""
        parameters: dict[str, Any] = self._parameters
        try:
            weights = [parameters[name] for name in _NAMES]
        except KeyError:  # parametrized
            weights = [getattr(self, name) for name in _NAMES]
        return [w for w in weights if w is not None]

    def _takes(self, x: Any, states: Sequence[Tensor], weights: list[Tensor]) -> bool:
        if len(weights) not in (2, 4) or not is_uniform(weights):
            return False
        if not isinstance(x, Tensor) or not is_alike(x, weights[0]):
            return False
        shape = x.shape
        if len(shape) not in (1, 2) or shape[-1] != self.input_size:
            return False
        expected = (*shape[:-1], self.hidden_size)
        return all(is_state(state, expected, x) for state in states)


class LSTMCell(_Cell, nn.LSTMCell):
    """One step of an LSTM: :class:`torch.nn.LSTMCell`, with its arguments, and options of :class:`fastrnn.LSTM`.

    Args:
        input_size, hidden_size, bias, device, dtype: as in :class:`torch.nn.LSTMCell`
        activation, recurrent_activation, coupled_gates, peephole, zoneout, cell_clip: as in :class:`fastrnn.LSTM`; with
            ``weight_peephole`` [3*H], or [2*H] where gates are coupled
        layer_norm: with ``ln_ih_weight`` and ``ln_hh_weight`` [4*H], ``ln_c_weight`` and ``ln_c_bias`` [H]
        forget_bias: what the forget gate's biases add up to before training; None: as in torch.nn
        heads: of the recurrent weights, ``weight_hh`` [4*H, H / heads]

    Shape:
        - input: [B, I] or [I]
        - hx: (h [B, H], c [B, H]), without B for input [I]; zeros if not given
        - resets: bool [B], without B for input [I]: rows whose h and c are zero before this step
        - output: (h, c) like hx
    """

    activation: str
    recurrent_activation: str

    _cell = _spec.LSTM
    _torch_forward = nn.LSTMCell.forward
    _states = pair_states

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
        super().__init__(*args, **kwargs)
        self.activation = self._cell.check("activation", activation)
        self.recurrent_activation = self._cell.check("recurrent_activation", recurrent_activation)
        self.layer_norm = self._cell.check("layer_norm", layer_norm)
        self.coupled_gates = self._cell.check("coupled_gates", coupled_gates)
        self._add_options([""], zoneout, peephole, cell_clip)
        self._add_forget_bias(forget_bias)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None, *, resets: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self._forward(input, hx, resets)
        return found

    def _choice(self) -> Choice:
        return self.activation, self.recurrent_activation, self.layer_norm, self.coupled_gates


class GRUCell(_Cell, nn.GRUCell):
    """One step of a GRU: :class:`torch.nn.GRUCell`, with its arguments, and options of :class:`fastrnn.GRU`.

    Args:
        input_size, hidden_size, bias, device, dtype: as in :class:`torch.nn.GRUCell`
        reset_after: the reset gate acts on the recurrent product, as in torch.nn; False: on h before the product
        activation, recurrent_activation, zoneout: as in :class:`fastrnn.GRU`
        layer_norm: with ``ln_ih_weight`` and ``ln_hh_weight`` [3*H]
        heads: of the recurrent weights, ``weight_hh`` [3*H, H / heads]

    Shape:
        - input: [B, I] or [I]
        - hx: h [B, H], without B for input [I]; zeros if not given
        - resets: bool [B], without B for input [I]: rows whose h is zero before this step
        - output: h like hx
    """

    reset_after: bool
    activation: str
    recurrent_activation: str

    _cell = _spec.GRU
    _torch_forward = nn.GRUCell.forward

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
        super().__init__(*args, **kwargs)
        self.reset_after = self._cell.check("reset_after", reset_after)
        self.activation = self._cell.check("activation", activation)
        self.recurrent_activation = self._cell.check("recurrent_activation", recurrent_activation)
        self.layer_norm = self._cell.check("layer_norm", layer_norm)
        self._add_options([""], zoneout)

    def forward(self, input: Tensor, hx: Tensor | None = None, *, resets: Tensor | None = None) -> Tensor:
        found: Tensor = self._forward(input, hx, resets)
        return found

    def _choice(self) -> Choice:
        return self.reset_after, self.activation, self.recurrent_activation, self.layer_norm


class RNNCell(_Cell, nn.RNNCell):
    """One step of an Elman network: :class:`torch.nn.RNNCell`, with its arguments, and options of
    :class:`fastrnn.RNN`.

    Args:
        input_size, hidden_size, bias, device, dtype: as in :class:`torch.nn.RNNCell`
        nonlinearity, zoneout: as in :class:`fastrnn.RNN`
        layer_norm: with ``ln_ih_weight`` and ``ln_hh_weight`` [H]
        heads: of the recurrent weights, ``weight_hh`` [H, H / heads]

    Shape:
        - input: [B, I] or [I]
        - hx: h [B, H], without B for input [I]; zeros if not given
        - resets: bool [B], without B for input [I]: rows whose h is zero before this step
        - output: h like hx
    """

    _cell = _spec.RNN
    _torch_forward = nn.RNNCell.forward

    def __init__(self, *args: Any, layer_norm: bool = False, zoneout: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.layer_norm = self._cell.check("layer_norm", layer_norm)
        if self._choice() in self._cell.kinds:
            self._add_options([""], zoneout)
        else:  # torch.nn does not look at it before forward
            self.zoneout = zoneout

    def forward(self, input: Tensor, hx: Tensor | None = None, *, resets: Tensor | None = None) -> Tensor:
        found: Tensor = self._forward(input, hx, resets)
        return found

    def _forward(self, input: Any, hx: Any, resets: Any = None) -> Any:
        if self._choice() not in self._cell.kinds:  # torch.nn does not look at it before
            return self._torch_forward(input, hx)
        return super()._forward(input, hx, resets)

    def _choice(self) -> Choice:
        return self.nonlinearity, self.layer_norm
