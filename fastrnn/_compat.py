"""Every private name of torch that the package uses, with what happens under a torch that lacks it.

nn.Module's ``_parameters``, ``_buffers`` and ``_modules`` are no such names: its documentation of subclasses rests on
them.
"""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

try:
    from torch._subclasses.fake_tensor import FakeTensor as FakeTensor
except (
    ImportError
):  # then Stream and the fake kernels cannot tell a fake tensor, and fail later with another error

    class FakeTensor:  # type: ignore[no-redef]
        pass


def _found(name: str, otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """What torch calls it."""
    try:
        found: Callable[..., Any] = attrgetter(name)(torch)
    except AttributeError:
        return otherwise
    return found


# () -> bool: within torch.func's grad, vmap and the like. Otherwise every call goes through an autograd.Function, which
# is right, a few microseconds slower, and recompute=True is ignored
is_transformed = _found("_C._are_functorch_transforms_active", lambda: True)

# () -> bool. Otherwise the question for the CPU, where alone it is asked; it takes longer
is_any_autocast_enabled = _found("_C._is_any_autocast_enabled", lambda: torch.is_autocast_enabled("cpu"))

# (Tensor) -> bool. Otherwise torch.autograd.grad(is_grads_batched=True) fails in the ops
_is_legacy_batchedtensor = _found("_C._functorch.is_legacy_batchedtensor", lambda tensor: False)


def is_batch_of_gradients(tensor: Tensor | None) -> bool:
    """Whether torch.autograd.grad(is_grads_batched=True) made it: a tensor that ops of our own cannot take apart."""
    return tensor is not None and bool(_is_legacy_batchedtensor(tensor))


def is_in_forward_ad() -> bool:
    """Whether forward-mode differentiation is on. Without the name the ops are called, which have no such formula."""
    return forward_ad._current_level >= 0


if not hasattr(forward_ad, "_current_level"):

    def is_in_forward_ad() -> bool:
        return False


def direct(overload: Any) -> Callable[..., Any]:
    """What calling an op's overload calls, half a microsecond later. Otherwise the overload itself."""
    found: Callable[..., Any] = getattr(overload, "_op", overload)
    return found


_Function = TypeVar("_Function", bound=Callable[..., Any])


def constant_when_compiled(function: _Function) -> _Function:
    """What torch.compiler.assume_constant_result does, which imports the compiler: a second of every start. Without the
    name torch.compile traces the function."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def weight_names(module: nn.RNNBase) -> list[str]:
    """Those of torch's flat list. torch.nn cannot rename the attribute without breaking its own pickles; without it, as
    without the two below, nothing here works."""
    return module._flat_weights_names


def weight_names_by_direction(module: nn.RNNBase) -> list[list[str]]:
    return module._all_weights


def set_weight_names(module: nn.RNNBase, names: Sequence[Sequence[str]]) -> None:
    """names of each direction's weights, layer by layer"""
    module._all_weights = [list(direction) for direction in names]
    module._flat_weights_names = [name for direction in names for name in direction]
    module._init_flat_weights()


def forget_compiled(module: nn.Module) -> None:
    """Undoes module.compile(). Without the name that is a new attribute which nobody reads."""
    module._compiled_call_impl = None


def hook_names(module: nn.Module) -> list[str]:
    """The attributes that hold a module's hooks. Under other names they would not be carried to another module."""
    return [name for name in vars(module) if "_hook" in name]
