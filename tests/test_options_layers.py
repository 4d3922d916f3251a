"""What every layer goes through, with each option: derivatives, layouts, threads, dtypes, the ops and the compiler."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

from fastrnn import _spec
from fastrnn._options import operands_of_call
from helpers import BF16, F16, F32, F64, Case, assert_same, make_inputs, relative_error
from optioncases import OPTIONS, each, flat, gradients, make, zoned
from pieces import run_pieces, run_rows
from test_compile import Counting
from test_rows import make_rows

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def states_of(module: nn.RNNBase, batch: int) -> Any:
    rows = module.num_layers * (1 + module.bidirectional)
    h = torch.randn(rows, batch, module.hidden_size, dtype=module.weight_ih_l0.dtype) * 0.5
    return (h, h.flip(2)) if module.mode == "LSTM" else h


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@each
def test_derivatives(option: str, packed: bool) -> None:
    module = make(option, 2, 3, bidirectional=True, dtype=F64)
    x, hx = torch.randn(3, 2, 2, dtype=F64), states_of(module, 2)
    states = list(hx) if isinstance(hx, tuple) else [hx]
    names = [name for name, _ in module.named_parameters()]

    def f(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        torch.manual_seed(5)
        given, weights = values[: len(states)], values[len(states) :]
        rows = pack_padded_sequence(x, torch.tensor([2, 3]), enforce_sorted=False) if packed else x
        state = tuple(given) if len(given) > 1 else given[0]
        y, final = functional_call(module, dict(zip(names, weights, strict=True)), (rows, state))
        return (y.data if packed else y, *(final if isinstance(final, tuple) else (final,)))

    values = [t.detach().clone().requires_grad_() for t in (x, *states, *module.parameters())]
    assert gradcheck(f, values, eps=1e-6, atol=1e-6, rtol=1e-5, fast_mode=packed)
    if not packed:
        assert gradgradcheck(f, values, fast_mode=True, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("way", ["lengths", "resets", "both", "packed"])
@each
def test_rows_that_end_and_begin_anew(option: str, way: str) -> None:
    """Two layers, both directions, batch_first; against the pieces, each alone. Means in the place of masks."""
    module = make(option, 4, 6, 2, bidirectional=True, batch_first=True, dtype=F64).eval()
    layout = "unsorted" if way == "packed" else "padded"
    case = Case(
        OPTIONS[option][0].lower(), 4, 9, layers=2, bidirectional=True, batch_first=True, layout=layout
    )
    inputs, (lengths, resets) = make_inputs(case.but(layout="padded")), make_rows(case)
    rows = None if way == "resets" else lengths, None if way == "lengths" else resets
    expected = run_pieces(module, case, inputs, *rows)
    assert_same(run_rows(module, case, inputs, *rows), expected, **EXACT)


@each
def test_masks_do_not_depend_on_the_layout(option: str) -> None:
    """In training, one seed: packed rows, padded rows with lengths, and batch_first have the same."""
    module = make(option, 4, 6, 2, bidirectional=True, dtype=F64)
    x, lengths = torch.randn(9, 4, 4, dtype=F64), torch.tensor([9, 7, 5, 2])
    first = copy.deepcopy(module)
    first.batch_first = True

    def run(call: Any) -> list[Tensor]:
        torch.manual_seed(3)
        y, final = call()
        return [y if isinstance(y, Tensor) else pad_packed_sequence(y)[0], *flat(final)]

    expected = run(lambda: module(x, lengths=lengths))
    y, *final = run(lambda: first(x.transpose(0, 1), lengths=lengths))
    for got, want in zip([y.transpose(0, 1), *final], expected, strict=True):
        torch.testing.assert_close(got, want, **EXACT)
    for got, want in zip(run(lambda: module(pack_padded_sequence(x, lengths))), expected, strict=True):
        torch.testing.assert_close(got, want, **EXACT)


@pytest.mark.parametrize("shape", [(1, 40, False), (33, 64, True)], ids=["one-row", "batch"])
@each
def test_one_result_for_every_number_of_threads(option: str, shape: tuple[int, int, bool]) -> None:
    batch, hidden, bidirectional = shape
    module = make(option, 7, hidden, 2, bidirectional=bidirectional)
    x, before = torch.randn(8, batch, 7), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(gradients(module, x, module=module))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for got, want in zip(other, found[0], strict=True):
            assert torch.equal(got, want)


@pytest.mark.parametrize("lengths", [None, [20, 50, 3]], ids=["", "lengths"])
@each
def test_recompute_and_checkpoint(option: str, lengths: list[int] | None) -> None:
    module = make(option, 5, 7, 2, dtype=F64)
    x, given = torch.randn(50, 3, 5, dtype=F64), None if lengths is None else torch.tensor(lengths)

    def call(x: Tensor) -> Any:
        return module(x, lengths=given)

    expected = gradients(call, x, module=module)
    module.recompute = True
    for run in (call, lambda x: checkpoint(call, x, use_reentrant=False)):
        for got, want in zip(gradients(run, x, module=module), expected, strict=True):
            torch.testing.assert_close(got, want, **EXACT)


@pytest.mark.parametrize("dtype", [BF16, F16], ids=["bf16", "f16"])
@each
def test_half_precision(option: str, dtype: torch.dtype) -> None:
    """Errors are about those of a plain module; the very same states, rounded once, in a forward pass."""

    def errors(plain: bool) -> list[float]:
        module = make(option, 12, 24, plain=plain).to(dtype)
        x = torch.randn(10, 6, 12, generator=torch.Generator().manual_seed(1)).to(dtype)
        exact = copy.deepcopy(module).double()
        found, wanted = gradients(module, x, module=module), gradients(exact, x.double(), module=exact)
        return [relative_error(got, want) for got, want in zip(found, wanted, strict=True)]

    outputs = 2 + (OPTIONS[option][0] == "LSTM")
    assert max(errors(False)[:outputs]) <= 0.51 * 2 * torch.finfo(dtype).eps
    assert max(errors(False)) <= 2 * max(errors(True))


@each
def test_half_precision_is_rounded_once_with_recompute(option: str) -> None:
    module = make(option, 5, 7).to(BF16)
    x = torch.randn(50, 3, 5).to(BF16)
    wide = copy.deepcopy(module).float()
    module.recompute = True
    for got, want in zip(
        gradients(module, x, module=module)[:2], gradients(wide, x.float(), module=wide)[:2], strict=True
    ):
        torch.testing.assert_close(got, want.to(BF16), rtol=2**-7, atol=1e-6)


@each
def test_autocast(option: str) -> None:
    module, x = make(option, 5, 8, 2), torch.randn(6, 3, 5)
    torch.manual_seed(1)
    expected = module(x)[0]
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)[0]
    assert y.dtype in (F32, BF16)
    torch.testing.assert_close(y.float(), expected, rtol=2e-2, atol=2e-2)


@each
def test_opcheck(option: str) -> None:
    module, ops = make(option, 5, 7, bidirectional=True), torch.ops.fastrnn
    weights, own = (
        [p.detach() for p in some] for some in (module._weights(), module._parameters_of_operands())
    )
    spec, x = module._layer_spec(), torch.randn(4, 3, 5)
    states = [torch.randn(2, 3, 7) for _ in range(1 + (module.mode == "LSTM"))]
    operands = list(operands_of_call(spec, own, 2, module._constants(), True, x, (4, 3, 7)))
    for training in (True, False):
        arguments = (x, states, weights, None, operands, spec, training)
        assert set(torch.library.opcheck(ops.layer_forward.default, arguments).values()) == {"SUCCESS"}
    y, *finals, reserve = ops.layer_forward(x, states, weights, None, operands, spec, True)
    needs = _spec.NEEDS_X | _spec.NEEDS_STATES | _spec.NEEDS_WEIGHTS | _spec.NEEDS_OPERANDS
    d_outputs = [torch.ones_like(o) for o in (y, *finals)]
    arguments = (d_outputs, x, states, weights, None, operands, y, reserve, spec, needs)
    assert set(torch.library.opcheck(ops.layer_backward.default, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize(
    ("option", "training"), [*((name, True) for name in OPTIONS), ("lstm-all", False), ("gru-zoneout", False)]
)
def test_compiled_once_for_every_size(option: str, training: bool) -> None:
    torch._dynamo.reset()
    module, backend = make(option, 4, 7, bidirectional=True).train(training), Counting()
    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    counts = []
    for time, batch in ((9, 5), (11, 2), (10, 8)):  # the first unlike other sizes, which dynamo would equate
        x = torch.randn(time, batch, 4)
        found, expected = (gradients(run, x, module=module) for run in (compiled, module))
        for got, want in zip(found, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        counts.append(backend.count)
    assert counts == counts[:1] * 3


@zoned
def test_compiled_masks_are_the_seeds(option: str) -> None:
    """From call to call, and with recompute, and with another seed others."""
    torch._dynamo.reset()
    module, x = make(option, 5, 7, recompute=True), torch.randn(40, 3, 5)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    first, again = (gradients(compiled, x, module=module, seed=1) for _ in range(2))
    for got, want in zip(again, first, strict=True):
        assert torch.equal(got, want)
    assert not torch.equal(gradients(compiled, x, module=module, seed=2)[0], first[0])


def test_inductor() -> None:
    """Whose generator is another one: the same masks for the same seed, in both passes."""
    torch._dynamo.reset()
    module, x = make("lstm-all", 5, 7), torch.randn(6, 3, 5)
    compiled = torch.compile(module, fullgraph=True)
    first, again = (gradients(compiled, x, module=module, seed=1) for _ in range(2))
    for got, want in zip(again, first, strict=True):
        assert torch.equal(got, want)
    module.eval()
    for got, want in zip(flat(compiled(x)), flat(module(x)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
