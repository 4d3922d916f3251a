"""SLSTM, IndRNN, MinGRU and MinLSTM: against the reference, and through everything a layer goes through."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

import fastrnn
from fastrnn import _spec
from fastrnn._options import operands_of_call
from helpers import BF16, F16, F32, F64, relative_error
from optioncases import flat, gradients
from owncases import EXACT, by_reference, each, kinds, make, states_of
from test_compile import Counting


@pytest.mark.parametrize(
    "way", ["plain", "unbatched", "batch_first", "packed", "lengths", "resets", "no bias"]
)
@each
def test_is_the_reference(monkeypatch: pytest.MonkeyPatch, name: str, way: str) -> None:
    found = []
    for is_reference in (False, True):
        module = make(
            name,
            5,
            18,
            2,
            bias=way != "no bias",
            batch_first=way == "batch_first",
            bidirectional=True,
            dtype=F64,
        )
        torch.manual_seed(1)
        x: Any = torch.randn(*((9, 5) if way == "unbatched" else (9, 4, 5)), dtype=F64, requires_grad=True)
        states = states_of(module, x.shape[0] if way == "batch_first" else 4)
        if way == "unbatched":
            states = tuple(s[:, 0] for s in states) if isinstance(states, tuple) else states[:, 0]
        leaves = [s.requires_grad_() for s in flat(states)]
        hx = tuple(leaves) if len(leaves) > 1 else leaves[0]
        lengths, rest = torch.tensor([3, 9, 1, 6]), {}
        given: Any = pack_padded_sequence(x, lengths, enforce_sorted=False) if way == "packed" else x
        if way in ("lengths", "resets"):
            rest["lengths"] = lengths
        if way == "resets":
            rest["resets"] = torch.rand(9, 4) < 0.3
        with monkeypatch.context() as patched:
            if is_reference:
                by_reference(patched)
            y, final = module(given, hx, **rest)
        outputs = [y.data if way == "packed" else y, *flat(final)]
        seeds = [torch.randn_like(o) for o in outputs]
        found.append([*outputs, *torch.autograd.grad(outputs, [x, *leaves, *module.parameters()], seeds)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, **EXACT)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 0, 3), (70, 33, 65), (300, 2, 16)], ids=str)
@each
def test_sizes(monkeypatch: pytest.MonkeyPatch, name: str, sizes: tuple[int, int, int]) -> None:
    time, batch, hidden = sizes
    if name == "slstm-heads":
        hidden = -(-hidden // 32) * 32
    module = make(name, 3, hidden, dtype=F64)
    x = torch.randn(time, batch, 3, dtype=F64)
    found = gradients(module, x, module=module)
    by_reference(monkeypatch)
    for got, want in zip(found, gradients(module, x, module=module), strict=True):
        torch.testing.assert_close(got, want, **EXACT)


@each
def test_derivatives(name: str) -> None:
    module = make(name, 2, 4, bidirectional=True, dtype=F64)
    x, hx = torch.randn(3, 2, 2, dtype=F64), flat(states_of(module, 2))
    names = [name for name, _ in module.named_parameters()]

    def f(x: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
        given, weights = values[: len(hx)], values[len(hx) :]
        state = tuple(given) if len(given) > 1 else given[0]
        outputs = functional_call(module, dict(zip(names, weights, strict=True)), (x, state))
        return tuple(flat(outputs))

    values = [t.detach().clone().requires_grad_() for t in (x, *hx, *module.parameters())]
    assert gradcheck(f, values, eps=1e-6, atol=1e-6, rtol=1e-5)
    assert gradgradcheck(f, values, fast_mode=True, atol=1e-4, rtol=1e-4)


# -- what a layer goes through -----------------------------------------------------------------------------------------


@each
def test_threads_do_not_matter(name: str) -> None:
    module = make(name, 40, 160, bidirectional=True)
    x, found = torch.randn(12, 9, 40), []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(gradients(module, x, module=module))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=str)
@each
def test_error_of_fewer_bits(monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype) -> None:
    """Beside the reference in the same dtype; both against float64."""
    module = make(name, 16, 32, dtype=dtype)
    x = torch.randn(20, 4, 16, dtype=dtype)
    exact_module = copy.deepcopy(module).double()
    found = gradients(module, x, module=module)
    by_reference(monkeypatch)
    exact = gradients(exact_module, x.double(), module=exact_module)
    plain = gradients(module, x, module=module)
    for got, loose, want in zip(found, plain, exact, strict=True):
        # of two roundings, each of a last bit, either may be the smaller
        assert relative_error(got, want) <= 1.5 * relative_error(loose, want) + torch.finfo(dtype).eps


@kinds
def test_recompute_and_checkpoint(name: str) -> None:
    module, again = make(name, 5, 18, 2, dtype=F64), make(name, 5, 18, 2, dtype=F64, recompute=True)
    x = torch.randn(70, 3, 5, dtype=F64)
    want = gradients(module, x, module=module)
    for got in (
        gradients(again, x, module=again),
        gradients(lambda x: checkpoint(module, x, use_reentrant=False), x, module=module),
    ):
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, **EXACT)


@pytest.mark.parametrize("option", ["recurrent_dropout", "weight_dropout"])
def test_dropout_of_what_is_recurrent(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    module = make("slstm", 5, 32, 2, heads=2, dtype=F64, **{option: 0.4})
    x = torch.randn(9, 3, 5, dtype=F64)
    found = gradients(module, x, module=module)
    assert not torch.equal(found[0], module.eval()(x)[0])
    by_reference(monkeypatch)
    for got, want in zip(found, gradients(module.train(), x, module=module), strict=True):
        torch.testing.assert_close(got, want, **EXACT)


@kinds
def test_compiles_in_one_graph_of_any_length(name: str) -> None:
    torch._dynamo.reset()
    module = make(name, 5, 18, 2, batch_first=True, bidirectional=True)
    backend, counts = Counting(), []
    compiled = torch.compile(module, backend=backend, fullgraph=True, dynamic=True)
    for batch, time in ((3, 7), (6, 9), (11, 13)):
        x = torch.randn(batch, time, 5)
        found, expected = (gradients(run, x, module=module) for run in (compiled, module))
        for got, want in zip(found, expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
        counts.append(backend.count)
    assert counts == counts[:1] * 3


@each
def test_ops_keep_their_promises(name: str) -> None:
    module = make(name, 5, 32, bidirectional=True, dtype=F64)
    spec, x = module._layer_spec(), torch.randn(4, 3, 5, dtype=F64)
    operands = operands_of_call(
        spec, list(module._parameters_of_operands()), 2, module._constants(), True, x, (4, 3, 32)
    )
    states = list(module._states(states_of(module, 3)))
    leaves = [t.detach().requires_grad_() for t in (x, *states)]
    arguments = (leaves[0], leaves[1:], module._weights(), None, list(operands), spec, True)
    torch.library.opcheck(torch.ops.fastrnn.layer_forward.default, arguments)
    with torch.no_grad():
        *outputs, reserve = torch.ops.fastrnn.layer_forward(*arguments)
        seeds = [torch.randn_like(o) for o in outputs]
        needs = _spec.NEEDS_X | _spec.NEEDS_STATES | _spec.NEEDS_WEIGHTS | _spec.NEEDS_OPERANDS
        tensors = (seeds, *arguments[:-2], outputs[0], reserve, spec, needs)
        torch.library.opcheck(torch.ops.fastrnn.layer_backward.default, tensors)


@each
def test_copies(name: str) -> None:
    module = make(name, 5, 32, 2, dropout=0.0, bidirectional=True)
    x = torch.randn(4, 3, 5)
    want = flat(module(x))
    fresh = make(name, 5, 32, 2, bidirectional=True)
    fresh.reset_parameters()
    fresh.load_state_dict(module.state_dict())
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), fresh):
        for a, b in zip(flat(other(x)), want, strict=True):
            assert torch.equal(a, b)
    assert repr(module).startswith(type(module).__name__ + "(5, 32, num_layers=2")
    half = copy.deepcopy(module).bfloat16()
    assert all(p.dtype == BF16 for p in half.parameters())
    assert half(x.bfloat16())[0].dtype == BF16


def test_names_and_beginnings() -> None:
    module = fastrnn.IndRNN(3, 400, 2, bidirectional=True)
    names = ["weight_ih", "bias_ih", "weight_hh"]
    suffixes = ["_l0", "_l0_reverse", "_l1", "_l1_reverse"]
    assert sorted(module.state_dict()) == sorted(name + suffix for name in names for suffix in suffixes)
    assert module.weight_hh_l1.min() >= 0
    assert module.weight_hh_l1.max() > 0.9
    assert module.weight_ih_l1.shape == (400, 800)
    assert module.weight_ih_l1.abs().max() <= 400**-0.5
    assert list(fastrnn.MinLSTM(3, 4, bias=False).state_dict()) == ["weight_ih_l0"]
    assert fastrnn.MinLSTM(3, 4).weight_ih_l0.shape == (12, 3)
    assert fastrnn.SLSTM(3, 8, heads=2).weight_hh_l0.shape == (32, 4)


@kinds
def test_what_does_not_fit_is_refused(name: str) -> None:
    module = make(name, 5, 8)
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size"):
        module(torch.randn(4, 3, 6))
    with pytest.raises(RuntimeError, match="Expected hidden"):
        module(torch.randn(4, 3, 5), states_of(module, 2))
    with pytest.raises(ValueError, match="does not match weight dtype"):
        module(torch.randn(4, 3, 5, dtype=F64))
    with pytest.raises(ValueError, match="lengths must be"):
        module(torch.randn(4, 3, 5), lengths=torch.tensor([1, 2, 5]))
    with pytest.raises(ValueError, match="Stream"):
        fastrnn.Stream(module)
    with pytest.raises(ValueError, match="quantize found no"):
        fastrnn.quantize(module)


def test_options_are_checked() -> None:
    with pytest.raises(TypeError, match=r"h_0, c_0, n_0, m_0"):
        fastrnn.SLSTM(5, 8)(torch.randn(4, 3, 5), (torch.zeros(1, 3, 8),) * 2)
    zeros = torch.zeros(1, 3, 8)
    with pytest.raises(RuntimeError, match=r"Expected hidden\[2\] size"):
        fastrnn.SLSTM(5, 8)(torch.randn(4, 3, 5), (zeros, zeros, zeros[:, :2], zeros))
    with pytest.raises(ValueError, match="Unknown nonlinearity"):
        fastrnn.IndRNN(5, 8, nonlinearity="swish")
    with pytest.raises(ValueError, match="Unknown activation"):
        fastrnn.MinGRU(5, 8, activation="swish")
    with pytest.raises(ValueError, match="heads must divide"):
        fastrnn.SLSTM(5, 8, heads=3)
    with pytest.raises(TypeError, match="proj_size"):
        fastrnn.SLSTM(5, 8, proj_size=3)


@kinds
def test_is_one_node_for_fx(name: str) -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = make(name, 5, 8)

        def forward(self, x: Tensor) -> Any:
            return self.rnn(x)

    model, x = Model(), torch.randn(4, 3, 5)
    traced = torch.fx.symbolic_trace(model)
    assert [node.op for node in traced.graph.nodes] == ["placeholder", "call_module", "output"]
    for a, b in zip(flat(traced(x)), flat(model(x)), strict=True):
        assert torch.equal(a, b)
