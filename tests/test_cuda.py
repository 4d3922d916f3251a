"""The ops on a CUDA device, with each engine, against the reference and torch.nn in float64. `make gpu-test` runs it.

`make test-emulated` runs what of it needs no device, with FASTRNN_EMULATED=1, on a build whose ops run the kernels'
text on the CPU.
"""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn import _ops
from helpers import BF16, CELLS, F16, F32, F64, Case, fast_module, make_inputs, run_module, torch_module
from opcases import OpCase, op_case

EMULATED = os.environ.get("FASTRNN_EMULATED") == "1"
DEVICE = "cpu" if EMULATED else "cuda"
needs_device = pytest.mark.skipif(EMULATED, reason="no CUDA device is emulated, only its kernels")

if not EMULATED and not torch.cuda.is_available():
    pytest.skip("torch finds no CUDA device", allow_module_level=True)
if not _ops.cuda_compiled():
    pytest.skip("this build has no CUDA kernels", allow_module_level=True)

ENGINES = ("steps", "grid")
# of ‖found - exact‖ / ‖exact‖, with inputs that the type holds exactly
TOLERANCE = {F64: 1e-12, F32: 2e-6, F16: 4e-3, BF16: 3e-2}


@pytest.fixture(autouse=True, params=ENGINES)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The engine asked for; what it cannot run goes to the other. Memory that is handed out is full of NaN."""
    monkeypatch.setenv("FASTRNN_CUDA_ENGINE", request.param)
    monkeypatch.setattr(_ops, "cuda_engine", request.param)  # nothing is left to torch
    monkeypatch.setattr(_ops, "_DEVICES", {"cpu", "meta", "cuda"})
    torch.backends.cuda.matmul.allow_tf32 = False
    if not EMULATED:
        poison = torch.full((64 << 20,), float("nan"), device="cuda")
        del poison
    return request.param


def to_cuda(op: OpCase) -> OpCase:
    def move(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(DEVICE)

    x = op.x.to(DEVICE)
    return OpCase(op.case, x, move(op.h0), move(op.c0), [w.to(DEVICE) for w in op.weights], op.batch_sizes)


def widened(op: OpCase) -> OpCase:
    def wide(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.double()

    return OpCase(
        op.case, op.x.double(), wide(op.h0), wide(op.c0), [w.double() for w in op.weights], op.batch_sizes
    )


def exact(op: OpCase, fed: tuple[Tensor, ...] | None = None) -> list[Tensor]:
    """Outputs and gradients of the reference in float64, in the order of the ops; fed: the incoming gradients."""
    wide = widened(op)
    leaves = [t.detach().clone().requires_grad_() for t in (wide.x, *wide.states, *wide.weights)]
    count = 1 + len(wide.states)
    outputs = op.reference(leaves[0], leaves[1:count], leaves[count:])
    fed = gradients_of(op, tuple(o.detach() for o in outputs)) if fed is None else fed
    gradients = torch.autograd.grad(outputs, leaves, [g.double() for g in fed], materialize_grads=True)
    return [o.detach() for o in outputs] + list(gradients)


def kinks(op: OpCase, want: list[Tensor]) -> list[float]:
    """How far each exact result may move when every number moves by a rounding: relu's slope jumps at 0."""
    if "relu" not in (op.case.cell.removeprefix("rnn_"), op.case.activation) or op.case.dtype == F64:
        return [0.0] * len(want)
    rounding = torch.finfo(op.case.dtype).eps
    fed = gradients_of(op, tuple(want[: len(op.case.outputs)]))
    random = torch.Generator(op.x.device).manual_seed(0)

    def moved(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        noise = torch.rand(tensor.shape, generator=random, device=tensor.device, dtype=F64)
        return tensor.double() * (1 + rounding * (2 * noise - 1))

    furthest = [0.0] * len(want)
    for _ in range(10):
        weights = [moved(w) for w in op.weights]
        other = replace(op, x=moved(op.x), h0=moved(op.h0), c0=moved(op.c0), weights=weights)
        furthest = [max(a, relative(o, w)) for a, o, w in zip(furthest, exact(other, fed), want, strict=True)]
    return furthest


def gradients_of(op: OpCase, outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Incoming gradients that the case's type holds."""
    return tuple(g.to(op.case.dtype).to(op.x.device) for g in op.gradients(tuple(o.cpu() for o in outputs)))


def everything(op: OpCase) -> list[Tensor]:
    outputs = op.forward()
    *d_inputs, d_weights = op.backward(outputs, gradients_of(op, outputs[:-1]))
    return [*outputs[:-1], *d_inputs, *d_weights]


def relative(found: Tensor, want: Tensor) -> float:
    return float((found.double() - want).norm() / want.norm().clamp_min(1.0))


def check(op: OpCase) -> None:
    found, want = everything(op), exact(op)
    assert len(found) == len(want)
    for index, (f, w, kink) in enumerate(zip(found, want, kinks(op, want), strict=True)):
        assert f.shape == w.shape
        assert f.dtype == op.case.dtype
        error = relative(f, w)
        assert error <= TOLERANCE[op.case.dtype] + kink, f"tensor {index}: {error:.2e}"  # false for NaN


SMALL = [
    Case(cell, 3, 5, 4, 19, bidirectional=bi, layout=layout, bias=bias, batch_first=first, state=state)
    for cell, bi, (layout, first, state), bias in product(
        CELLS,
        (False, True),
        [("padded", False, True), ("padded", True, False), ("packed", False, True)],
        (True, False),
    )
] + [
    Case(cell, 3, 5, 4, 19, reset_after=reset_after, activation=activation, bidirectional=True)
    for cell, reset_after, activation in (
        ("gru", False, "tanh"),
        ("gru", True, "relu"),
        ("lstm", True, "softsign"),
        ("lstm", True, "hardtanh"),
    )
]

# around the sizes of blocks: 8 and 16 units, 16 rows, 32 terms; and some that fill a device
LARGE = [
    Case(cell, batch, time, inputs, hidden, bidirectional=bi, layout=layout)
    for cell, (batch, time, inputs, hidden), (bi, layout) in product(
        ("lstm", "gru", "rnn_tanh"),
        [(1, 40, 7, 8), (16, 6, 64, 64), (17, 9, 33, 65)]
        + [(64, 12, 128, 256), (33, 8, 31, 500), (16, 20, 768, 768)] * (not EMULATED),
        [(False, "padded"), (True, "packed")],
    )
]


@pytest.mark.parametrize("dtype", [F32, F64, BF16, F16], ids=["f32", "f64", "bf16", "f16"])
@pytest.mark.parametrize("case", SMALL, ids=str)
def test_small(case: Case, dtype: torch.dtype) -> None:
    check(to_cuda(op_case(case.but(dtype=dtype))))


@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=["f32", "bf16", "f16"])
@pytest.mark.parametrize("case", LARGE, ids=str)
def test_large(case: Case, dtype: torch.dtype) -> None:
    check(to_cuda(op_case(case.but(dtype=dtype))))


@pytest.mark.parametrize("case", LARGE[::5], ids=str)
def test_same_bits_every_time(case: Case) -> None:
    op = to_cuda(op_case(case.but(dtype=BF16)))
    first = everything(op)
    for _ in range(10):
        for one, other in zip(first, everything(op), strict=True):
            assert torch.equal(one, other)


@needs_device
def test_long_sequence_many_times() -> None:
    """Enough steps for a barrier that is not one to show."""
    op = to_cuda(op_case(Case("lstm", 16, 1024, 64, 256, dtype=BF16, bidirectional=True)))
    first = op.forward(training=False)[0]
    for _ in range(20):
        assert torch.equal(first, op.forward(training=False)[0])


@needs_device
def test_does_not_wait_for_the_device() -> None:
    op = to_cuda(op_case(Case("gru", 16, 8, 32, 64, dtype=F32, layout="packed", bidirectional=True)))
    everything(op)
    gradients = gradients_of(op, op.forward()[:-1])
    torch.cuda.set_sync_debug_mode("error")
    try:
        outputs = op.forward()
        op.backward(outputs, gradients)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_device
def test_current_stream() -> None:
    op = to_cuda(op_case(Case("lstm", 16, 50, 64, 256, dtype=F32)))
    want = everything(op)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    busy = torch.empty(1 << 28, device="cuda")
    with torch.cuda.stream(side):
        x = op.x.clone()
        op.x.zero_()
        for _ in range(20):
            busy.normal_()  # so that work on another stream would come first
        op.x.copy_(x)
        found = everything(op)
    torch.cuda.synchronize()
    for f, w in zip(found, want, strict=True):
        assert torch.equal(f, w)


@needs_device
@pytest.mark.parametrize("cell", ["lstm", "lstm_proj", "gru", "rnn_tanh"])
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_graph_capture(cell: str, layout: str) -> None:
    op = to_cuda(op_case(Case(cell, 5, 7, 8, 40, dtype=BF16, bidirectional=True, layout=layout)))
    gradients = gradients_of(op, op.forward()[:-1])

    def run() -> list[Tensor]:
        outputs = op.forward()
        *d_inputs, d_weights = op.backward(outputs, gradients)
        return [*outputs[:-1], *d_inputs, *d_weights]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    op.x.copy_(torch.randn_like(op.x))
    graph.replay()
    torch.cuda.synchronize()
    found = [t.clone() for t in captured]
    for f, w in zip(found, run(), strict=True):
        assert torch.equal(f, w)


def test_expanded_and_strided_input() -> None:
    for change in (lambda x: x[:, :1].expand(-1, 3, -1), lambda x: x.repeat_interleave(2, -1)[..., ::2]):
        op = to_cuda(op_case(Case("gru", 3, 5, 4, 24, dtype=F64)))
        op.x = change(op.x)
        check(op)


@needs_device
def test_devices_may_not_be_mixed() -> None:
    op = to_cuda(op_case(Case("gru", dtype=F32)))
    op.weights[0] = op.weights[0].cpu()
    with pytest.raises(RuntimeError):
        op.forward()
    op = to_cuda(op_case(Case("gru", dtype=F32)))
    outputs = op.forward()
    with pytest.raises(RuntimeError):
        op.backward(outputs, tuple(g.cpu() for g in op.gradients(tuple(o.cpu() for o in outputs[:-1]))))


def test_batch_zero() -> None:
    op = to_cuda(op_case(Case("lstm", batch=0, dtype=F32, bidirectional=True)))
    outputs = op.forward()
    *_, d_weights = op.backward(outputs, tuple(torch.zeros_like(o) for o in outputs[:-1]))
    assert all(not g.any() for g in d_weights)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_second_device() -> None:
    op = op_case(Case("gru", 3, 5, 4, 40, dtype=F32))
    near, far = to_cuda(op), to_cuda(op)
    far.x, far.h0 = far.x.to("cuda:1"), None
    near.h0, far.weights = None, [w.to("cuda:1") for w in far.weights]
    assert torch.equal(near.forward()[0].cpu(), far.forward()[0].cpu())


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("layout", ["padded", "unsorted"])
def test_modules(cell: str, layout: str) -> None:
    case = Case(cell, 6, 9, 12, 40, layers=2, bidirectional=True, layout=layout, dtype=F64)
    fast, plain = fast_module(case), torch_module(case)
    plain.load_state_dict(fast.state_dict())
    want = run_module(plain, case, make_inputs(case))
    inputs = make_inputs(case)
    inputs.x = inputs.x.to(DEVICE)
    inputs.h0 = None if inputs.h0 is None else inputs.h0.to(DEVICE)
    inputs.c0 = None if inputs.c0 is None else inputs.c0.to(DEVICE)
    found = run_module(fast.to(DEVICE), case, inputs)
    for name, value in want.items():
        torch.testing.assert_close(found[name].cpu(), value, rtol=1e-9, atol=1e-9)


@needs_device
def test_autocast() -> None:
    fast, plain = fastrnn.LSTM(32, 64).cuda(), nn.LSTM(32, 64).cuda()
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(9, 4, 32, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        found, want = fast(x)[0], plain(x)[0]
    assert found.dtype == want.dtype
    assert float((found.float() - want.float()).norm() / want.float().norm()) < 3e-2


@needs_device
def test_compile() -> None:
    module = fastrnn.GRU(16, 40).cuda()
    x = torch.randn(9, 4, 16, device="cuda")
    compiled = torch.compile(module, fullgraph=True)
    torch.testing.assert_close(compiled(x)[0], module(x)[0])
