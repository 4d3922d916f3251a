"""Dropout of what is recurrent. A call draws its masks once, from torch's generator, and they hold for all steps."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_probability(name: str, value: Any) -> float:
    """value, if it is a probability; a ValueError otherwise."""
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 <= value <= 1:
        raise ValueError(
            f"{name} should be a number in range [0, 1] representing the probability of an element being zeroed"
        )
    return float(value)


def drop_weights(weights: Sequence[Tensor], directions: int, probability: float) -> list[Tensor]:
    """torch's flat list for so many layers and directions with elements of every w_hh dropped (Wan et al. 2013; Merity
    et al. 2018, https://arxiv.org/abs/1708.02182)."""
    count = len(weights) // directions
    return [
        torch.dropout(w, probability, True) if index % count == 1 else w for index, w in enumerate(weights)
    ]
