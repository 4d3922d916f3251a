"""Shared set-up: equal seeds, one torch thread, teams of the size that is set; and the instruction set put back."""

import os
from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("helpers")

import fastrnn  # noqa: E402, F401  (loads the ops that test modules ask for while being collected)

# for the build that has a cell of the tests
collect_ignore = [] if os.environ.get("FASTRNN_EMULATED") else ["test_toy.py"]

settings.register_profile(
    "fastrnn",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile("fastrnn")


@pytest.fixture(autouse=True)
def _clean_state() -> Iterator[None]:
    # torch's barriers around tiny products cost a busy machine more than the products; helpers.run_module
    # gives fastrnn two threads
    torch.set_num_threads(1)
    torch.manual_seed(0)
    torch.ops.fastrnn.adapt_threads(
        False
    )  # teams are as large as a test says, whatever else the machine runs
    yield
    torch.ops.fastrnn.force_isa("")
