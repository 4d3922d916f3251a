"""heads: against the reference, finite differences, and layers of one head with zeros beside the blocks."""

import copy
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call

import fastrnn
from fastrnn import _ops, _spec
from helpers import (
    BF16,
    CELLS,
    F16,
    F32,
    F64,
    LAYOUTS,
    Case,
    Results,
    assert_bitwise,
    assert_same,
    fast_module,
    flat_outputs,
    make_inputs,
    relative_error,
    run,
    run_forward,
    run_module,
    run_reference,
)

EXACT = {"rtol": 1e-10, "atol": 1e-10}
MODULES = [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN]
SINGLE = ["LSTMCell", "GRUCell", "RNNCell"]
of_layers = pytest.mark.parametrize("cls", MODULES, ids=lambda cls: cls.__name__)

# of the kernels, and of no whole vectors
ALIGNED, OTHER = [(2, 64), (3, 48), (4, 128), (2, 160)], [(2, 6), (3, 9), (2, 40), (4, 72)]


def _cases() -> list[Case]:
    shapes = [
        Case(cell, layout=layout, bidirectional=bi, hidden=64, heads=2)
        for cell, layout, bi in product(CELLS, LAYOUTS, (False, True))
    ]
    sizes = [
        Case(cell, hidden=hidden, heads=heads, batch=batch, time=time)
        for cell in CELLS
        for heads, hidden in ALIGNED + OTHER
        for batch, time in [(1, 1), (1, 40), (19, 2), (4, 9)]
        if cell != "lstm_proj" or hidden // 2 % heads == 0
    ]
    stacks = [
        Case(cell, layers=3, heads=2, hidden=h, bidirectional=True, batch_first=True, bias=False, state=False)
        for cell in CELLS
        for h in (32, 12)
    ]
    options = [
        Case(cell, heads=2, hidden=hidden, layout="unsorted", **changes)
        for hidden in (64, 10)
        for cell, changes in [
            ("gru", {"reset_after": False}),
            ("gru", {"reset_after": False, "bidirectional": True, "layers": 2}),
            ("lstm", {"layer_norm": True}),
            ("gru", {"layer_norm": True}),
            ("rnn_tanh", {"layer_norm": True, "bidirectional": True}),
            ("lstm", {"activation": "softsign"}),
        ]
    ]
    return shapes + sizes + stacks + options


@pytest.mark.parametrize("case", _cases(), ids=str)
def test_outputs_and_gradients_are_the_references(case: Case) -> None:
    module, inputs = fast_module(case), make_inputs(case)
    expected = run_reference(module, case, inputs)
    assert_same(run_module(module, case, inputs), expected, **EXACT)
    outputs = run_forward(module, case, inputs)
    assert_same(outputs, {name: expected[name] for name in outputs}, **EXACT)


def in_one_head(module: nn.RNNBase) -> nn.RNNBase:
    """The layer with whole recurrent weights, of which each gate's is block-diagonal."""
    whole = copy.deepcopy(module)
    whole.heads, gates = 1, module._cell.gates
    for name, weight in module.named_parameters():
        if name.startswith("weight_hh"):
            blocks = [gate.detach().chunk(module.heads) for gate in weight.chunk(gates)]
            setattr(whole, name, nn.Parameter(torch.cat([torch.block_diag(*of_gate) for of_gate in blocks])))
    return whole


@pytest.mark.parametrize(("heads", "hidden"), [(2, 64), (4, 64), (3, 9)])
@of_layers
def test_one_head_with_zeros_beside_the_blocks(cls: type[nn.RNNBase], heads: int, hidden: int) -> None:
    module = cls(5, hidden, 2, heads=heads, dtype=F64)
    x, whole = torch.randn(7, 4, 5, dtype=F64), in_one_head(module)
    got, want = module(x)[0], whole(x)[0]
    torch.testing.assert_close(got, want, **EXACT)
    (got * got).sum().backward()
    (want * want).sum().backward()
    for name, expected in whole.named_parameters():
        found = getattr(module, name).grad
        if name.startswith("weight_hh"):
            rows, length = hidden // heads, hidden // heads
            for row, gradient in enumerate(found):
                first = row % hidden // rows * length
                torch.testing.assert_close(gradient, expected.grad[row, first : first + length], **EXACT)
        else:
            torch.testing.assert_close(found, expected.grad, **EXACT)


def test_float32_is_as_exact_as_torchs() -> None:
    module, x = fastrnn.LSTM(40, 96, heads=3), torch.randn(30, 8, 40)
    whole = in_one_head(module)
    plain = nn.LSTM(40, 96)
    plain.load_state_dict(whole.state_dict())
    exact = copy.deepcopy(plain).double()(x.double())[0]
    assert relative_error(module(x)[0], exact) <= 2 * relative_error(plain(x)[0], exact) + 1e-7


# -- derivatives -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden", [32, 4])
@pytest.mark.parametrize("cell", [*CELLS, "gru_before"])
def test_gradcheck(cell: str, hidden: int) -> None:
    before = cell == "gru_before"
    case = Case(
        "gru" if before else cell, batch=2, time=3, input=3, hidden=hidden, heads=2, reset_after=not before
    )
    module, inputs = fast_module(case), make_inputs(case)
    leaves = [t for t in (inputs.x, inputs.h0, inputs.c0) if t is not None]
    names = [name for name, _ in module.named_parameters()]

    def f(*values: Tensor) -> tuple[Tensor, ...]:
        x, *states = values[: len(leaves)]
        weights = dict(zip(names, values[len(leaves) :], strict=True))
        arguments = x, states[0] if len(states) == 1 else tuple(states)
        return flat_outputs(functional_call(module, weights, arguments))

    values = [t.detach().clone().requires_grad_() for t in (*leaves, *module.parameters())]
    kink = cell == "rnn_relu"
    tolerance = {"atol": 1e-4, "rtol": 1e-4} if kink else {"atol": 1e-6, "rtol": 1e-5}
    assert gradcheck(f, values, eps=1e-6, fast_mode=hidden > 4, **tolerance)
    if not kink:
        assert gradgradcheck(f, values, fast_mode=True, atol=1e-4, rtol=1e-4)


# -- everything a layer goes through -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "shape",
    [(1, 40, 16, 256, 4), (1, 40, 16, 256, 2), (16, 8, 24, 96, 2), (3, 30, 9, 160, 2), (2, 5, 3, 6, 3)],
)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "lstm_proj", "gru", "rnn_tanh"])
def test_one_result_for_every_number_of_threads(
    cell: str, bidirectional: bool, shape: tuple[int, int, int, int, int]
) -> None:
    batch, time, inputs, hidden, heads = shape
    case = Case(
        cell,
        batch=batch,
        time=time,
        input=inputs,
        hidden=hidden,
        heads=heads,
        dtype=F32,
        bidirectional=bidirectional,
    )
    module, given, before = fast_module(case), make_inputs(case), torch.get_num_threads()
    found: list[Results] = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(run(module, module.named_parameters(), given))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert_bitwise(other, found[0])


@pytest.mark.parametrize("hidden", [32, 10])
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("cell", ["lstm", "lstm_proj", "gru", "rnn_tanh"])
def test_recompute(cell: str, layout: str, hidden: int) -> None:
    if cell == "lstm_proj":
        hidden *= 2
    case = Case(cell, time=50, layers=2, layout=layout, hidden=hidden, heads=2)
    module, inputs = fast_module(case), make_inputs(case)
    expected = run_module(module, case, inputs)
    module.recompute = True
    assert_same(run_module(module, case, inputs), expected, **EXACT)


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("batch", [1, 5, 40])
@pytest.mark.parametrize("cell", ["lstm", "lstm_proj", "gru", "rnn_tanh"])
def test_half_precision_is_rounded_once(cell: str, batch: int, dtype: torch.dtype) -> None:
    case = Case(cell, dtype=dtype, hidden=64, heads=2, batch=batch)
    module, inputs = fast_module(case), make_inputs(case)
    wide = copy.deepcopy(module).float()
    expected = run_forward(wide, case.but(dtype=F32), inputs.to(F32))
    found = run_module(module, case, inputs)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value.to(dtype))
    for name, value in run_module(wide, case.but(dtype=F32), inputs.to(F32)).items():
        assert relative_error(found[name], value) < 0.02, name
    for name, value in run_forward(module, case, inputs).items():  # on tiles h is rounded for each product
        assert relative_error(value, expected[name]) < 0.02, name
    torch.ops.fastrnn.force_isa(next(isa for isa in _ops.supported_isas() if isa != "amx"))
    for name, value in run_forward(module, case, inputs).items():
        torch.testing.assert_close(value, expected[name].to(dtype))


@pytest.mark.parametrize("hidden", [32, 10])
@of_layers
def test_autocast(cls: type[nn.RNNBase], hidden: int) -> None:
    module, x = cls(5, hidden, 2, heads=2), torch.randn(6, 3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)[0]
    torch.testing.assert_close(y.float(), module(x)[0], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("hidden", [32, 12])
@pytest.mark.parametrize("cell", ["lstm", "lstm_proj", "gru", "rnn_tanh"])
def test_compiled(cell: str, hidden: int) -> None:
    case = Case(cell, layers=2, bidirectional=True, dtype=F32, hidden=hidden, heads=2)
    module, inputs = fast_module(case), make_inputs(case)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    expected = run(module, module.named_parameters(), inputs)
    found = run(compiled, module.named_parameters(), inputs)
    assert_same(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("cell", ["lstm", "lstm_proj", "gru", "rnn_tanh"])
def test_opcheck(cell: str) -> None:
    module = fast_module(Case(cell, hidden=64, heads=2, input=5, dtype=F32))
    weights = [p.detach() for p in module._weights()]
    spec, x, ops = module._layer_spec(), torch.randn(4, 3, 5), torch.ops.fastrnn
    for training in (True, False):
        arguments = (x, [], weights, None, [], spec, training)
        assert set(torch.library.opcheck(ops.layer_forward.default, arguments).values()) == {"SUCCESS"}
    y, *finals, reserve = ops.layer_forward(x, [], weights, None, [], spec, True)
    needs = _spec.NEEDS_X | _spec.NEEDS_WEIGHTS
    arguments = (
        [torch.ones_like(y), *(None for _ in finals)],
        x,
        [],
        weights,
        None,
        [],
        y,
        reserve,
        spec,
        needs,
    )
    assert set(torch.library.opcheck(ops.layer_backward.default, arguments).values()) == {"SUCCESS"}


@of_layers
def test_the_op_checks_its_weights(cls: type[nn.RNNBase]) -> None:
    module, ops = cls(5, 64, heads=2), torch.ops.fastrnn
    weights, x = [p.detach() for p in module._weights()], torch.randn(4, 3, 5)
    for bad in (weights[1][:, :-1], weights[1].repeat(1, 2)):
        with pytest.raises(RuntimeError, match="w_hh must have shape"):
            ops.layer_forward(x, [], [weights[0], bad, *weights[2:]], None, [], module._layer_spec(), False)
    for heads in (3, 8, 4096):
        spec = _spec.with_heads(module._layer_spec(), heads)
        with pytest.raises(RuntimeError, match=f"each of {heads} heads must have a multiple of 16 units"):
            ops.layer_forward(x, [], weights, None, [], spec, False)
