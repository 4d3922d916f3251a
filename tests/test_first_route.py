"""One layer on the CPU goes straight to the op, and the long way only where the op refuses the arguments."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

import fastrnn

MODULES: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: fastrnn.LSTM(4, 6),
    "gru": lambda: fastrnn.GRU(4, 6),
    "rnn": lambda: fastrnn.RNN(4, 6),
    "lstm-cell": lambda: fastrnn.LSTMCell(4, 6),
    "gru-cell": lambda: fastrnn.GRUCell(4, 6),
    "rnn-cell": lambda: fastrnn.RNNCell(4, 6),
}
modules = pytest.mark.parametrize("name", MODULES)


def input_of(name: str, rows: int = 2) -> Tensor:
    return (
        torch.zeros(1, 4).expand(rows, 4)
        if name.endswith("cell")
        else torch.zeros(1, 1, 4).expand(rows, 3, 4)
    )


class Calls(TorchDispatchMode):
    """Counts the calls of fastrnn's ops."""

    count = 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += op.namespace == "fastrnn"
        return op(*args, **(kwargs or {}))


@modules
def test_one_call_serves(name: str) -> None:
    module = MODULES[name]()
    for scope in (torch.no_grad, torch.enable_grad):
        with scope(), Calls() as calls:
            module(input_of(name))
        assert calls.count == 1


@modules
def test_too_little_memory_is_met_once(name: str) -> None:
    module = MODULES[name]()
    with torch.no_grad(), Calls() as calls, pytest.raises(RuntimeError, match="allocate memory"):
        module(input_of(name, 1 << 45))  # more than there are addresses
    assert calls.count == 1


@modules
@pytest.mark.parametrize("error", [RuntimeError, TypeError, AttributeError, MemoryError])
def test_an_exception_of_a_users_hook_is_raised_once(name: str, error: type[Exception]) -> None:
    module, met = MODULES[name](), []

    def pack(tensor: Tensor) -> Tensor:
        met.append(tensor)
        raise error("the user's own")

    with saved_tensors_hooks(pack, lambda t: t), pytest.raises(error, match="the user's own"):
        module(input_of(name))
    assert len(met) == 1


@modules
def test_what_the_op_refuses_has_torchs_error(name: str) -> None:
    module = MODULES[name]()
    plain = getattr(nn, type(module).__name__)(4, 6)
    x = input_of(name)
    wrong = [x[..., :3], x.double(), x.to(torch.int64)]
    for bad in wrong:
        with pytest.raises((RuntimeError, ValueError)) as expected:
            plain(bad)
        with pytest.raises(expected.type) as found:
            module(bad)
        assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("state", ["h", 3, [None], torch.zeros(1, 3, 5), torch.zeros(1, 3, 6).double()])
def test_states_that_the_op_refuses(state: Any) -> None:
    for hx, names in ((state, ("GRU", "RNN")), ((state, torch.zeros(1, 3, 6)), ("LSTM",))):
        for name in names:
            x = torch.zeros(2, 3, 4)
            with pytest.raises(Exception) as expected:  # noqa: PT011
                getattr(nn, name)(4, 6)(x, hx)
            with pytest.raises(expected.type):
                getattr(fastrnn, name)(4, 6)(x, hx)


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_a_weight_that_is_none_has_torchs_error(name: str) -> None:
    modules = getattr(nn, name)(4, 6), getattr(fastrnn, name)(4, 6)
    for module in modules:
        module.bias_hh_l0 = None
    plain, fast = modules
    with pytest.raises(Exception) as expected:  # noqa: PT011
        plain(torch.zeros(2, 3, 4))
    with pytest.raises(expected.type):
        fast(torch.zeros(2, 3, 4))
