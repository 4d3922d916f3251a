"""torch.func, forward-mode derivatives, batched gradients and checkpointing, as torch.nn has them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp
from torch.utils.checkpoint import checkpoint

from helpers import CELLS, Case, fast_module, make_inputs, module_pair, reference_forward

SMALL = {"batch": 2, "time": 3, "input": 2, "hidden": 4}


def _forward_ad(module: nn.Module, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(module(forward_ad.make_dual(x, torch.cos(x)))[0]).tangent


def _batched(module: nn.Module, x: Tensor) -> Any:
    x = x.clone().requires_grad_()
    y = module(x)[0]
    seeds = torch.eye(y.numel(), dtype=y.dtype).view(-1, *y.shape)
    return torch.autograd.grad(y, [x, *module.parameters()], seeds, is_grads_batched=True)


def _per_weight(module: nn.Module, x: Tensor) -> Any:
    weights = {name: p.detach() for name, p in module.named_parameters()}
    return grad(lambda w: functional_call(module, w, (x,))[0].square().sum())(weights)


def _checkpoint(module: nn.Module, x: Tensor) -> Any:
    x = x.clone().requires_grad_()
    y = checkpoint(lambda value: module(value)[0], x, use_reentrant=False)
    return torch.autograd.grad(y.square().sum(), [x, *module.parameters()])


TRANSFORMS: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "jvp": lambda m, x: jvp(lambda v: m(v)[0], (x,), (torch.cos(x),)),
    "vjp": lambda m, x: (lambda y, pull: pull(torch.cos(y)))(*vjp(lambda v: m(v)[0], x)),
    "forward-ad": _forward_ad,
    "grad": lambda m, x: grad(lambda v: m(v)[0].square().sum())(x),
    "grad-of-grad": lambda m, x: grad(lambda v: grad(lambda u: m(u)[0].square().sum())(v).square().sum())(x),
    "grad-of-weights": _per_weight,
    "jacfwd": lambda m, x: jacfwd(lambda v: m(v)[0])(x),
    "jacrev": lambda m, x: jacrev(lambda v: m(v)[0])(x),
    "hessian": lambda m, x: hessian(lambda v: m(v)[0].square().sum())(x),
    "batched-gradients": _batched,
    "checkpoint": _checkpoint,
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("cell", CELLS)
def test_transform(cell: str, transform: str) -> None:
    case = Case(cell, layers=2, **SMALL)
    x = make_inputs(case).x
    fast, plain = (TRANSFORMS[transform](module, x) for module in module_pair(case))
    torch.testing.assert_close(fast, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("transform", ["jvp", "grad", "grad-of-grad", "grad-of-weights", "hessian"])
def test_transform_of_an_option(transform: str) -> None:
    """The reset-before GRU beside the reference."""
    case = Case("gru", reset_after=False, activation="softsign", **SMALL)
    module, x = fast_module(case), make_inputs(case).x

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._parameters = module._parameters

        def forward(self, value: Tensor) -> Any:
            return reference_forward(case, dict(self.named_parameters()))(value, None)

    found, expected = TRANSFORMS[transform](module, x), TRANSFORMS[transform](Plain(), x)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
