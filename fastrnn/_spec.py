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
from fastrnn import _reference_cells, reference

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
    learned: int  # the first of them are parameters
    required: int  # the first of them are there in every call
    memories: int  # that c consists of, each H wide

    @property
    def has_cuda_engine(self) -> bool:
        return self.recurrent and not self.operands and self.memories == 1


# in the order of the kernels' enumerators
CELLS = tuple(Cell(**cell) for cell in FACTS["cells"])
ACTIVATIONS: tuple[str, ...] = tuple(FACTS["activations"])

_CELL_FIRST, _CELL_COUNT = map(int, FACTS["spec"]["cell"])
_ACTIVATION_FIRST, _ACTIVATION_COUNT = map(int, FACTS["spec"]["activation"])
_GATE_FIRST, _GATE_COUNT = map(int, FACTS["spec"]["gate_activation"])
_CELL_MASK, _ACTIVATION_MASK = (1 << _CELL_COUNT) - 1, (1 << _ACTIVATION_COUNT) - 1
_HEADS_FIRST, _HEADS_COUNT = map(int, FACTS["spec"]["heads"])
MOST_HEADS = 1 << _HEADS_COUNT
_GATE_MASK = (1 << _GATE_COUNT) - 1
_KIND_MASK = _CELL_MASK << _CELL_FIRST | _ACTIVATION_MASK << _ACTIVATION_FIRST | _GATE_MASK << _GATE_FIRST
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
    torchs: tuple[bool | str, ...] = ()  # those of them that torch.nn has, where it has the option

    def check(self, value: Any) -> Any:
        if value not in self.values:
            *known, last = (f"'{v}'" if isinstance(v, str) else str(v) for v in self.values)
            join = ", " if len(known) > 1 else " or "
            raise ValueError(f"Unknown {self.name} '{value}'. Select from {', '.join(known)}{join}{last}.")
        return value


Choice = tuple[bool | str, ...]  # the values of a family's options


@dataclass(frozen=True)
class CellSpec:
    """A family of layers: torch.nn's LSTM, GRU or RNN with options of our own, or one that torch.nn lacks."""

    name: str  # of torch.nn's, in lower case, it is that of the function in fastrnn.functional
    options: tuple[Option, ...]
    reference: Callable[
        ..., tuple[Tensor, ...]
    ]  # in fastrnn.reference; takes the options' values last, in their order
    gates: int
    states: int
    memories: int
    kind: Callable[..., tuple[str, str, str]]  # see _family
    kinds: dict[Choice, int]  # the bits of cell and activations for every choice that has them
    general: dict[Choice, int]  # those of the cell that takes zoneout, peepholes and a bound of c too
    in_torch: bool

    @property
    def extras(self) -> dict[str, bool | str]:
        """The options that torch.nn lacks, with the values that make a layer torch.nn's."""
        return {option.name: option.default for option in self.options if not option.torchs}

    def spec(
        self,
        choice: Choice,
        has_biases: bool,
        batch_first: bool = False,
        bidirectional: bool = False,
        heads: int = 1,
        general: bool = False,
    ) -> int:
        """The spec of a layer with these values of the options.

        Raises:
            ValueError: a value that an option does not have, or values that do not go together
        """
        try:
            bits = (self.general if general else self.kinds)[choice]
        except KeyError:
            for option, value in zip(self.options, choice, strict=True):
                option.check(value)
            self.kind(*choice, general)
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
        return self.in_torch and all(
            value == option.default or value in option.torchs
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


def enumerators_of(spec: int) -> tuple[int, int, int]:
    """Those of the cell, of the activation and of the gates' in csrc/include/fastrnn/kernels.h."""
    gate = spec >> _GATE_FIRST & _GATE_MASK
    return (
        spec >> _CELL_FIRST & _CELL_MASK,
        spec >> _ACTIVATION_FIRST & _ACTIVATION_MASK,
        gate - 1 if gate else ACTIVATIONS.index("sigmoid"),
    )


def has_cuda_engine(spec: int) -> bool:
    """Whether the CUDA engines have the cell with its activations."""
    _, activation, gate = enumerators_of(spec)
    has_functions = ACTIVATIONS[gate] == "sigmoid" and ACTIVATIONS[activation] in _CUDA_ACTIVATIONS
    return has_functions and cell_of(spec).has_cuda_engine


def _family(
    name: str,
    options: tuple[Option, ...],
    kind: Callable[..., tuple[str, str, str]],
    reference: Callable[..., tuple[Tensor, ...]],
    in_torch: bool = True,
) -> CellSpec:
    """kind: from the options' values, and whether the cell is to be the general one, to the names of the kernels' cell,
    activation and gates' activation; a ValueError where they do not go together"""
    names = [cell.name for cell in CELLS]
    kinds: tuple[dict[Choice, int], dict[Choice, int]] = {}, {}
    for choice, general in product(product(*(option.values for option in options)), (False, True)):
        try:
            cell, activation, gate = kind(*choice, general)
        except ValueError:
            continue
        code = names.index(cell) << _CELL_FIRST | ACTIVATIONS.index(activation) << _ACTIVATION_FIRST
        if gate != "sigmoid":
            code |= ACTIVATIONS.index(gate) + 1 << _GATE_FIRST
        kinds[general][choice] = code
    usual = cell_of(kinds[0][tuple(option.default for option in options)])
    return CellSpec(
        name, options, reference, usual.gates, usual.states, usual.memories, kind, *kinds, in_torch
    )


_CUDA_ACTIVATIONS = ("tanh", "softsign", "relu", "hardtanh")
_ACTIVATION = Option("activation", "tanh", ACTIVATIONS)
_RECURRENT_ACTIVATION = Option("recurrent_activation", "sigmoid", ACTIVATIONS)
_LAYER_NORM = Option("layer_norm", False, (False, True))


def _lstm_kind(
    activation: str, gate: str, layer_norm: bool, coupled_gates: bool, general: bool
) -> tuple[str, str, str]:
    if layer_norm and coupled_gates:
        raise ValueError("layer_norm has gains for all four gates, so it does not go with coupled_gates")
    if layer_norm:
        return "lstm_layer_norm", activation, gate
    if coupled_gates:
        return "lstm_coupled", activation, gate
    return "lstm_options" if general else "lstm", activation, gate


def _gru_kind(
    reset_after: bool, activation: str, gate: str, layer_norm: bool, general: bool
) -> tuple[str, str, str]:
    if layer_norm and not reset_after:
        raise ValueError("layer_norm normalises whole recurrent products, so it needs reset_after=True")
    if layer_norm:
        return "gru_layer_norm", activation, gate
    cell = "gru" if reset_after else "gru_reset_before"
    return f"{cell}_options" if general else cell, activation, gate


def _rnn_kind(nonlinearity: str, layer_norm: bool, general: bool) -> tuple[str, str, str]:
    if layer_norm:
        return "rnn_layer_norm", nonlinearity, "sigmoid"
    keeps = general or nonlinearity == "silu"  # whose derivative does not follow from its value
    return "rnn_options" if keeps else "rnn", nonlinearity, "sigmoid"


LSTM = _family(
    "lstm",
    (_ACTIVATION, _RECURRENT_ACTIVATION, _LAYER_NORM, Option("coupled_gates", False, (False, True))),
    _lstm_kind,
    reference.lstm_layer,
)
GRU = _family(
    "gru",
    (Option("reset_after", True, (True, False)), _ACTIVATION, _RECURRENT_ACTIVATION, _LAYER_NORM),
    _gru_kind,
    reference.gru_layer,
)
RNN = _family(
    "rnn",
    (Option("nonlinearity", "tanh", ACTIVATIONS, torchs=("tanh", "relu")), _LAYER_NORM),
    _rnn_kind,
    reference.rnn_layer,
)


def _other_kind(cell: str) -> Callable[..., tuple[str, str, str]]:
    def kind(*choice: Any) -> tuple[str, str, str]:
        *activation, general = choice
        if general:
            raise ValueError(f"{cell} takes no zoneout")
        return cell, *(activation or ["tanh"]), "sigmoid"

    return kind


_IDENTITY = Option("activation", "identity", ACTIVATIONS)
SLSTM = _family("slstm", (), _other_kind("slstm"), _reference_cells.slstm_layer, in_torch=False)
INDRNN = _family(
    "indrnn",
    (Option("nonlinearity", "relu", ACTIVATIONS),),
    _other_kind("indrnn"),
    _reference_cells.indrnn_layer,
    in_torch=False,
)
MIN_GRU, MIN_LSTM = (
    _family(name, (_IDENTITY,), _other_kind(name), layer, in_torch=False)
    for name, layer in (
        ("min_gru", _reference_cells.min_gru_layer),
        ("min_lstm", _reference_cells.min_lstm_layer),
    )
)
FAMILIES = {family.name: family for family in (LSTM, GRU, RNN, SLSTM, INDRNN, MIN_GRU, MIN_LSTM)}

_BY_KIND = {
    kind: (family, choice)
    for family in FAMILIES.values()
    for kinds in (family.general, family.kinds)
    for choice, kind in kinds.items()
}


def family_of(spec: int) -> tuple[CellSpec, Choice]:
    return _BY_KIND[spec & _KIND_MASK]


def family_of_module(module: nn.RNNBase) -> tuple[CellSpec, Choice]:
    """Of fastrnn's and of torch.nn's."""
    family = getattr(module, "_cell", None) or FAMILIES[module.mode.split("_")[0].lower()]
    return family, tuple(getattr(module, option.name, option.default) for option in family.options)


def padded_units(hidden: int) -> int:
    """The units of a row in the reserve, as csrc/include/fastrnn/kernels.h has them."""
    alignment, period = FACTS["unit_alignment"], FACTS["stride_period"]
    aligned: int = -(-hidden // alignment) * alignment
    return aligned + alignment if aligned > 0 and aligned % period == 0 else aligned
