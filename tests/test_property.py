"""Hypothesis: any shape, stride, length, dtype and option gives what torch.nn gives."""

import math
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.utils.rnn import pad_packed_sequence

from helpers import (
    BF16,
    CELLS,
    F16,
    F32,
    F64,
    Case,
    Inputs,
    Results,
    assert_same,
    cotangent,
    fast_module,
    flat_outputs,
    make_inputs,
    module_pair,
    pack,
    relative_error,
    run_module,
    run_reference,
    torch_module,
)

SIZES = st.one_of(st.integers(1, 9), st.sampled_from([15, 16, 17, 31, 33, 40]))
TOLERANCE = {F64: 1e-10, F32: 3e-5}


def cases(*, dtypes: tuple[torch.dtype, ...] = (F32, F64), layouts: tuple[str, ...] = ("padded",)) -> Any:
    def build(cell: str, layout: str, batch: int, hidden: int, **rest: Any) -> Case:
        if layout not in ("padded", "unbatched"):
            batch = max(batch, 1)  # a PackedSequence has at least one row
        if cell == "lstm_proj":
            hidden = max(hidden, 2)
        return Case(cell=cell, layout=layout, batch=batch, hidden=hidden, **rest)

    return st.builds(
        build,
        cell=st.sampled_from(CELLS),
        layout=st.sampled_from(layouts),
        batch=st.integers(0, 9),
        time=st.integers(1, 8),
        input=SIZES,
        hidden=SIZES,
        layers=st.integers(1, 3),
        bidirectional=st.booleans(),
        bias=st.booleans(),
        batch_first=st.booleans(),
        dtype=st.sampled_from(dtypes),
        state=st.booleans(),
    )


def assert_equal_runs(case: Case, actual: Results, expected: Results) -> None:
    tolerance = TOLERANCE[case.dtype]
    atol = tolerance * math.sqrt(max(1, case.batch * case.time))
    assert_same(actual, expected, rtol=tolerance, atol=atol)


@settings(max_examples=250)
@given(cases(layouts=("padded", "packed", "unsorted", "unbatched")))
def test_shapes(case: Case) -> None:
    fast, plain = module_pair(case)
    inputs = make_inputs(case)
    assert_equal_runs(case, run_module(fast, case, inputs), run_module(plain, case, inputs))


STRIDES = ("contiguous", "transposed", "outer", "features", "sliced", "expanded", "offset")


def strided(shape: tuple[int, ...], kind: str, dtype: torch.dtype) -> tuple[Tensor, Any]:
    """(base, view): view(base) has the shape and strides of the kind; gradients are taken on the base."""
    if kind == "contiguous":
        return torch.randn(shape, dtype=dtype), lambda b: b
    if kind == "transposed":
        return torch.randn(shape[1], shape[0], shape[2], dtype=dtype), lambda b: b.transpose(0, 1)
    if kind == "outer":  # features are the slowest dimension
        return torch.randn(shape[2], shape[0], shape[1], dtype=dtype), lambda b: b.permute(1, 2, 0)
    if kind == "features":
        return torch.randn(*shape[:2], 2 * shape[2], dtype=dtype), lambda b: b[..., ::2]
    if kind == "sliced":
        base = torch.randn(3 * shape[0], 2 * shape[1], shape[2] + 5, dtype=dtype)
        return base, lambda b: b[::3, ::2, 3 : 3 + shape[2]]
    if kind == "expanded":
        return torch.randn(shape[0], 1, shape[2], dtype=dtype), lambda b: b.expand(shape)
    flat = torch.randn(math.prod(shape) + 1, dtype=dtype)  # data that is aligned to one element only
    return flat, lambda b: b[1:].view(shape)


@settings(max_examples=250)
@given(cases(), *[st.sampled_from(STRIDES)] * 3)
def test_strides(case: Case, x_kind: str, h_kind: str, c_kind: str) -> None:
    fast, plain = module_pair(case)
    lead = (case.batch, case.time) if case.batch_first else (case.time, case.batch)
    rows = case.layers * case.directions
    wanted = [((*lead, case.input), x_kind), ((rows, case.batch, case.width), h_kind)]
    wanted += [((rows, case.batch, case.hidden), c_kind)] * (case.kind == "lstm")
    sources = [strided(shape, kind, case.dtype) for shape, kind in wanted]

    def one(module: nn.Module) -> Results:
        bases = [base.clone().requires_grad_() for base, _ in sources]
        x, *state = (view(b) for b, (_, view) in zip(bases, sources, strict=True))
        outputs = flat_outputs(module(x, tuple(state) if len(state) == 2 else state[0]))
        named = dict(zip(("y", "h_n", "c_n"), outputs, strict=False))
        targets = dict(zip(("x", "h0", "c0"), bases, strict=False)) | dict(module.named_parameters())
        seeds = [cotangent(name, value) for name, value in named.items()]
        found = torch.autograd.grad(outputs, list(targets.values()), seeds)
        return named | {f"d_{name}": g for name, g in zip(targets, found, strict=True)}

    assert_equal_runs(case, one(fast), one(plain))


@settings(max_examples=40)
@given(cases(), st.sampled_from(STRIDES))
def test_strides_of_the_incoming_gradient(case: Case, kind: str) -> None:
    fast, plain = module_pair(case)
    inputs = make_inputs(case)
    lead = (case.batch, case.time) if case.batch_first else (case.time, case.batch)
    base, view = strided((*lead, case.directions * case.width), kind, case.dtype)

    def one(module: nn.Module) -> Results:
        y = module(inputs.x, inputs.state())[0]
        found = torch.autograd.grad(y, list(module.parameters()), view(base))
        return {name: g for (name, _), g in zip(module.named_parameters(), found, strict=True)}

    assert_equal_runs(case, one(fast), one(plain))


@settings(max_examples=40)
@given(cases(layouts=("padded", "packed")), st.randoms(use_true_random=False))
def test_strides_of_the_weights(case: Case, random: Any) -> None:
    """Parameters that are transposed, sliced or shared views of something larger."""
    fast, plain = module_pair(case)
    for name, parameter in list(plain.named_parameters()):
        value = parameter.detach()
        if random.random() < 0.5:
            wide = torch.zeros(*value.shape[:-1], 2 * value.shape[-1], dtype=value.dtype)
            other = wide[..., 1::2]
            other.copy_(value)
        else:
            other = value.t().contiguous().t()
        setattr(fast, name, Parameter(other))
        assert getattr(fast, name).stride() == other.stride()
    inputs = make_inputs(case)
    assert_equal_runs(case, run_module(fast, case, inputs), run_module(plain, case, inputs))


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=9)


@settings(max_examples=150)
@given(cases(layouts=("unsorted",)), LENGTHS)
def test_lengths(case: Case, lengths: list[int]) -> None:
    """A packed run is torch.nn's, and each sequence in it is what that sequence gives alone."""
    case = case.but(batch=len(lengths), time=max(lengths))
    fast, plain = module_pair(case)
    inputs = make_inputs(case)
    inputs.lengths = torch.tensor(lengths)
    assert_equal_runs(case, run_module(fast, case, inputs), run_module(plain, case, inputs))
    with torch.no_grad():
        packed, ends = fast(pack(inputs.x, inputs.lengths, case.batch_first), inputs.state())
        padded, _ = pad_packed_sequence(packed, batch_first=True)
        x = inputs.x if case.batch_first else inputs.x.transpose(0, 1)
        for row, length in enumerate(lengths):
            alone = _sample(fast, inputs, x[row, :length], row)
            tolerance = {"rtol": TOLERANCE[case.dtype], "atol": TOLERANCE[case.dtype]}
            torch.testing.assert_close(padded[row, :length], alone[0], **tolerance)
            assert not padded[row, length:].any()
            for end, want in zip(flat_outputs((packed, ends))[1:], alone[1:], strict=True):
                torch.testing.assert_close(end[:, row], want, **tolerance)


def _sample(module: nn.Module, inputs: Inputs, x: Tensor, row: int) -> tuple[Tensor, ...]:
    state = inputs.state()
    if isinstance(state, tuple):
        state = tuple(s[:, row] for s in state)
    elif state is not None:
        state = state[:, row]
    return flat_outputs(module(x, state))


@settings(max_examples=100)
@given(cases(dtypes=(BF16, F16), layouts=("padded", "unsorted", "unbatched")))
def test_half_types(case: Case) -> None:
    """Beside a float64 run, with one rounding a layer on the way out and again on the way back."""
    fast, plain = module_pair(case)
    inputs = make_inputs(case)
    wide = torch_module(case.but(dtype=F64))
    wide.load_state_dict(plain.state_dict())
    exact = run_module(wide, case.but(dtype=F64), inputs.to(F64))
    found = run_module(fast, case, inputs)
    theirs = run_module(plain, case, inputs)
    for name, want in exact.items():
        assert found[name].dtype == case.dtype
        limit = 4 * case.layers * torch.finfo(case.dtype).eps
        # where few elements cancel, the largest value bounds nothing: there torch.nn's own error does
        assert relative_error(found[name], want) <= max(limit, 2 * relative_error(theirs[name], want)), name


def options() -> Any:
    return st.builds(
        lambda case, lstm, activation, after: case.but(
            cell="lstm" if lstm else "gru", activation=activation, reset_after=after or lstm
        ),
        cases(dtypes=(F64,), layouts=("padded", "packed", "unbatched")),
        st.booleans(),
        st.sampled_from(["tanh", "softsign", "relu", "hardtanh"]),
        st.booleans(),
    )


@settings(max_examples=100)
@given(options())
def test_options(case: Case) -> None:
    module = fast_module(case)
    inputs = make_inputs(case)
    assert_equal_runs(case, run_module(module, case, inputs), run_reference(module, case, inputs))
