"""The registry of bench cases: which layers, which sizes, which ways to run them.

A case is named by its sizes, for example `lstm-T100-B1-I128-H128` or `gru-T35-B20-I650-H650-L2-bi`; such a
name is also accepted wherever cases are chosen, so that a size outside the registry can be timed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

# kept here too, because builds of other versions are timed as well
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
CELLS = tuple(GATES)


def _grid(times: Iterable[int], batches: Iterable[int], hiddens: Iterable[int]) -> tuple[str, ...]:
    """Ids of every cell, with as many inputs as hidden units."""
    sizes = product(CELLS, times, batches, hiddens)
    return tuple(f"{cell}-T{t}-B{b}-I{h}-H{h}" for cell, t, b, h in sizes)


_STEP, _LOOP = (_grid((t,), (1, 4, 8, 16, 64, 256), (64, 128, 256, 512, 1024)) for t in (1, 20))
_FEW_STEPS = _grid((1, 2, 4), (1, 16, 64), (64, 256, 512))
_AT_ONCE = tuple(
    f"{layer}-x{callers}"
    for layer in ("lstm-T50-B1-I128-H128", "lstm-T50-B16-I256-H256", "gru-T100-B1-I256-H256")
    for callers in (1, 2, 4, 8)
)
_BESIDE_OTHERS = (
    "lstm-T1-B1-I128-H128",
    "lstm-T100-B1-I128-H128",
    "lstm-T50-B16-I256-H256",
    "lstm-T200-B1-I40-H256-L2-bi",
    "gru-T1-B64-I512-H512",
    "gru-T100-B1-I512-H512",
    "gru-T50-B16-I256-H256",
    "gru-T1000-B8-I128-H128",
    "rnn-T50-B8-I200-H200",
)
_EPISODES = (
    "lstm-T128-B8-I64-H128",
    "lstm-T128-B16-I64-H256",
    "lstm-T64-B64-I128-H256",
    "gru-T128-B16-I64-H256",
    "rnn-T128-B16-I64-H256",
)
_OPTIONS = tuple(f"{cell}-T50-B16-{sizes}" for cell in CELLS for sizes in ("I256-H256", "I64-H512"))
_BOTH = ("fastrnn", "torch")


@dataclass(frozen=True)
class Mode:
    """A way to run a layer or a cell, and what is timed.

    cases, peers: the mode's own, by name, beside the peers that are of it alone; none: all that are registered.
    group: a name that several modes share.
    rounds, block_seconds: how long to time a case.
    """

    name: str
    about: str
    training: bool = False
    ragged: bool = False
    stream: bool = False
    quantized: bool = False
    cell: bool = False
    resets: bool = False
    options: bool = False
    server: bool = False
    busy: bool = False
    cases: tuple[str, ...] = ()
    peers: tuple[str, ...] = ()
    group: str = ""
    rounds: int = 7
    block_seconds: float = 0.08

    @property
    def plain(self) -> bool:
        return not (self.training or self.ragged or self.stream or self.quantized)

    @property
    def loaded(self) -> bool:
        """Whether something else is at work beside the call that is timed."""
        return self.server or self.busy


def _of_cells(
    name: str, about: str, cases: tuple[str, ...], *, training: bool = False, cell: bool = False
) -> Mode:
    """One of the modes of many cases, each timed briefly."""
    return Mode(
        name, about, training, cell=cell, cases=cases, peers=_BOTH, group="cell", rounds=5, block_seconds=0.05
    )


MODES = {
    mode.name: mode
    for mode in (
        Mode("infer", "forward without gradients, the initial state left out"),
        Mode(
            "train", "forward and backward: gradients of input, initial state and every weight", training=True
        ),
        Mode("packed", "forward over random lengths of mean T/2", ragged=True),
        Mode(
            "packed-train", "forward and backward over random lengths of mean T/2", training=True, ragged=True
        ),
        Mode(
            "resets-train",
            "forward and backward over rows that begin anew every 50 steps, in the mean",
            training=True,
            resets=True,
            cases=_EPISODES,
            peers=("fastrnn", "fastrnn-unmarked", "fastrnn-split", "fastrnn-loop", "torch", "torch-split"),
        ),
        Mode(
            "options",
            "forward and backward with each option, beside the plain cell and beside loops over steps",
            training=True,
            options=True,
            cases=_OPTIONS,
            peers=_BOTH,
            rounds=15,  # many and short: the ratios that it is about are close to 1
            block_seconds=0.04,
        ),
        Mode("stream", "one time step a call, the state carried from call to call", stream=True),
        Mode("quantized", "forward of one sequence with weights of fewer bits", quantized=True),
        _of_cells("cell-step", "one step of a cell", _STEP, cell=True),
        _of_cells(
            "cell-loop",
            "a Python loop of 20 steps of a cell, forward and backward",
            _LOOP,
            cell=True,
            training=True,
        ),
        _of_cells("cell-short", "a layer over 1, 2 and 4 steps", _FEW_STEPS),
        _of_cells(
            "cell-short-train",
            "a layer over 1, 2 and 4 steps, forward and backward",
            _FEW_STEPS,
            training=True,
        ),
        Mode(
            "server",
            "forward, called by several Python threads at once",
            server=True,
            cases=_AT_ONCE,
            peers=("fastrnn", "fastrnn-1", "torch", "torch-1"),
            rounds=5,
            block_seconds=0.3,
        ),
        Mode(
            "busy",
            "forward, call by call, while other processes keep every core busy",
            busy=True,
            cases=_BESIDE_OTHERS,
            peers=_BOTH,
            rounds=5,
            block_seconds=1.0,
        ),
    )
}
MODE_NAMES = tuple(dict.fromkeys([*MODES, *(mode.group for mode in MODES.values() if mode.group), "all"]))


def modes_of(names: Iterable[str]) -> list[Mode]:
    """The modes of these names, a group's among them, or all."""
    names = set(names)
    return [mode for mode in MODES.values() if names & {mode.name, mode.group, "all"}]


@dataclass(frozen=True)
class Case:
    """One layer stack and one input size. T, B, I, H, L are the letters of the id.

    callers: Python threads that call it at once, `-x4` in the id.
    """

    cell: str
    time: int
    batch: int
    input: int
    hidden: int
    layers: int = 1
    bidirectional: bool = False
    callers: int = 1

    @property
    def id(self) -> str:
        name = f"{self.cell}-T{self.time}-B{self.batch}-I{self.input}-H{self.hidden}"
        if self.layers > 1:
            name += f"-L{self.layers}"
        if self.bidirectional:
            name += "-bi"
        return f"{name}-x{self.callers}" if self.callers > 1 else name

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def gates(self) -> int:
        return GATES[self.cell]

    def layer_inputs(self) -> list[int]:
        """Input features of every layer."""
        return [self.input] + [self.directions * self.hidden] * (self.layers - 1)

    def suits(self, mode: Mode) -> bool:
        """Whether the mode says anything about this case: there is nothing to pack in a batch of one."""
        if self.callers > 1 and not mode.server:
            return False
        if mode.cell or mode.options:
            return self.layers == 1 and not self.bidirectional
        if mode.stream:
            return self.time == 1 and self.layers == 1 and not self.bidirectional
        if mode.quantized:
            return self.batch == 1 and self.hidden >= 512 and self.layers == 1
        if mode.ragged:
            return self.time > 1 and self.batch > 1
        return not mode.training or self.time > 1 or bool(mode.cases)

    @classmethod
    def parse(cls, name: str) -> Case | None:
        """The case of that id, or None where `name` is not a whole id."""
        match = _ID.fullmatch(name)
        if match is None:
            return None
        time, batch, inputs, hidden, layers, callers = (int(match[key] or 1) for key in "TBIHLx")
        if min(time, batch, inputs, hidden, layers, callers) < 1:
            return None
        return cls(match["cell"], time, batch, inputs, hidden, layers, match["bi"] is not None, callers)


_ID = re.compile(
    rf"(?P<cell>{'|'.join(CELLS)})-T(?P<T>\d+)-B(?P<B>\d+)-I(?P<I>\d+)-H(?P<H>\d+)(-L(?P<L>\d+))?(?P<bi>-bi)?(-x(?P<x>\d+))?"
)

_SHAPES = """
T1-B1-I64-H64 T1-B1-I128-H128 T1-B1-I256-H256
T100-B1-I128-H128 T300-B1-I384-H384 T100-B1-I512-H512 T100-B1-I1024-H1024
T50-B16-I256-H256 T100-B32-I256-H256 T100-B64-I512-H512 T50-B128-I1024-H1024 T1000-B8-I128-H128
T784-B100-I1-H100 T28-B128-I28-H128 T35-B20-I650-H650-L2 T35-B20-I1500-H1500 T128-B128-I64-H512 T200-B1-I40-H256-L2-bi
T50-B8-I33-H33 T50-B8-I130-H130 T50-B8-I200-H200
T50-B1-I500-H500 T50-B64-I500-H500 T50-B1-I1760-H1760 T50-B32-I1760-H1760
"""
# By line: one step, where the call itself is the cost; one sequence, where weights are read every step;
# batches; known tasks (images by pixel and by row, word models, a narrow input); sizes that fill no vector;
# the shapes of oneDNN's benchdnn (inputs/rnn/shapes_inference and shapes_training).


def _parse_all(names: Iterable[str]) -> tuple[Case, ...]:
    return tuple(case for name in names if (case := Case.parse(name)) is not None)


REGISTRY = _parse_all(f"{cell}-{shape}" for cell in CELLS for shape in _SHAPES.split())


def choose(cells: Iterable[str], mode: Mode, filters: Iterable[str]) -> list[Case]:
    """The mode's cases of these cells that suit it and hold any of the filters as a substring.

    A filter that is a whole id stands for exactly that case, registered or not.
    """
    cells, filters = tuple(cells), tuple(filters)
    named = _parse_all(filters)
    substrings = [text for text in filters if Case.parse(text) is None]
    chosen = [
        case
        for case in (_parse_all(mode.cases) if mode.cases else REGISTRY)
        if case.cell in cells
        and (not filters or case in named or any(text in case.id for text in substrings))
    ]
    chosen += [case for case in named if case not in chosen]
    chosen.sort(key=lambda case: CELLS.index(case.cell))
    return [case for case in chosen if case.suits(mode)]
