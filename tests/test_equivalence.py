"""Every torch.nn configuration in float64 against torch.nn and against the reference, to 1e-10."""

import subprocess
import sys
from itertools import combinations, product

import pytest
import torch

from helpers import (
    CELLS,
    F32,
    F64,
    LAYOUTS,
    Case,
    assert_same,
    fast_cell_pair,
    make_inputs,
    module_pair,
    run_cell,
    run_module,
    run_reference,
)

CONFIGURATIONS = [
    Case(cell, layers=layers, bidirectional=bi, bias=bias, batch_first=first, layout=layout)
    for cell, layout, layers, bi, bias, first in product(
        CELLS, LAYOUTS, (1, 2, 3), (False, True), (True, False), (False, True)
    )
]


@pytest.mark.parametrize("case", CONFIGURATIONS, ids=str)
def test_configuration(case: Case) -> None:
    fast, plain = module_pair(case)
    inputs = make_inputs(case)
    actual = run_module(fast, case, inputs)
    assert_same(actual, run_module(plain, case, inputs), rtol=1e-10, atol=1e-10)
    assert_same(actual, run_reference(plain, case, inputs), rtol=1e-10, atol=1e-10)


def _no_state() -> list[Case]:
    return [
        Case(cell, layers=2, bidirectional=bi, layout=layout, state=False)
        for cell, layout, bi in product(CELLS, LAYOUTS, (False, True))
    ]


@pytest.mark.parametrize("case", _no_state(), ids=str)
def test_state_left_out(case: Case) -> None:
    fast, plain = module_pair(case)
    inputs = make_inputs(case)
    actual = run_module(fast, case, inputs)
    assert_same(actual, run_module(plain, case, inputs), rtol=1e-10, atol=1e-10)
    assert_same(actual, run_reference(plain, case, inputs), rtol=1e-10, atol=1e-10)


def _feeds() -> list[object]:
    found = []
    for cell, layout, bi in product(CELLS, ("padded", "unsorted"), (False, True)):
        case = Case(cell, layers=2, bidirectional=bi, layout=layout)
        for count in range(1, len(case.outputs) + 1):
            for feed in combinations(case.outputs, count):
                found.append(pytest.param(case, feed, id=f"{case}-from-{'+'.join(feed)}"))
    return found


@pytest.mark.parametrize(("case", "feed"), _feeds())
def test_gradients_of_each_output(case: Case, feed: tuple[str, ...]) -> None:
    fast, plain = module_pair(case)
    inputs = make_inputs(case)
    actual = run_module(fast, case, inputs, feed=feed)
    assert_same(actual, run_module(plain, case, inputs, feed=feed), rtol=1e-10, atol=1e-10)
    assert_same(actual, run_reference(plain, case, inputs, feed=feed), rtol=1e-10, atol=1e-10)


# sizes around the widths of vectors, panels and blocks: (batch, time, input, hidden)
SIZES = [
    (1, 1, 1, 1),
    (1, 9, 3, 2),
    (2, 3, 1, 7),
    (3, 17, 5, 33),
    (4, 2, 16, 8),
    (5, 4, 7, 15),
    (7, 3, 2, 16),
    (8, 3, 31, 17),
    (9, 2, 4, 24),
    (1, 3, 64, 31),
    (12, 2, 9, 32),
    (13, 2, 17, 48),
    (16, 2, 33, 64),
    (17, 2, 3, 65),
    (33, 2, 2, 5),
    (2, 2, 130, 100),
    (1, 40, 6, 129),
    (2, 600, 3, 5),
]


def _sizes() -> list[Case]:
    found = []
    for (batch, time, size, hidden), cell in product(SIZES, CELLS):
        if cell == "lstm_proj" and hidden < 2:
            continue  # a projection must be smaller than hidden_size
        for dtype, bi in ((F32, False), (F64, True)):
            found.append(Case(cell, batch, time, size, hidden, bidirectional=bi, dtype=dtype))
    return found


@pytest.mark.parametrize("case", _sizes(), ids=str)
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_size(case: Case, layout: str) -> None:
    case = case.but(layout=layout)
    fast, plain = module_pair(case)
    inputs = make_inputs(case)
    tolerance = 1e-10 if case.dtype == F64 else 2e-5
    # atol grows with the sums over time and batch that make a weight's gradient
    atol = tolerance * max(1.0, (case.batch * case.time) ** 0.5)
    assert_same(run_module(fast, case, inputs), run_module(plain, case, inputs), rtol=tolerance, atol=atol)


def test_packed_lengths_of_every_kind() -> None:
    """Ties, one long sequence, all equal and length one: each against torch.nn."""
    for lengths in ([6, 6, 6], [6, 1, 1, 1], [1, 1], [4, 4, 2, 2, 1], [9]):
        for cell in CELLS:
            case = Case(cell, len(lengths), lengths[0], layers=2, bidirectional=True, layout="packed")
            fast, plain = module_pair(case)
            inputs = make_inputs(case)
            inputs.lengths = torch.tensor(lengths)
            assert_same(
                run_module(fast, case, inputs), run_module(plain, case, inputs), rtol=1e-10, atol=1e-10
            )


CELL_NAMES = ["LSTMCell", "GRUCell", "RNNCell-tanh", "RNNCell-relu"]


@pytest.mark.parametrize("state", [True, False], ids=["state", "nostate"])
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "nobias"])
@pytest.mark.parametrize("name", CELL_NAMES)
@pytest.mark.parametrize("hidden", [1, 6, 33])
def test_cell_module(name: str, bias: bool, batched: bool, state: bool, hidden: int) -> None:
    fast, plain = fast_cell_pair(name, 5, hidden, bias=bias, dtype=F64)
    lead = (3,) if batched else ()
    x = torch.randn(*lead, 5, dtype=F64)
    count = 2 if name == "LSTMCell" else 1
    states = [torch.randn(*lead, hidden, dtype=F64) for _ in range(count)] if state else []
    assert_same(run_cell(fast, x, states), run_cell(plain, x, states), rtol=1e-10, atol=1e-10)


ZERO_SIZES = """
import torch, fastrnn
from torch import nn
for name in ("LSTMCell", "GRUCell", "RNNCell"):
    for size, hidden, batch in ((0, 3, 2), (3, 0, 2), (3, 4, 0), (0, 0, 2), (3, 0, 0)):
        results = []
        for library in (nn, fastrnn):
            torch.manual_seed(0)
            module, x = getattr(library, name)(size, hidden), torch.ones(batch, size, requires_grad=True)
            outputs = module(x)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            leaves = [x, *module.parameters()]
            total = sum(o.sum() for o in outputs)
            results.append([*outputs, *torch.autograd.grad(total, leaves, materialize_grads=True)])
        torch.testing.assert_close(*results)
print("done")
"""


def test_cell_module_with_sizes_of_zero() -> None:
    """torch.nn's cells take them; in a process of its own, for a division by zero would end this one."""
    result = subprocess.run(
        [sys.executable, "-c", ZERO_SIZES], capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["done"]
