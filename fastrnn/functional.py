"""Stacks of recurrent layers as functions of their weights.

Letters: T time, B batch, N rows of a packed sequence, I input, H hidden, P projection, R = P or H, L layers,
D directions. Weights are torch's flat list: for each layer and direction w_ih [G*H, I or D*R], w_hh [G*H, R], the
biases b_ih and b_hh [G*H] if has_biases and, for a projected LSTM, w_hr [P, H]; G is 4 (LSTM), 3 (GRU) or 1 (RNN).
"""

from collections.abc import Sequence

from torch import Tensor

from fastrnn._heads import check_heads
from fastrnn._options import NONE, Constants, check_cell_clip, check_together, check_zoneout
from fastrnn._rows import rows_of_call
from fastrnn._spec import GRU, LSTM, RNN
from fastrnn._stack import Stack, run_stack

__all__ = ["gru", "lstm", "rnn"]


def lstm(
    x: Tensor,
    hx: Sequence[Tensor] | None,
    weights: Sequence[Tensor],
    *,
    batch_sizes: Tensor | None = None,
    has_biases: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    activation: str = "tanh",
    recurrent_activation: str = "sigmoid",
    layer_norm: bool = False,
    coupled_gates: bool = False,
    peephole: bool = False,
    operands: Sequence[Tensor] = (),
    recompute: bool = False,
    heads: int = 1,
    weight_dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    zoneout: float | tuple[float, float] = 0.0,
    cell_clip: float | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    return_cell_states: bool = False,
) -> tuple[Tensor, ...]:
    """A stack of LSTM layers.

    Args:
        x: [T, B, I]; [B, T, I] if batch_first; [T, I], one sequence; [N, I], the data of a PackedSequence, if
            batch_sizes is given
        hx: (h_0 [L*D, B, R], c_0 [L*D, B, H]), without B for x [T, I]; or None for zeros
        weights: torch's flat list, see above; with w_hr the LSTM is projected
        batch_sizes: of a PackedSequence, int64 [T] on the CPU; batch_first is then ignored
        dropout: the probability with which, in training, an output of every layer but the last becomes zero
        activation, recurrent_activation, layer_norm, coupled_gates, peephole: as in :class:`fastrnn.LSTM`
        operands: for each layer and direction, with layer_norm its gains ln_ih and ln_hh [4*H], ln_c_weight and
            ln_c_bias [H]; with peephole its weights [3*H] of i f o, or [2*H] of i o with coupled_gates
        zoneout, cell_clip: as in :class:`fastrnn.LSTM`
        heads: of the recurrent weights; w_hh is then [4*H, R / heads]
        recompute, weight_dropout, recurrent_dropout: as in :class:`fastrnn.LSTM`; the latter two act in training alone
        lengths: of the rows of x, int64 [B], on any device and in any order; values from 1 to T. y is zero behind a
            row's end, its final states are those there, and the reverse direction begins there
        resets: bool, x's shape without I. A row is cut before each step where they are true: the state is zero there,
            at the first step too. The reverse direction is cut at the same places: h_0 enters the last piece, and h_n
            is the state after the first one
        return_cell_states: return c after every step too

    Returns:
        y with x's layout and D*R features, and h_n and c_n like hx; with return_cell_states c of every step, with x's
        layout and D*H features

    Raises:
        ValueError: lengths, resets or values of options that do not fit
    """
    choice = activation, recurrent_activation, layer_norm, coupled_gates
    constants = Constants(*check_zoneout(zoneout, LSTM.states), check_cell_clip(cell_clip))
    directions = num_layers * (2 if bidirectional else 1)
    check_together(choice, peephole, constants, projected=len(weights) // directions % 2 == 1)
    if peephole and len(operands) != directions:
        raise ValueError(
            f"peephole takes an operand for each layer and direction: expected {directions}, got {len(operands)}"
        )
    general = peephole or constants != NONE
    spec = LSTM.spec(choice, has_biases, batch_first, bidirectional, check_heads(heads), general)
    spec, batch_sizes = rows_of_call(spec, x, batch_sizes, lengths, resets, return_cell_states)
    dropouts = dropout, weight_dropout, recurrent_dropout
    stack = Stack(spec, num_layers, training, *dropouts, recompute, constants)
    return run_stack(stack, x, hx, weights, batch_sizes, operands, resets)


def gru(
    x: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    batch_sizes: Tensor | None = None,
    has_biases: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    reset_after: bool = True,
    activation: str = "tanh",
    recurrent_activation: str = "sigmoid",
    layer_norm: bool = False,
    operands: Sequence[Tensor] = (),
    recompute: bool = False,
    heads: int = 1,
    weight_dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    zoneout: float = 0.0,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A stack of GRU layers.

    Args:
        hx: h_0 [L*D, B, H], without B for x [T, I]; or None for zeros
        reset_after: the reset gate acts on the recurrent product, as in torch.nn; False: on h before the product,
            as in Cho et al. 2014, Keras's ``reset_after=False`` and ONNX's ``linear_before_reset=0``
        activation, recurrent_activation, layer_norm, zoneout: as in :class:`fastrnn.GRU`
        operands: with layer_norm, for each layer and direction its gains ln_ih and ln_hh [3*H]

    The other arguments are those of :func:`lstm`.

    Returns:
        y with x's layout and D*H features, h_n like hx
    """
    choice = reset_after, activation, recurrent_activation, layer_norm
    constants = Constants(*check_zoneout(zoneout, GRU.states))
    general = constants != NONE
    spec = GRU.spec(choice, has_biases, batch_first, bidirectional, check_heads(heads), general)
    spec, batch_sizes = rows_of_call(spec, x, batch_sizes, lengths, resets, False)
    dropouts = dropout, weight_dropout, recurrent_dropout
    stack = Stack(spec, num_layers, training, *dropouts, recompute, constants)
    y, h_n = run_stack(stack, x, None if hx is None else (hx,), weights, batch_sizes, operands, resets)
    return y, h_n


def rnn(
    x: Tensor,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    batch_sizes: Tensor | None = None,
    has_biases: bool = True,
    num_layers: int = 1,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    batch_first: bool = False,
    nonlinearity: str = "tanh",
    layer_norm: bool = False,
    operands: Sequence[Tensor] = (),
    recompute: bool = False,
    heads: int = 1,
    weight_dropout: float = 0.0,
    recurrent_dropout: float = 0.0,
    zoneout: float = 0.0,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A stack of Elman layers.

    Args:
        hx: h_0 [L*D, B, H], without B for x [T, I]; or None for zeros
        nonlinearity, layer_norm, zoneout: as in :class:`fastrnn.RNN`
        operands: with layer_norm, for each layer and direction its gains ln_ih and ln_hh [H]

    The other arguments are those of :func:`lstm`.

    Returns:
        y with x's layout and D*H features, h_n like hx
    """
    constants = Constants(*check_zoneout(zoneout, RNN.states))
    general = constants != NONE
    choice = nonlinearity, layer_norm
    spec = RNN.spec(choice, has_biases, batch_first, bidirectional, check_heads(heads), general)
    spec, batch_sizes = rows_of_call(spec, x, batch_sizes, lengths, resets, False)
    dropouts = dropout, weight_dropout, recurrent_dropout
    stack = Stack(spec, num_layers, training, *dropouts, recompute, constants)
    y, h_n = run_stack(stack, x, None if hx is None else (hx,), weights, batch_sizes, operands, resets)
    return y, h_n
