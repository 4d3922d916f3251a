"""opcheck, fake tensors, and torch.compile without graph breaks, forward and training, with dynamic sizes."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.backends.registry import lookup_backend
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers import (
    CELLS,
    F32,
    F64,
    Case,
    assert_same,
    cotangent,
    fast_cell_pair,
    fast_module,
    flat_outputs,
    make_inputs,
    pack,
    run_module,
)
from opcases import OPS, op_case

OP_CASES = [
    Case(
        cell, hidden=7, bidirectional=bi, layout=layout, state=state, batch_first=first, bias=bias, dtype=F32
    )
    for cell, (bi, layout, state, first, bias) in product(
        CELLS,
        [
            (False, "padded", True, False, True),
            (True, "padded", False, True, False),
            (True, "packed", True, False, True),
        ],
    )
] + [Case("gru", reset_after=False, activation="relu", dtype=F32)]


@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_opcheck_forward(case: Case) -> None:
    op = op_case(case)
    for training in (True, False):
        found = torch.library.opcheck(OPS.layer_forward.default, op.forward_arguments(training))
        assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_opcheck_backward(case: Case) -> None:
    op = op_case(case)
    outputs = op.forward()
    gradients = op.gradients(outputs)
    calls = [
        op.backward_arguments(outputs, gradients),
        op.backward_arguments(outputs, (gradients[0], *[None] * (len(gradients) - 1)), (False, False, True)),
    ]
    for arguments in calls:
        found = torch.library.opcheck(OPS.layer_backward.default, arguments)
        assert set(found.values()) == {"SUCCESS"}


@pytest.mark.parametrize("case", OP_CASES, ids=str)
def test_fake_tensors(case: Case) -> None:
    """Shapes, strides and dtypes of every result without computing it."""
    op = op_case(case)
    for training in (True, False):
        real = op.forward(training)
        with FakeTensorMode() as mode:
            fake = op_case(case)
            fake.x = mode.from_tensor(op.x)
            found = fake.forward(training)
        for got, want in zip(found, real, strict=True):
            assert (got.shape, got.stride(), got.dtype) == (want.shape, want.stride(), want.dtype)


class Counting:
    """A backend that runs what it gets through AOTAutograd and counts how often it is asked to compile."""

    def __init__(self, backend: str = "aot_eager") -> None:
        self.count, self.backend = 0, lookup_backend(backend)

    def __call__(self, module: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        self.count += 1
        return self.backend(module, inputs)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> None:
    torch._dynamo.reset()


def _cases() -> list[Case]:
    plain = [Case(cell, hidden=7, layers=2, dtype=F32) for cell in CELLS]
    other = [
        Case(cell, hidden=7, bidirectional=True, batch_first=True, state=False, bias=False, dtype=F32)
        for cell in CELLS
    ]
    extra = [
        Case("gru", layout="unbatched", dtype=F32),
        Case("gru", reset_after=False, dtype=F32),
        Case("lstm", activation="softsign", layout="unbatched", dtype=F64),
    ]
    return plain + other + extra


@pytest.mark.parametrize("case", _cases(), ids=str)
def test_compiled_training(case: Case) -> None:
    module, inputs = fast_module(case), make_inputs(case)
    expected = run_module(module, case, inputs)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    leaves = {k: v.clone().requires_grad_() for k, v in vars(inputs).items() if isinstance(v, Tensor)}
    state = tuple(leaves[k] for k in ("h0", "c0") if k in leaves)
    outputs = flat_outputs(compiled(leaves["x"], (state if len(state) == 2 else state[0]) if state else None))
    results = dict(zip(("y", "h_n", "c_n"), outputs, strict=False))
    targets = leaves | dict(module.named_parameters())
    seeds = [cotangent(name, value) for name, value in results.items()]
    found = torch.autograd.grad(outputs, list(targets.values()), seeds, materialize_grads=True)
    actual = results | {f"d_{name}": g for name, g in zip(targets, found, strict=True)}
    assert_same(actual, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", _cases()[::2], ids=str)
def test_compiled_inference(case: Case) -> None:
    module, inputs = fast_module(case), make_inputs(case)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        found = flat_outputs(compiled(inputs.x, inputs.state()))
        expected = flat_outputs(module(inputs.x, inputs.state()))
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("cell", CELLS)
def test_one_compilation_for_every_batch_and_time(cell: str, training: bool) -> None:
    case = Case(cell, hidden=7, layers=2, bidirectional=True, dtype=F32)
    module = fast_module(case)
    backend = Counting()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    counts = []
    for batch, time in (
        (5, 9),
        (2, 11),
        (8, 10),
        (6, 6),
    ):  # the first unlike other sizes, which dynamo would equate
        inputs = make_inputs(case.but(batch=batch, time=time))
        with torch.set_grad_enabled(training):
            y, _ = compiled(inputs.x, inputs.state())
            expected, _ = module(inputs.x, inputs.state())
        torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)
        if training:
            weights = list(module.parameters())
            found = torch.autograd.grad(y.square().sum(), weights)
            want = torch.autograd.grad(expected.square().sum(), weights)
            torch.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
        counts.append(backend.count)
    assert counts == counts[:1] * 4


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell-tanh"])
def test_compiled_cell_modules(name: str) -> None:
    module, _ = fast_cell_pair(name, 5, 7)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 5)
    torch.testing.assert_close(compiled(x), module(x), rtol=1e-6, atol=1e-6)
    weights = list(module.parameters())

    def gradients(outputs: Any) -> tuple[Tensor, ...]:
        value = outputs[0] if isinstance(outputs, tuple) else outputs
        return torch.autograd.grad(value.square().sum(), weights)

    torch.testing.assert_close(gradients(compiled(x)), gradients(module(x)), rtol=1e-5, atol=1e-6)


class Tagger(nn.Module):
    """A recurrent layer between others, as models have it."""

    def __init__(self, cell: str) -> None:
        super().__init__()
        case = Case(cell, input=6, hidden=8, batch_first=True, bidirectional=True, dtype=F32)
        self.embed, self.rnn, self.out = nn.Embedding(11, 6), fast_module(case), nn.Linear(16, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        y, _ = self.rnn(self.embed(tokens))
        return self.out(torch.relu(y)).log_softmax(-1)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_inductor_trains_a_model(cell: str) -> None:
    module, tokens = Tagger(cell), torch.randint(11, (4, 7))
    compiled = torch.compile(module, fullgraph=True, backend="inductor")
    expected, found = module(tokens), compiled(tokens)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = list(module.parameters())
    want = torch.autograd.grad(expected[..., 0].sum(), weights)
    got = torch.autograd.grad(found[..., 0].sum(), weights)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_packed_input_in_a_compiled_function(cell: str) -> None:
    case = Case(cell, layout="unsorted", layers=2, dtype=F32)
    module, inputs = fast_module(case), make_inputs(case)
    packed = pack(inputs.x, inputs.lengths, False)
    compiled = torch.compile(module, backend="aot_eager")
    found = flat_outputs(compiled(packed, inputs.state()))
    expected = flat_outputs(module(packed, inputs.state()))
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)


def test_export() -> None:
    module, x = fast_module(Case("gru", dtype=F32)).eval(), torch.randn(5, 3, 4)
    program = torch.export.export(module, (x,), strict=False)
    torch.testing.assert_close(program.module()(x), module(x), rtol=1e-6, atol=1e-6)
    names = {str(node.target) for node in program.graph.nodes}
    assert any("fastrnn.layer_forward" in name for name in names)


def test_dropout_inside_a_compiled_module() -> None:
    module = fast_module(Case("gru", layers=2, dtype=F32))
    module.dropout = 0.5
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 3, 4)
    torch.manual_seed(0)
    first = compiled(x)[0]
    assert not torch.equal(compiled(x)[0], first)
    module.eval()
    torch.testing.assert_close(compiled(x), module(x), rtol=1e-6, atol=1e-6)
