"""What goes to torch's own kernels: CUDA tensors, here without a device, for fake ones have its name alone."""

import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastrnn import _cuda, _ops, _stack, functional

NOT_COMPACT = (
    "RNN module weights are not part of single contiguous chunk of memory. This means they need to be compacted at "
    "every call, possibly greatly increasing memory usage. To compact weights again call flatten_parameters()."
)
FAKE = FakeTensorMode()


@pytest.fixture
def ways(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What served each call, as on an H100 with FASTRNN_CUDA_ENGINE=auto."""
    found: list[str] = []

    def by(name: str) -> Any:
        def run(*_: Any) -> tuple[Tensor, ...]:
            found.append(name)
            return (torch.empty(0),) * 3

        return run

    monkeypatch.setattr(_ops, "_DEVICES", {"cpu", "meta", "cuda"})
    monkeypatch.setattr(_ops, "cuda_engine", "auto")
    monkeypatch.setattr(_ops, "cuda_properties", lambda index: (90, 132, 227 << 10, 50 << 20))
    monkeypatch.setattr(_stack, "run_layers", lambda run, *_: by(run.__name__)())
    monkeypatch.setattr(_stack, "_run_torch", by("torch"))
    return found


def sizes_alone(*sizes: int, dtype: torch.dtype = torch.float32) -> Tensor:
    with FAKE:
        return torch.empty(sizes, device="cuda", dtype=dtype)


def gru() -> tuple[Tensor, ...]:
    x, w = sizes_alone(5, 2, 3), [sizes_alone(12, 3), sizes_alone(12, 4)]
    return functional.gru(x, None, w, has_biases=False)


def lstm(dtype: torch.dtype, batch_sizes: Tensor | None = None, **options: Any) -> None:
    x = sizes_alone(*((50, 16) if batch_sizes is None else (40,)), 768, dtype=dtype)
    weights = [sizes_alone(4 * 768, 768, dtype=dtype) for _ in range(2)]
    functional.lstm(x, None, weights, batch_sizes=batch_sizes, has_biases=False, **options)


def test_the_estimates_choose(ways: list[str]) -> None:
    lstm(torch.float16)
    lstm(torch.bfloat16)
    lstm(torch.bfloat16, activation="relu")
    lstm(torch.float64)
    assert ways == ["torch", "layer", "layer", "torch"]


@pytest.mark.parametrize("engine", ["steps", "grid"])
def test_an_engine_that_is_asked_for_runs(
    ways: list[str], engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_ops, "cuda_engine", engine)
    lstm(torch.float16)
    assert ways == ["layer"]


def test_recompute_is_not_left_to_torch(ways: list[str]) -> None:
    weights = [sizes_alone(4 * 64, 64).requires_grad_() for _ in range(2)]
    for recompute in (False, True):
        functional.lstm(sizes_alone(9, 8, 64), None, weights, has_biases=False, recompute=recompute)
    assert ways == ["torch", "layer"]


def test_a_shape_is_looked_up_once(ways: list[str]) -> None:
    _cuda._torch_is_quicker.cache_clear()
    for _ in range(3):
        lstm(torch.bfloat16)
    assert _cuda._torch_is_quicker.cache_info().misses == 1


def test_packed_input_has_no_persistent_kernel_of_cudnns(ways: list[str]) -> None:
    lstm(torch.float16, torch.tensor([16, 16, 8]))
    assert ways == ["layer"]


def test_an_old_device_is_torchs(ways: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ops, "cuda_properties", lambda index: (75, 40, 64 << 10, 4 << 20))
    lstm(torch.bfloat16)
    lstm(torch.bfloat16, activation="relu")
    assert ways == ["torch", "reference_layer"]


def test_compile_asks_for_the_device_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def properties(index: int) -> tuple[int, ...]:
        asked.append(index)
        return 75, 40, 64 << 10, 4 << 20

    monkeypatch.setattr(_ops, "cuda_properties", properties)

    @torch.compile(fullgraph=True, backend="eager")
    def negated_where_old(x: Tensor) -> Tensor:
        return -x if _ops._is_too_old(1) else x

    for _ in range(3):
        assert torch.equal(negated_where_old(torch.ones(2)), -torch.ones(2))
    assert asked == [1]


def test_autocast(ways: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch's, or in autocast's type where torch lacks the cell."""
    dtypes: list[torch.dtype] = []

    def run_layers(run: Any, stack: Any, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        dtypes.append(x.dtype)
        return (x,) * 3

    monkeypatch.setattr(_ops, "autocasts", lambda x: True)  # torch has none for a device that is not here
    monkeypatch.setattr(_stack, "run_layers", run_layers)
    lstm(torch.float32)
    assert ways == ["torch"]
    assert not dtypes
    lstm(torch.float32, activation="relu")
    assert dtypes == [torch.get_autocast_dtype("cuda")]


def warning_kernel(x: Tensor, *_: Any) -> tuple[Tensor, ...]:
    warnings.warn(NOT_COMPACT, stacklevel=2)  # as C++ does: of the line in Python that called it
    return x, x


def test_a_call_leaves_the_registries_of_warnings_alone(monkeypatch: pytest.MonkeyPatch) -> None:
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
from fastrnn import _cuda, _ops, functional

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
