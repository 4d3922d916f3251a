"""Weights that change, are frozen, shared, parametrized, swapped in or on the meta device; gradient modes."""

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import Parameter
from torch.nn.utils import parametrizations, parametrize

import fastrnn
from helpers import (
    CELLS,
    F32,
    F64,
    Case,
    assert_same,
    fast_module,
    flat_outputs,
    make_inputs,
    module_pair,
    run_module,
)

EXACT = {"rtol": 1e-10, "atol": 1e-10}


def _sgd(module: nn.Module) -> None:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def _adam(module: nn.Module) -> None:
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1, foreach=True)
    for parameter in module.parameters():
        parameter.grad = torch.linspace(-1, 1, parameter.numel(), dtype=F64).view_as(parameter)
    optimizer.step()


def _no_grad_multiply(module: nn.Module) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.5)


def _through_numpy(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.detach().numpy()[...] *= 0.25


def _through_view(module: nn.Module) -> None:
    parameter = next(module.parameters())
    parameter.detach().view(-1)[::2].fill_(0.3)


def _set_parameters(module: nn.Module) -> None:
    for name, parameter in list(module.named_parameters()):
        setattr(module, name, Parameter(parameter.detach() * -0.5))


def _set_data(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data = parameter.data * 0.5


def _load(module: nn.Module) -> None:
    module.load_state_dict({k: v * 0.7 for k, v in module.state_dict().items()})


def _load_by_assignment(module: nn.Module) -> None:
    module.load_state_dict({k: v * 0.7 for k, v in module.state_dict().items()}, assign=True)


def _there_and_back(module: nn.Module) -> None:
    module.to(F32).to(F64)


def _delete_and_set(module: nn.Module) -> None:
    value = module.weight_hh_l0.detach() * 2
    del module.weight_hh_l0
    module.weight_hh_l0 = Parameter(value)


def _initialise(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.constant_(parameter, 0.1)


def _copy_data(module: nn.Module) -> None:
    for parameter in module.parameters():
        parameter.data.copy_(parameter.data.flip(0))


def _move_out(module: nn.Module) -> None:
    nn.utils.vector_to_parameters(
        nn.utils.parameters_to_vector(module.parameters()).detach() * 0.9, module.parameters()
    )


UPDATES = [
    _sgd, _adam, _no_grad_multiply, _through_numpy, _through_view, _set_parameters, _set_data, _load,
    _load_by_assignment, _there_and_back, _delete_and_set, _initialise, _copy_data, _move_out,
]  # fmt: skip


@pytest.mark.parametrize("update", UPDATES, ids=lambda u: u.__name__.strip("_"))
@pytest.mark.parametrize("cell", CELLS)
def test_updates_are_seen(cell: str, update: Callable[[nn.Module], None]) -> None:
    case = Case(cell, layers=2, bidirectional=True)
    fast, plain = module_pair(case)
    inputs = make_inputs(case)
    with torch.no_grad():
        before = fast(inputs.x, inputs.state())[0]
        fast(inputs.x, inputs.state())
    update(fast)
    update(plain)
    with torch.no_grad():
        after = fast(inputs.x, inputs.state())[0]
        torch.testing.assert_close(after, plain(inputs.x, inputs.state())[0], **EXACT)
    if update is not _there_and_back:
        assert (after - before).abs().max() > 1e-4
    assert_same(run_module(fast, case, inputs), run_module(plain, case, inputs), **EXACT)


@pytest.mark.parametrize("name", ["LSTMCell", "GRUCell", "RNNCell"])
def test_updates_of_cell_modules_are_seen(name: str) -> None:
    fast, plain = getattr(fastrnn, name)(3, 4), getattr(nn, name)(3, 4)
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(2, 3)
    for update in (_no_grad_multiply, _through_numpy, _set_parameters, _load):
        update(fast)
        update(plain)
        torch.testing.assert_close(fast(x), plain(x))


def test_training_step_by_step() -> None:
    """Thirty optimiser steps in float64 stay on torch.nn's path."""
    for cell in CELLS:
        case = Case(cell, layers=2, layout="unsorted")
        modules = module_pair(case)
        inputs = make_inputs(case)
        losses: list[list[float]] = [[], []]
        for module, found in zip(modules, losses, strict=True):
            optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
            for _ in range(30):
                x = nn.utils.rnn.pack_padded_sequence(inputs.x, inputs.lengths, enforce_sorted=False)
                loss = module(x, inputs.state())[0].data.sub(0.3).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                found.append(loss.item())
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-7, atol=0)
        assert losses[0][-1] < losses[0][0]


def _frozen(module: nn.Module, keep: Callable[[str], bool]) -> None:
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(keep(name))


FREEZERS = {
    "all": lambda name: False,
    "recurrent": lambda name: "hh" not in name,
    "input": lambda name: "ih" not in name,
    "biases": lambda name: "bias" not in name,
    "first-layer": lambda name: "l0" not in name,
    "second-layer": lambda name: "l1" not in name,
    "one-direction": lambda name: "reverse" not in name,
    "all-but-one": lambda name: name == "bias_hh_l0",
}


@pytest.mark.parametrize("frozen", FREEZERS)
@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize("cell", CELLS)
def test_frozen_weights(cell: str, layout: str, frozen: str) -> None:
    case = Case(cell, layers=2, bidirectional=True, layout=layout)
    modules = module_pair(case)
    for module in modules:
        _frozen(module, FREEZERS[frozen])
    inputs = make_inputs(case)
    assert_same(*(run_module(module, case, inputs) for module in modules), **EXACT)


@pytest.mark.parametrize("wanted", ["x", "h0", "c0"])
@pytest.mark.parametrize("cell", CELLS)
def test_gradient_for_one_input_alone(cell: str, wanted: str) -> None:
    case = Case(cell, layers=2)
    if wanted == "c0" and case.kind != "lstm":
        wanted = "x"
    found = []
    for module in module_pair(case):
        _frozen(module, FREEZERS["all"])
        inputs = make_inputs(case)
        leaf = getattr(inputs, wanted).requires_grad_()
        outputs = flat_outputs(module(inputs.x, inputs.state()))
        assert all(output.requires_grad for output in outputs)
        sum(output.square().sum() for output in outputs).backward()
        assert all(p.grad is None for p in module.parameters())
        others = {"x", "h0", "c0"} - {wanted}
        assert all(getattr(getattr(inputs, o), "grad", None) is None for o in others)
        found.append(leaf.grad)
    torch.testing.assert_close(*found, **EXACT)


def test_nothing_requires_grad() -> None:
    for cell in CELLS:
        module = fast_module(Case(cell))
        _frozen(module, FREEZERS["all"])
        inputs = make_inputs(Case(cell))
        assert not any(o.requires_grad for o in flat_outputs(module(inputs.x, inputs.state())))


@pytest.mark.parametrize("cell", CELLS)
def test_no_grad_and_inference_mode(cell: str) -> None:
    case = Case(cell, layers=2, bidirectional=True)
    module, inputs = fast_module(case), make_inputs(case)
    expected = flat_outputs(module(inputs.x, inputs.state()))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            outputs = flat_outputs(module(inputs.x, inputs.state()))
        for output, want in zip(outputs, expected, strict=True):
            assert not output.requires_grad
            assert output.grad_fn is None
            assert output.is_inference() is (mode is torch.inference_mode)
            assert torch.equal(output, want)


def test_weights_made_in_inference_mode() -> None:
    with torch.inference_mode():
        fast, plain = module_pair(Case("gru"))
        inputs = make_inputs(Case("gru"))
        torch.testing.assert_close(fast(inputs.x)[0], plain(inputs.x)[0], **EXACT)


@pytest.mark.parametrize("changed", ["x", "h0", "y", "weight"])
def test_changing_a_saved_tensor_is_an_error(changed: str) -> None:
    """As with any saved tensor: never a silently wrong gradient."""
    module, inputs = fast_module(Case("lstm")), make_inputs(Case("lstm"))
    y, _ = module(inputs.x, inputs.state())
    tensors = {"x": inputs.x, "h0": inputs.h0, "y": y, "weight": module.weight_hh_l0}
    with torch.no_grad():
        tensors[changed].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("case", [Case(c, time=1, state=s) for c in CELLS for s in (True, False)], ids=str)
def test_outputs_share_no_memory(case: Case) -> None:
    module, inputs = fast_module(case), make_inputs(case)
    with torch.no_grad():
        outputs = flat_outputs(module(inputs.x, inputs.state()))
        before = [o.clone() for o in outputs]
        held = [t.clone() for t in (inputs.x, inputs.h0, inputs.c0) if t is not None]
        for index, output in enumerate(outputs):
            output.add_(1)
            for other in range(index + 1, len(outputs)):
                assert torch.equal(outputs[other], before[other])
    kept = [t for t in (inputs.x, inputs.h0, inputs.c0) if t is not None]
    assert all(torch.equal(a, b) for a, b in zip(kept, held, strict=True))


def test_backward_twice() -> None:
    module, inputs = fast_module(Case("gru")), make_inputs(Case("gru"))
    loss = module(inputs.x)[0].square().sum()
    loss.backward(retain_graph=True)
    first = module.weight_hh_l0.grad.clone()
    loss.backward()
    torch.testing.assert_close(module.weight_hh_l0.grad, 2 * first)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_one_module_used_several_times_in_a_graph() -> None:
    case = Case("lstm", layers=2)
    found = []
    for module in module_pair(case):
        inputs = make_inputs(case)
        state, total = inputs.state(), 0.0
        for _ in range(3):
            y, state = module(inputs.x, state)
            total = total + y.square().sum()
        total.backward()
        found.append({name: p.grad for name, p in module.named_parameters()})
    assert_same(*found, **EXACT)


def test_tied_weights() -> None:
    """Both layers read one Parameter: its gradient is the sum."""
    case = Case("gru", input=6, hidden=6, layers=2)
    found = []
    for module in module_pair(case):
        for name in ("weight_ih", "weight_hh"):
            setattr(module, f"{name}_l1", getattr(module, f"{name}_l0"))
        found.append(run_module(module, case, make_inputs(case)))
    assert_same(*found, **EXACT)


@pytest.mark.parametrize("name", ["weight_norm", "orthogonal", "spectral_norm"])
def test_parametrizations(name: str) -> None:
    case = Case("lstm")
    found = []
    for module in module_pair(case):
        torch.manual_seed(1)
        module = copy.deepcopy(module).eval()
        getattr(parametrizations, name)(module, "weight_hh_l0")
        assert parametrize.is_parametrized(module, "weight_hh_l0")
        inputs = make_inputs(case)
        module(inputs.x, inputs.state())[0].square().sum().backward()
        found.append({key: p.grad for key, p in module.named_parameters() if p.grad is not None})
    assert any("original" in key for key in found[0])
    assert_same(*found, rtol=1e-8, atol=1e-8)


def test_functional_call() -> None:
    case = Case("gru", layers=2)
    fast, plain = module_pair(case)
    inputs = make_inputs(case)
    own = fast(inputs.x)[0]
    weights = {name: torch.randn_like(p).requires_grad_() for name, p in fast.named_parameters()}
    found = []
    for module in (fast, plain):
        y = functional_call(module, weights, (inputs.x,))[0]
        found.append(dict(zip(weights, torch.autograd.grad(y.sum(), list(weights.values())), strict=True)))
    assert_same(*found, **EXACT)
    torch.testing.assert_close(fast(inputs.x)[0], own, rtol=0, atol=0)


def test_weights_are_not_kept_alive() -> None:
    module, x = fastrnn.LSTM(3, 4), torch.randn(5, 2, 3)
    module(x)[0].sum().backward()
    old = weakref.ref(module.weight_hh_l0)
    module.weight_hh_l0 = Parameter(torch.zeros(16, 4))
    module(x)
    gc.collect()
    assert old() is None
    alive = weakref.ref(module)
    del module
    gc.collect()
    assert alive() is None


def _shapes(value: Any) -> list[tuple[torch.Size, torch.dtype]]:
    return [(t.shape, t.dtype) for t in flat_outputs(value)]


@pytest.mark.parametrize("layout", ["padded", "unbatched"])
@pytest.mark.parametrize("cell", CELLS)
def test_meta_device(cell: str, layout: str) -> None:
    case = Case(cell, layers=2, bidirectional=True, batch_first=True, layout=layout, dtype=F32)
    fast, plain = module_pair(case)
    x = make_inputs(case).x
    expected = _shapes(plain(x))
    module = fast.to("meta")
    outputs = module(x.to("meta"))
    assert _shapes(outputs) == expected
    assert all(t.is_meta for t in flat_outputs(outputs))
    empty = module.to_empty(device="cpu")
    empty.load_state_dict(plain.state_dict())
    torch.testing.assert_close(empty(x)[0], plain(x)[0], rtol=1e-5, atol=1e-6)
