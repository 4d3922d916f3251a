"""Operands: what a cell takes beside its gates, in the order of its traits in csrc/cells.

Those that a layer does without have shape [0]. Parameters come first; then, of a cell with zoneout, what h and c are
zoned out by; last, of a general LSTM, the bound of c.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastrnn._masks import check_probability, draw_ones
from fastrnn._spec import Choice, cell_of

# options whose cells take operands, which neither a step of Stream nor a quantized layer has
WITH_OPERANDS = ("layer_norm", "peephole", "coupled_gates", "zoneout", "cell_clip")


class Constants(NamedTuple):
    """What a layer's operands hold beside its parameters."""

    zone_h: float = 0.0
    zone_c: float = 0.0
    cell_clip: float | None = None


NONE = Constants()


def check_zoneout(zoneout: Any, states: int) -> tuple[float, float]:
    """Those of h and of c; a ValueError if they are no probabilities."""
    parts = zoneout if isinstance(zoneout, (tuple, list)) else (zoneout, 0.0)
    if len(parts) != 2 or (states < 2 and isinstance(zoneout, (tuple, list))):
        raise ValueError("zoneout should be a probability, that of h; of an LSTM also (that of h, that of c)")
    zone_h, zone_c = (check_probability("zoneout", part) for part in parts)
    return zone_h, zone_c


def check_cell_clip(cell_clip: Any) -> float | None:
    if cell_clip is None:
        return None
    if isinstance(cell_clip, bool) or not isinstance(cell_clip, (int, float)) or not cell_clip > 0:
        raise ValueError(f"cell_clip should be a positive number or None, got {cell_clip!r}")
    return float(cell_clip)


def check_together(choice: Choice, peephole: bool, constants: Constants, projected: bool) -> None:
    """A ValueError where an LSTM's options, of which some are in its choice, do not go together."""
    *_, layer_norm, _ = choice
    if layer_norm and peephole:
        raise ValueError(
            "layer_norm normalises what the gates see of x and h, so it does not go with peephole"
        )
    if layer_norm and constants.cell_clip is not None:
        raise ValueError("layer_norm keeps what is shown of c in bounds, so it does not go with cell_clip")
    if projected and constants.zone_h:
        raise ValueError(
            "zoneout keeps units of h, which a projection has none of: zoneout=(0, p) zones out c"
        )


def operands_of_call(
    spec: int,
    parameters: Sequence[Tensor],
    directions: int,
    constants: Constants,
    training: bool,
    x: Tensor,
    sizes: tuple[int, int, int],
) -> Sequence[Tensor]:
    """The operands of so many layers and directions. sizes are T, B and H.

    Zoneout draws masks [T, B, H] in training, and holds its mean [H] else (Krueger et al. 2017,
    https://arxiv.org/abs/1606.01305).
    """
    cell = cell_of(spec)
    if cell.operands == cell.required:
        return parameters
    time, batch, hidden = sizes
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    count = len(parameters) // directions

    def absent() -> Tensor:
        return x.new_empty(0)  # each of its own: torch.compile takes no tensor twice

    def zone(probability: float) -> Tensor:
        if not probability:
            return absent()
        if training:
            return draw_ones((time, batch, hidden), probability, x)
        return x.new_full((hidden,), probability, dtype=dtype)

    zones = (constants.zone_h, constants.zone_c)[: cell.states]
    found: list[Tensor] = []
    for index in range(directions):
        own = parameters[index * count : (index + 1) * count]
        if cell.required:
            found += own
        elif cell.learned:
            found += own[0].chunk(cell.learned) if own else [absent() for _ in range(cell.learned)]
        found += [zone(probability) for probability in zones]
        if cell.operands > cell.learned + len(zones):
            clip = constants.cell_clip
            found.append(absent() if clip is None else x.new_full((hidden,), clip, dtype=dtype))
    return found
