"""The raw ops: their contract, what they leave out, and what they refuse."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from fastrnn import _spec
from helpers import BF16, CELLS, F16, F32, F64, Case
from opcases import OPS, OpCase, op_case

CASES = [
    Case(cell, 3, 5, 4, 19, bidirectional=bi, layout=layout, bias=bias, batch_first=first, state=state)
    for cell, bi, (layout, first, state), bias in product(
        CELLS,
        (False, True),
        [("padded", False, True), ("padded", True, False), ("packed", False, True)],
        (True, False),
    )
] + [
    Case("gru", 3, 5, 4, 19, reset_after=False, layout=layout, bidirectional=bi)
    for layout, bi in product(("padded", "packed"), (False, True))
]
CASES += [Case(cell, 2, 3, 4, 256) for cell in CELLS]  # rows that are kept further apart than they are long


def _reserve_shape(case: Case, rows: int) -> tuple[int, ...]:
    saved = {"lstm": 5, "gru": 4 if case.reset_after else 3, "rnn": 0}[case.kind]
    return (case.directions, rows, saved, {19: 32, 256: 272}[case.hidden])


@pytest.mark.parametrize("case", CASES, ids=str)
def test_forward_shapes(case: Case) -> None:
    op = op_case(case)
    *outputs, reserve = op.forward()
    y, *ends = outputs
    assert y.shape == (*op.x.shape[:-1], case.directions * case.width)
    widths = (case.width, case.hidden)
    for end, width in zip(ends, widths, strict=False):
        assert end.shape == (case.directions, case.batch, width)
    assert reserve.shape == _reserve_shape(case, op.x.numel() // case.input)
    assert all(t.is_contiguous() and t.dtype == F64 for t in (*outputs, reserve))
    for one, other in zip(op.forward(training=False), outputs, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=["f32", "f64", "bf16", "f16"])
@pytest.mark.parametrize("cell", CELLS)
def test_dtypes(cell: str, dtype: torch.dtype) -> None:
    op = op_case(Case(cell, dtype=dtype))
    *outputs, reserve = op.forward()
    assert {o.dtype for o in outputs} == {dtype}
    assert reserve.dtype == (F64 if dtype == F64 else F32)
    *d_inputs, d_weights = op.backward((*outputs, reserve), op.gradients(tuple(outputs)))
    assert {g.dtype for g in (*d_inputs, *d_weights)} == {dtype}


def _reference(op: OpCase) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and gradients in the order of the ops."""
    leaves = [t.detach().clone().requires_grad_() for t in (op.x, *op.states, *op.weights)]
    count = 1 + len(op.states)
    outputs = op.reference(leaves[0], leaves[1:count], leaves[count:])
    gradients = torch.autograd.grad(outputs, leaves, op.gradients(outputs), materialize_grads=True)
    return [o.detach() for o in outputs], list(gradients)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_against_reference(case: Case) -> None:
    op = op_case(case)
    outputs = op.forward()
    want_outputs, want_gradients = _reference(op)
    torch.testing.assert_close(list(outputs[:-1]), want_outputs, rtol=1e-10, atol=1e-10)
    *d_inputs, d_weights = op.backward(outputs, op.gradients(outputs))
    found = [*d_inputs, *d_weights]
    torch.testing.assert_close(found, want_gradients, rtol=1e-10, atol=1e-10)
    assert all(g.is_contiguous() for g in found)


@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_needs(case: Case) -> None:
    """What is not needed is [0]; what is needed does not depend on the rest, bit for bit."""
    op = op_case(case)
    outputs = op.forward()
    gradients = op.gradients(outputs)
    *inputs, weights = op.backward(outputs, gradients)
    for needs in product((True, False), repeat=3):
        *d_inputs, d_weights = op.backward(outputs, gradients, needs)
        wanted = [needs[0], *[needs[1]] * (len(inputs) - 1)]
        pairs = [*zip(d_inputs, inputs, wanted, strict=True)]
        pairs += [(g, full, needs[2]) for g, full in zip(d_weights, weights, strict=True)]
        for got, full, want in pairs:
            assert torch.equal(got, full) if want else got.shape == (0,)


@pytest.mark.parametrize("case", CASES[::3], ids=str)
def test_missing_gradients_are_zeros(case: Case) -> None:
    op = op_case(case)
    outputs = op.forward()
    gradients = op.gradients(outputs)
    for mask in product((True, False), repeat=len(gradients)):
        some = tuple(g if keep else None for g, keep in zip(gradients, mask, strict=True))
        zeros = tuple(g if keep else torch.zeros_like(g) for g, keep in zip(gradients, mask, strict=True))
        for got, want in zip(op.backward(outputs, some), op.backward(outputs, zeros), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-14)


def test_inputs_and_reserve_are_not_changed() -> None:
    for case in CASES[::2]:
        op = op_case(case)
        outputs = op.forward()
        held = [t for t in (op.x, *op.states, *op.weights, *outputs, *op.gradients(outputs)) if t is not None]
        before = [t.clone() for t in held]
        op.forward()
        op.backward(outputs, op.gradients(outputs))
        torch.testing.assert_close(held, before, rtol=0, atol=0, equal_nan=True)


# each change makes one argument of a good call bad
BAD: dict[str, dict[str, Any]] = {
    "x-2d": {"x": torch.zeros(5, 4)},
    "x-features": {"x": torch.zeros(5, 3, 7)},
    "x-dtype": {"x": torch.zeros(5, 3, 4, dtype=F32)},
    "x-integers": {"x": torch.zeros(5, 3, 4, dtype=torch.int64)},
    "h0-shape": {"h0": torch.zeros(1, 2, 6, dtype=F64)},
    "h0-directions": {"h0": torch.zeros(2, 3, 6, dtype=F64)},
    "h0-dtype": {"h0": torch.zeros(1, 3, 6, dtype=F32)},
    "weights-none": {"weights": []},
    "weights-too-few": {"weights": 3},
    "weights-shape": {"weights": 0},
    "batch-sizes-dtype": {"batch_sizes": torch.tensor([3, 2], dtype=torch.int32)},
    "batch-sizes-rising": {"batch_sizes": torch.tensor([2, 3])},
    "batch-sizes-sum": {"batch_sizes": torch.tensor([3, 3])},
    "batch-sizes-zero": {"batch_sizes": torch.tensor([3, 0])},
    "batch-sizes-empty": {"batch_sizes": torch.tensor([], dtype=torch.int64)},
}


def _spoil(op: OpCase, bad: str) -> None:
    for name, value in BAD[bad].items():
        if name == "batch_sizes":
            op.x = torch.zeros(5, 4, dtype=F64)
        if isinstance(value, int):
            value = op.weights[:value] if value else [w[:-1] for w in op.weights]
        setattr(op, name, value)


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_bad_arguments_are_refused(cell: str, bad: str) -> None:
    """A wrong call is a RuntimeError, never a read outside a tensor."""
    op = op_case(Case(cell, 3, 5, 4, 6))
    assert op.forward()[0].shape == (5, 3, 6)
    _spoil(op, bad)
    with pytest.raises(RuntimeError):
        op.forward()


def test_packed_arguments_that_are_right_pass() -> None:
    """The good call beside the bad batch_sizes above."""
    op = op_case(Case("gru", 3, 5, 4, 6))
    op.x, op.batch_sizes = torch.zeros(5, 4, dtype=F64), torch.tensor([3, 2])
    assert op.forward()[0].shape == (5, 6)


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_states_come_all_or_not_at_all(cell: str) -> None:
    op = op_case(Case(cell))
    arguments = list(op.forward_arguments(True))
    arguments[1] = [*op.states, op.states[0]]
    with pytest.raises(RuntimeError, match="initial states"):
        OPS.layer_forward(*arguments)
    arguments[1] = op.states[:1]
    if cell == "lstm":
        with pytest.raises(RuntimeError, match="initial states"):
            OPS.layer_forward(*arguments)


def test_operands_that_no_cell_takes_are_refused() -> None:
    op = op_case(Case("gru"))
    arguments = list(op.forward_arguments(True))
    arguments[4] = [torch.zeros(6, dtype=F64)]
    with pytest.raises(RuntimeError, match="expected 0 operands, got 1"):
        OPS.layer_forward(*arguments)


BITS = sum(count for _, count in _spec.FACTS["spec"].values())
UNKNOWN = {
    "cell": len(_spec.CELLS),
    "activation": len(_spec.ACTIVATIONS) << _spec.FACTS["spec"]["activation"][0],
    "bit": 1 << BITS,
    "far bit": 1 << 62,
    "negative": -1,
}


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("unknown", UNKNOWN)
def test_unknown_specs_are_refused(unknown: str, quiet: bool) -> None:
    """Also where other refusals are quiet: it is no question of the arguments."""
    op = op_case(Case("gru"))
    arguments = list(op.forward_arguments(True))
    arguments[-2] = UNKNOWN[unknown] | (_spec.QUIET if quiet else 0)
    with pytest.raises(RuntimeError, match="not made by fastrnn"):
        OPS.layer_forward(*arguments)


def test_unknown_needs_are_refused() -> None:
    op = op_case(Case("gru"))
    outputs = op.forward()
    arguments = op.backward_arguments(outputs, op.gradients(outputs))
    with pytest.raises(RuntimeError, match="unknown bits in needs"):
        OPS.layer_backward(*arguments[:-1], 1 << len(_spec.FACTS["needs"]))


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_quiet_refusals(cell: str, bad: str) -> None:
    """An empty list; a call that fits is as it is without."""
    op = op_case(Case(cell, 3, 5, 4, 6))
    *arguments, spec, training = op.forward_arguments(True)
    *outputs, _ = OPS.layer_forward(*arguments, spec | _spec.QUIET, training)
    for quiet, loud in zip(outputs, op.forward()[:-1], strict=True):
        assert torch.equal(quiet, loud)
    _spoil(op, bad)
    *arguments, spec, training = op.forward_arguments(True)
    assert OPS.layer_forward(*arguments, spec | _spec.QUIET, training) == []


def test_a_backward_pass_is_never_quiet() -> None:
    op = op_case(Case("gru"))
    outputs = op.forward()
    *arguments, spec, needs = op.backward_arguments(outputs, op.gradients(outputs))
    with pytest.raises(RuntimeError, match="never quiet"):
        OPS.layer_backward(*arguments, spec | _spec.QUIET, needs)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_single_step(cell: str) -> None:
    """x [B, I] and states without D, when the spec says so; two dimensions alone say nothing. There is no y."""
    op = op_case(Case(cell, time=1))
    whole = op.forward()
    step = [op.x[0], [s[0] for s in op.states], op.weights, None, [], op.spec | _spec.SINGLE_STEP, True]
    for got, want in zip(OPS.layer_forward(*step)[:-1], whole[1:-1], strict=True):
        assert torch.equal(got, want[0])
    step[-2] = op.spec
    with pytest.raises(RuntimeError, match="x must have 3 dimensions, got 2"):
        OPS.layer_forward(*step)


def test_retired_ops_say_what_to_do() -> None:
    """A program that an older version saved names them."""
    op = op_case(Case("gru"))
    with pytest.raises(RuntimeError, match="export or trace the model again"):
        OPS.gru_forward(op.x, op.h0, op.weights, None, True, False, False, True, "tanh", False)


def test_the_table_is_the_librarys() -> None:
    """What Python knows of the cells comes from the kernels, and every choice of options names one of them."""
    assert len({cell.name for cell in _spec.CELLS}) == len(_spec.CELLS)
    for family in _spec.FAMILIES.values():
        assert len(set(family.kinds.values())) == len(family.kinds)
        for choice, kind in family.kinds.items():
            spec = family.spec(choice, True, True, True)
            assert spec & ~(_spec.HAS_BIASES | _spec.BATCH_FIRST | _spec.BIDIRECTIONAL) == kind
            assert _spec.family_of(spec | _spec.SINGLE_STEP | _spec.QUIET) == (family, choice)
        if not family.options:
            continue
        with pytest.raises(ValueError, match="Unknown"):
            family.spec(("swish",) * len(family.options), True)
    places = [set(range(first, first + count)) for first, count in _spec.FACTS["spec"].values()]
    assert set.union(*places) == set(range(BITS)) and sum(map(len, places)) == BITS


@pytest.mark.parametrize("which", ["d_y", "d_h_n", "y", "reserve"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_bad_backward_arguments_are_refused(cell: str, which: str) -> None:
    op = op_case(Case(cell))
    outputs = list(op.forward())
    gradients = list(op.gradients(tuple(outputs)))
    position = {"d_y": 0, "d_h_n": 1, "y": 0, "reserve": -1}[which]
    target = outputs if which in ("y", "reserve") else gradients
    op.backward(tuple(outputs), tuple(gradients))
    target[position] = torch.zeros(3, 2, dtype=F64)
    with pytest.raises(RuntimeError):
        op.backward(tuple(outputs), tuple(gradients))


def test_time_zero_is_refused() -> None:
    op = op_case(Case("gru"))
    op.x = torch.zeros(0, 3, 4, dtype=F64)
    with pytest.raises(RuntimeError, match="sequence length"):
        op.forward()


def test_batch_zero() -> None:
    for cell in CELLS:
        op = op_case(Case(cell, batch=0, bidirectional=True))
        outputs = op.forward()
        assert outputs[0].shape == (5, 0, 2 * op.case.width)
        *d_inputs, d_weights = op.backward(outputs, op.gradients(outputs))
        assert d_inputs[0].shape == (5, 0, 4)
        assert all(g.shape == w.shape and not g.any() for g, w in zip(d_weights, op.weights, strict=True))


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_large_reserves_that_live_share_no_memory(cell: str) -> None:
    """Those of 4 MiB and more come from a pool."""
    op = op_case(Case(cell, 60, 20, 3, 250))
    expected = op.backward(first := op.forward(), op.gradients(first))
    saved = first[-1].clone()
    for _ in range(3):
        other = op.forward()
        assert other[-1].data_ptr() != first[-1].data_ptr()
        other[-1].zero_()
        del other
    assert torch.equal(first[-1], saved)
    again = op.backward(first, op.gradients(first))
    for one, two in zip((*expected[:-1], *expected[-1]), (*again[:-1], *again[-1]), strict=True):
        assert torch.equal(one, two)
