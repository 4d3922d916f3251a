"""The character model in its quick forms, as a user would start it."""

import re
from pathlib import Path

import pytest
import torch

from test_examples import run

pytest.importorskip("matplotlib")


def test_side_by_side(tmp_path):
    picture = tmp_path / "made" / "char_lm.png"
    done = run("examples/char_lm.py", "--quick", "--out", str(picture))
    assert done.returncode == 0, done.stdout + done.stderr
    assert picture.stat().st_size > 10_000
    for cell in ("LSTM", "GRU"):
        assert f"{cell}, hidden" in done.stdout
    steps = re.findall(r"step +\d+ +torch ([\d.]+) +fastrnn ([\d.]+)", done.stdout)
    assert len(steps) >= 16
    assert all(float(theirs) == pytest.approx(float(ours), abs=1e-3) for theirs, ours in steps)


def test_refuses_sizes():
    done = run("examples/char_lm.py", "--steps", "0")
    assert done.returncode == 2
    assert "sizes must be positive" in done.stderr


def train(checkpoint: Path, steps: int, *more: str, launcher: tuple[str, ...] = ()):
    return run(
        *launcher,
        "examples/char_lm.py",
        "--quick",
        "--checkpoint",
        str(checkpoint),
        "--steps",
        str(steps),
        *more,
    )


def losses(checkpoint: Path) -> list[float]:
    found: list[float] = torch.load(checkpoint, weights_only=True)["losses"]
    return found


def test_resumes_where_it_ended(tmp_path):
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    done = train(whole, 8)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"step 8: training [\d.]+, validation [\d.]+ bits per character", done.stdout)
    for steps in (3, 8):
        done = train(parts, steps)
        assert done.returncode == 0, done.stdout + done.stderr
    assert "going on from step 3" in done.stdout
    assert losses(parts) == losses(whole) and len(losses(whole)) == 8
    assert losses(whole)[-1] < losses(whole)[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.pt", "whole.pt"]

    sample = run("examples/char_lm.py", "--checkpoint", str(whole), "--sample", "30", "--prompt", "class ")
    assert sample.returncode == 0, sample.stderr
    assert sample.stdout.startswith("class ") and len(sample.stdout) == len("class ") + 30 + 1


def test_refuses_other_settings_and_files(tmp_path):
    checkpoint = tmp_path / "char.pt"
    assert train(checkpoint, 1).returncode == 0
    before = checkpoint.read_bytes()
    other = train(checkpoint, 2, "--hidden", "32")
    assert other.returncode == 1 and "Traceback" not in other.stderr
    assert "was trained with hidden 64, not 32" in other.stderr
    assert checkpoint.read_bytes() == before

    broken = tmp_path / "broken.pt"
    broken.write_bytes(before[: len(before) // 2])
    for path, message in ((broken, "is not a checkpoint"), (tmp_path / "none.pt", "there is no checkpoint")):
        done = run("examples/char_lm.py", "--checkpoint", str(path), "--sample", "5")
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert message in done.stderr
    done = run("examples/char_lm.py", "--checkpoint", str(checkpoint), "--sample", "5", "--prompt", "é")
    assert done.returncode == 1 and "prompt" in done.stderr


def test_two_processes(tmp_path):
    checkpoint = tmp_path / "char.pt"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    for steps in (2, 4):
        done = train(checkpoint, steps, launcher=launcher)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "parameters are equal in all 2 processes" in done.stdout
    assert "going on from step 2" in done.stdout
    assert len(losses(checkpoint)) == 4
    alone = train(checkpoint, 5)
    assert alone.returncode == 1 and "was trained with processes 2, not 1" in alone.stderr
