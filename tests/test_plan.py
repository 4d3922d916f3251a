"""What the CUDA kernels would do with a layer, as python -m fastrnn.info tells it; no device is needed."""

import os
import subprocess
import sys
from typing import Any

import pytest

from fastrnn import _ops


def plan(
    cell: str,
    sizes: tuple[int, int, int, int, int, int],
    dtype: str = "bfloat16",
    *,
    layers: int = 1,
    packed: bool = False,
    backward: bool = False,
    wanted: str = "auto",
    device: str = "h100",
) -> dict[str, str]:
    text = _ops.cuda_plan(cell, dtype, (*sizes, layers), packed, backward, wanted, device)
    return dict(line.split(": ", 1) for line in text.splitlines())


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn"])
@pytest.mark.parametrize("backward", [False, True])
def test_persistent_where_it_fits(cell: str, backward: bool) -> None:
    for hidden in (64, 256, 768, 1024):
        found = plan(cell, (1024, 16, hidden, hidden, 0, 1), backward=backward)
        assert found["engine"] == "grid", hidden
        blocks, processors = map(int, found["blocks"].split(" of "))
        assert blocks <= processors


def test_steps_for_what_the_grid_engine_lacks() -> None:
    assert plan("lstm", (10, 16, 64, 64, 0, 1), "float64")["why"].endswith("no float64")
    assert plan("lstm", (10, 16, 64, 64, 32, 1), wanted="grid")["why"].endswith("no projection")
    assert plan("gru_reset_before", (10, 16, 64, 64, 0, 1))["engine"] == "steps"
    assert plan("lstm", (10, 16, 64, 8192, 0, 1))["why"].endswith("do not fit the device's shared memory")


def test_override() -> None:
    assert plan("lstm", (10, 16, 64, 64, 0, 1), wanted="steps")["engine"] == "steps"
    with pytest.raises(RuntimeError, match="unknown CUDA engine 'fast'"):
        plan("lstm", (10, 16, 64, 64, 0, 1), wanted="fast")


def torch_is_quicker(
    cell: str = "lstm",
    sizes: tuple[int, ...] = (1024, 16, 768, 768, 0, 1, 1),
    dtype: str = "float16",
    *,
    packed: bool = False,
    training: bool = False,
) -> bool:
    time, batch, inputs, hidden, projection, directions, layers = sizes
    return _ops.torch_is_quicker(
        cell, dtype, (time, batch, inputs, hidden, projection, directions, layers), packed, training, "h100"
    )


@pytest.mark.parametrize("training", [False, True])
def test_torch_keeps_what_cudnn_runs_in_one_launch(training: bool) -> None:
    assert torch_is_quicker(training=training)
    assert torch_is_quicker(sizes=(1024, 16, 64, 64, 0, 1, 1), dtype="bfloat16", training=training)


@pytest.mark.parametrize(
    "call",
    [
        {"dtype": "bfloat16"},
        {"packed": True},
        {"cell": "gru"},
        {"sizes": (1024, 16, 768, 768, 0, 2, 1)},
        {"sizes": (1024, 16, 768, 768, 0, 1, 2)},
        {"sizes": (1024, 12, 768, 768, 0, 1, 1)},
        {"sizes": (1024, 16, 100, 768, 0, 1, 1)},
        {"sizes": (1024, 16, 768, 700, 0, 1, 1)},
    ],
    ids=str,
)
def test_outside_of_that_persistent_blocks_come_first(call: dict[str, Any]) -> None:
    assert not torch_is_quicker(**call)


def test_torch_comes_before_a_launch_for_each_step() -> None:
    assert torch_is_quicker(sizes=(10, 16, 64, 64, 32, 1, 1))
    assert torch_is_quicker(sizes=(10, 16, 8192, 8192, 0, 1, 1), dtype="float32")
    assert not torch_is_quicker("gru_reset_before", sizes=(10, 16, 64, 64, 0, 1, 1))


@pytest.mark.parametrize("bad", [{"cell": "lstn"}, {"dtype": "int8"}, {"device": "b52"}])
def test_unknown_names_are_refused(bad: dict[str, str]) -> None:
    arguments = {"cell": "lstm", "dtype": "float32", "device": "h100"} | bad
    with pytest.raises(RuntimeError, match="unknown"):
        plan(arguments["cell"], (1, 1, 1, 1, 0, 1), arguments["dtype"], device=arguments["device"])


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fastrnn.info", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def test_explain() -> None:
    result = run("--explain", "lstm", "1024", "16", "768", "768", "bfloat16", "--device", "h100")
    assert result.returncode == 0, result.stderr
    assert "forward engine" in result.stdout
    assert "backward engine" in result.stdout
    assert "torch's own kernels" in result.stdout
    assert "training" in result.stdout


def test_explain_refuses_nonsense_in_one_line() -> None:
    for arguments in (["lstn", "1", "1", "1", "1", "float32"], ["lstm", "1", "1", "x", "1", "float32"]):
        result = run("--explain", *arguments)
        assert result.returncode == 2
        assert "Traceback" not in result.stderr


def test_unknown_engine_is_an_error() -> None:
    result = run(FASTRNN_CUDA_ENGINE="fast")
    assert result.returncode != 0
    assert "FASTRNN_CUDA_ENGINE: unknown engine 'fast'" in result.stderr
