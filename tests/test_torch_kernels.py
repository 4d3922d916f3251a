"""What goes to torch's own kernels: CUDA tensors, here without a device, for fake ones have its name alone."""

import subprocess
import sys
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastrnn import functional

NOT_COMPACT = (
    "RNN module weights are not part of single contiguous chunk of memory. This means they need to be compacted at "
    "every call, possibly greatly increasing memory usage. To compact weights again call flatten_parameters()."
)


@pytest.fixture
def cuda() -> Iterator[None]:
    with FakeTensorMode():
        yield


def sizes_alone(*sizes: int) -> Tensor:
    return torch.empty(sizes, device="cuda")


def gru() -> tuple[Tensor, ...]:
    x, w = sizes_alone(5, 2, 3), [sizes_alone(12, 3), sizes_alone(12, 4)]
    return functional.gru(x, None, w, has_biases=False)


def warning_kernel(x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    warnings.warn(NOT_COMPACT, stacklevel=2)  # as C++ does: of the line in Python that called it
    return x, x


def test_a_call_leaves_the_registries_of_warnings_alone(cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "gru", warning_kernel)

    def shown_once() -> None:
        warnings.warn("what a user wants to see once", stacklevel=1)

    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for _ in range(3):
            shown_once()
            gru()
    assert [str(w.message) for w in shown].count("what a user wants to see once") == 1


def test_weights_in_pieces_do_not_concern_the_user() -> None:
    """In an interpreter with Python's own filters: pytest has others."""
    program = f"""
import warnings
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from fastrnn import functional

def kernel(x, *_):
    warnings.warn({NOT_COMPACT!r}, stacklevel=2)
    return x, x

torch.gru = kernel
with FakeTensorMode():
    x, w_ih, w_hh = (torch.empty(sizes, device="cuda") for sizes in ((5, 2, 3), (12, 3), (12, 4)))
    functional.gru(x, None, [w_ih, w_hh], has_biases=False)
warnings.warn("a warning of the user's own")
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "a warning of the user's own" in result.stderr
    assert "RNN module weights" not in result.stderr
