"""Each example in its quick form, as a user would start it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

for name in ("matplotlib", "rich"):
    pytest.importorskip(name)

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_char_lm(tmp_path):
    picture = tmp_path / "made" / "char_lm.png"
    done = run("examples/char_lm.py", "--quick", "--out", str(picture))
    assert done.returncode == 0, done.stdout + done.stderr
    assert picture.stat().st_size > 10_000
    for cell in ("LSTM", "GRU"):
        assert f"{cell}, hidden" in done.stdout
    steps = re.findall(r"step +\d+ +torch ([\d.]+) +fastrnn ([\d.]+)", done.stdout)
    assert len(steps) >= 16
    assert all(float(theirs) == pytest.approx(float(ours), abs=1e-3) for theirs, ours in steps)


def test_char_lm_refuses_sizes():
    done = run("examples/char_lm.py", "--steps", "0")
    assert done.returncode == 2
    assert "sizes must be positive" in done.stderr
