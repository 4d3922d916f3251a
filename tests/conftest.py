"""Shared set-up: equal seeds, and thread count and instruction set put back after every test."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("helpers")

import fastrnn  # noqa: E402, F401  (loads the ops that test modules ask for while being collected)

settings.register_profile(
    "fastrnn",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("fastrnn")


@pytest.fixture(autouse=True)
def _clean_state() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    torch.ops.fastrnn.force_isa("")
