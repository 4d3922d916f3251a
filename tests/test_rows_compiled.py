"""lengths, resets and return_cell_states under torch.compile, and the ops' own contract."""

from itertools import product

import pytest
import torch
from torch import nn

import fastrnn
from fastrnn import _spec
from helpers import (
    CELLS,
    F32,
    Case,
    assert_same,
    fast_module,
    make_inputs,
)
from pieces import run_rows
from test_rows import make_rows

of_layers = pytest.mark.parametrize(
    "cls", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN], ids=lambda cls: cls.__name__
)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("cell", ["lstm", "lstm_proj", "gru", "rnn_tanh"])
def test_compiled(cell: str, layout: str) -> None:
    case = Case(cell, 4, 9, layers=2, bidirectional=True, batch_first=True, dtype=F32, layout=layout)
    module, inputs = fast_module(case), make_inputs(case.but(layout="padded"))
    lengths, resets = make_rows(case)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    cells = case.kind == "lstm"
    expected = run_rows(module, case, inputs, lengths, resets, cells)
    # dicts of the parameters' gradients are keyed by the compiled module's names otherwise
    compiled.named_parameters = module.named_parameters
    assert_same(run_rows(compiled, case, inputs, lengths, resets, cells), expected, rtol=1e-5, atol=1e-5)


@of_layers
def test_compiled_for_any_size(cls: type[nn.RNNBase]) -> None:
    module = cls(4, 6)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for time, batch in ((7, 3), (4, 5), (9, 2)):
        x, lengths, resets = (
            torch.randn(time, batch, 4),
            torch.randint(1, time, (batch,)),
            torch.rand(time, batch) < 0.3,
        )
        torch.testing.assert_close(
            compiled(x, lengths=lengths, resets=resets), module(x, lengths=lengths, resets=resets)
        )


@pytest.mark.parametrize(
    "case", [Case(c, 4, 9, bidirectional=b, dtype=F32) for c, b in product(CELLS, (False, True))], ids=str
)
@pytest.mark.parametrize("ragged", [False, True])
def test_opcheck(case: Case, ragged: bool) -> None:
    module, inputs, ops = fast_module(case), make_inputs(case), torch.ops.fastrnn
    lengths, resets = make_rows(case)
    weights = [p.detach() for p in module._weights()]
    states = [s for s in (inputs.h0, inputs.c0) if s is not None]
    spec = module._layer_spec() | _spec.RESETS | (_spec.RAGGED if ragged else 0)
    spec |= _spec.CELL_STATES if case.kind == "lstm" else 0
    given = (inputs.x, states, weights, lengths if ragged else None, [resets.T])
    for training in (True, False):
        # of a ragged sequence no row is behind the last one in the reserve, and nothing writes there
        unwritten = ragged and training and case.kind != "rnn"
        checks = ["test_schema", "test_faketensor"] + ["test_aot_dispatch_dynamic"] * (not unwritten)
        found = torch.library.opcheck(ops.layer_forward.default, (*given, spec, training), test_utils=checks)
        assert set(found.values()) == {"SUCCESS"}
    y, *others, reserve = ops.layer_forward(*given, spec, True)
    needs = _spec.NEEDS_X | _spec.NEEDS_STATES | _spec.NEEDS_WEIGHTS | _spec.NEEDS_OPERANDS
    arguments = ([torch.ones_like(o) for o in (y, *others)], *given, y, reserve, spec, needs)
    assert set(torch.library.opcheck(ops.layer_backward.default, arguments).values()) == {"SUCCESS"}
