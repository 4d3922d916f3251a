"""Each example in its quick form, as a user would start it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

for name in ("matplotlib", "rich", "lightning", "torchmetrics", "sklearn", "statsmodels", "gymnasium"):
    pytest.importorskip(name)

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_digits(tmp_path):
    done = run("examples/digits.py", "--quick", "--models", "mlp-relu", "gru", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1257 to train, 180 to validate, 360 to test" in done.stdout
    scores = dict(re.findall(r"^ +(mlp-relu|gru) .* ([\d.]+)% +[\d.]+ ", done.stdout, re.MULTILINE))
    assert float(scores["mlp-relu"]) > 80
    assert float(scores["gru"]) > 60
    assert "mean of 4 snapshots" in done.stdout
    assert (tmp_path / "digits_confusion.png").stat().st_size > 10_000
    assert torch.load(tmp_path / "digits_gru.pt", weights_only=True)["rnn.weight_hh_l0"].shape == (384, 128)


def test_forecast(tmp_path):
    done = run("examples/forecast.py", "--quick", "--series", "elnino", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    errors = dict(re.findall(r"^ +(seasonal naive|linear|LSTM|GRU) +([\d.]+)", done.stdout, re.MULTILINE))
    assert float(errors["seasonal naive"]) == pytest.approx(0.953, abs=1e-3)
    assert max(float(errors["LSTM"]), float(errors["GRU"])) < 0.9
    assert (tmp_path / "forecast_elnino.png").stat().st_size > 10_000


def test_forecast_refuses_text(tmp_path):
    (tmp_path / "bad.csv").write_text("day,value\n1,2\n2,many\n")
    done = run("examples/forecast.py", "--csv", str(tmp_path / "bad.csv"))
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].endswith("row 2 holds 'many', which is not a number")
    assert "Traceback" not in done.stderr


def test_adding_and_its_resume(tmp_path):
    begin = run("examples/adding.py", "--quick", "--out", str(tmp_path))
    assert begin.returncode == 0, begin.stdout + begin.stderr
    rows = re.findall(r"^ +(RNN tanh|RNN relu|LSTM|GRU) +20 +([\d.]+)", begin.stdout, re.MULTILINE)
    assert [name for name, _ in rows] == ["RNN tanh", "RNN relu", "LSTM", "GRU"]
    assert all(0 < float(error) < 0.5 for _, error in rows)
    assert (tmp_path / "adding.png").stat().st_size > 10_000
    kept = (tmp_path / "adding.json").stat().st_mtime_ns
    again = run("examples/adding.py", "--quick", "--out", str(tmp_path))
    assert re.findall(r"^ +(RNN tanh|RNN relu|LSTM|GRU) +20 +([\d.]+)", again.stdout, re.MULTILINE) == rows
    assert (tmp_path / "adding.json").stat().st_mtime_ns == kept


def test_cartpole(tmp_path):
    done = run("examples/cartpole.py", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert float(re.search(r"gradients of both ways differ by ([\d.e+-]+)", done.stdout)[1]) < 1e-4
    losses = re.findall(r"^ +(?:fastrnn|torch) +(-?[\d.]+) +[\d.]+ +[\d.]+ *$", done.stdout, re.MULTILINE)
    assert float(losses[0]) == pytest.approx(float(losses[1]), abs=2e-6)
    score = re.search(r"^ +fastrnn +[\d,]+ +[\d.]+ +[\d.]+ +([\d.]+)", done.stdout, re.MULTILINE)
    assert float(score[1]) > 90  # without a memory it stays at half of that
    assert (tmp_path / "cartpole.png").stat().st_size > 10_000


def test_ragged(tmp_path):
    done = run("examples/ragged.py", "--quick", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    row = r"^ +((?:fastrnn|torch\.nn), [\w= ]+?) +[\d.]+ +[\d.]+ +([\d.]+) +([\d.e+-]+) *$"
    ways = {
        way: (float(loss), float(apart)) for way, loss, apart in re.findall(row, done.stdout, re.MULTILINE)
    }
    right = ways.pop("torch.nn, PackedSequence")[0]
    for way in ("fastrnn, lengths=", "fastrnn, PackedSequence"):
        loss, apart = ways.pop(way)
        assert loss == pytest.approx(right, abs=2e-6) and apart < 1e-4
    assert len(ways) == 2 and all(
        apart > 1e-4 for _, apart in ways.values()
    )  # padding alone is another model
    score = re.search(r"^ +LSTM +[\d.]+% +[\d.]+% +([\d.]+)%", done.stdout, re.MULTILINE)
    assert float(score[1]) > 20
    assert (tmp_path / "ragged.png").stat().st_size > 10_000


def test_regularised_and_its_resume(tmp_path):
    options = "examples/regularised.py", "--quick", "--out", str(tmp_path)
    begin = run(*options, "--variants", "plain", "layer norm", "zoneout")
    assert begin.returncode == 0, begin.stdout + begin.stderr
    rows = dict(re.findall(r"^ +(plain|layer norm|zoneout) +([\d.]+) ", begin.stdout, re.MULTILINE))
    assert float(rows["layer norm"]) < float(rows["plain"]) < 5
    assert float(rows["zoneout"]) < 5
    assert (tmp_path / "regularised.png").stat().st_size > 10_000
    kept = (tmp_path / "regularised.json").stat().st_mtime_ns
    again = run(*options, "--variants", "plain", "layer norm")
    assert (
        dict(re.findall(r"^ +(plain|layer norm) +([\d.]+) ", again.stdout, re.MULTILINE)).items()
        <= rows.items()
    )
    assert (tmp_path / "regularised.json").stat().st_mtime_ns == kept
