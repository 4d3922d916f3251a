"""lengths, resets and return_cell_states: against sequences cut by hand, each piece through torch.nn by itself."""

from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers import (
    CELLS,
    F32,
    F64,
    Case,
    Inputs,
    Results,
    assert_same,
    make_inputs,
    module_pair,
    relative_error,
)
from pieces import run_pieces, run_rows

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def make_rows(case: Case, seed: int = 0, share: float = 0.3) -> tuple[Tensor, Tensor]:
    """lengths [B], one of them T, and resets [B, T], some of them at the first step."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, case.time + 1, (case.batch,), generator=generator)
    lengths[case.batch // 2] = case.time
    resets = torch.rand(case.batch, case.time, generator=generator) < share
    if case.batch:
        resets[-1, 0] = True
    return lengths, resets


def hide_padding(inputs: Inputs, case: Case, lengths: Tensor | None) -> Inputs:
    """The inputs with NaN behind the rows' ends, which nothing is to read."""
    if lengths is None:
        return inputs
    behind = torch.arange(case.time) >= lengths[:, None]
    behind = behind if case.batch_first else behind.T
    return Inputs(inputs.x.masked_fill(behind[..., None], float("nan")), inputs.h0, inputs.c0)


def both(
    case: Case, use_lengths: bool, use_resets: bool, cells: bool = False, seed: int = 0
) -> tuple[Results, Results]:
    fast, plain = module_pair(case)
    lengths, resets = make_rows(case, seed)
    unbatched = case.layout == "unbatched"
    inputs = make_inputs(case.but(layout="padded") if unbatched or case.packed else case, seed)
    rows: tuple[Any, Any] = lengths if use_lengths or case.packed else None, resets if use_resets else None
    inputs = hide_padding(inputs, case, rows[0] if not case.packed else None)
    got = run_rows(fast, case, inputs, *rows, cells)
    return got, run_pieces(plain, case, hide_padding(inputs, case, rows[0]), *rows, cells)


WAYS = {"lengths": (True, False), "resets": (False, True), "both": (True, True)}
ways = pytest.mark.parametrize("way", WAYS)

CASES = [
    *(Case(cell, batch=4, time=9, bidirectional=bi) for cell, bi in product(CELLS, (False, True))),
    *(
        Case(cell, batch=5, time=8, layers=3, bidirectional=True, batch_first=True, hidden=17)
        for cell in CELLS
    ),
    *(Case(cell, batch=3, time=7, layers=2, hidden=33, bias=False, state=False) for cell in CELLS),
    *(Case(cell, batch=1, time=12, bidirectional=True, layout="unbatched") for cell in CELLS),
    Case("gru", batch=1, time=12, batch_first=True, layout="unbatched", layers=2),
    Case("lstm", batch=40, time=30, hidden=9, bidirectional=True),
    Case("gru", batch=2, time=150, input=3, hidden=5, bidirectional=True),
    Case("lstm_proj", batch=33, time=40, hidden=20, layers=2, bidirectional=True),
    Case("lstm", batch=6, time=1, layers=2, bidirectional=True),
    Case("gru", batch=3, time=2, hidden=64),
]


@ways
@pytest.mark.parametrize("case", CASES, ids=str)
def test_pieces_cut_by_hand(case: Case, way: str) -> None:
    assert_same(*both(case, *WAYS[way]), **EXACT)


@pytest.mark.parametrize("layout", ["packed", "unsorted"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_packed_pieces(cell: str, layout: str, batch_first: bool) -> None:
    case = Case(cell, 4, 9, layout=layout, layers=2, bidirectional=True, batch_first=batch_first)
    assert_same(*both(case, False, True), **EXACT)


@ways
@pytest.mark.parametrize(
    "case",
    [
        Case("lstm", 3, 6, bidirectional=True),
        Case("lstm", 3, 6, layers=2, batch_first=True, state=False),
        Case("lstm_proj", 3, 6, bidirectional=True, hidden=18),
        Case("lstm_proj", 3, 6, layers=2, layout="packed"),
        Case("lstm", 3, 6, bidirectional=True, layout="unsorted", batch_first=True),
        Case("lstm", 1, 6, bidirectional=True, layout="unbatched"),
    ],
    ids=str,
)
def test_cell_states(case: Case, way: str) -> None:
    use_lengths, use_resets = WAYS[way]
    assert_same(*both(case, use_lengths and not case.packed, use_resets, cells=True), **EXACT)


@ways
@pytest.mark.parametrize("cell", CELLS)
def test_float32(cell: str, way: str) -> None:
    """Errors are about those of torch."""
    case = Case(cell, 6, 30, 20, 40, layers=2, bidirectional=True, dtype=F32)
    got, plain = both(case, *WAYS[way])
    _, plain64 = module_pair(case)
    lengths, resets = make_rows(case)
    rows = [given if used else None for given, used in zip((lengths, resets), WAYS[way], strict=True)]
    exact = run_pieces(plain64.double(), case.but(dtype=F64), make_inputs(case).to(F64), *rows)
    for name, want in exact.items():
        error, usual = relative_error(got[name], want), relative_error(plain[name], want)
        assert error <= 3 * usual + 1e-6, name


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_any_rows(data: st.DataObject) -> None:
    case = Case(
        data.draw(st.sampled_from(CELLS)),
        batch=data.draw(st.integers(1, 5)),
        time=data.draw(st.integers(1, 8)),
        input=data.draw(st.integers(1, 4)),
        hidden=data.draw(st.sampled_from([2, 3, 15, 16, 17])),
        layers=data.draw(st.integers(1, 2)),
        bidirectional=data.draw(st.booleans()),
        batch_first=data.draw(st.booleans()),
        layout=data.draw(st.sampled_from(["padded", "packed", "unsorted"])),
        state=data.draw(st.booleans()),
    )
    lengths = torch.tensor(
        data.draw(st.lists(st.integers(1, case.time), min_size=case.batch, max_size=case.batch))
    )
    marks = st.lists(st.booleans(), min_size=case.batch * case.time, max_size=case.batch * case.time)
    resets = torch.tensor(data.draw(marks)).view(case.batch, case.time)
    rows = (
        (lengths if case.packed or data.draw(st.booleans()) else None),
        (resets if data.draw(st.booleans()) else None),
    )
    if case.packed:
        time = int(lengths.max())
        case, rows = case.but(time=time), (lengths, None if rows[1] is None else resets[:, :time])
    cells = case.kind == "lstm" and (case.layers == 1 or not case.bidirectional) and data.draw(st.booleans())
    fast, plain = module_pair(case)
    inputs = make_inputs(case.but(layout="padded"))
    assert_same(
        run_rows(fast, case, inputs, *rows, cells), run_pieces(plain, case, inputs, *rows, cells), **EXACT
    )
