"""The specification: every cell and option as a plain PyTorch loop, differentiable any number of times.

The ``*_step`` functions carry the formulas. The ``*_layer`` functions run them over a sequence; they take what the
``*_forward`` ops take, but ``training``. Letters: T time, B batch, N rows of a packed sequence, I input, H hidden,
P projection, R = P or H, D directions. Gates lie in torch's order, i f g o and r z n, on the first axis of a weight.
With several heads a w_hh has R / heads columns. masks are those of recurrent dropout, [B, R] for each direction.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "softsign": F.softsign,
    "relu": torch.relu,
    "hardtanh": F.hardtanh,
}


class Rows(NamedTuple):
    """Where the rows of a layer's sequence end and are cut, and whether c is returned for every step.

    lengths, int64 [B], are those of the rows of an x that is not packed: y is zero behind a row's end, its final state
    is the one there, and the reverse direction begins there. resets, bool, have x's shape without I: a row is cut
    before each step where they are true, and the piece that begins there begins with a state of zeros, at the first
    step too. The reverse direction runs from a cut's other side: h0 enters the last piece, the pieces before it begin
    with zeros, and h_n is the state after the first one.
    """

    lengths: Tensor | None = None
    resets: Tensor | None = None
    cell_states: bool = False


WHOLE = Rows()

# w_ih, w_hh, b_ih, b_hh, w_hr, and the operands
_Direction = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Sequence[Tensor]]


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
) -> tuple[Tensor, Tensor]:
    """One step of :class:`torch.nn.LSTM`; ``w_hr`` projects h (Sak et al. 2014, https://arxiv.org/abs/1402.1128).

    norm is empty or, for layer normalisation of both products and of c' on its way to the output, their gains [4*H]
    and the gain and the bias [H] of c'. mask [B, R] is what h is times where it enters the recurrent product (Gal and
    Ghahramani 2016, https://arxiv.org/abs/1512.05287).

    x [B, I], h [B, R], c [B, H], w_ih [4*H, I], w_hh [4*H, R], b_ih and b_hh [4*H], w_hr [P, H] -> (h, c)
    """
    act = ACTIVATIONS[activation]
    gain_ih, gain_hh, gain_c, bias_c = norm or (None,) * 4
    h = masked(h, mask)
    i, f, g, o = (product(x, w_ih, b_ih, gain_ih) + recurrent_product(h, w_hh, b_hh, gain_hh, 4)).chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * act(g)
    h = torch.sigmoid(o) * act(c if gain_c is None else F.layer_norm(c, gain_c.shape, gain_c, bias_c))
    return h if w_hr is None else F.linear(h, w_hr), c


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
) -> Tensor:
    """One step of :class:`torch.nn.GRU`, whose candidate is n = act(W x + b + r * (U h + d)); without reset_after of
    the original, n = act(W x + b + U (r * h) + d) (Cho et al. 2014, https://arxiv.org/abs/1406.1078).

    norm is empty or, for layer normalisation with reset_after, the gains [3*H] of both products. mask [B, H] is what h
    is times where it enters a recurrent product, U h and U (r * h), but not where z blends it with the candidate.

    x [B, I], h [B, H], w_ih [3*H, I], w_hh [3*H, H], b_ih and b_hh [3*H] -> h
    """
    act = ACTIVATIONS[activation]
    gain_ih, gain_hh = norm or (None, None)
    x_r, x_z, x_n = product(x, w_ih, b_ih, gain_ih).chunk(3, -1)
    if reset_after:
        h_r, h_z, h_n = recurrent_product(masked(h, mask), w_hh, b_hh, gain_hh, 3).chunk(3, -1)
        n = act(x_n + torch.sigmoid(x_r + h_r) * h_n)
    else:
        size = h.shape[-1]
        w_rz, w_n = w_hh[: 2 * size], w_hh[2 * size :]
        b_rz, b_n = (None, None) if b_hh is None else (b_hh[: 2 * size], b_hh[2 * size :])
        h_r, h_z = recurrent_product(masked(h, mask), w_rz, b_rz, None, 2).chunk(2, -1)
        n = act(x_n + recurrent_product(torch.sigmoid(x_r + h_r) * masked(h, mask), w_n, b_n, None, 1))
    z = torch.sigmoid(x_z + h_z)
    return (1 - z) * n + z * h


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
) -> Tensor:
    """One step of :class:`torch.nn.RNN`: h = act(W x + b + U h + d).

    norm is empty or, for layer normalisation, the gains [H] of both products. mask [B, H] is what h is times where it
    enters the recurrent product.

    x [B, I], h [B, H], w_ih [H, I], w_hh [H, H], b_ih and b_hh [H] -> h
    """
    gain_ih, gain_hh = norm or (None, None)
    from_h = recurrent_product(masked(h, mask), w_hh, b_hh, gain_hh, 1)
    return ACTIVATIONS[nonlinearity](product(x, w_ih, b_ih, gain_ih) + from_h)


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
    layer_norm: bool,
    masks: Sequence[Tensor] = (),
    rows: Rows = WHOLE,
) -> tuple[Tensor, ...]:
    """x [T, B, I], [B, T, I] if batch_first, or [N, I] if packed; h0 [D, B, R], c0 [D, B, H] or None for zeros
    -> (y like x with D*R features, h_n [D, B, R], c_n [D, B, H]), and c of every step, like x with D*H features, where
    rows ask for it."""

    def step(x: Tensor, h: Tensor, c: Tensor, w: _Direction, mask: Tensor | None) -> tuple[Tensor, ...]:
        w_ih, w_hh, b_ih, b_hh, w_hr, norm = w
        return lstm_step(x, h, c, w_ih, w_hh, b_ih, b_hh, w_hr, activation, norm, mask)

    directions = _directions(weights, operands, has_biases, bidirectional)
    hidden, w_hr = weights[1].shape[0] // 4, directions[0][4]
    sizes = hidden if w_hr is None else w_hr.shape[0], hidden
    return _layer(step, x, (h0, c0), sizes, directions, batch_sizes, batch_first, masks, rows)


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
    layer_norm: bool,
    masks: Sequence[Tensor] = (),
    rows: Rows = WHOLE,
) -> tuple[Tensor, Tensor]:
    """x [T, B, I], [B, T, I] if batch_first, or [N, I] if packed; h0 [D, B, H] or None for zeros
    -> (y like x with D*H features, h_n [D, B, H])."""

    def step(x: Tensor, h: Tensor, w: _Direction, mask: Tensor | None) -> tuple[Tensor, ...]:
        w_ih, w_hh, b_ih, b_hh, _, norm = w
        return (gru_step(x, h, w_ih, w_hh, b_ih, b_hh, reset_after, activation, norm, mask),)

    directions = _directions(weights, operands, has_biases, bidirectional)
    y, h_n = _layer(
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

    def step(x: Tensor, h: Tensor, w: _Direction, mask: Tensor | None) -> tuple[Tensor, ...]:
        w_ih, w_hh, b_ih, b_hh, _, norm = w
        return (rnn_step(x, h, w_ih, w_hh, b_ih, b_hh, nonlinearity, norm, mask),)

    directions = _directions(weights, operands, has_biases, bidirectional)
    y, h_n = _layer(step, x, (h0,), (weights[1].shape[0],), directions, batch_sizes, batch_first, masks, rows)
    return y, h_n


def _directions(
    weights: Sequence[Tensor], operands: Sequence[Tensor], has_biases: bool, bidirectional: bool
) -> list[_Direction]:
    """(w_ih, w_hh, b_ih, b_hh, w_hr, operands) of each direction, with None for what is absent."""
    count = 2 if bidirectional else 1
    found = []
    for index in range(count):
        part, own = (
            tensors[len(tensors) * index // count : len(tensors) * (index + 1) // count]
            for tensors in (weights, operands)
        )
        w_ih, w_hh, *rest = part
        b_ih, b_hh = (rest[0], rest[1]) if has_biases else (None, None)
        w_hr = rest[-1] if len(rest) % 2 else None
        found.append((w_ih, w_hh, b_ih, b_hh, w_hr, own))
    return found


def _layer(
    step: Callable[..., tuple[Tensor, ...]],
    x: Tensor,
    initial: tuple[Tensor | None, ...],
    sizes: tuple[int, ...],
    directions: list[_Direction],
    batch_sizes: Tensor | None,
    batch_first: bool,
    masks: Sequence[Tensor],
    rows: Rows,
) -> tuple[Tensor, ...]:
    """y and the final states, and the last state of every step where rows ask for it; rows of a sequence that have
    ended keep their state."""
    time_dim = 1 if batch_first and batch_sizes is None else 0

    def split(sequence: Tensor) -> list[Tensor]:
        if batch_sizes is None:
            return list(sequence.unbind(time_dim))
        return list(torch.split(sequence, batch_sizes.tolist()))

    def join(steps: Sequence[Tensor]) -> Tensor:
        return torch.stack(tuple(steps), time_dim) if batch_sizes is None else torch.cat(tuple(steps))

    steps = split(x)
    cuts = None if rows.resets is None else split(rows.resets)
    batch, time = steps[0].shape[0], len(steps)
    going_on: list[Tensor] | None = None
    if rows.lengths is not None:
        ends = rows.lengths.to(x.device)
        going_on = [t < ends for t in range(time)]
        steps = [torch.where(on[:, None], row, 0.0) for on, row in zip(going_on, steps, strict=True)]
    sequences, finals = [], []
    for direction, weights in enumerate(directions):
        state = tuple(
            x.new_zeros(batch, size) if start is None else start[direction]
            for start, size in zip(initial, sizes, strict=True)
        )
        made: list[tuple[Tensor, ...]] = []
        for t in reversed(range(time)) if direction else range(time):
            active = steps[t].shape[0]
            start = tuple(s[:active] for s in state)
            if cuts is not None and (not direction or t + 1 < time):
                start = _cut(start, cuts, going_on, t + direction)
            mask = masks[direction][:active] if masks else None
            new = step(steps[t], *start, weights, mask)
            state = tuple(
                torch.cat((n if going_on is None else torch.where(going_on[t][:, None], n, s), s[active:]))
                for n, s in zip(new, state, strict=True)
            )
            out = new[:2] if rows.cell_states else (new[0],)
            if going_on is not None:
                out = tuple(torch.where(going_on[t][:, None], o, 0.0) for o in out)
            made.append(out)
        sequences.append(made[::-1] if direction else made)
        finals.append(state)
    # of each direction, step and output -> of each output, joined over directions, then over steps
    of_steps = zip(*sequences, strict=True)
    joined = ([torch.cat(parts, -1) for parts in zip(*outs, strict=True)] for outs in of_steps)
    y, *cell_states = (join(of_output) for of_output in zip(*joined, strict=True))
    return y, *(torch.stack(parts) for parts in zip(*finals, strict=True)), *cell_states


def _cut(
    state: tuple[Tensor, ...], cuts: Sequence[Tensor], going_on: Sequence[Tensor] | None, t: int
) -> tuple[Tensor, ...]:
    """The state with zeros in the rows that are cut before time t, of those that are still there then."""
    cut = cuts[t] if going_on is None else cuts[t] & going_on[t]
    there = cut.shape[0]
    return tuple(torch.cat((torch.where(cut[:, None], 0.0, s[:there]), s[there:])) for s in state)
