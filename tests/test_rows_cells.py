"""resets of one step: cells and Stream, against states that are cleared by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.fx import symbolic_trace

import fastrnn

BATCH, INPUT, HIDDEN = 5, 7, 32
MARKS = torch.tensor([True, False, False, True, False])

PLAIN = [
    (fastrnn.LSTMCell, nn.LSTMCell, {}),
    (fastrnn.GRUCell, nn.GRUCell, {}),
    (fastrnn.RNNCell, nn.RNNCell, {}),
    (fastrnn.RNNCell, nn.RNNCell, {"nonlinearity": "relu"}),
]
OPTIONS = [
    (fastrnn.LSTMCell, {"layer_norm": True}),
    (fastrnn.LSTMCell, {"heads": 2, "activation": "softsign"}),
    (fastrnn.GRUCell, {"reset_after": False}),
    (fastrnn.GRUCell, {"layer_norm": True}),
    (fastrnn.RNNCell, {"heads": 2}),
]


def states_of(cell: nn.RNNCellBase, batch: int | None = BATCH, **kwargs: Any) -> list[Tensor]:
    shape = (HIDDEN,) if batch is None else (batch, HIDDEN)
    return [torch.randn(shape, requires_grad=True, **kwargs) for _ in range(cell._cell.states)]


def as_hx(states: list[Tensor]) -> Any:
    return tuple(states) if len(states) > 1 else states[0]


def cleared(states: list[Tensor], marks: Tensor) -> list[Tensor]:
    return [s.masked_fill(marks[..., None], 0) for s in states]


def gradients(found: Any, leaves: list[Tensor]) -> list[Tensor]:
    outputs = list(found) if isinstance(found, tuple) else [found]
    torch.manual_seed(1)
    d_outputs = [torch.randn_like(o) for o in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves, d_outputs)]


@pytest.mark.parametrize("batch", [BATCH, None])
@pytest.mark.parametrize(("cls", "torchs", "options"), PLAIN)
def test_cells_beside_torch(cls: Any, torchs: Any, options: dict[str, Any], batch: int | None) -> None:
    fast, plain = (c(INPUT, HIDDEN, dtype=torch.float64, **options) for c in (cls, torchs))
    plain.load_state_dict(fast.state_dict())
    shape = (INPUT,) if batch is None else (batch, INPUT)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    states = states_of(fast, batch, dtype=torch.float64)
    for marks in (MARKS, ~MARKS) if batch else (torch.tensor(True), torch.tensor(False)):
        got = gradients(fast(x, as_hx(states), resets=marks), [x, *states, *fast.parameters()])
        hx = as_hx(cleared(states, marks))
        want = gradients(plain(x, hx), [x, *states, *plain.parameters()])
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fast(x, resets=marks), plain(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("cls", "options"), OPTIONS)
def test_cells_with_options(cls: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    cell = cls(INPUT, HIDDEN, dtype=dtype, **options)
    x, states = torch.randn(BATCH, INPUT, dtype=dtype, requires_grad=True), states_of(cell, dtype=dtype)
    leaves = [x, *states, *cell.parameters()]
    got = gradients(cell(x, as_hx(states), resets=MARKS), leaves)
    want = gradients(cell(x, as_hx(cleared(states, MARKS))), leaves)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("cls", "torchs", "options"), PLAIN[:3])
def test_derivatives(cls: Any, torchs: Any, options: dict[str, Any]) -> None:
    del torchs
    cell = cls(2, 3, dtype=torch.float64, **options)
    x = torch.randn(3, 2, dtype=torch.float64, requires_grad=True)
    marks = torch.tensor([False, True, False])
    states = [torch.randn(3, 3, dtype=torch.float64, requires_grad=True) for _ in range(cell._cell.states)]

    def step(x: Tensor, *states: Tensor) -> Any:
        return cell(x, as_hx(list(states)), resets=marks)

    assert gradcheck(step, (x, *states))
    assert gradgradcheck(step, (x, *states))


def test_compiled_and_traced() -> None:
    for cls in (fastrnn.LSTMCell, fastrnn.GRUCell, fastrnn.RNNCell):
        cell = cls(INPUT, HIDDEN)
        x, hx = torch.randn(BATCH, INPUT), as_hx([s.detach() for s in states_of(cell)])
        want = cell(x, hx, resets=MARKS)
        torch._dynamo.reset()
        compiled = torch.compile(cell, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, hx, resets=MARKS), want)

        class Holder(nn.Module):
            def __init__(self, cell: nn.Module) -> None:
                super().__init__()
                self.cell = cell

            def forward(self, x: Tensor, hx: Any, marks: Tensor) -> Any:
                return self.cell(x, hx, resets=marks)

        torch.testing.assert_close(symbolic_trace(Holder(cell))(x, hx, MARKS), want)


def test_autocast() -> None:
    cell, x = fastrnn.GRUCell(INPUT, HIDDEN), torch.randn(BATCH, INPUT)
    (h,) = states_of(cell)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = cell(x, h, resets=MARKS), cell(x, *cleared([h], MARKS))
    torch.testing.assert_close(got, want.to(got.dtype), rtol=2e-2, atol=2e-2)


def test_wrong_resets() -> None:
    for cls in (fastrnn.LSTMCell, fastrnn.GRUCell, fastrnn.RNNCell):
        cell, x = cls(INPUT, HIDDEN), torch.randn(BATCH, INPUT)
        for bad, got in [
            (MARKS[:3], r"\[3\] of torch.bool on cpu$"),
            (MARKS.float(), r"\[5\] of torch.float32 on cpu$"),
            (MARKS.tolist(), "list$"),
        ]:
            with pytest.raises(ValueError, match=r"^resets must be a bool tensor \[5\] on cpu, got " + got):
                cell(x, resets=bad)
        with pytest.raises(ValueError, match=r"^resets must be a bool tensor \[\] on cpu"):
            cell(x[0], resets=MARKS)
        with pytest.raises(RuntimeError):
            cell(x[:, 1:], resets=MARKS)  # torch.nn's own error


@pytest.mark.parametrize("cls", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN])
def test_stream(cls: Any) -> None:
    layers = cls(INPUT, HIDDEN, num_layers=2, dtype=torch.float64)
    x = torch.randn(9, BATCH, INPUT, dtype=torch.float64)
    marks = torch.rand(9, BATCH) < 0.3
    stream = fastrnn.Stream(layers, BATCH)
    steps = [stream.step(frame, cuts).clone() for frame, cuts in zip(x, marks, strict=True)]
    with torch.no_grad():
        y, final = layers(x, resets=marks)
    torch.testing.assert_close(torch.stack(steps), y, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(stream.state, final, rtol=1e-10, atol=1e-10)
    before = stream.state
    for bad in (marks[0, :2], marks[0].byte(), marks[0].tolist()):
        with pytest.raises(ValueError, match=r"^resets must be a bool tensor \[5\] on cpu, got "):
            stream.step(x[0], bad)
    torch.testing.assert_close(stream.state, before, rtol=0, atol=0)
