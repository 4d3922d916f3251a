"""What a layer can be. The one table of families of layers and their options, on the library's own table of cells.

A layer's form, all that describes it but its tensors, is one integer, its spec: the cell of the kernels, the activation
and flags, in the bits that csrc/torch/spec.h gives them.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from fastrnn import _library as _library  # which makes torch.ops.fastrnn
from fastrnn import reference

FACTS: dict[str, Any] = json.loads(torch.ops.fastrnn.describe())


@dataclass(frozen=True)
class Cell:
    """A cell of the kernels: a line of csrc/include/fastrnn/cells.def."""

    name: str
    gates: int  # G
    saved: int  # S: values of a unit that are kept for the backward pass
    states: int  # 1: h; 2: h and c
    has_activation: bool
    may_project: bool
    recurrent: bool  # takes w_hh and b_hh
    operands: int


# in the order of the kernels' enumerators
CELLS = tuple(Cell(**cell) for cell in FACTS["cells"])
ACTIVATIONS: tuple[str, ...] = tuple(FACTS["activations"])

_CELL_FIRST, _CELL_COUNT = map(int, FACTS["spec"]["cell"])
_ACTIVATION_FIRST, _ACTIVATION_COUNT = map(int, FACTS["spec"]["activation"])
_CELL_MASK, _ACTIVATION_MASK = (1 << _CELL_COUNT) - 1, (1 << _ACTIVATION_COUNT) - 1
_HEADS_FIRST, _HEADS_COUNT = map(int, FACTS["spec"]["heads"])
MOST_HEADS = 1 << _HEADS_COUNT
_KIND_MASK = _CELL_MASK << _CELL_FIRST | _ACTIVATION_MASK << _ACTIVATION_FIRST
HAS_BIASES, BATCH_FIRST, BIDIRECTIONAL, SINGLE_STEP, QUIET, RECURRENT_MASK = (
    1 << int(FACTS["spec"][name][0])
    for name in ("has_biases", "batch_first", "bidirectional", "single_step", "quiet", "recurrent_mask")
)
RAGGED, RESETS, CELL_STATES = (
    1 << int(FACTS["spec"][name][0]) for name in ("ragged", "resets", "cell_states")
)
NEEDS_X, NEEDS_STATES, NEEDS_WEIGHTS, NEEDS_OPERANDS = (
    1 << int(FACTS["needs"][name][0]) for name in ("x", "states", "weights", "operands")
)


@dataclass(frozen=True)
class Option:
    """A choice that a family of layers offers, named like the module's argument and attribute."""

    name: str
    default: bool | str
    values: tuple[bool | str, ...]
    is_torchs: bool = False  # torch.nn has it, with all its values

    def check(self, value: Any) -> Any:
        if value not in self.values:
            *known, last = (f"'{v}'" if isinstance(v, str) else str(v) for v in self.values)
            join = ", " if len(known) > 1 else " or "
            raise ValueError(f"Unknown {self.name} '{value}'. Select from {', '.join(known)}{join}{last}.")
        return value


Choice = tuple[bool | str, ...]  # the values of a family's options


@dataclass(frozen=True)
class CellSpec:
    """A family of layers: torch.nn's LSTM, GRU or RNN with options of our own."""

    name: str  # of its function in fastrnn.functional
    options: tuple[Option, ...]
    reference: Callable[
        ..., tuple[Tensor, ...]
    ]  # in fastrnn.reference; takes the options' values last, in their order
    gates: int
    states: int
    kind: Callable[..., tuple[str, str]]  # from a choice to the names of the kernels' cell and activation
    kinds: dict[Choice, int]  # the bits of cell and activation for every choice that has them

    @property
    def extras(self) -> dict[str, bool | str]:
        """The options that torch.nn lacks, with the values that make a layer torch.nn's."""
        return {option.name: option.default for option in self.options if not option.is_torchs}

    def spec(
        self,
        choice: Choice,
        has_biases: bool,
        batch_first: bool = False,
        bidirectional: bool = False,
        heads: int = 1,
    ) -> int:
        """The spec of a layer with these values of the options.

        Raises:
            ValueError: a value that an option does not have, or values that do not go together
        """
        try:
            bits = self.kinds[choice]
        except KeyError:
            for option, value in zip(self.options, choice, strict=True):
                option.check(value)
            self.kind(*choice)
            raise
        if has_biases:
            bits |= HAS_BIASES
        if batch_first:
            bits |= BATCH_FIRST
        if bidirectional:
            bits |= BIDIRECTIONAL
        return bits if heads == 1 else with_heads(bits, heads)

    def check(self, name: str, value: Any) -> Any:
        """value, if the option of that name has it; a ValueError otherwise."""
        return next(option for option in self.options if option.name == name).check(value)

    def is_torchs(self, choice: Choice) -> bool:
        """Whether torch.nn has the layer with these values."""
        return all(
            option.is_torchs or value == option.default
            for option, value in zip(self.options, choice, strict=True)
        )


def cell_of(spec: int) -> Cell:
    return CELLS[spec >> _CELL_FIRST & _CELL_MASK]


def outputs_of(spec: int) -> int:
    """y, the final states and, if the spec has them, the cell states; of a single step the states alone."""
    return cell_of(spec).states + (0 if spec & SINGLE_STEP else 1) + (1 if spec & CELL_STATES else 0)


def operands_of(spec: int) -> int:
    """Of a direction: the cell's, and a recurrent mask."""
    return cell_of(spec).operands + (1 if spec & RECURRENT_MASK else 0)


def heads_of(spec: int) -> int:
    return (spec >> _HEADS_FIRST & MOST_HEADS - 1) + 1


def with_heads(spec: int, heads: int) -> int:
    return spec & ~(MOST_HEADS - 1 << _HEADS_FIRST) | heads - 1 << _HEADS_FIRST


def enumerators_of(spec: int) -> tuple[int, int]:
    """Those of the cell and of the activation in csrc/include/fastrnn/kernels.h."""
    return spec >> _CELL_FIRST & _CELL_MASK, spec >> _ACTIVATION_FIRST & _ACTIVATION_MASK


def _family(
    name: str,
    options: tuple[Option, ...],
    kind: Callable[..., tuple[str, str]],
    reference: Callable[..., tuple[Tensor, ...]],
) -> CellSpec:
    """kind: from the options' values to the names of the kernels' cell and activation; a ValueError where they do not
    go together"""
    names = [cell.name for cell in CELLS]
    kinds = {}
    for choice in product(*(option.values for option in options)):
        try:
            cell, activation = kind(*choice)
        except ValueError:
            continue
        code = ACTIVATIONS.index(activation) << _ACTIVATION_FIRST
        kinds[choice] = names.index(cell) << _CELL_FIRST | code
    ((gates, states),) = {(cell_of(spec).gates, cell_of(spec).states) for spec in kinds.values()}
    return CellSpec(name, options, reference, gates, states, kind, kinds)


_ACTIVATION = Option("activation", "tanh", ACTIVATIONS)
_LAYER_NORM = Option("layer_norm", False, (False, True))


def _normalised(cell: str, layer_norm: bool) -> str:
    return f"{cell}_layer_norm" if layer_norm else cell


def _gru_kind(reset_after: bool, activation: str, layer_norm: bool) -> tuple[str, str]:
    if layer_norm and not reset_after:
        raise ValueError("layer_norm normalises whole recurrent products, so it needs reset_after=True")
    return _normalised("gru", layer_norm) if reset_after else "gru_reset_before", activation


LSTM = _family(
    "lstm",
    (_ACTIVATION, _LAYER_NORM),
    lambda activation, layer_norm: (_normalised("lstm", layer_norm), activation),
    reference.lstm_layer,
)
GRU = _family(
    "gru",
    (Option("reset_after", True, (True, False)), _ACTIVATION, _LAYER_NORM),
    _gru_kind,
    reference.gru_layer,
)
RNN = _family(
    "rnn",
    (Option("nonlinearity", "tanh", ("tanh", "relu"), is_torchs=True), _LAYER_NORM),
    lambda nonlinearity, layer_norm: (_normalised("rnn", layer_norm), nonlinearity),
    reference.rnn_layer,
)
FAMILIES = {family.name: family for family in (LSTM, GRU, RNN)}

_BY_KIND = {kind: (family, choice) for family in FAMILIES.values() for choice, kind in family.kinds.items()}


def family_of(spec: int) -> tuple[CellSpec, Choice]:
    return _BY_KIND[spec & _KIND_MASK]


def family_of_module(module: nn.RNNBase) -> tuple[CellSpec, Choice]:
    """Of fastrnn's and of torch.nn's."""
    family = FAMILIES[module.mode.split("_")[0].lower()]
    return family, tuple(getattr(module, option.name, option.default) for option in family.options)


def padded_units(hidden: int) -> int:
    """The units of a row in the reserve, as csrc/include/fastrnn/kernels.h has them."""
    alignment, period = FACTS["unit_alignment"], FACTS["stride_period"]
    aligned: int = -(-hidden // alignment) * alignment
    return aligned + alignment if aligned > 0 and aligned % period == 0 else aligned
