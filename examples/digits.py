"""The 1,797 handwritten digits of scikit-learn, read row by row: recurrent cells beside multilayer perceptrons.

Trains each model with Adam and cross entropy on mini-batches, stops on the validation loss, and prints accuracy on
images that took no part in training; then the best recurrent model once more with snapshots and with averaged weights.
Writes confusion matrices and curves.

    python examples/digits.py [--models lstm gru ...] [--device auto|cuda|mps|cpu] [--quick]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib.pyplot as plt
import torch
from rich.table import Table
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

import fastrnn
from checkpoint import save_atomically
from recipe import (
    Config,
    DiagnoseLoss,
    InputError,
    SnapshotEnsemble,
    Task,
    WatchGradients,
    choose_device,
    fit,
    loader,
)
from recipe.files import save_figure
from recipe.gradients import hidden_gradients
from recipe.show import console, progress, table

CLASSES = 10
ROW = 8  # pixels in a row, and rows in an image
CONFIG = Config(
    lr=3e-3, schedule="cosine", clip=5.0, dropout=0.2, patience=12, epochs=40, batch=32, hidden=128
)


class Perceptron(nn.Module):
    """images [B, 8, 8] -> logits [B, 10], through four hidden layers"""

    def __init__(self, config: Config, activation: type[nn.Module]) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for width in (ROW * ROW, *[config.hidden] * 3):
            layers += [nn.Linear(width, config.hidden), activation(), nn.Dropout(config.dropout)]
        self.layers = nn.Sequential(*layers, nn.Linear(config.hidden, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


class RowReader(nn.Module):
    """images [B, 8, 8] -> logits [B, 10]: a row is a time step, the last h decides"""

    def __init__(self, config: Config, layer: Callable[..., nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.rnn = layer(ROW, config.hidden, batch_first=True, **options)
        self.head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(config.hidden, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.rnn(images)[0][:, -1])


MODELS: dict[str, Callable[[Config], nn.Module]] = {
    "mlp-relu": lambda c: Perceptron(c, nn.ReLU),
    "mlp-sigmoid": lambda c: Perceptron(c, nn.Sigmoid),
    "mlp-tanh": lambda c: Perceptron(c, nn.Tanh),
    "rnn-tanh": lambda c: RowReader(c, fastrnn.RNN, nonlinearity="tanh"),
    "rnn-relu": lambda c: RowReader(c, fastrnn.RNN, nonlinearity="relu"),
    "lstm": lambda c: RowReader(c, fastrnn.LSTM),
    "lstm-softsign": lambda c: RowReader(c, fastrnn.LSTM, activation="softsign"),
    "gru": lambda c: RowReader(c, fastrnn.GRU),
    "gru-reset-before": lambda c: RowReader(c, fastrnn.GRU, reset_after=False),
}


@dataclass
class Data:
    """Images [N, 8, 8] from 0 to 1 and labels [N], for training, validation and test."""

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


def read_digits(seed: int) -> Data:
    images, labels = load_digits(return_X_y=True)
    numbers = range(len(labels))
    rest, test = train_test_split(numbers, test_size=360, stratify=labels, random_state=seed)
    train, validation = train_test_split(rest, test_size=180, stratify=labels[rest], random_state=seed)
    x = torch.tensor(images, dtype=torch.float32).view(-1, ROW, ROW) / 16  # 16 is the brightest pixel
    y = torch.tensor(labels)
    return Data(*((x[part], y[part]) for part in (train, validation, test)))


def accuracy(logits: Tensor, labels: Tensor) -> float:
    return float(MulticlassAccuracy(CLASSES, average="micro")(logits, labels))


def first_over_last(task: Task, batch: tuple[Tensor, Tensor]) -> float:
    """How much gradient reaches the first time step, or hidden layer, relative to the last."""
    task.eval()
    if isinstance(task.model, RowReader):
        norms = next(iter(hidden_gradients(task, lambda: task.loss(batch)).values()))
        return float(norms[0] / norms[-1])
    outputs: list[Tensor] = []
    hooks = [m.register_forward_hook(lambda _, __, y: outputs.append(y)) for m in task.model.layers[1:-1:3]]
    norms = [g.norm() for g in torch.autograd.grad(task.loss(batch), outputs)]
    for hook in hooks:
        hook.remove()
    return float(norms[0] / norms[-1])


def saturated(task: Task, x: Tensor) -> str:
    """The share of a perceptron's hidden units whose activation has less than 5 % of its largest slope."""
    if not isinstance(task.model, Perceptron) or isinstance(task.model.layers[2], nn.ReLU):
        return ""
    slopes: list[Tensor] = []

    def hook(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        # σ' = σ (1 - σ) is at most 1/4, tanh' = 1 - tanh² at most 1
        slopes.append(4 * output * (1 - output) if isinstance(layer, nn.Sigmoid) else 1 - output**2)

    hooks = [layer.register_forward_hook(hook) for layer in task.model.layers[2::3]]
    task.predict(x, len(x))
    for handle in hooks:
        handle.remove()
    return f"{torch.cat(slopes).lt(0.05).float().mean():.0%}"


@dataclass
class Result:
    task: Task
    curves: DiagnoseLoss
    seconds: float
    logits: Tensor  # [N, 10] of the test images
    validation: float
    reach: float  # first_over_last before training


def train(name: str, config: Config, data: Data, device: str, advance: Callable[[], None]) -> Result:
    L.seed_everything(config.seed, verbose=False)
    task, curves = Task(MODELS[name](config), config, nn.functional.cross_entropy), DiagnoseLoss()
    reach = first_over_last(task, (data.train[0][:256], data.train[1][:256]))
    task.train()
    begin = time.perf_counter()
    loaders = loader(*data.train, config.batch, shuffle=True), loader(*data.validation, 512)
    fit(task, *loaders, [curves, WatchGradients(every=0)], device, advance)
    seconds = time.perf_counter() - begin
    images, labels = data.validation
    validation = accuracy(task.predict(images), labels)
    return Result(task, curves, seconds, task.predict(data.test[0]), validation, reach)


def train_all(names: list[str], config: Config, data: Data, device: str) -> dict[str, Result]:
    results = {}
    with progress() as bar:
        for name in names:
            line = bar.add_task(name, total=config.epochs)
            results[name] = train(name, config, data, device, lambda line=line: bar.advance(line))
            bar.update(line, total=len(results[name].curves.train), refresh=True)
    return results


def compare(results: dict[str, Result], data: Data) -> Table:
    headings = (
        "weights",
        "epochs",
        "seconds",
        "validation",
        "test",
        "first/last",
        "saturated",
        "the curves say",
    )
    out = table(f"{len(data.test[0])} test images", "model", *headings)
    for name, result in results.items():
        out.add_row(
            name,
            f"{sum(p.numel() for p in result.task.parameters()):,}",
            str(len(result.curves.train)),
            f"{result.seconds:.1f}",
            f"{result.validation:.2%}",
            f"{accuracy(result.logits, data.test[1]):.2%}",
            f"{result.reach:.2g}",
            saturated(result.task, data.test[0]),
            result.curves.diagnosis.label if result.curves.diagnosis else "",
        )
    return out


def combine(name: str, config: Config, data: Data, device: str) -> Table:
    """One model with cosine restarts and averaged snapshots, and with averaged weights."""
    out = table(f"{name}: more from one run", "method", "test", "cross entropy")
    images, labels = data.test

    def add(method: str, log_probabilities: Tensor) -> None:
        loss = float(nn.functional.nll_loss(log_probabilities, labels))
        out.add_row(method, f"{accuracy(log_probabilities, labels):.2%}", f"{loss:.4f}")

    with progress() as bar:
        line = bar.add_task("snapshots and averages", total=2 * config.epochs)
        snapshots = SnapshotEnsemble()
        for method, settings, callbacks in (
            ("cosine restarts, last snapshot", {"schedule": "restarts"}, [snapshots]),
            ("moving average of the weights", {"averaging": 0.99}, []),
        ):
            changed = replace(config, patience=0, **settings)
            L.seed_everything(config.seed, verbose=False)
            task = Task(MODELS[name](changed), changed, nn.functional.cross_entropy)
            loaders = loader(*data.train, config.batch, shuffle=True), loader(*data.validation, 512)
            fit(task, *loaders, callbacks, device, lambda: bar.advance(line))
            add(method, task.predict(images).log_softmax(-1))
            if callbacks:
                mean = snapshots.predict(task, images, probabilities=True)
                add(f"mean of {len(snapshots.snapshots)} snapshots", mean.log())
    return out


def draw(results: dict[str, Result], labels: Tensor, folder: Path) -> None:
    columns = min(3, len(results))
    rows = -(-len(results) // columns)
    figure, axes = plt.subplots(
        rows, columns, figsize=(4.2 * columns, 4 * rows), squeeze=False, layout="constrained"
    )
    for axis in axes.flat[len(results) :]:
        axis.axis("off")
    for axis, (name, result) in zip(axes.flat, results.items(), strict=False):
        matrix = MulticlassConfusionMatrix(CLASSES)
        matrix(result.logits, labels)
        matrix.plot(ax=axis)
        axis.set_title(f"{name}: {accuracy(result.logits, labels):.2%}")
    save_figure(figure, folder / "digits_confusion.png")

    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), sharey=True, layout="constrained")
    for name, result in results.items():
        axes[0].semilogy(result.curves.train, label=name)
        axes[1].semilogy(result.curves.validation, label=name)
    axes[0].set(title="Training", xlabel="epoch", ylabel="cross entropy")
    axes[1].set(title="Validation", xlabel="epoch")
    axes[1].legend()
    save_figure(figure, folder / "digits_curves.png")
    console.print(f"wrote {folder / 'digits_confusion.png'} and digits_curves.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=list(MODELS), metavar="MODEL")
    parser.add_argument("--epochs", type=int, default=CONFIG.epochs)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error("--epochs must be positive")
    epochs = 4 if args.quick else args.epochs
    config = replace(CONFIG, epochs=epochs, seed=args.seed)
    try:
        device = choose_device(args.device)
    except InputError as fault:
        parser.error(str(fault))
    data = read_digits(args.seed)
    sizes = ", ".join(
        f"{len(part[0])} to {what}"
        for part, what in ((data.train, "train"), (data.validation, "validate"), (data.test, "test"))
    )
    console.print(f"images: {sizes}; device {device}")
    try:
        results = train_all(args.models, config, data, device)
    except FloatingPointError as fault:
        raise SystemExit(f"digits: {fault}") from None
    console.print(compare(results, data))
    recurrent = [name for name in results if isinstance(results[name].task.model, RowReader)]
    if recurrent:
        best = max(recurrent, key=lambda name: results[name].validation)
        console.print(combine(best, config, data, device))
        save_atomically(results[best].task.model.state_dict(), args.out / f"digits_{best}.pt")
    draw(results, data.test[1], args.out)


if __name__ == "__main__":
    main()
