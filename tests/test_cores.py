"""Calls that overlap share the cores: each may have another number of threads, and all have the same results."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import fastrnn
from helpers import (
    BF16,
    F32,
    Case,
    Results,
    assert_bitwise,
    fast_module,
    flat_outputs,
    make_inputs,
    pack,
    run,
)

OPS = torch.ops.fastrnn

MIXED = [
    Case("lstm", 1, 60, 16, 256, dtype=F32),
    Case("gru", 40, 30, 20, 64, dtype=F32, layout="unsorted"),
    Case("rnn_tanh", 16, 25, 40, 200, dtype=F32, bidirectional=True),
    Case("lstm", 6, 40, 20, 70, dtype=F32, layout="packed", bidirectional=True, layers=2),
    Case("gru", 5, 30, 40, 129, dtype=F32, reset_after=False),
    Case("lstm", 3, 1, 5, 7, dtype=F32),
    Case("gru", 8, 30, 33, 97, dtype=BF16),
    Case("rnn_tanh", 64, 6, 12, 24, dtype=F32),
]


def at_once(count: int, work: Callable[[int], None]) -> None:
    """work(0) .. work(count - 1), each in a thread that begins when all are there."""
    start = threading.Barrier(count)

    def begin(index: int) -> None:
        start.wait()
        work(index)

    with ThreadPoolExecutor(count) as pool:
        list(pool.map(begin, range(count)))


@pytest.mark.parametrize("callers", [2, 4, 8])
@pytest.mark.parametrize("adapt", [True, False], ids=["shared", "crowded"])
def test_overlapping_calls_agree_bitwise(callers: int, adapt: bool) -> None:
    """Inference and training, each thread with a size of its own after another."""
    OPS.adapt_threads(adapt)
    modules, inputs = [fast_module(case) for case in MIXED], [make_inputs(case) for case in MIXED]

    def train(index: int) -> Results:
        module, case = modules[index], MIXED[index]
        return run(module, module.named_parameters(), inputs[index], batch_first=case.batch_first)

    def infer(index: int) -> Results:
        given, case = inputs[index], MIXED[index]
        with torch.no_grad():
            outputs = modules[index](pack(given.x, given.lengths, case.batch_first), given.state())
        return dict(zip(("y", "h_n", "c_n"), flat_outputs(outputs), strict=False))

    trained, inferred = ([f(i) for i in range(len(MIXED))] for f in (train, infer))

    torch.set_num_threads(2)

    def work(caller: int) -> None:
        for turn in range(2 * len(MIXED)):
            index = (caller + turn) % len(MIXED)
            assert_bitwise(train(index), trained[index])
            assert_bitwise(infer(index), inferred[index])

    at_once(callers, work)
    assert OPS.calls_in_flight() == 0


def test_overlapping_streams_agree_bitwise() -> None:
    OPS.adapt_threads(True)
    module, x = fastrnn.GRU(24, 160, num_layers=2), torch.randn(40, 8, 24)

    def encode() -> torch.Tensor:
        stream = fastrnn.Stream(module, 8)
        return torch.stack([stream.step(step).clone() for step in x])

    expected = encode()
    torch.set_num_threads(2)

    def work(_: int) -> None:
        for _ in range(5):
            assert torch.equal(encode(), expected)

    at_once(4, work)
    assert OPS.calls_in_flight() == 0


def script(code: str, before: str = "") -> None:
    """In a process of its own; before: what it does before it loads fastrnn."""
    prelude = "import os, resource, threading, torch, fastrnn\nOPS = torch.ops.fastrnn\n"
    process = subprocess.run(
        [sys.executable, "-c", before + prelude + code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert process.returncode == 0, process.stderr


def test_a_call_that_fails_leaves() -> None:
    script("""
module, x = fastrnn.LSTM(2048, 2048).requires_grad_(False), torch.randn(64, 16, 2048)
with open("/proc/self/statm") as file:
    used = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (32 << 20),) * 2)  # less than the packed weights
try:
    module(x)
except RuntimeError as error:
    assert "memory" in str(error), error
else:
    raise AssertionError("there was room")
assert OPS.calls_in_flight() == 0
""")


def test_a_child_has_none_of_its_parents_calls() -> None:
    script("""
torch.set_num_threads(2)
module, x = fastrnn.LSTM(64, 256).requires_grad_(False), torch.randn(400, 16, 64)
ends = False
def work():
    while not ends:
        module(x)
other = threading.Thread(target=work)
other.start()
found = []
for _ in range(20):
    while not OPS.calls_in_flight():
        pass
    child = os.fork()
    if child == 0:
        os._exit(OPS.calls_in_flight())
    found.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
ends = True
other.join()
assert found == [0] * 20, found
assert OPS.calls_in_flight() == 0
""")


def test_a_team_has_no_more_threads_than_the_process_has_cores() -> None:
    script(
        """
torch.set_num_threads(2)
module, x = fastrnn.LSTM(64, 256).requires_grad_(False), torch.randn(40, 16, 64)
before = len(os.listdir("/proc/self/task"))
shared = module(x)[0]
assert len(os.listdir("/proc/self/task")) == before
OPS.adapt_threads(False)
assert torch.equal(module(x)[0], shared)
assert len(os.listdir("/proc/self/task")) == before + 1
""",
        before="import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n",
    )


def test_threads_that_are_bound_to_cores_have_their_team() -> None:
    """libgomp binds the first thread to one core; its team has the others."""
    if (os.cpu_count() or 1) < 2:
        pytest.skip("the machine has one core")
    script(
        """
torch.set_num_threads(2)
module, x = fastrnn.LSTM(64, 256).requires_grad_(False), torch.randn(40, 16, 64)
assert len(os.sched_getaffinity(0)) == 1
before = len(os.listdir("/proc/self/task"))
module(x)
assert len(os.listdir("/proc/self/task")) == before + 1
""",
        before="import os\nos.sched_setaffinity(0, range(os.cpu_count()))\nos.environ['OMP_PROC_BIND'] = 'true'\n",
    )
