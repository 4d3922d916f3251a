"""The bench suite: its cases, its limits, its peers' agreement, and one whole quick run."""

import graphlib
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("numpy")
pytest.importorskip("rich")

from bench import compare, markdown, options, report, scaling, sweep, tune
from bench.cases import CELLS, GATES, MODES, REGISTRY, Case, choose, modes_of
from bench.limits import limit_of, measure
from bench.peers import PEERS
from bench.problem import make_problem
from bench.results import Run, geometric_means
from bench.run import main
from bench.runner import Settings, Unsupported
from bench.targets import verdicts
from bench.timing import Effort
from benchcases import CONSTANTS, case_of, made_up, run_of
from fastrnn import _spec

ROOT = Path(__file__).parent.parent


def test_case_names():
    assert all(Case.parse(case.id) == case for case in REGISTRY)
    assert len({case.id for case in REGISTRY}) == len(REGISTRY) >= 66
    assert case_of("gru-T35-B20-I650-H651-L2-bi") == Case("gru", 35, 20, 650, 651, 2, True)
    assert case_of("lstm-T5-B2-I6-H7-x4") == Case("lstm", 5, 2, 6, 7, callers=4)
    for name in ("gru", "lstm-T0-B1-I1-H1", "tcn-T1-B1-I1-H1", "lstm-T1-B1-I1-H1-x"):
        assert Case.parse(name) is None


def test_imports_go_one_way():
    """No module of bench/ leads back to itself, imports inside of functions and by name included."""
    files = {path.stem: path.read_text() for path in (ROOT / "bench").glob("*.py")}
    names = {
        name: re.findall(r"\bbench[.](\w+)|from bench import (.+)", text) for name, text in files.items()
    }
    graph = {
        name: {word for pair in found for word in re.findall(r"\w+", " ".join(pair)) if word in files}
        - {name}
        for name, found in names.items()
    }
    assert "peers_onnx" in graph["peers"]
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def test_choose():
    assert {case.cell for case in choose(CELLS, MODES["infer"], [])} == set(CELLS)
    assert all(case.time == 1 for case in choose(CELLS, MODES["stream"], []))
    assert all(case.batch > 1 for case in choose(CELLS, MODES["packed"], []))
    assert [case.id for case in choose(["lstm"], MODES["infer"], ["lstm-T2-B3-I4-H5"])] == [
        "lstm-T2-B3-I4-H5"
    ]
    assert choose(["lstm"], MODES["train"], ["T1-B1"]) == []


def test_modes_have_cases_of_their_own():
    assert [mode.name for mode in modes_of(["cell"])] == [
        "cell-step",
        "cell-loop",
        "cell-short",
        "cell-short-train",
    ]
    assert [mode.name for mode in modes_of(["train", "infer"])] == ["infer", "train"]
    assert modes_of(["all"]) == list(MODES.values())
    loops = choose(["gru"], MODES["cell-loop"], ["B256"])
    assert [case.id for case in loops] == [f"gru-T20-B256-I{h}-H{h}" for h in (64, 128, 256, 512, 1024)]
    assert {case.time for case in choose(CELLS, MODES["cell-short-train"], [])} == {1, 2, 4}
    assert choose(CELLS, MODES["cell-step"], ["gru-T1-B1-I2-H3-L2", "gru-T1-B1-I2-H3-bi"]) == []
    assert choose(["lstm"], MODES["infer"], ["lstm-T5-B2-I6-H7-x4"]) == []


@pytest.mark.parametrize("mode", ["infer", "train", "packed", "packed-train"])
def test_limit_grows_with_the_work(mode):
    sizes = ["lstm-T8-B4-I8-H16", "lstm-T8-B4-I8-H32", "lstm-T8-B4-I8-H32-L2", "lstm-T8-B4-I8-H32-L2-bi"]
    limits = [limit_of(make_problem(case_of(name), MODES[mode]), CONSTANTS).seconds for name in sizes]
    assert limits == sorted(limits) and limits[0] > 0


def test_limit_by_hand():
    # 2 * T * B * G * H * (H + I) operations on two cores, the batch split
    limit = limit_of(make_problem(case_of("gru-T10-B64-I32-H64"), MODES["infer"]), CONSTANTS)
    assert limit.bound == "arithmetic"
    assert limit.seconds == pytest.approx(2 * 10 * 64 * 3 * 64 * (64 + 32) / 2e11)


def test_measuring_the_machine_leaves_its_arithmetic_alone():
    """A shared library that is linked with -ffast-math turns denormal numbers off for the whole process."""
    constants = measure(threads=1, quick=True)
    assert constants.measured and constants.peak > 0
    assert math.nextafter(0.0, 1.0) * 1.0 > 0.0


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("cell", CELLS)
def test_peers_agree(cell, mode):
    """Every peer at hand computes what torch.nn computes in float64, gate orders and lengths included."""
    sizes = {
        "stream": "T1-B1-I3-H5",
        "cell-step": "T1-B3-I3-H5",
        "cell-loop": "T4-B3-I3-H5",
        "resets-train": "T6-B3-I3-H5-L2",
        "options": "T4-B3-I3-H5",
    }
    problem = make_problem(case_of(f"{cell}-{sizes.get(mode, 'T4-B3-I3-H5-L2-bi')}"), MODES[mode])
    assert problem.resets is None or problem.resets.any()
    agreed = []
    for peer in PEERS.values():
        if peer.missing() or peer.name.startswith("compile") or not peer.suits(problem.mode):
            continue
        try:
            runner = peer.build(problem, Settings(threads=1))
        except Unsupported:
            continue
        with runner.context():
            problem.check(runner.outputs(runner.call()), runner.skip)
        agreed.append(peer.name)
    assert {"fastrnn", "torch"} <= set(agreed)
    if mode == "options":  # loops are held against the layers when they are built
        assert {"fastrnn-layer-norm", "loop-layer-norm", "loop-zoneout", "loop-recurrent-dropout"} <= set(
            agreed
        )
        assert ("loop-peephole" in agreed) == (cell == "lstm")


def test_a_loop_that_computes_something_else_is_no_peer(monkeypatch):
    problem = make_problem(case_of("gru-T4-B3-I3-H5"), MODES["options"])
    monkeypatch.setattr(options.Loop, "_zoned", lambda self, made, before, probability: made)
    with pytest.raises(ValueError, match="y of the loop: error"):
        PEERS["loop-zoneout"].build(problem, Settings(threads=1))


def test_options_beside_the_plain_cell_and_loops():
    times = {"fastrnn": 1.0, "fastrnn-zoneout": 1.1, "fastrnn-heads4": 0.5, "loop-zoneout": 22.0}
    result = made_up("gru-T50-B16-I256-H256", "options", **times)
    result.timings["compiled-zoneout"] = replace(
        result.timings["loop-zoneout"], median=2.2, figures={"compile": 9.0}
    )
    run = run_of(result)
    header, rows = report.option_rows(run.results)
    assert len(header) == len(rows[0])
    assert [row[1:] for row in rows[1:]] == [
        ["zoneout", "1.1 s", "1.10", "1.15", "20.0", "2.0", "9 s"],
        ["heads4", "500 ms", "0.50", "0.60", "-", "-", "-"],
    ]
    met = {line.what.removesuffix(", every case"): line.met for line in verdicts(run)}
    assert met == {
        "the plain cell's time over that with zoneout": True,
        "the plain cell's time over that with heads4": True,
        "zoneout against a loop over steps": True,
        "zoneout against that loop compiled": False,
    }
    assert "### options" in markdown.case_tables(run) and not run.comparable().results


def test_check_refuses_wrong_output():
    problem = make_problem(case_of("rnn-T3-B2-I3-H5"), MODES["infer"])
    outputs = {name: array.copy() for name, array in problem.reference.items()}
    assert problem.check(outputs) == 0
    outputs["y"][0, 0, 0] += 0.01
    with pytest.raises(ValueError, match="y: error"):
        problem.check(outputs)
    del outputs["h_n"], outputs["y"]
    with pytest.raises(ValueError, match="shape None"):
        problem.check(outputs)


@pytest.fixture
def saved(tmp_path):
    """A run of one made-up result, as a file."""
    run = run_of(made_up("lstm-T1-B1-I64-H64", "infer", fastrnn=1.0, torch=4.0, onnxruntime=2.0))
    run.save(tmp_path / "run.json")
    assert Run.load(tmp_path / "run.json").results == run.results
    return tmp_path / "run.json"


def test_results_and_targets(saved):
    run = Run.load(saved)
    assert run.results[0].fraction == 0.5
    assert geometric_means(run)["infer"]["lstm"] == pytest.approx({"torch": 4, "onnxruntime": 2, "best": 2})
    found = {line.what: (line.value, line.met) for line in verdicts(run)}
    assert found["lstm inference against torch, geometric mean"] == (pytest.approx(4.0), True)


def test_a_missed_target_names_every_case_below_it():
    names = [f"gru-T1-B{batch}-I8-H8" for batch in (1, 4, 16)]
    times = dict(zip(names, (0.999, 0.5, 2.0), strict=True))
    run = run_of(*(made_up(name, "cell-step", fastrnn=1.0, torch=time) for name, time in times.items()))
    found = {line.what: line for line in verdicts(run)}
    step = found["one step of a cell against torch, every case"]
    assert not step.met and step.value == 0.5
    assert step.where == f"{names[1]} 0.5, {names[0]} 0.999"
    assert found["cells against torch, geometric mean"].value == pytest.approx((0.999 * 0.5 * 2.0) ** (1 / 3))
    assert f"{names[1]} 0.5, {names[0]} 0.999" in markdown.case_tables(run)
    run.results = run.results[2:]
    assert verdicts(run)[0].met and verdicts(run)[0].where == names[2]


def test_markdown_goes_between_its_marks(saved, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("above\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nbelow\n")
    assert markdown.main([str(saved), "--write", str(page)]) == 0
    assert markdown.main([str(saved), "--write", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("above\n<!-- bench:begin -->\n")
    assert text.endswith("<!-- bench:end -->\nbelow\n")
    assert text.count("| infer | lstm | 4.00 | 2.00 | 2.00 |") == 1
    assert "old" not in text
    page.write_text("nothing")
    assert markdown.main([str(saved), "--write", str(page)]) == 1
    assert "page.md" in capsys.readouterr().err


def test_quick_run(tmp_path):
    pytest.importorskip("matplotlib")
    command = [
        sys.executable,
        "-m",
        "bench",
        "--quick",
        "--threads",
        "1",
        "--peers",
        "fastrnn",
        "torch",
        "jax",
    ]
    command += ["--cases", "gru-T5-B2-I8-H16", "--cell", "gru", "--mode", "infer", "train"]
    command += ["--json", str(tmp_path / "run.json"), "--plot", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gru train" in done.stdout
    run = json.loads((tmp_path / "run.json").read_text())
    assert [entry["mode"] for entry in run["results"]] == ["infer", "train"]
    assert all(
        entry["timings"]["fastrnn"]["median"] > 0 and entry["ratios"]["torch"] > 0 for entry in run["results"]
    )
    assert re.match("absent: pip install jax|[0-9.]+", run["peers"]["jax"])
    assert len(list(tmp_path.glob("*.png"))) == 3


def test_command_line(capsys):
    assert main(["--cases", "no-such-case"]) == 2
    assert "no case" in capsys.readouterr().out
    assert main(["--list", "--cell", "gru", "--mode", "stream"]) == 0
    listed = capsys.readouterr().out
    assert "gru-T1-B1-I256-H256" in listed
    assert "onnxruntime" in listed


def test_sweep(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(sweep, "BASE", {"T": 3, "B": 2, "H": 8})
    monkeypatch.setattr(sweep, "LINES", {"T": (1, 3), "B": (2, 4), "H": (8, 16)})
    assert sweep.main(["--quick", "--threads", "1", "--folder", str(tmp_path)]) == 0
    found = Run.load(tmp_path / "sweep-gru-infer.json")
    assert sorted(result.case for result in found.results) == [
        "gru-T1-B2-I8-H8",
        "gru-T3-B2-I16-H16",
        "gru-T3-B2-I8-H8",
        "gru-T3-B4-I8-H8",
    ]
    assert (tmp_path / "sweep-gru-infer.png").stat().st_size > 10_000


def test_scaling(tmp_path):
    case = case_of("lstm-T100-B1-I1024-H1024")
    seconds = [scaling.plan(case, cores).seconds for cores in scaling.CORES]
    assert seconds == sorted(seconds, reverse=True)
    assert scaling.plan(case, 8)[:4] == (8, 1, 1, 8)
    # two directions run at once but where one after the other a core's part of the weights is near
    for hidden, threads, at_once in ((64, 2, 2), (64, 1, 1), (320, 2, 1)):
        bidirectional = case_of(f"lstm-T100-B1-I{hidden}-H{hidden}-bi")
        assert scaling.plan(bidirectional, threads).directions == at_once
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- scaling:begin -->\n<!-- scaling:end -->\nafter\n")
    assert scaling.main(["--write", str(page)]) == 0
    assert page.read_text().count("| lstm-T100-B1-I1024-H1024 |") == 1
    page.write_text("no marks")
    assert scaling.main(["--write", str(page)]) == 1


def test_compare(tmp_path, monkeypatch, capsys):
    """A build beside itself computes the same bits."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")
    command = ["--quick", "--threads", "1", "--mode", "train", "stream", "--cell", "gru"]
    command += ["--cases", "gru-T5-B2-I8-H16", "gru-T1-B1-I8-H16"]
    saved = tmp_path / "compare.json"
    assert compare.main([*command, "--baseline", str(ROOT), "--runs", "1", "--json", str(saved)]) == 0
    assert "slower" in capsys.readouterr().out
    found = json.loads(saved.read_text())
    assert [(pair["mode"], pair["peer"]) for pair in found["cases"]] == [
        ("train", "fastrnn"),
        ("stream", "fastrnn"),
        ("stream", "fastrnn-stream"),
    ]
    assert all(pair["same_bits"] and min(pair["ratios"]) > 0 for pair in found["cases"])
    assert {mode: len(means) for mode, means in found["geometric_means"].items()} == {"train": 1, "stream": 1}


def test_compare_takes_no_other_build(tmp_path):
    """A tree without fastrnn is not replaced by the one that happens to be installed."""
    with pytest.raises(ImportError, match="not from"):
        compare.prepare(tmp_path, "infer", "gru-T5-B2-I8-H16", "fastrnn", effort=Effort(1, 0.0), threads=1)


def test_compare_counts_a_case_as_slower_where_every_run_does():
    pair = compare.Pair("train", "gru-T5-B2-I8-H16", "fastrnn")
    pair.seconds = {"baseline": [0.9, 0.9, 0.9], "this": [1.0, 1.0, 1.0]}
    assert pair.slower
    pair.seconds["this"][1] = 0.9
    assert not pair.slower
    assert compare.means([pair])["train"] == pytest.approx([0.9, 1.0, 0.9])


def test_tune_finds_where_two_ways_meet():
    before, after = (
        {steps: start + slope * steps for steps in (2, 4, 6)} for start, slope in ((1, 3), (9, 1))
    )
    assert tune.meeting(before, after) == pytest.approx(4)
    assert tune.meeting(after, before) == math.inf
    assert tune.meeting(before, dict.fromkeys((2, 4), 0.5)) == 0
    assert tune.two_levels({1: 2.0, 2: 2.0, 8: 6.0, 16: 6.0}) == pytest.approx((2, 6, 4))


def test_tune_reads_the_headers(tmp_path):
    """Constants are found as numbers wherever they stand; those that are no numbers are left out."""
    text = "constexpr double kA = 1.0 / 8, kB = 6 << 20;\nconstexpr int kC = 2 * kB;\n"
    (tmp_path / "plan-inl.h").write_text(text)
    assert tune.source_constants(("kA", "kB", "kC", "kD"), tmp_path) == {"kA": 0.125, "kB": 6 << 20}


def test_tune(tmp_path):
    saved = tmp_path / "tune.json"
    before = torch.ops.fastrnn.active_isa()
    assert tune.main(["--quick", "--isa", before, "--threads", "2", "--json", str(saved)]) == 0
    assert torch.ops.fastrnn.active_isa() == before
    found = json.loads(saved.read_text())["found"]
    assert {f"{before} float32", f"{before} float64"} <= set(found)
    assert found[f"{before} float32"]["kFlopSeconds"] > 0


def test_gates_are_the_librarys() -> None:
    families = [family for family in _spec.FAMILIES.values() if family.in_torch]
    assert {family.name: family.gates for family in families} == GATES
