"""lengths, resets and return_cell_states together with everything else that a layer can do, and their errors."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call, grad, jacrev, vmap
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint

import fastrnn
from fastrnn import _stack, functional
from fastrnn._autograd import reference_layer
from helpers import (
    BF16,
    CELLS,
    F16,
    F32,
    F64,
    Case,
    Results,
    assert_bitwise,
    assert_same,
    fast_module,
    make_inputs,
    module_pair,
    relative_error,
    threads_for,
)
from pieces import run_pieces, run_rows
from test_rows import EXACT, make_rows

of_layers = pytest.mark.parametrize(
    "cls", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN], ids=lambda cls: cls.__name__
)


def run_fast(case: Case, module: nn.RNNBase | None = None) -> Results:
    return run_rows(
        module or fast_module(case), case, make_inputs(case), *make_rows(case), case.kind == "lstm"
    )


def run_by_reference(case: Case, module: nn.RNNBase, monkeypatch: pytest.MonkeyPatch) -> Results:
    by_kernels = _stack.run_layers
    with monkeypatch.context() as patched:
        patched.setattr(_stack, "run_layers", lambda _, *rest: by_kernels(reference_layer, *rest))
        return run_fast(case, module)


OPTIONS = [
    Case("gru", reset_after=False, batch=5, hidden=17, layers=2),
    Case("gru", reset_after=False, batch=3, time=40, bidirectional=True, activation="softsign"),
    Case("lstm", layer_norm=True, batch=5, bidirectional=True, hidden=17),
    Case("gru", layer_norm=True, batch=5, layers=2),
    Case("rnn_relu", layer_norm=True, bidirectional=True),
    Case("lstm", heads=2, hidden=32, batch=5, bidirectional=True),
    Case("lstm_proj", heads=2, hidden=64, batch=5, batch_first=True),
    Case("gru", heads=4, hidden=12, layers=2),
    Case("lstm", layers=2, bidirectional=True, time=9),
]


@pytest.mark.parametrize("case", OPTIONS, ids=str)
def test_options(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    module = fast_module(case)
    assert_same(run_fast(case, module), run_by_reference(case, module, monkeypatch), **EXACT)


@pytest.mark.parametrize("cell", CELLS)
def test_the_reference(cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The specification, too, does what cutting by hand does."""
    case = Case(cell, 5, 9, bidirectional=True)
    fast, plain = module_pair(case)
    expected = run_pieces(plain, case, make_inputs(case), *make_rows(case), case.kind == "lstm")
    assert_same(run_by_reference(case, fast, monkeypatch), expected, **EXACT)


@of_layers
def test_dropouts(cls: type[nn.RNNBase], monkeypatch: pytest.MonkeyPatch) -> None:
    module = cls(
        4, 9, 2, dropout=0.3, recurrent_dropout=0.4, weight_dropout=0.2, bidirectional=True, dtype=F64
    )
    case = Case(module.mode.split("_")[0].lower(), 5, 9, layers=2, bidirectional=True, hidden=9)
    lengths, resets = make_rows(case)
    x = make_inputs(case).x
    by_kernels, found = _stack.run_layers, []
    for run in (by_kernels, lambda _, *rest: by_kernels(reference_layer, *rest)):
        monkeypatch.setattr(_stack, "run_layers", run)
        torch.manual_seed(4)
        y, _ = module(x, lengths=lengths, resets=resets.T)
        found.append((y, *torch.autograd.grad(y.square().sum(), list(module.parameters()))))
    torch.testing.assert_close(*found, rtol=1e-10, atol=1e-10)


@of_layers
@pytest.mark.parametrize("bidirectional", [False, True])
def test_full_lengths_and_no_mark_change_nothing(cls: type[nn.RNNBase], bidirectional: bool) -> None:
    module, x = cls(4, 20, 2, bidirectional=bidirectional), torch.randn(7, 3, 4)
    expected = module(x)
    for rows in ({"lengths": torch.full((3,), 7)}, {"resets": torch.zeros(7, 3, dtype=torch.bool)}):
        for a, b in zip(_flat(module(x, **rows)), _flat(expected), strict=True):
            assert torch.equal(a, b)


def _flat(found: Any) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    return [tensor for part in found for tensor in _flat(part)]


@of_layers
def test_lengths_are_packing(cls: type[nn.RNNBase]) -> None:
    module, x, lengths = (
        cls(4, 20, 2, bidirectional=True),
        torch.randn(7, 5, 4),
        torch.tensor([3, 7, 1, 7, 5]),
    )
    y, final = module(x, lengths=lengths)
    packed, packed_final = module(pack_padded_sequence(x, lengths, enforce_sorted=False))
    assert torch.equal(y, pad_packed_sequence(packed)[0])
    assert all(torch.equal(a, b) for a, b in zip(_flat(final), _flat(packed_final), strict=True))


THREADED = [
    Case("lstm", 7, 20, 9, 40, bidirectional=True, dtype=F32),
    Case("gru", 1, 60, 9, 200, dtype=F32),
    Case("lstm_proj", 3, 20, 9, 130, bidirectional=True, dtype=F32),
    Case("rnn_tanh", 70, 12, 9, 33, layers=2, dtype=F32),
    Case("lstm", 5, 12, layer_norm=True, dtype=F32),
]


@pytest.mark.parametrize("case", THREADED, ids=str)
def test_thread_counts_agree_bitwise(case: Case) -> None:
    threads = torch.get_num_threads()
    module, inputs, rows = fast_module(case), make_inputs(case), make_rows(case)
    found = []
    try:
        for count in (1, 2, 3, 8):
            torch.set_num_threads(count)
            leaves = [inputs.x.clone().requires_grad_(), *module.parameters()]
            outputs = _flat(module(leaves[0], lengths=rows[0], resets=rows[1].T))
            found.append(
                dict(enumerate((*outputs, *torch.autograd.grad([o.sum() for o in outputs], leaves))))
            )
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert_bitwise(other, found[0])


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("cell", CELLS)
def test_half_precision_is_rounded_once(cell: str, dtype: torch.dtype) -> None:
    case = Case(cell, 5, 12, bidirectional=True, hidden=20, dtype=dtype)
    module, inputs, rows = fast_module(case), make_inputs(case), make_rows(case)
    wide = copy.deepcopy(module).float()
    cells = case.kind == "lstm"
    found = run_rows(module, case, inputs, *rows, cells)
    exact = run_rows(wide, case.but(dtype=F32), inputs.to(F32), *rows, cells)
    for name, value in exact.items():
        assert found[name].dtype == dtype
        if name.startswith("d_"):
            assert relative_error(found[name], value) < 0.02, name
        else:
            torch.testing.assert_close(found[name], value.to(dtype))


@pytest.mark.parametrize("cell", CELLS)
def test_autocast(cell: str) -> None:
    case = Case(cell, 5, 9, layers=2, dtype=F32)
    module, x, (lengths, resets) = fast_module(case), make_inputs(case).x, make_rows(case)
    options: dict[str, Any] = {"return_cell_states": True} if case.kind == "lstm" else {}
    expected = _flat(module(x, lengths=lengths, resets=resets.T, **options))
    with torch.autocast("cpu", BF16):
        plain, found = _flat(module(x)), _flat(module(x, lengths=lengths, resets=resets.T, **options))
    assert [f.dtype for f in found] == [p.dtype for p in plain] + [plain[-1].dtype] * len(options)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.float(), b, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("layout", ["padded", "unsorted"])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_recompute(cell: str, layout: str, bidirectional: bool) -> None:
    case = Case(cell, 4, 70, layers=2, layout=layout, bidirectional=bidirectional)
    module, inputs = fast_module(case), make_inputs(case.but(layout="padded"))
    lengths, resets = make_rows(case, share=0.1)
    cells = case.kind == "lstm"
    expected = run_rows(module, case, inputs, lengths, resets, cells)
    module.recompute = True
    assert_same(run_rows(module, case, inputs, lengths, resets, cells), expected, **EXACT)


def test_checkpoint() -> None:
    case = Case("lstm", 4, 9, layers=2)
    module, x, (lengths, resets) = fast_module(case), make_inputs(case).x.requires_grad_(), make_rows(case)

    def forward(value: Tensor) -> Tensor:
        y, _, cells = module(value, lengths=lengths, resets=resets.T, return_cell_states=True)
        return y.sum() + cells.square().sum()

    found = torch.autograd.grad(checkpoint(forward, x, use_reentrant=False), [x, *module.parameters()])
    torch.testing.assert_close(found, torch.autograd.grad(forward(x), [x, *module.parameters()]))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_derivatives(cell: str, bidirectional: bool) -> None:
    case = Case(cell, 3, 4, 2, 3, bidirectional=bidirectional)
    module, inputs, (lengths, resets) = fast_module(case), make_inputs(case), make_rows(case)
    options: dict[str, Any] = {"return_cell_states": True} if case.kind == "lstm" else {}
    names = [name for name, _ in module.named_parameters()]

    def forward(x: Tensor, *weights: Tensor) -> Any:
        rows = {"lengths": lengths, "resets": resets.T, **options}
        return tuple(
            _flat(functional_call(module, dict(zip(names, weights, strict=True)), (x, inputs.state()), rows))
        )

    leaves = [inputs.x.requires_grad_(), *module.parameters()]
    assert gradcheck(forward, leaves, fast_mode=True)
    assert gradgradcheck(forward, leaves, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("cell", CELLS)
def test_transforms(cell: str) -> None:
    case = Case(cell, 2, 4, 2, 3, layers=2)
    module, x, (lengths, resets) = fast_module(case), make_inputs(case).x, make_rows(case)

    def forward(value: Tensor, cuts: Tensor = resets.T) -> Tensor:
        found: Tensor = module(value, lengths=lengths, resets=cuts)[0]
        return found

    jacobian = torch.autograd.functional.jacobian(forward, x)
    torch.testing.assert_close(jacrev(forward)(x), jacobian)
    torch.testing.assert_close(
        grad(lambda v: forward(v).square().sum())(x), 2 * torch.tensordot(forward(x), jacobian, 3)
    )
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(forward(forward_ad.make_dual(x, torch.cos(x)))).tangent
    torch.testing.assert_close(tangent, torch.tensordot(jacobian, torch.cos(x), 3))
    samples, cuts = torch.stack([x, 2 * x]), torch.stack([resets.T, ~resets.T])
    expected = torch.stack([forward(s, c) for s, c in zip(samples, cuts, strict=True)])
    torch.testing.assert_close(vmap(forward)(samples, cuts), expected)
    seeds = torch.eye(x.shape[0] * x.shape[1] * case.width, dtype=F64).view(-1, *forward(x).shape)
    leaf = x.clone().requires_grad_()
    (batched,) = torch.autograd.grad(forward(leaf), leaf, seeds, is_grads_batched=True)
    torch.testing.assert_close(batched.view(jacobian.shape), jacobian)


# -- other forms of a layer --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", ["int8", "bfloat16"])
@of_layers
def test_quantized(cls: type[nn.RNNBase], weights: str) -> None:
    case = Case("gru", 5, 9, hidden=20)
    module = fastrnn.quantize(cls(4, 20, bidirectional=True), weights=weights)
    lengths, resets = make_rows(case)
    x = torch.randn(9, 5, 4)
    y, final = module(x, lengths=lengths, resets=resets.T)
    for b in range(5):
        length = int(lengths[b])
        alone, end = module(x[:length, b : b + 1], resets=resets.T[:length, b : b + 1])
        torch.testing.assert_close(y[:length, b], alone[:, 0])
        assert not y[length:, b].any()
        for a, whole in zip(_flat(end), _flat(final), strict=True):
            torch.testing.assert_close(a[:, 0], whole[:, b])
    with pytest.raises(ValueError, match="lengths must be"):
        module(x, lengths=lengths + 9)


def test_traced_by_fx() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = fastrnn.LSTM(3, 4)

        def forward(self, x: Tensor, lengths: Tensor, resets: Tensor) -> Any:
            y, _, cells = self.lstm(x, lengths=lengths, resets=resets, return_cell_states=True)
            return y, cells

    model = Model()
    x, lengths, resets = torch.randn(5, 2, 3), torch.tensor([2, 5]), torch.rand(5, 2) < 0.4
    traced = torch.fx.symbolic_trace(model)
    assert [node.target for node in traced.graph.nodes if node.op == "call_module"] == ["lstm"]
    for a, b in zip(traced(x, lengths, resets), model(x, lengths, resets), strict=True):
        assert torch.equal(a, b)


@of_layers
def test_meta(cls: type[nn.RNNBase]) -> None:
    module = cls(4, 6, 2, bidirectional=True, device="meta")
    x, resets = torch.empty(7, 3, 4, device="meta"), torch.empty(7, 3, dtype=torch.bool, device="meta")
    y, final = module(x, lengths=torch.tensor([1, 7, 3]), resets=resets)
    assert y.shape == (7, 3, 12) and all(f.shape == (4, 3, 6) for f in _flat(final))


def test_a_copied_module() -> None:
    module, x, lengths = fastrnn.LSTM(4, 6), torch.randn(7, 3, 4), torch.tensor([1, 7, 3])
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x, lengths=lengths)[0], module(x, lengths=lengths)[0])


@pytest.mark.parametrize("batch_first", [False, True])
def test_functions(batch_first: bool) -> None:
    lengths, resets = torch.tensor([2, 5, 3]), torch.rand(3, 5) < 0.4
    x = torch.randn(3, 5, 4) if batch_first else torch.randn(5, 3, 4)
    rows: dict[str, Any] = {"lengths": lengths, "resets": resets if batch_first else resets.T}
    lstm = fastrnn.LSTM(4, 6, 2, batch_first=batch_first)
    options: dict[str, Any] = {"num_layers": 2, "batch_first": batch_first, **rows}
    found = functional.lstm(x, None, lstm._weights(), return_cell_states=True, **options)
    expected = _flat(lstm(x, return_cell_states=True, **rows))
    assert len(found) == 4 and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    for cls, function in ((fastrnn.GRU, functional.gru), (fastrnn.RNN, functional.rnn)):
        module = cls(4, 6, 2, batch_first=batch_first)
        found = function(x, None, module._weights(), **options)
        assert all(torch.equal(a, b) for a, b in zip(found, module(x, **rows), strict=True))


@of_layers
def test_without_kernels(cls: type[nn.RNNBase], monkeypatch: pytest.MonkeyPatch) -> None:
    """What no op runs goes to the reference loop."""
    module, x = cls(4, 6, 2, bidirectional=True), torch.randn(7, 3, 4)
    rows = {"lengths": torch.tensor([3, 7, 1]), "resets": torch.rand(7, 3) < 0.3}
    expected = _flat(module(x, **rows))
    with threads_for(module), monkeypatch.context() as patched:
        patched.setattr(fastrnn._ops, "has_kernels", lambda _: False)
        found = _flat(module(x, **rows))
    torch.testing.assert_close(found, expected)
