"""SLSTM, MinGRU and MinLSTM against formulas and a package that are not ours."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import fastrnn
from helpers import F32, F64
from owncases import EXACT, make


def slstm_package(module: fastrnn.SLSTM, x: Tensor) -> tuple[Tensor, Tensor]:
    """y and the states after the last step, h c n m."""
    vanilla = pytest.importorskip("xlstm.blocks.slstm.src.vanilla")
    heads, part = module.heads, module.hidden_size // module.heads
    kernel = module.weight_hh_l0.view(4, heads, part, part).transpose(0, 1).reshape(heads, 4 * part, part)
    bias = module.bias_ih_l0 + module.bias_hh_l0
    start = x.new_zeros(4, x.shape[1], module.hidden_size)
    pointwise = vanilla.slstm_pointwise_function_registry["slstm"]
    all_states, last, _ = vanilla.slstm_forward(
        F.linear(x, module.weight_ih_l0), start, kernel, bias, pointwise
    )
    return all_states[0, 1:], last


def slstm_of_the_paper(module: fastrnn.SLSTM, x: Tensor) -> tuple[Tensor, Tensor]:
    """Equations 8 to 17 of Beck et al. 2024 without the stabiliser: y, and c / n after the last step."""
    H, heads = module.hidden_size, module.heads
    w_hh = torch.stack(
        [torch.block_diag(*blocks) for blocks in module.weight_hh_l0.view(4, heads, H // heads, H // heads)]
    ).flatten(0, 1)
    h = c = n = x.new_zeros(x.shape[1], H)
    outputs = []
    for step in x:
        seen = F.linear(step, module.weight_ih_l0, module.bias_ih_l0) + F.linear(h, w_hh, module.bias_hh_l0)
        i, f, z, o = seen.chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.exp(i) * torch.tanh(z)
        n = torch.sigmoid(f) * n + torch.exp(i)
        h = torch.sigmoid(o) * c / n
        outputs.append(h)
    return torch.stack(outputs), c / n


@pytest.mark.parametrize("heads", [1, 4])
def test_slstm_is_that_of_the_package(heads: int) -> None:
    module = make("slstm", 6, 32, heads=heads, dtype=F64)
    x = torch.randn(11, 3, 6, dtype=F64)
    y, last = slstm_package(module, x)
    found, final = module(x)
    torch.testing.assert_close(found, y, **EXACT)
    torch.testing.assert_close(torch.cat(final), last, **EXACT)
    seed = torch.randn_like(y)
    for got, want in zip(
        torch.autograd.grad(found, list(module.parameters()), seed),
        torch.autograd.grad(y, list(module.parameters()), seed),
        strict=True,
    ):
        torch.testing.assert_close(got, want, **EXACT)


@pytest.mark.parametrize("heads", [1, 4])
def test_slstm_is_that_of_the_paper(heads: int) -> None:
    module = make("slstm", 6, 32, heads=heads, dtype=F64)
    x = torch.randn(11, 3, 6, dtype=F64, requires_grad=True)
    y, ratio = slstm_of_the_paper(module, x)
    found, (_, c, n, _) = module(x)
    torch.testing.assert_close(found, y, **EXACT)
    torch.testing.assert_close((c / n)[0], ratio, **EXACT)
    seed, leaves = torch.randn_like(y), [x, *module.parameters()]
    for got, want in zip(
        torch.autograd.grad(found, leaves, seed), torch.autograd.grad(y, leaves, seed), strict=True
    ):
        torch.testing.assert_close(got, want, **EXACT)


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_slstm_stays_in_range(dtype: torch.dtype) -> None:
    """Exponents far beyond what the dtype holds."""
    module = make("slstm", 6, 32, dtype=dtype)
    with torch.no_grad():
        module.weight_ih_l0.mul_(2000)
    x = torch.randn(50, 3, 6, dtype=dtype, requires_grad=True)
    y, final = module(x)
    for tensor in (y, *final, *torch.autograd.grad(y.sum(), [x, *module.parameters()])):
        assert tensor.isfinite().all()
    assert (y.abs() <= 1).all()


def log_space_scan(log_kept: Tensor, log_new: Tensor, h0: Tensor) -> Tensor:
    """h of h_t = kept_t h_(t-1) + new_t with positive values, as Heinsen's scan does it (appendix B of the paper)."""
    total = F.pad(log_kept.cumsum(0), (0, 0, 0, 0, 1, 0))
    joined = torch.cat([h0.log()[None], log_new]) - total
    return (total + joined.logcumsumexp(0)).exp()[1:]


@pytest.mark.parametrize("name", ["min-gru", "min-lstm"])
def test_minimal_layers_are_the_scan_of_the_paper(name: str) -> None:
    module = make(name, 6, 20, activation="half_linear", dtype=F64)
    x, h0 = torch.randn(40, 3, 6, dtype=F64), torch.rand(1, 3, 20, dtype=F64) + 0.1
    *gates, n = F.linear(x, module.weight_ih_l0, module.bias_ih_l0).chunk(len(module.weight_ih_l0) // 20, -1)
    log_g = torch.where(n >= 0, (n.relu() + 0.5).log(), -F.softplus(-n))
    if name == "min-gru":
        log_kept, log_taken = -F.softplus(gates[0]), -F.softplus(-gates[0])
    else:
        i, f = gates
        difference = F.softplus(-f) - F.softplus(-i)
        log_kept, log_taken = -F.softplus(difference), -F.softplus(-difference)
    want = log_space_scan(log_kept, log_taken + log_g, h0[0])
    y, h_n = module(x, h0)
    torch.testing.assert_close(y, want, **EXACT)
    assert torch.equal(h_n[0], y[-1])
