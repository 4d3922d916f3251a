"""PyTorch's own ModuleInfo samples for its recurrent modules, run against fastrnn's."""

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.testing._internal.common_modules import (
    ErrorModuleInput,
    ModuleErrorEnum,
    ModuleInfo,
    ModuleInput,
    module_db,
)
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

import fastrnn

NAMES = ("RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell")
INFOS = {
    info.module_cls.__name__: info for info in module_db if info.module_cls.__module__ == nn.RNN.__module__
}
DTYPES = (torch.float32, torch.float64)


def test_every_module_has_an_entry() -> None:
    assert set(INFOS) == set(NAMES)


def _samples(info: ModuleInfo, dtype: torch.dtype, training: bool, grad: bool) -> list[ModuleInput]:
    torch.manual_seed(0)
    options = (
        {}
        if info.module_cls.__name__.endswith("Cell") or info.module_cls is nn.LSTM
        else {"with_packed_sequence": True}
    )
    return list(
        info.module_inputs_func(
            info, device="cpu", dtype=dtype, requires_grad=grad, training=training, **options
        )
    )


def _build(library: Any, name: str, sample: ModuleInput, dtype: torch.dtype) -> nn.Module:
    arguments = sample.constructor_input
    return getattr(library, name)(*arguments.args, **arguments.kwargs, device="cpu", dtype=dtype)


def _pair(name: str, sample: ModuleInput, dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    fast, plain = _build(fastrnn, name, sample, dtype), _build(nn, name, sample, dtype)
    plain.load_state_dict(fast.state_dict(), strict=True)
    return fast, plain


def _modes() -> list[object]:
    return list(_each_mode())


def _each_mode() -> Iterator[object]:
    for name in NAMES:
        for dtype in DTYPES:
            for training in (True, False):
                mode = "train" if training else "eval"
                yield pytest.param(name, dtype, training, id=f"{name}-{str(dtype)[6:]}-{mode}")


@pytest.mark.parametrize(("name", "dtype", "training"), _modes())
def test_forward(name: str, dtype: torch.dtype, training: bool) -> None:
    """Equal to torch.nn, and to the sample's own reference function."""
    samples = _samples(INFOS[name], dtype, training, grad=False)
    assert len(samples) >= 2
    for sample in samples:
        fast, plain = (module.train(training) for module in _pair(name, sample, dtype))
        arguments = sample.forward_input
        outputs = fast(*arguments.args, **arguments.kwargs)
        torch.testing.assert_close(outputs, plain(*arguments.args, **arguments.kwargs))
        if not any(isinstance(a, PackedSequence) for a in arguments.args):
            expected = sample.reference_fn(fast, *arguments.args, **arguments.kwargs)
            torch.testing.assert_close(outputs, expected)


@pytest.mark.parametrize(("name", "dtype", "training"), _modes())
def test_pickle_and_repr(name: str, dtype: torch.dtype, training: bool) -> None:
    for sample in _samples(INFOS[name], dtype, training, grad=False):
        fast, plain = (module.train(training) for module in _pair(name, sample, dtype))
        assert repr(fast) == repr(plain)
        arguments = sample.forward_input
        other = pickle.loads(pickle.dumps(fast))
        expected = fast(*arguments.args, **arguments.kwargs)
        torch.testing.assert_close(other(*arguments.args, **arguments.kwargs), expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_factory_arguments(name: str) -> None:
    for sample in _samples(INFOS[name], torch.float32, True, grad=False):
        arguments = sample.constructor_input
        for options in ({"dtype": torch.float64}, {"device": "meta"}, {"dtype": torch.bfloat16}):
            module = getattr(fastrnn, name)(*arguments.args, **arguments.kwargs, **options)
            plain = getattr(nn, name)(*arguments.args, **arguments.kwargs, **options)
            for ours, theirs in zip(module.parameters(), plain.parameters(), strict=True):
                assert (ours.dtype, ours.device, ours.shape) == (theirs.dtype, theirs.device, theirs.shape)


def _noncontiguous(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    other = torch.repeat_interleave(tensor.detach(), 2, dim=-1)[..., ::2]
    return other.requires_grad_(tensor.requires_grad)


@pytest.mark.parametrize("name", NAMES)
def test_non_contiguous_inputs(name: str) -> None:
    """As TestModule.test_non_contiguous_tensors: outputs and gradients do not depend on strides."""
    for sample in _samples(INFOS[name], torch.float64, True, grad=True):
        arguments = sample.forward_input
        if any(isinstance(a, PackedSequence) for a in arguments.args):
            continue
        module = _build(fastrnn, name, sample, torch.float64)
        found = []
        for change in (lambda t: t.detach().clone().requires_grad_(t.requires_grad), _noncontiguous):
            inputs = tree_map_only(Tensor, change, arguments.args)
            outputs = tree_leaves(module(*inputs))
            leaves = [*tree_leaves(inputs), *module.parameters()]
            loss = sum(output.square().sum() for output in outputs)
            found.append([*outputs, *torch.autograd.grad(loss, leaves)])
        torch.testing.assert_close(found[0], found[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2], ids=["grad", "gradgrad"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients(name: str, order: int) -> None:
    """As TestModule.test_grad and test_gradgrad, in fast mode for the second order."""
    samples = _samples(INFOS[name], torch.float64, True, grad=True)
    for sample in samples if order == 1 else samples[:: max(1, len(samples) // 8)]:
        module = _build(fastrnn, name, sample, torch.float64)
        arguments = copy.deepcopy(sample.forward_input.args)
        leaves, spec = tree_flatten(arguments)
        positions = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]

        def f(*values: Tensor, module=module, leaves=leaves, spec=spec, positions=positions) -> Any:
            full = list(leaves)
            for position, value in zip(positions, values, strict=False):
                full[position] = value
            outputs = tree_leaves(module(*tree_unflatten(full, spec)))
            return tuple(o for o in outputs if isinstance(o, Tensor) and o.is_floating_point())

        wanted = [leaves[position] for position in positions] + list(module.parameters())
        if order == 1:
            assert torch.autograd.gradcheck(f, wanted, fast_mode=True)
        else:
            assert torch.autograd.gradgradcheck(f, wanted, fast_mode=True)


def _errors(name: str) -> list[ErrorModuleInput]:
    info = INFOS[name]
    return list(
        info.module_error_inputs_func(
            info, device="cpu", dtype=torch.float32, requires_grad=False, training=True
        )
    )


@pytest.mark.parametrize("name", NAMES)
def test_errors(name: str) -> None:
    errors = _errors(name)
    assert errors
    for error in errors:
        sample = error.module_error_input
        build, call = sample.constructor_input, sample.forward_input
        if error.error_on is ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=error.error_regex):
                getattr(fastrnn, name)(*build.args, **build.kwargs)
        else:
            module = getattr(fastrnn, name)(*build.args, **build.kwargs)
            with pytest.raises(error.error_type, match=error.error_regex):
                module(*call.args, **call.kwargs)
