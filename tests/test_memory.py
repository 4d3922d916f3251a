"""Memory that is kept from call to call: bounded, and given back on demand."""

import os
import subprocess
import sys
import threading

import pytest
import torch

import fastrnn

MIB = 1 << 20


def kept() -> int:
    return int(torch.ops.fastrnn.kept_memory()[0])


def train(module: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    y = module(x)[0]
    return [y.detach(), *torch.autograd.grad(y.square().sum(), list(module.parameters()))]


def test_release_gives_all_of_one_thread_back() -> None:
    module, x = fastrnn.LSTM(64, 256), torch.randn(50, 32, 64)
    before = train(module, x)
    assert kept() > 0
    fastrnn.release_memory()
    fastrnn.release_memory()
    for one, two in zip(train(module, x), before, strict=True):
        assert torch.equal(one, two)


def test_other_threads_release_at_their_next_call() -> None:
    module, x = fastrnn.GRU(64, 256), torch.randn(50, 32, 64)
    small, one = fastrnn.GRU(2, 3), torch.zeros(1, 1, 2)
    fastrnn.release_memory()
    before, found = kept(), {}
    ready, released = threading.Barrier(2), threading.Event()

    def work() -> None:
        with torch.no_grad():
            module(x)
            ready.wait()
            released.wait()
            found["after the release"] = kept()
            small(one)
            found["after a call"] = kept()

    thread = threading.Thread(target=work)
    thread.start()
    ready.wait()
    assert kept() > before + MIB
    fastrnn.release_memory()
    released.set()
    thread.join()
    assert found["after the release"] > before + MIB
    assert found["after a call"] < before + MIB


SCRIPT = """
import resource, sys, threading, torch, fastrnn
torch.set_num_threads(1)
module, x = fastrnn.LSTM(64, 512), torch.randn(100, 64, 64)
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
def train():
    y = module(x)[0]
    torch.autograd.grad(y.square().sum(), list(module.parameters()))
    most.append(torch.ops.fastrnn.kept_memory()[0])
    ready.wait()
most, ready = [], threading.Barrier(4)
threads = [threading.Thread(target=train) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
ready = threading.Barrier(1)
train()
before = resident()
fastrnn.release_memory()
print(max(most), torch.ops.fastrnn.kept_memory()[1], most[-1], before - resident(), torch.ops.fastrnn.kept_memory()[0])
"""


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("limit", ["0", "20", "100", ""])
def test_limit(limit: str) -> None:
    """One reserve is 63 MiB."""
    result = python("-c", SCRIPT, FASTRNN_KEEP_MB=limit)
    assert result.returncode == 0, result.stderr
    most, allowed, last, freed, left = map(int, result.stdout.split())
    assert allowed == int(limit or 512) * MIB
    assert most <= allowed
    assert left == 0
    if allowed > 80 * MIB:
        assert last > 60 * MIB
        assert freed > last * 3 // 4


@pytest.mark.parametrize("value", ["-1", "1.5", "all", "1e3"])
def test_what_is_no_number_is_an_error(value: str) -> None:
    result = python(
        "-c", "import fastrnn, torch; fastrnn.GRU(2, 3)(torch.zeros(1, 1, 2))", FASTRNN_KEEP_MB=value
    )
    assert result.returncode == 1, result.stdout
    assert f"FASTRNN_KEEP_MB: '{value}' is not a whole number of MiB" in result.stderr


@pytest.mark.parametrize(("value", "words"), [("7", "of at most 7 MiB"), ("x", "'x' is not a whole number")])
def test_info_shows_the_limit(value: str, words: str) -> None:
    result = python("-m", "fastrnn.info", FASTRNN_KEEP_MB=value)
    assert result.returncode == 0, result.stderr
    assert words in result.stdout
