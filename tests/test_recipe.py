"""The parts of examples/recipe: diagnosis, watched gradients, files, sweeps."""

import itertools
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import fastrnn

for name in ("lightning", "matplotlib", "rich", "sklearn", "torchmetrics"):
    pytest.importorskip(name)

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))

from lightning.pytorch.callbacks import Callback  # noqa: E402

from recipe import (  # noqa: E402
    Config,
    DiagnoseLoss,
    InputError,
    SnapshotEnsemble,
    Store,
    Task,
    WatchGradients,
    diagnose,
    fit,
    hidden_gradients,
    loader,
    read_series,
    save_atomically,
    sweep,
)
from recipe.gradients import unrolled  # noqa: E402
from recipe.task import OPTIMIZERS, SCHEDULES  # noqa: E402

DOWN = [2.0 * 0.9**i for i in range(12)]
UP = [0.5 * 1.1**i for i in range(12)]
LEVEL = [0.7 + 0.001 * (-1) ** i for i in range(12)]
SIZES = {"input_size": 3, "hidden_size": 5, "num_layers": 2, "batch_first": True}


class Last(nn.Module):
    """x [B, T, 3] -> [B, out] from the last h"""

    def __init__(self, rnn: nn.RNNBase, width: int, out: int = 1) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(width, out)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize(
    ("train", "validation", "case"),
    [
        (DOWN, DOWN, "learning"),
        (DOWN, UP, "overfitting"),
        (DOWN, LEVEL, "underfitting or shift"),
        (LEVEL, LEVEL, "bottleneck"),
        (UP, UP, "structure or rate problem"),
        (UP, DOWN, "data problem"),
        (UP, [float("nan")] * 12, "structure or rate problem"),
    ],
)
def test_diagnose_names_the_case(train, validation, case):
    diagnosis = diagnose(train, validation)
    assert diagnosis.case == case
    assert diagnosis.advice in str(diagnosis)


def test_diagnose_tells_convergence_from_a_bottleneck():
    levelled = [2.0 * 0.5**i for i in range(7)] + [0.03] * 12
    stuck = [2.0 + 0.001 * (-1) ** i for i in range(24)]
    risen = [*levelled[:7], *[0.8] * 12]
    assert diagnose(levelled, levelled).label == "bottleneck (converged)"
    assert "stop here" in diagnose(levelled, levelled).advice
    assert "regularisation" in diagnose([v / 10 for v in levelled], levelled).advice
    for curve in (stuck, risen):
        assert diagnose(curve, curve).label == "bottleneck"


def test_diagnose_is_robust_to_a_spike():
    spiked = [*DOWN[:6], 50.0, *DOWN[7:]]
    assert diagnose(spiked, DOWN).case == "learning"


def test_diagnose_refuses_short_and_unequal_curves():
    with pytest.raises(ValueError, match="4 epochs or more"):
        diagnose(DOWN[:3], DOWN[:3])
    with pytest.raises(ValueError, match="12 epochs of training loss but 11"):
        diagnose(DOWN, DOWN[1:])


@pytest.fixture(scope="module")
def digits():
    from digits import MODELS, read_digits

    return MODELS, read_digits(0)


@pytest.mark.parametrize(
    ("settings", "rows", "case"),
    [
        ({"epochs": 30, "lr": 5e-3, "hidden": 128}, 100, "overfitting"),
        ({"epochs": 20, "lr": 1e-6, "hidden": 4}, 400, "bottleneck"),
        ({"epochs": 12, "optimizer": "sgd", "lr": 30.0, "clip": 0.0}, 200, "structure or rate problem"),
    ],
    ids=["overfit", "underfit", "diverge"],
)
def test_diagnose_loss_on_real_runs(digits, settings, rows, case):
    models, data = digits
    config = Config(batch=20, **settings)
    torch.manual_seed(0)
    criterion = nn.functional.cross_entropy
    labels = data.train[1][:rows].clone()
    if case == "overfitting":
        labels[::2] = (labels[::2] + 1) % 10  # wrong labels can only be learnt by heart
    if case == "structure or rate problem":
        criterion = lambda logits, y: nn.functional.mse_loss(logits, nn.functional.one_hot(y, 10).float())  # noqa: E731
    task, curves = Task(models["lstm"](config), config, criterion), DiagnoseLoss(window=24)
    fit(
        task,
        loader(data.train[0][:rows], labels, 20, shuffle=True),
        loader(*data.validation, 512),
        [curves],
        "cpu",
    )
    assert curves.diagnosis is not None
    assert curves.diagnosis.case == case, str(curves.diagnosis)


RNNS = {
    "lstm": lambda **o: fastrnn.LSTM(**SIZES, **o),
    "softsign": lambda **o: fastrnn.LSTM(**SIZES, activation="softsign", **o),
    "gru": lambda **o: fastrnn.GRU(**SIZES, **o),
    "reset-before": lambda **o: fastrnn.GRU(**SIZES, reset_after=False, **o),
    "rnn": lambda **o: fastrnn.RNN(**SIZES, **o),
    "relu": lambda **o: fastrnn.RNN(**SIZES, nonlinearity="relu", **o),
}


@pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
@pytest.mark.parametrize("name", RNNS)
def test_unrolled_is_the_same_layer(name, bidirectional):
    layer = RNNS[name](bidirectional=bidirectional)
    x = torch.randn(4, 6, 3)
    y, state = layer(x)
    with unrolled(layer) as record:
        y2, state2 = layer(x)
    torch.testing.assert_close(y2, y)
    torch.testing.assert_close(state2, state)
    assert len(record) == 2 * (1 + bidirectional)
    assert "forward" not in vars(layer)


def test_hidden_gradients_match_a_hand_made_chain():
    """h_t = tanh(w h_{t-1} + x_t) with loss h_T: d loss / d h_t is the product of w (1 - h²) after t."""
    layer = fastrnn.RNN(1, 1, bias=False, batch_first=True)
    with torch.no_grad():
        layer.weight_ih_l0.fill_(1.0)
        layer.weight_hh_l0.fill_(0.5)
    x = torch.randn(1, 7, 1)
    h = layer(x)[0][0, :, 0]
    wanted = torch.ones(7)
    for t in range(5, -1, -1):
        wanted[t] = wanted[t + 1] * 0.5 * (1 - h[t + 1] ** 2)
    norms = hidden_gradients(layer, lambda: layer(x)[0][0, -1, 0])
    torch.testing.assert_close(norms["layer 0"], wanted.detach())


@pytest.mark.parametrize("fault", ["input", "target", "parameter", "h_t", "large", "loss"])
def test_watch_gradients_stops_and_names_the_place(fault):
    config = Config(epochs=2, batch=8)
    torch.manual_seed(0)
    task = Task(
        Last(fastrnn.RNN(3, 5, nonlinearity="relu", batch_first=True), 5), config, nn.functional.mse_loss
    )
    x, y = torch.randn(8, 6, 3), torch.randn(8, 1)
    if fault == "input":
        x[2, 4, 1] = float("nan")
    if fault == "target":
        y[3, 0] = float("inf")
    if fault == "parameter":
        task.model.head.weight.data[0, 0] = float("inf")
    if fault == "h_t":
        task.model.rnn.weight_hh_l0.data.fill_(1e20)
    if fault == "large":
        task.model.rnn.weight_hh_l0.data.fill_(1e5)
    if fault == "loss":
        task.criterion = lambda a, b: (a * 0).log().mean()
    match = {
        "input": r"step 0: the input holds NaN at \[.*4, 1\]",
        "target": r"step 0: the target holds Inf at \[.*0\]",
        "parameter": "step 0: the parameter model.head.weight holds Inf",
        "h_t": "h_t of model.rnn.layer 0 holds (Inf|NaN) from time step [1-5] on.*likely cause: exploding",
        "large": r"the loss is Inf for h_t of up to \de\+\d\d; likely cause: exploding",
        "loss": "the loss is Inf though every h_t is finite",
    }[fault]
    with pytest.raises(FloatingPointError, match=match):
        fit(task, loader(x, y, 8), loader(x.nan_to_num(), y, 8), [WatchGradients(every=0)], "cpu")


def test_a_run_that_explodes_has_a_fault_in_the_place_of_its_errors(monkeypatch):
    import adding

    monkeypatch.setattr(adding, "learning_rate", lambda name, length: 1e12)
    result = adding.run("RNN relu", 20, 2 * adding.STEPS_PER_EPOCH, 8, lambda: None)
    assert re.match(r"step \d+: .* holds (Inf|NaN)", result["fault"])
    assert "accuracy" not in result
    assert len(result["norms"]) == len(result["steps"]) > 0


def test_watch_gradients_keeps_norms_by_time_step():
    config = Config(epochs=3, batch=4)
    task = Task(Last(fastrnn.GRU(3, 5, num_layers=2, batch_first=True), 5), config, nn.functional.mse_loss)
    data = loader(torch.randn(10, 6, 3), torch.randn(10, 1), 4)
    watch = WatchGradients(every=3)
    fit(task, data, data, [watch], "cpu")
    assert watch.steps == [0, 3, 6]
    assert {name: [n.shape for n in norms] for name, norms in watch.norms.items()} == {
        f"model.rnn.layer {k}": [(6,)] * 3 for k in (0, 1)
    }


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_optimizers_learn(optimizer):
    config = Config(optimizer=optimizer, lr=0.02, epochs=6, batch=7, weight_decay=1e-4)
    torch.manual_seed(0)
    x = torch.randn(30, 5, 3)
    task = Task(Last(fastrnn.GRU(3, 8, batch_first=True), 8), config, nn.functional.mse_loss)
    curves = DiagnoseLoss()
    fit(task, loader(x, x[:, -1, :1], 7, shuffle=True), loader(x, x[:, -1, :1], 30), [curves], "cpu")
    assert curves.validation[-1] < 0.9 * curves.validation[0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_schedules(schedule):
    config = Config(schedule=schedule, lr=0.01, epochs=6, cycles=2)
    x = torch.randn(4, 5, 3)
    task = Task(Last(fastrnn.GRU(3, 4, batch_first=True), 4), config, nn.functional.mse_loss)
    curves, snapshots = DiagnoseLoss(), SnapshotEnsemble()
    data = loader(x, x[:, -1, :1], 4)
    fit(task, data, data, [curves, snapshots], "cpu")
    rates = [rate / 0.01 for rate in curves.rates]
    if schedule == "constant":
        assert rates == pytest.approx([1] * 6)
    if schedule == "step":
        assert min(rates) == pytest.approx(0.09) and max(rates) == pytest.approx(1)
    if schedule == "cosine":
        assert rates == sorted(rates, reverse=True) and rates[-1] < 0.1
    if schedule == "restarts":
        assert sum(later > earlier for earlier, later in itertools.pairwise(rates)) == 1
    assert len(snapshots.snapshots) == 2
    before = task.predict(x)
    parts = []
    for snapshot in snapshots.snapshots:
        other = Task(Last(fastrnn.GRU(3, 4, batch_first=True), 4), config, nn.functional.mse_loss)
        other.load_state_dict(snapshot)
        parts.append(other.predict(x))
    torch.testing.assert_close(snapshots.predict(task, x), torch.stack(parts).mean(0))
    torch.testing.assert_close(task.predict(x), before)


class Weights(Callback):
    """All weights in one row, before the first update and after each."""

    def __init__(self) -> None:
        self.rows: list[torch.Tensor] = []

    def on_train_start(self, trainer, task):
        self.rows.append(nn.utils.parameters_to_vector(task.parameters()).detach().clone())

    def on_train_batch_end(self, trainer, task, *rest):
        self.on_train_start(trainer, task)


def run_watched(**settings):
    """(task, its weights as they came, without what a callback put in their place at the end)"""
    torch.manual_seed(0)
    config = Config(epochs=3, batch=4, **settings)
    task = Task(Last(fastrnn.GRU(3, 4, batch_first=True), 4), config, nn.functional.mse_loss)
    weights = Weights()
    data = loader(torch.randn(8, 5, 3), 100 * torch.randn(8, 1), 4)
    fit(task, data, data, [weights], "cpu")
    return task, torch.stack(weights.rows)


@pytest.mark.parametrize("clip", [0.0, 5.0, 15.0])
def test_clipping_bounds_the_norm_of_all_gradients(clip):
    _, weights = run_watched(optimizer="sgd", momentum=0.0, lr=1e-4, clip=clip)
    lengths = weights.diff(dim=0).norm(dim=1) / 1e-4
    assert lengths.min() > 20 if clip == 0 else lengths.tolist() == pytest.approx([clip] * 6, rel=1e-2)


def test_averaging_keeps_the_moving_average_of_the_weights():
    task, weights = run_watched(lr=0.1, averaging=0.7)
    average = weights[1]
    for row in weights[2:]:
        average = 0.7 * average + 0.3 * row
    torch.testing.assert_close(nn.utils.parameters_to_vector(task.parameters()).detach(), average)
    assert (average - weights[-1]).abs().max() > 0.01


def test_last_smaller_batch_is_kept():
    sizes = [len(x) for x, _ in loader(torch.zeros(10, 2), torch.zeros(10), 4, shuffle=True)]
    assert sizes == [4, 4, 2]


def test_early_stopping_keeps_the_best_epoch():
    config = Config(epochs=40, patience=2, lr=0.05, batch=4)
    torch.manual_seed(0)
    task = Task(Last(fastrnn.GRU(3, 16, batch_first=True), 16), config, nn.functional.mse_loss)
    curves = DiagnoseLoss()
    train = loader(torch.randn(8, 5, 3), torch.randn(8, 1), 4)
    x, y = torch.randn(20, 5, 3), torch.randn(20, 1)  # nothing to be learnt
    fit(task, train, loader(x, y, 20), [curves], "cpu")
    assert len(curves.validation) < 40
    assert nn.functional.mse_loss(task.predict(x), y).item() == pytest.approx(
        min(curves.validation), rel=1e-5
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b\n1,2\n3,x\n", "row 2 holds 'x', which is not a number"),
        ("a,b\n", "is empty"),
        ("", "cannot be read as CSV"),
        ("a,b\n1,2\n3,\n", "1 values are missing.*--gaps"),
        ("a,b\n1,inf\n", "row 1 is infinite"),
    ],
)
def test_bad_series(tmp_path, text, sentence):
    path = tmp_path / "series.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=sentence):
        read_series(path)


def test_missing_file_and_column(tmp_path):
    with pytest.raises(InputError, match="there is no file"):
        read_series(tmp_path / "none.csv")
    (tmp_path / "series.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="has no column 'c'; it has a, b"):
        read_series(tmp_path / "series.csv", "c")


def test_interrupted_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "made" / "weights.pt"
    save_atomically({"w": torch.ones(2)}, path)

    def broken(content, name):
        Path(name).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        save_atomically({"w": torch.zeros(2)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["w"], torch.ones(2))
    assert os.listdir(path.parent) == ["weights.pt"]


def test_sweep_goes_on_after_an_interruption(tmp_path):
    base, values, seen = Config(), {"lr": [0.1, 0.2], "clip": [0.0, 5.0]}, []

    def run(config):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(config)
        return {"score": config.lr, "train": [1.0], "validation": [1.0]}

    path = tmp_path / "sweep.json"
    with pytest.raises(KeyboardInterrupt):
        sweep(base, values, run, Store(path))
    seen, first = [], list(seen)
    outcomes = sweep(base, values, run, Store(path))
    assert first == [replace(base, lr=0.1), replace(base, lr=0.2)]
    assert seen == [replace(base, clip=0.0), base]
    assert [(o.parameter, o.value) for o in outcomes] == [
        ("lr", 0.1),
        ("lr", 0.2),
        ("clip", 0.0),
        ("clip", 5.0),
    ]


def test_store_refuses_a_broken_file(tmp_path):
    (tmp_path / "sweep.json").write_text("{half")
    with pytest.raises(InputError, match="not a file of results"):
        Store(tmp_path / "sweep.json")
