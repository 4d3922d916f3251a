"""fastrnn.Stream gives, step by step, what the module gives for the whole sequence."""

import copy
import os
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import fastrnn

MODULES = {
    "lstm": lambda **kw: fastrnn.LSTM(5, 9, **kw),
    "lstm-softsign": lambda **kw: fastrnn.LSTM(5, 9, activation="softsign", **kw),
    "lstm-projected": lambda **kw: fastrnn.LSTM(5, 9, proj_size=3, **kw),
    "gru": lambda **kw: fastrnn.GRU(5, 9, **kw),
    "gru-reset-before": lambda **kw: fastrnn.GRU(5, 9, reset_after=False, **kw),
    "rnn": lambda **kw: fastrnn.RNN(5, 9, **kw),
    "rnn-relu": lambda **kw: fastrnn.RNN(5, 9, nonlinearity="relu", **kw),
    "torch-lstm": lambda **kw: nn.LSTM(5, 9, **kw),
    "torch-gru": lambda **kw: nn.GRU(5, 9, **kw),
}
TIME = 6


def flat(state):
    return [state] if isinstance(state, torch.Tensor) else list(state)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("batch", [1, 3, 20])
def test_steps_make_the_sequence(name, layers, bias, dtype, tolerance, batch):
    module = MODULES[name](num_layers=layers, bias=bias, dtype=dtype)
    x = torch.randn(TIME, batch, 5, dtype=dtype)
    with torch.no_grad():
        expected, final = module(x)
    stream = fastrnn.Stream(module, batch)
    found = torch.stack([stream.step(frame).clone() for frame in x])
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    for state, last in zip(flat(stream.state), flat(final), strict=True):
        torch.testing.assert_close(state, last, rtol=0, atol=tolerance)


def test_state_is_a_copy_and_can_be_set():
    module = fastrnn.LSTM(5, 9, 2)
    x = torch.randn(TIME, 2, 5)
    stream = fastrnn.Stream(module, 2)
    for frame in x[:3]:
        stream.step(frame)
    saved = stream.state
    first = [stream.step(frame).clone() for frame in x[3:]]
    stream.state = saved
    second = [stream.step(frame).clone() for frame in x[3:]]
    assert all(map(torch.equal, first, second))
    with pytest.raises(ValueError, match=r"Stream.state takes shapes"):
        stream.state = saved[0]


def test_reset_of_rows_begins_new_sequences_there():
    module = fastrnn.GRU(5, 9)
    x = torch.randn(TIME, 3, 5)
    stream, fresh = fastrnn.Stream(module, 3), fastrnn.Stream(module, 3)
    before = stream.step(x[0]).clone()
    stream.reset(torch.tensor([False, True, False]))
    assert torch.equal(stream.state[:, 1], torch.zeros(1, 9))
    assert torch.equal(stream.state[0, 0], before[0])
    found, started = stream.step(x[1]).clone(), fresh.step(x[1]).clone()
    assert torch.equal(found[1], started[1])
    assert not torch.equal(found[0], started[0])
    stream.reset()
    fresh.reset()
    assert torch.equal(stream.step(x[2]), fresh.step(x[2]))


def test_weights_changed_in_place_are_followed():
    module = fastrnn.LSTM(5, 9)
    stream = fastrnn.Stream(module)
    x = torch.randn(1, 5)
    other = fastrnn.LSTM(5, 9)
    changes = [
        lambda: module.load_state_dict(other.state_dict()),
        lambda: module.weight_hh_l0.data.mul_(2),
        lambda: torch.optim.SGD(module.parameters(), lr=1.0).step(),
    ]
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    for change in changes:
        change()
        stream.reset()
        with torch.no_grad():
            expected = module(x[None])[0][0]
        torch.testing.assert_close(stream.step(x), expected, rtol=0, atol=2e-6)


def test_strided_and_negated_views():
    module = fastrnn.RNN(5, 9)
    stream = fastrnn.Stream(module, 2)
    x = torch.randn(2, 10)[:, ::2]
    expected = fastrnn.Stream(module, 2).step(x.contiguous()).clone()
    assert torch.equal(stream.step(x), expected)
    negated = torch.complex(torch.zeros(2, 5), x.contiguous()).conj().imag
    stream.reset()
    assert torch.equal(stream.step(negated), fastrnn.Stream(module, 2).step(-x.contiguous()))


def test_an_output_that_backward_still_needs_is_guarded():
    stream = fastrnn.Stream(fastrnn.LSTM(5, 9))
    head = nn.Linear(9, 1)
    loss = head(stream.step(torch.randn(1, 5))).sum()
    for _ in range(2):
        stream.step(torch.randn(1, 5))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_works_from_and_after_inference_mode():
    module = fastrnn.LSTM(5, 9)
    with torch.inference_mode():
        stream = fastrnn.Stream(module)
        first = stream.step(torch.ones(1, 5)).clone()
    stream.reset()
    assert torch.equal(stream.step(torch.ones(1, 5)), first)


@pytest.mark.parametrize(
    "x", [torch.zeros(1, 6), torch.zeros(2, 5), torch.zeros(5), torch.zeros(1, 5).double()]
)
def test_wrong_input(x):
    stream = fastrnn.Stream(fastrnn.LSTM(5, 9))
    with pytest.raises(ValueError, match=r"Stream.step takes a CPU tensor \[1, 5\] of torch.float32"):
        stream.step(x)


def test_wrong_modules():
    with pytest.raises(ValueError, match="bidirectional"):
        fastrnn.Stream(fastrnn.GRU(5, 9, bidirectional=True))
    with pytest.raises(TypeError, match="takes an LSTM, GRU or RNN"):
        fastrnn.Stream(nn.Linear(5, 9))
    with pytest.raises(TypeError, match="float32 or float64"):
        fastrnn.Stream(fastrnn.LSTM(5, 9, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match="batch_size must be positive"):
        fastrnn.Stream(fastrnn.LSTM(5, 9), 0)
    module = fastrnn.LSTM(5, 9)
    module.weight_hh_l0 = nn.Parameter(torch.zeros(36, 8))
    with pytest.raises(ValueError, match="weights of layer 0"):
        fastrnn.Stream(module)


@pytest.mark.parametrize("cls", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN])
@pytest.mark.parametrize("batch", [1, 4])
def test_an_output_may_be_the_next_input(cls, batch):
    module = cls(512, 512)
    torch.set_num_threads(2)
    stream, copied = fastrnn.Stream(module, batch), fastrnn.Stream(module, batch)
    y = expected = before = torch.randn(batch, 512)
    for _ in range(12):
        y, expected = stream.step(y), copied.step(expected.clone()).clone()
        assert torch.equal(y, expected)
    for _ in range(6):  # and so may the one before it
        expected = copied.step(before.clone()).clone()
        y, before = stream.step(before), y
        assert torch.equal(y, expected)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda stream: pickle.loads(pickle.dumps(stream))])
def test_copies_go_their_own_way(copied):
    stream = fastrnn.Stream(fastrnn.LSTM(5, 9), 2)
    frames = torch.randn(3, 2, 5)
    stream.step(frames[0])
    other = copied(stream)
    y = stream.step(frames[1]).clone()
    assert torch.equal(other.step(frames[1]), y)
    other.step(frames[2])
    again = stream.step(frames[2])
    for a, b in zip(flat(stream.state), flat(other.state), strict=True):
        assert torch.equal(a, b)
    assert torch.isfinite(again).all()


def test_a_tensor_without_memory_is_refused():
    stream = fastrnn.Stream(fastrnn.GRU(5, 9))
    empty = torch.zeros(1, 5)
    empty.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="memory of its own"):
        stream.step(empty)
    with FakeTensorMode():
        fake = torch.zeros(1, 5)
    with pytest.raises(ValueError, match="not FakeTensor"):
        stream.step(fake)


def test_parametrized_modules_are_refused():
    module = nn.utils.parametrizations.weight_norm(fastrnn.GRU(5, 9), "weight_hh_l0")
    with pytest.raises(ValueError, match="parametrized"):
        fastrnn.Stream(module)


def test_an_error_of_the_kernels_is_an_exception():
    code = (
        "import torch, fastrnn\n"
        "stream = fastrnn.Stream(fastrnn.GRU(5, 9))\n"
        "try:\n    stream.step(torch.zeros(1, 5))\nexcept RuntimeError as error:\n    print(error)\n"
    )
    environment = os.environ | {"FASTRNN_FORCE_ISA": "bogus"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "bogus" in done.stdout
