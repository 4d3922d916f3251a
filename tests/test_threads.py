"""One result for any number of threads; Python threads, workers and interrupts leave everything working."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import fastrnn
from helpers import (
    BF16,
    CELLS,
    F32,
    F64,
    Case,
    Inputs,
    Results,
    assert_bitwise,
    fast_module,
    flat_outputs,
    make_inputs,
    module_pair,
    pack,
    run,
    run_forward,
)

COUNTS = (1, 2, 3, 8)
# (batch, time, input, hidden): one row, split by hidden units; many rows, split by batch; both; neither
SHAPES = [(1, 30, 16, 256), (64, 6, 12, 24), (16, 8, 40, 200), (2, 5, 3, 7), (7, 4, 65, 97), (40, 3, 8, 129)]


def _run(module: nn.Module, case: Case, inputs: Inputs) -> Results:
    """With the number of threads that is set."""
    return run(module, module.named_parameters(), inputs, batch_first=case.batch_first)


def _cases() -> list[Case]:
    found = [Case(cell, *shape, dtype=F32) for cell, shape in product(CELLS, SHAPES)]
    both = [Case(cell, *SHAPES[i], dtype=F32, bidirectional=True) for cell in CELLS for i in (0, 1)]
    packed = [
        Case(cell, *SHAPES[i], dtype=F32, layout="unsorted", bidirectional=i == 1)
        for cell in CELLS
        for i in (1, 2)
    ]
    deep = [
        Case(cell, *SHAPES[4], dtype=F64, layers=2, bidirectional=True, batch_first=True) for cell in CELLS
    ]
    half = [Case(cell, *SHAPES[4], dtype=BF16) for cell in CELLS]
    before = [
        Case("gru", *shape, dtype=F32, reset_after=False, layout=layout)
        for shape in SHAPES
        for layout in ("padded", "packed")
    ]
    alone = [Case(cell, 1, 9, 30, 300, dtype=F32, layout="unbatched") for cell in CELLS]
    return found + both + packed + deep + half + before + alone


@pytest.mark.parametrize("case", _cases(), ids=str)
def test_thread_counts_agree_bitwise(case: Case) -> None:
    module, inputs = fast_module(case), make_inputs(case)
    torch.set_num_threads(COUNTS[0])
    expected = _run(module, case, inputs)
    for count in COUNTS[1:]:
        torch.set_num_threads(count)
        assert_bitwise(_run(module, case, inputs), expected)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("cell", CELLS)
def test_runs_agree_bitwise(cell: str, threads: int) -> None:
    case = Case(cell, 16, 12, 20, 100, dtype=F32, bidirectional=True, layers=2)
    module, inputs = fast_module(case), make_inputs(case)
    torch.set_num_threads(threads)
    expected = _run(module, case, inputs)
    for _ in range(5):
        assert_bitwise(_run(module, case, inputs), expected)


LONG = [(6, 9, 20, 70), (3, 700, 5, 70), (1, 3000, 3, 9), (40, 90, 8, 129)]


@pytest.mark.parametrize("shape", LONG, ids=lambda s: "B{}-T{}-I{}-H{}".format(*s))
@pytest.mark.parametrize("cell", CELLS)
def test_inference_agrees_bitwise_with_training(cell: str, shape: tuple[int, ...]) -> None:
    """Without a reserve the forward pass works through time in chunks: their borders do not show."""
    torch.set_num_threads(2)
    for layout in ("padded", "packed"):
        case = Case(cell, *shape, dtype=F32, bidirectional=True, layout=layout)
        module, inputs = fast_module(case), make_inputs(case)
        expected = run_forward(module, case, inputs)
        x = pack(inputs.x, inputs.lengths, case.batch_first)
        outputs = flat_outputs(module(x, inputs.state()))
        assert_bitwise(dict(zip(("y", "h_n", "c_n"), outputs, strict=False)), expected)


def test_results_do_not_depend_on_what_ran_before() -> None:
    """Memory that a larger run left behind does not show."""
    small = Case("gru", 3, 4, 5, 13, dtype=F32)
    module, inputs = fast_module(small), make_inputs(small)
    expected = _run(module, small, inputs)
    for cell in CELLS:
        large = Case(cell, 20, 5, 40, 150, dtype=F32, bidirectional=True)
        other, poisoned = fast_module(large), make_inputs(large)
        poisoned.x.fill_(float("nan"))
        _run(other, large, poisoned)
        assert_bitwise(_run(module, small, inputs), expected)


def test_every_thread_flushes_denormals_as_the_caller_does() -> None:
    module = fastrnn.RNN(64, 512, bias=False, nonlinearity="relu")
    x = torch.randn(64, 32, 64) * 1e-39
    found = []
    with torch.no_grad():
        for flush, threads in product((False, True, False), (2, 1)):
            torch.set_num_threads(threads)
            can_flush = torch.set_flush_denormal(flush)
            found.append(module(x)[0])
            torch.set_flush_denormal(False)  # or comparisons take denormals for zeros
    for one, two in zip(found[::2], found[1::2], strict=True):
        assert torch.equal(one, two)
    assert found[0].any()
    assert found[2].any() != can_flush


def test_several_python_threads_in_one_module() -> None:
    for cell in CELLS:
        case = Case(cell, 8, 10, 12, 60, dtype=F32, layers=2)
        module = fast_module(case)
        inputs = [make_inputs(case, seed) for seed in range(4)]
        expected = [_run(module, case, one) for one in inputs]
        start = threading.Barrier(4)

        def work(index: int, case=case, module=module, inputs=inputs, start=start) -> list[Results]:
            start.wait()
            return [_run(module, case, inputs[index]) for _ in range(8)]

        with ThreadPoolExecutor(4) as pool:
            for index, found in enumerate(pool.map(work, range(4))):
                for results in found:
                    assert_bitwise(results, expected[index])


def test_python_threads_with_thread_counts_of_their_own() -> None:
    case = Case("lstm", 8, 10, 12, 60, dtype=F32)
    module, inputs = fast_module(case), make_inputs(case)
    expected = _run(module, case, inputs)

    def work(count: int) -> Results:
        torch.set_num_threads(count)
        return _run(module, case, inputs)

    with ThreadPoolExecutor(4) as pool:
        for results in pool.map(work, [1, 2, 3, 4] * 4):
            assert_bitwise(results, expected)


def test_backward_in_another_thread_than_forward() -> None:
    case = Case("gru", 8, 10, 12, 60, dtype=F32)
    module, inputs = fast_module(case), make_inputs(case)
    weights = list(module.parameters())

    def gradients(loss: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss, weights)

    expected = gradients(module(inputs.x)[0].square().sum())
    loss = module(inputs.x)[0].square().sum()
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(gradients, loss).result()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


class _Encoded(Dataset[Tensor]):
    """Samples that a recurrent module makes inside the worker."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        self.module, self.x = module, x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Tensor:
        with torch.no_grad():
            return self.module(self.x[index])[0]


@pytest.mark.parametrize(
    ("method", "name"), [("fork", "LSTM"), ("fork", "GRU"), ("fork", "RNN"), ("spawn", "GRU")]
)
def test_data_loader_workers(method: str, name: str) -> None:
    module = getattr(fastrnn, name)(12, 100, 2)
    data = _Encoded(module, torch.randn(8, 20, 12))
    expected = torch.stack([data[index] for index in range(8)])  # the parent has used its threads
    loader = DataLoader(
        data,
        batch_size=2,
        num_workers=2,
        timeout=60,
        multiprocessing_context=multiprocessing.get_context(method),
    )
    assert torch.equal(torch.cat(list(loader)), expected)
    assert torch.equal(torch.stack([data[index] for index in range(8)]), expected)


def _interrupted(action: Callable[[], object]) -> int:
    """Runs the action again and again until SIGINT arrives; how often it ran."""
    count, end = 0, time.monotonic() + 30
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.start()
    try:
        while time.monotonic() < end:
            action()
            count += 1
    except KeyboardInterrupt:
        return count
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    pytest.fail("no interrupt came")


@pytest.mark.parametrize("cell", CELLS)
def test_keyboard_interrupt_leaves_all_working(cell: str) -> None:
    case = Case(cell, 16, 50, 20, 100, dtype=F32, layers=2)
    fast, plain = module_pair(case)
    inputs = make_inputs(case)
    expected = _run(fast, case, inputs)
    for _ in range(2):
        assert _interrupted(lambda: _run(fast, case, inputs)) > 0
    assert_bitwise(_run(fast, case, inputs), expected)
    torch.testing.assert_close(expected["y"], _run(plain, case, inputs)["y"], rtol=1e-4, atol=1e-5)


def test_thread_count_follows_torch() -> None:
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        assert torch.ops.fastrnn.num_threads() == count
