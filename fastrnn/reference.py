"""The specification: every cell and option as a plain PyTorch loop, differentiable any number of times.

The ``*_step`` functions carry the formulas. The ``*_layer`` functions run them over a sequence; they take what the
``*_forward`` ops take, but ``training``. Letters: T time, B batch, N rows of a packed sequence, I input, H hidden,
P projection, R = P or H, D directions. Gates lie in torch's order, i f g o and r z n, on the first axis of a weight.
With several heads a w_hh has R / heads columns. masks are those of recurrent dropout, [B, R] for each direction.
Cells that torch.nn lacks are in :mod:`fastrnn._reference_cells`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastrnn._reference_loop import WHOLE, Rows, directions_of, run_loop

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "softsign": F.softsign,
    "relu": torch.relu,
    "hardtanh": F.hardtanh,
    "sigmoid": torch.sigmoid,
    "identity": lambda x: x,
    "silu": F.silu,
    "leaky_relu": F.leaky_relu,
    "hardsigmoid": lambda x: F.relu6(x + 3) / 6,  # torch's own has a sixth in float32
    "onnx_hardsigmoid": lambda x: F.hardtanh(0.2 * x + 0.5, 0.0, 1.0),
    "half_linear": lambda x: torch.where(x < 0, torch.sigmoid(x), x + 0.5),
}


def product(x: Tensor, w: Tensor, b: Tensor | None, gain: Tensor | None) -> Tensor:
    """W x + b; with a gain LN(W x) * gain + b, over all rows of W (Ba et al. 2016, https://arxiv.org/abs/1607.06450).

    x [B, K], w [G*H, K], b and gain [G*H] -> [B, G*H]
    """
    if gain is None:
        return F.linear(x, w, b)
    return F.layer_norm(F.linear(x, w), gain.shape, gain, b)


def recurrent_product(h: Tensor, w: Tensor, b: Tensor | None, gain: Tensor | None, gates: int) -> Tensor:
    """:func:`product` for weights of one head or several: the units of head k meet its part of h alone.

    h [B, R], w [gates*H, R / heads], b and gain [gates*H] -> [B, gates*H]
    """
    heads = h.shape[-1] // w.shape[-1]
    if heads == 1:
        return product(h, w, b, gain)
    blocks = w.view(gates, heads, -1, w.shape[-1]).unbind(1)
    parts = zip(h.chunk(heads, -1), blocks, strict=True)
    found = [
        F.linear(part, block.flatten(0, 1)).view(-1, gates, w.shape[0] // (gates * heads))
        for part, block in parts
    ]
    joined = torch.cat(found, -1).flatten(-2)
    if gain is not None:
        joined = F.layer_norm(joined, gain.shape, gain)
    return joined if b is None else joined + b


def masked(h: Tensor, mask: Tensor | None) -> Tensor:
    return h if mask is None else h * mask


def zone_out(made: Tensor, before: Tensor, zone: Tensor | None) -> Tensor:
    """The new state from what was made of it and from the one before (Krueger et al. 2017,
    https://arxiv.org/abs/1606.01305); zone is 1 where a unit is kept, at evaluation the probability of that."""
    return made if zone is None else (zone * before + (1 - zone) * made).to(made.dtype)


def lstm_step(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    w_hr: Tensor | None = None,
    activation: str = "tanh",
    norm: Sequence[Tensor] = (),
    mask: Tensor | None = None,
    recurrent_activation: str = "sigmoid",
    coupled_gates: bool = False,
    peepholes: Sequence[Tensor] = (),
    zones: tuple[Tensor | None, Tensor | None] = (None, None),
    bound: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One step of :class:`torch.nn.LSTM`; ``w_hr`` projects h (Sak et al. 2014, https://arxiv.org/abs/1402.1128).

    norm is empty or, for layer normalisation of both products and of c' on its way to the output, their gains [4*H]
    and the gain and the bias [H] of c'. mask [B, R] is what h is times where it enters the recurrent product (Gal and
    Ghahramani 2016, https://arxiv.org/abs/1512.05287).

    With coupled_gates f = 1 - i, and weights have 3*H rows, i g o (Greff et al. 2017,
    https://arxiv.org/abs/1503.04069). peepholes are none or weights [H] by which i and f see c and o sees c' (Gers and
    Schmidhuber 2000); without that of f where gates are coupled. bound [H] is the largest magnitude of c', beyond which
    there is no gradient. zones are what h and c are zoned out by: h is made from c' before that is zoned out.

    x [B, I], h [B, R], c [B, H], w_ih [4*H, I], w_hh [4*H, R], b_ih and b_hh [4*H], w_hr [P, H] -> (h, c)
    """
    act, gate = ACTIVATIONS[activation], ACTIVATIONS[recurrent_activation]
    gain_ih, gain_hh, gain_c, bias_c = norm or (None,) * 4
    gates = 3 if coupled_gates else 4
    from_h = recurrent_product(masked(h, mask), w_hh, b_hh, gain_hh, gates)
    i, *f, g, o = (product(x, w_ih, b_ih, gain_ih) + from_h).chunk(gates, -1)
    if peepholes:
        i, o_peep = i + peepholes[0] * c, peepholes[-1]
        f = [f[0] + peepholes[1] * c] if f else []
    made_i = gate(i)
    made_c = (gate(f[0]) if f else 1 - made_i) * c + made_i * act(g)
    if bound is not None:
        made_c = made_c.clamp(-bound.to(c.dtype), bound.to(c.dtype))
    made_o = gate(o + o_peep * made_c if peepholes else o)
    shown = made_c if gain_c is None else F.layer_norm(made_c, gain_c.shape, gain_c, bias_c)
    made_h = made_o * act(shown)
    if w_hr is not None:
        made_h = F.linear(made_h, w_hr)
    return zone_out(made_h, h, zones[0]), zone_out(made_c, c, zones[1])


def gru_step(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    reset_after: bool = True,
    activation: str = "tanh",
    norm: Sequence[Tensor] = (),
    mask: Tensor | None = None,
    recurrent_activation: str = "sigmoid",
    zone: Tensor | None = None,
) -> Tensor:
    """One step of :class:`torch.nn.GRU`, whose candidate is n = act(W x + b + r * (U h + d)); without reset_after of
    the original, n = act(W x + b + U (r * h) + d) (Cho et al. 2014, https://arxiv.org/abs/1406.1078).

    norm is empty or, for layer normalisation with reset_after, the gains [3*H] of both products. mask [B, H] is what h
    is times where it enters a recurrent product, U h and U (r * h), but not where z blends it with the candidate. zone
    is what h is zoned out by.

    x [B, I], h [B, H], w_ih [3*H, I], w_hh [3*H, H], b_ih and b_hh [3*H] -> h
    """
    act, gate = ACTIVATIONS[activation], ACTIVATIONS[recurrent_activation]
    gain_ih, gain_hh = norm or (None, None)
    x_r, x_z, x_n = product(x, w_ih, b_ih, gain_ih).chunk(3, -1)
    if reset_after:
        h_r, h_z, h_n = recurrent_product(masked(h, mask), w_hh, b_hh, gain_hh, 3).chunk(3, -1)
        n = act(x_n + gate(x_r + h_r) * h_n)
    else:
        size = h.shape[-1]
        w_rz, w_n = w_hh[: 2 * size], w_hh[2 * size :]
        b_rz, b_n = (None, None) if b_hh is None else (b_hh[: 2 * size], b_hh[2 * size :])
        h_r, h_z = recurrent_product(masked(h, mask), w_rz, b_rz, None, 2).chunk(2, -1)
        n = act(x_n + recurrent_product(gate(x_r + h_r) * masked(h, mask), w_n, b_n, None, 1))
    z = gate(x_z + h_z)
    return zone_out((1 - z) * n + z * h, h, zone)


def rnn_step(
    x: Tensor,
    h: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
    nonlinearity: str = "tanh",
    norm: Sequence[Tensor] = (),
    mask: Tensor | None = None,
    zone: Tensor | None = None,
) -> Tensor:
    """One step of :class:`torch.nn.RNN`: h = act(W x + b + U h + d).

    norm is empty or, for layer normalisation, the gains [H] of both products. mask [B, H] is what h is times where it
    enters the recurrent product. zone is what h is zoned out by.

    x [B, I], h [B, H], w_ih [H, I], w_hh [H, H], b_ih and b_hh [H] -> h
    """
    gain_ih, gain_hh = norm or (None, None)
    from_h = recurrent_product(masked(h, mask), w_hh, b_hh, gain_hh, 1)
    return zone_out(ACTIVATIONS[nonlinearity](product(x, w_ih, b_ih, gain_ih) + from_h), h, zone)


def lstm_layer(
    x: Tensor,
    h0: Tensor | None,
    c0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    operands: Sequence[Tensor],
    has_biases: bool,
    batch_first: bool,
    bidirectional: bool,
    activation: str,
    recurrent_activation: str,
    layer_norm: bool,
    coupled_gates: bool,
    masks: Sequence[Tensor] = (),
    rows: Rows = WHOLE,
) -> tuple[Tensor, ...]:
    """x [T, B, I], [B, T, I] if batch_first, or [N, I] if packed; h0 [D, B, R], c0 [D, B, H] or None for zeros
    -> (y like x with D*R features, h_n [D, B, R], c_n [D, B, H]), and c of every step, like x with D*H features, where
    rows ask for it."""

    def step(x: Tensor, h: Tensor, c: Tensor, w: Any, mask: Tensor | None) -> tuple[Tensor, ...]:
        w_ih, w_hh, b_ih, b_hh, w_hr, given = w
        norm: Sequence[Tensor] = given[:4] if layer_norm else ()
        peepholes: Sequence[Tensor] = ()
        zones, bound = (None, None), None
        if layer_norm and given[4:]:
            zones = given[4:]
        elif given and not layer_norm:
            *peepholes, zone_h, zone_c, bound = given
            peepholes, zones = () if peepholes[0] is None else peepholes, (zone_h, zone_c)
        usual = x, h, c, w_ih, w_hh, b_ih, b_hh, w_hr, activation, norm, mask
        return lstm_step(*usual, recurrent_activation, coupled_gates, peepholes, zones, bound)

    directions = directions_of(weights, operands, has_biases, bidirectional)
    hidden, w_hr = weights[1].shape[0] // (3 if coupled_gates else 4), directions[0][4]
    sizes = hidden if w_hr is None else w_hr.shape[0], hidden
    return run_loop(step, x, (h0, c0), sizes, directions, batch_sizes, batch_first, masks, rows)


def gru_layer(
    x: Tensor,
    h0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    operands: Sequence[Tensor],
    has_biases: bool,
    batch_first: bool,
    bidirectional: bool,
    reset_after: bool,
    activation: str,
    recurrent_activation: str,
    layer_norm: bool,
    masks: Sequence[Tensor] = (),
    rows: Rows = WHOLE,
) -> tuple[Tensor, Tensor]:
    """x [T, B, I], [B, T, I] if batch_first, or [N, I] if packed; h0 [D, B, H] or None for zeros
    -> (y like x with D*H features, h_n [D, B, H])."""

    def step(x: Tensor, h: Tensor, w: Any, mask: Tensor | None) -> tuple[Tensor, ...]:
        w_ih, w_hh, b_ih, b_hh, _, given = w
        count = 2 if layer_norm else 0
        norm, zone = given[:count], given[count] if len(given) > count else None
        return (
            gru_step(
                x, h, w_ih, w_hh, b_ih, b_hh, reset_after, activation, norm, mask, recurrent_activation, zone
            ),
        )

    directions = directions_of(weights, operands, has_biases, bidirectional)
    y, h_n = run_loop(
        step, x, (h0,), (weights[1].shape[0] // 3,), directions, batch_sizes, batch_first, masks, rows
    )
    return y, h_n


def rnn_layer(
    x: Tensor,
    h0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    operands: Sequence[Tensor],
    has_biases: bool,
    batch_first: bool,
    bidirectional: bool,
    nonlinearity: str,
    layer_norm: bool,
    masks: Sequence[Tensor] = (),
    rows: Rows = WHOLE,
) -> tuple[Tensor, Tensor]:
    """x [T, B, I], [B, T, I] if batch_first, or [N, I] if packed; h0 [D, B, H] or None for zeros
    -> (y like x with D*H features, h_n [D, B, H])."""

    def step(x: Tensor, h: Tensor, w: Any, mask: Tensor | None) -> tuple[Tensor, ...]:
        w_ih, w_hh, b_ih, b_hh, _, given = w
        count = 2 if layer_norm else 0
        norm, zone = given[:count], given[count] if len(given) > count else None
        return (rnn_step(x, h, w_ih, w_hh, b_ih, b_hh, nonlinearity, norm, mask, zone),)

    directions = directions_of(weights, operands, has_biases, bidirectional)
    y, h_n = run_loop(
        step, x, (h0,), (weights[1].shape[0],), directions, batch_sizes, batch_first, masks, rows
    )
    return y, h_n
