"""Children that os.fork() made run the kernels, with as many threads as their parent."""

import os
import signal
import subprocess
import sys

import pytest

# torch's own parallel loops may hang in a child that was forked after their first use: here the children call none
PRELUDE = """
import os, threading, traceback, torch, fastrnn

torch.manual_seed(0)
torch.set_num_threads(2)
torch.ops.fastrnn.adapt_threads(False)  # two threads whatever else the machine runs
modules = [cell(20, 200, 2, bidirectional=True) for cell in (fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN)]
x, d_y = torch.randn(30, 16, 20), torch.randn(30, 16, 400)

def run():
    found = []
    for module in modules:
        y = module(x)[0]
        results = y, *torch.autograd.grad(y, list(module.parameters()), d_y)
        with torch.no_grad():
            found += [r.detach().numpy().tobytes() for r in (*results, module(x)[0])]
    return found

def count():
    return len(os.listdir("/proc/self/task"))

def run_in_two_threads():
    # two threads that work, and this one, which waits for them
    before = count()
    found = run()
    assert count() == before + 2, (before, count())
    return found

def in_child(work):
    child = os.fork()
    if child == 0:
        try:
            os._exit(work())
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child

def code_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""

PARENTS = {
    "ran nothing": "",
    "ran the kernels": "run()",
    "ran torch": "torch.mm(torch.randn(500, 500), torch.randn(500, 500))",
    "ran both": "torch.mm(torch.randn(500, 500), torch.randn(500, 500)); run()",
}


def run_script(code: str) -> None:
    """In a process of its own, so that a child that hangs ends with the time limit."""
    process = subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        pytest.fail("a forked child hangs")
    assert process.returncode == 0, err


@pytest.mark.parametrize("before", PARENTS.values(), ids=list(PARENTS))
def test_child_agrees_with_its_parent_and_uses_two_threads(before: str) -> None:
    run_script(f"""
{before}
inherited, outlet = os.pipe()
def work():
    found = run_in_two_threads()
    made = count()
    assert run() == found
    assert count() == made
    with open(outlet, "wb") as pipe:
        pipe.write(b"".join(found))
    return 7
child = in_child(work)
os.close(outlet)
with open(inherited, "rb") as pipe:
    found = pipe.read()
assert code_of(child) == 7
assert found == b"".join(run())
""")


def test_children_of_children() -> None:
    run_script("""
before = run()
def work(depth):
    assert run_in_two_threads() == before
    return code_of(in_child(lambda: work(depth - 1))) if depth else 7
assert [code_of(child) for child in [in_child(lambda: work(2)) for _ in range(2)]] == [7, 7]
assert run() == before
""")


def test_fork_beside_other_threads_and_from_one() -> None:
    run_script("""
before = run()
hold, ready = threading.Event(), threading.Barrier(3)
def wait():
    assert run() == before
    ready.wait()
    hold.wait()
others = [threading.Thread(target=wait) for _ in range(2)]
for other in others:
    other.start()
ready.wait()
codes = []
def work():
    assert run() == before
    return 7
def fork():
    codes.append(code_of(in_child(work)))
fork()
thread = threading.Thread(target=fork)
thread.start()
thread.join()
hold.set()
for other in others:
    other.join()
assert codes == [7, 7], codes
assert run() == before
""")


def test_threads_of_a_child() -> None:
    """Those that it makes begin regions of their own, also at the same time as the copy of the one that forked."""
    run_script("""
before = run()
def work():
    torch.set_num_threads(2)  # replaces a pool of torch's own, which fails where several threads do it at once
    found = []
    others = [threading.Thread(target=lambda: found.append(run())) for _ in range(3)]
    for other in others:
        other.start()
    found.append(run())
    for other in others:
        other.join()
    assert len(found) == 4 and all(one == before for one in found)
    # a child of this child, made by a thread that has threads of its own
    codes = []
    def fork():
        assert run() == before
        codes.append(code_of(in_child(lambda: 7 if run() == before else 3)))
    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    assert codes == [7], codes
    return 7
assert code_of(in_child(work)) == 7
""")


def test_child_ends_as_any_process_does() -> None:
    """Through the interpreter's own end, with a thread that still waits for calls."""
    run_script("""
before = run()
child = os.fork()
if child == 0:
    assert run_in_two_threads() == before
    raise SystemExit(7)
assert code_of(child) == 7
""")


def test_child_without_room_for_a_thread() -> None:
    run_script("""
import resource
module, x = fastrnn.GRU(20, 64), x[:, :8]
def size():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()
def encode():
    with torch.no_grad():
        return module(x)[0].numpy().tobytes()
def work():
    torch.set_num_threads(1)
    expected = encode()
    torch.set_num_threads(2)
    for _ in range(2):  # they take the stacks that threads of the parent left
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    before = count()
    resource.setrlimit(resource.RLIMIT_AS, (size() + (1 << 20),) * 2)  # less than a stack
    assert encode() == expected
    assert count() == before
    return 7
assert code_of(in_child(work)) == 7
def control():
    before = count()
    encode()
    assert count() == before + 2
    return 7
assert code_of(in_child(control)) == 7
""")


def test_pool_of_forked_processes() -> None:
    run_script("""
import torch.multiprocessing as mp
def encode(seed):
    with torch.no_grad():
        return modules[1](x * seed)[0].numpy().tobytes()
def work(seed):
    before = count()
    return encode(seed), count() - before
expected = [encode(seed) for seed in range(6)]
for start in 0, 3:
    with mp.get_context("fork").Pool(3) as pool:
        found = pool.map(work, range(start, start + 3), chunksize=1)
    assert [value for value, _ in found] == expected[start : start + 3]
    assert max(made for _, made in found) == 2, found
""")
