"""Dropout of what is recurrent. A call draws its masks once, from torch's generator, and they hold for all steps."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastrnn import _ops


def check_probability(name: str, value: Any) -> float:
    """value, if it is a probability; a ValueError otherwise."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(
            f"{name} should be a number in range [0, 1] representing the probability of an element being zeroed"
        )
    return float(value)


_DRAWS = 1 << 16


def draw(shape: Sequence[int], probability: float, like: Tensor) -> Tensor:
    """A mask: 0 with that probability, rounded to 2^-16, elsewhere what keeps the mean."""
    kept = _DRAWS - round(probability * _DRAWS)
    return _draw(shape, kept, _DRAWS / max(kept, 1), like)


def draw_ones(shape: Sequence[int], probability: float, like: Tensor) -> Tensor:
    """1 with that probability, rounded to 2^-16, elsewhere 0."""
    return _draw(shape, round(probability * _DRAWS), 1.0, like)


def _draw(shape: Sequence[int], ones: int, value: float, like: Tensor) -> Tensor:
    """value with probability ones / 2^16, elsewhere 0."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    if like.is_cuda:
        words = _random_words((math.prod(shape) + 3) // 4, like.device)
        draws = words.view(torch.int16)[: math.prod(shape)].view(*shape)
        # to the last `ones` of the integers up to 2^15 - 1
        return (draws > _DRAWS // 2 - 1 - ones).to(dtype).mul_(value).to(like.dtype)
    mask = torch.empty(*shape, dtype=dtype, device=like.device)
    _ops.draw_mask(mask, _random_words(1, like.device), ones, value)
    return mask.to(like.dtype)


def _random_words(count: int, device: torch.device) -> Tensor:
    return torch.randint(-(2**63), 2**63 - 1, (count,), dtype=torch.int64, device=device)


def add_recurrent_masks(
    operands: Sequence[Tensor], directions: int, probability: float, like: Tensor, batch: int, width: int
) -> list[Tensor]:
    """The operands of so many layers and directions, each with a mask [batch, width] for h behind its own (Gal and
    Ghahramani 2016, https://arxiv.org/abs/1512.05287)."""
    masks = draw((directions, batch, width), probability, like)
    count = len(operands) // directions
    found: list[Tensor] = []
    for index, mask in enumerate(masks):
        found += [*operands[index * count : (index + 1) * count], mask]
    return found


def drop_weights(weights: Sequence[Tensor], directions: int, probability: float) -> list[Tensor]:
    """torch's flat list for so many layers and directions with elements of every w_hh dropped (Wan et al. 2013; Merity
    et al. 2018, https://arxiv.org/abs/1708.02182)."""
    count = len(weights) // directions
    return [w * draw(w.shape, probability, w) if index % count == 1 else w for index, w in enumerate(weights)]
