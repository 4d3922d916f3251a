"""The bench suite under load: several callers at once, and cores that have other work."""

import threading
import time
from dataclasses import replace
from functools import partial

import pytest
import torch

pytest.importorskip("numpy")
pytest.importorskip("rich")

from bench import load, markdown
from bench.cases import MODES
from bench.problem import make_problem
from bench.results import Run
from bench.run import main
from bench.runner import Runner
from bench.targets import verdicts
from bench.timing import Effort
from benchcases import case_of, made_up, run_of


def test_load(tmp_path, capsys):
    """Several callers and busy cores: what is timed lies in the file, and comes back as tables and targets."""
    pytest.importorskip("matplotlib")
    names = ["lstm-T3-B2-I8-H8-x2", "gru-T3-B2-I8-H8"]
    path = tmp_path / "load.json"
    command = [
        "--quick",
        "--threads",
        "1",
        "--mode",
        "server",
        "busy",
        "--json",
        str(path),
        "--cases",
        *names,
    ]
    assert main([*command, "--plot", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "lstm server" in printed and "gru busy" in printed
    run = Run.load(path)
    assert [(result.mode, result.case) for result in run.results] == [
        ("server", names[0]),
        ("server", names[1]),
        ("busy", names[1]),
    ]
    at_once, alone, busy = (result.timings for result in run.results)
    assert set(at_once) == set(alone) == {"fastrnn", "fastrnn-1", "torch", "torch-1"}
    assert all(0 < timing.figures["p50"] <= timing.figures["p99"] for timing in at_once.values())
    assert set(busy) == {"fastrnn", "torch"}
    for timing in busy.values():
        assert 0 < timing.median <= timing.figures["p90"]
        assert min(timing.figures["quiet"], timing.figures["worst p90"]) > 0
    assert not run.comparable().results and not list(tmp_path.glob("*.png"))
    page = markdown.case_tables(run)
    assert page.count(f"| {names[0]} | ") == 1 and "several Python threads at once" in page


def test_several_callers_are_counted_together():
    """Each caller's thread runs the call with the runner's number of intra-op threads, which is then set back."""
    threads = {}

    def call() -> None:
        threads[threading.get_ident()] = torch.get_num_threads()
        time.sleep(0.001)

    torch.set_num_threads(2)
    runners = {"one": Runner(call, dict, threads=1)}
    problem = make_problem(case_of("rnn-T1-B1-I1-H1-x4"), MODES["server"])
    timing = load.time_at_once(runners, problem, Effort(rounds=1, block_seconds=0.05))["one"]
    assert len(threads) == 4 and set(threads.values()) == {1}
    assert torch.get_num_threads() == 2
    assert timing.figures["p50"] > 0.001 > 3 * timing.median / 4


def test_a_caller_that_fails_ends_the_block():
    def call() -> None:
        raise RuntimeError("no")

    problem = make_problem(case_of("rnn-T1-B1-I1-H1-x2"), MODES["server"])
    with pytest.raises(RuntimeError, match="no"):
        load.time_at_once({"one": Runner(call, dict)}, problem, Effort(1, 0.01))


def test_calls_beside_busy_cores_alternate():
    calls = []
    runners = {name: Runner(partial(calls.append, name), dict) for name in ("one", "other")}
    problem = make_problem(case_of("rnn-T1-B1-I1-H1"), MODES["busy"])
    timings = load.time_beside_others(runners, problem, Effort(rounds=2, block_seconds=0.0))
    assert calls == ["one", "other"] * (len(calls) // 2)
    assert len(calls) >= 2 * 50 * 3  # two rounds beside the others, and one before
    assert [len(timing.blocks) for timing in timings.values()] == [2, 2]


def test_targets_under_load():
    server = made_up("gru-T5-B1-I8-H8-x2", "server", torch=0.8, fastrnn=1.0)
    server.timings["fastrnn-1"] = replace(server.timings["torch"], median=0.95)
    alone = made_up("gru-T5-B1-I8-H8", "server", torch=0.1, fastrnn=1.0)
    busy = made_up("lstm-T100-B1-I128-H128", "busy", torch=1.0, fastrnn=9.0)
    busy.timings["torch"].figures = {"quiet": 1.0, "p90": 5.0, "worst p90": 6.0}
    busy.timings["fastrnn"].figures = {"quiet": 1.0, "p90": 4.0, "worst p90": 8.0}
    found = [(line.value, line.met) for line in verdicts(run_of(server, alone, busy))]
    assert found == [
        (pytest.approx(0.8), False),  # against torch
        (pytest.approx(0.95), True),  # against its own best
        (pytest.approx(5 / 4), True),  # p90
        (pytest.approx(6 / 8), False),  # worst p90
        (pytest.approx(1 / 4), False),  # against its quiet time
    ]
