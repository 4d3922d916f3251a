"""The specification of the cells that torch.nn lacks; see :mod:`fastrnn.reference`, whose letters and arguments these
have."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrnn._reference_loop import WHOLE, Rows, directions_of, run_loop
from fastrnn.reference import ACTIVATIONS, masked, recurrent_product


def slstm_step(
    x: Tensor,
    h: Tensor,
    memories: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of sLSTM (Beck et al. 2024, https://arxiv.org/abs/2405.04517), with gates in the order i f z o. The
    stabiliser m' is the larger of the two gates' exponents, and that of i alone where nothing is remembered, n = 0.

    x [B, I], h [B, H], memories [B, 3*H] (c n m), w_ih [4*H, I], w_hh [4*H, H / heads], b_ih and b_hh [4*H], mask
    [B, H] -> (h, memories)
    """
    c, n, m = memories.chunk(3, -1)
    seen = F.linear(x, w_ih, b_ih) + recurrent_product(masked(h, mask), w_hh, b_hh, None, 4)
    to_i, f, z, o = seen.chunk(4, -1)
    to_f = F.logsigmoid(f) + m
    m = torch.where((n > 0) & (to_f > to_i), to_f, to_i)
    i, f = torch.exp(to_i - m), torch.exp((to_f - m).clamp(max=0))
    c, n = f * c + i * torch.tanh(z), f * n + i
    return torch.sigmoid(o) * c / n, torch.cat([c, n, m], -1)


def indrnn_step(
    x: Tensor, h: Tensor, w_ih: Tensor, u: Tensor, b: Tensor | None = None, nonlinearity: str = "relu"
) -> Tensor:
    """One step of IndRNN, h = act(W x + b + u * h) (Li et al. 2018, https://arxiv.org/abs/1803.04831).

    x [B, I], h [B, H], w_ih [H, I], u and b [H] -> h
    """
    return ACTIVATIONS[nonlinearity](F.linear(x, w_ih, b) + u * h)


def min_gru_step(
    x: Tensor, h: Tensor, w_ih: Tensor, b: Tensor | None = None, activation: str = "identity"
) -> Tensor:
    """One step of minGRU, with gates in the order z n (Feng et al. 2024, https://arxiv.org/abs/2410.01201).

    x [B, I], h [B, H], w_ih [2*H, I], b [2*H] -> h
    """
    z, n = F.linear(x, w_ih, b).chunk(2, -1)
    z = torch.sigmoid(z)
    return (1 - z) * h + z * ACTIVATIONS[activation](n)


def min_lstm_step(
    x: Tensor, h: Tensor, w_ih: Tensor, b: Tensor | None = None, activation: str = "identity"
) -> Tensor:
    """One step of minLSTM, with gates in the order i f n (Feng et al. 2024, https://arxiv.org/abs/2410.01201): f and i
    are divided by their sum, f / (f + i) = sigmoid(log f - log i).

    x [B, I], h [B, H], w_ih [3*H, I], b [3*H] -> h
    """
    i, f, n = F.linear(x, w_ih, b).chunk(3, -1)
    kept = torch.sigmoid(F.logsigmoid(f) - F.logsigmoid(i))
    return kept * h + (1 - kept) * ACTIVATIONS[activation](n)


def slstm_layer(
    x: Tensor,
    h0: Tensor | None,
    memories0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    operands: Sequence[Tensor],
    has_biases: bool,
    batch_first: bool,
    bidirectional: bool,
    masks: Sequence[Tensor] = (),
    rows: Rows = WHOLE,
) -> tuple[Tensor, ...]:
    """x as of a layer of :mod:`fastrnn.reference`; h0 [D, B, H] and memories0 [D, B, 3*H] or None for zeros
    -> (y like x with D*H features, h_n, memories_n)"""

    def step(x: Tensor, h: Tensor, memories: Tensor, w: Any, mask: Tensor | None) -> tuple[Tensor, ...]:
        w_ih, w_hh, b_ih, b_hh, *_ = w
        return slstm_step(x, h, memories, w_ih, w_hh, b_ih, b_hh, mask)

    directions = directions_of(weights, operands, has_biases, bidirectional)
    hidden = weights[0].shape[0] // 4
    initial, sizes = (h0, memories0), (hidden, 3 * hidden)
    return run_loop(step, x, initial, sizes, directions, batch_sizes, batch_first, masks, rows)


def _unit_by_unit(gates: int, of_step: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    """The layer of a cell without w_hh from of_step(x, h, w_ih, b, operands, activation)."""

    def layer(
        x: Tensor,
        h0: Tensor | None,
        weights: Sequence[Tensor],
        batch_sizes: Tensor | None,
        operands: Sequence[Tensor],
        has_biases: bool,
        batch_first: bool,
        bidirectional: bool,
        activation: str,
        masks: Sequence[Tensor] = (),
        rows: Rows = WHOLE,
    ) -> tuple[Tensor, ...]:
        def step(x: Tensor, h: Tensor, w: Any, _: Tensor | None) -> tuple[Tensor, ...]:
            w_ih, _, b, *_, given = w
            return (of_step(x, h, w_ih, b, given, activation),)

        directions = directions_of(weights, operands, has_biases, bidirectional, recurrent=False)
        sizes = (weights[0].shape[0] // gates,)
        return run_loop(step, x, (h0,), sizes, directions, batch_sizes, batch_first, masks, rows)

    return layer


indrnn_layer = _unit_by_unit(1, lambda x, h, w, b, given, act: indrnn_step(x, h, w, given[0], b, act))
min_gru_layer = _unit_by_unit(2, lambda x, h, w, b, _, act: min_gru_step(x, h, w, b, act))
min_lstm_layer = _unit_by_unit(3, lambda x, h, w, b, _, act: min_lstm_step(x, h, w, b, act))
