"""The adding problem: how far back each cell's gradient reaches, and what it learns for it.

A sequence holds random numbers, two of them marked; the target is the sum of the two (Hochreiter and Schmidhuber
1997). Prints, for each length and cell, the mean squared error (0.167 is that of always answering 1) and the share of
answers within 0.1, and draws d loss / d h_t by time step and training step. Runs are kept in out/adding.json as they
finish; after an interruption the same command goes on.

    python examples/adding.py [--lengths 50 200 800] [--steps 2000] [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import fastrnn
from recipe import Config, InputError, Store, Task, WatchGradients, fit, loader
from recipe.files import save_figure
from recipe.show import console, progress, table

LAYERS: dict[str, Callable[[int, int], nn.RNNBase]] = {
    "RNN tanh": lambda i, h: fastrnn.RNN(i, h, nonlinearity="tanh"),
    "RNN relu": lambda i, h: fastrnn.RNN(i, h, nonlinearity="relu"),
    "LSTM": fastrnn.LSTM,
    "GRU": fastrnn.GRU,
}
RATE = 5e-3
BATCH = 50
STEPS_PER_EPOCH = 50


def learning_rate(name: str, length: int) -> float:
    return min(5e-4, 0.1 / length) if name == "RNN relu" else RATE  # whose h may grow without bound


def remember(rnn: nn.RNNBase, length: int) -> None:
    """Starts a layer so that it keeps what it has seen for about length steps, where its form allows that."""
    H = rnn.hidden_size
    if rnn.mode == "LSTM":  # chrono initialisation of the gates' biases (Tallec and Ollivier 2018)
        forget = torch.empty(H).uniform_(1, length - 1).log()
        rnn.bias_ih_l0[:H] = -forget
        rnn.bias_ih_l0[H : 2 * H] = forget
    elif rnn.mode == "GRU":
        rnn.bias_ih_l0[H : 2 * H] = torch.empty(H).uniform_(1, length - 1).log()
    elif rnn.mode == "RNN_RELU":  # h_t = h_{t-1} + x's part (Le, Jaitly and Hinton 2015)
        rnn.weight_hh_l0.copy_(torch.eye(H))
        rnn.weight_ih_l0.normal_(0, 0.1)
        rnn.bias_ih_l0.zero_()
        rnn.bias_hh_l0.zero_()


class Adder(nn.Module):
    """x [B, T, 2] -> sums [B]"""

    def __init__(self, layer: Callable[[int, int], nn.RNNBase], hidden: int, length: int) -> None:
        super().__init__()
        self.rnn = layer(2, hidden)
        self.head = nn.Linear(hidden, 1)
        with torch.no_grad():
            remember(self.rnn, length)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x.transpose(0, 1))[0][-1]).squeeze(-1)


def sequences(count: int, length: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """x [count, T, 2]: numbers from 0 to 1, and two marks, one in each half; y [count]"""
    numbers, marks = torch.rand(count, length, generator=random), torch.zeros(count, length)
    half = length // 2
    rows = torch.arange(count)
    marks[rows, torch.randint(0, half, (count,), generator=random)] = 1
    marks[rows, torch.randint(half, length, (count,), generator=random)] = 1
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(1)


class Fresh(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches that never come again: every epoch draws its own."""

    def __init__(self, length: int) -> None:
        self.length, self.random = length, torch.Generator().manual_seed(1)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for _ in range(STEPS_PER_EPOCH):
            yield sequences(BATCH, self.length, self.random)


def run(name: str, length: int, steps: int, hidden: int, advance: Callable[[], None]) -> dict[str, Any]:
    """A run that NaN or Inf stops has a fault in the place of its errors."""
    epochs = max(1, steps // STEPS_PER_EPOCH)
    rate = learning_rate(name, length)
    config = Config(lr=rate, clip=1.0, schedule="cosine", epochs=epochs, batch=BATCH, hidden=hidden)
    L.seed_everything(config.seed, verbose=False)
    task = Task(Adder(LAYERS[name], hidden, length), config, nn.functional.mse_loss)
    held = torch.Generator().manual_seed(2)
    watch = WatchGradients(every=max(1, epochs * STEPS_PER_EPOCH // 10))
    train = DataLoader(Fresh(length), batch_size=None)
    validation = loader(*sequences(200, length, held), 200)
    result: dict[str, Any] = {}
    try:
        fit(task, train, validation, [watch], "cpu", advance)
        x, y = sequences(500, length, held)
        error = task.predict(x) - y
        result["mse"] = float(error.square().mean())
        result["accuracy"] = float(error.abs().lt(0.1).float().mean())
    except FloatingPointError as fault:
        result["fault"] = str(fault)
    norms = torch.stack(watch.norms["model.rnn.layer 0"]).tolist()
    return result | {"norms": norms, "steps": watch.steps}


def draw(results: dict[tuple[int, str], dict[str, Any]], lengths: list[int], path: Path) -> None:
    figure, axes = plt.subplots(
        len(lengths),
        len(LAYERS),
        figsize=(3.4 * len(LAYERS), 2.7 * len(lengths)),
        squeeze=False,
        layout="constrained",
    )
    for row, length in zip(axes, lengths, strict=True):
        for axis, name in zip(row, LAYERS, strict=True):
            result = results[length, name]
            norms = np.array(result["norms"])
            relative = np.log10(np.maximum(norms / np.maximum(norms[:, -1:], 1e-30), 1e-12))
            image = axis.imshow(
                relative, aspect="auto", vmin=-8, vmax=2, cmap="magma", interpolation="nearest"
            )
            axis.set_yticks(range(len(result["steps"])), result["steps"], fontsize="x-small")
            reached = f"{result['accuracy']:.0%}" if "accuracy" in result else "stopped"
            axis.set_title(f"{name}, T {length}: {reached}", fontsize="medium")
        row[0].set_ylabel("training step")
    for axis in axes[-1]:
        axis.set_xlabel("time step t")
    figure.colorbar(image, ax=axes, label="log10 of |d loss / d h_t|, last step 0")
    save_figure(figure, path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--lengths", nargs="+", type=int, default=[50, 200, 800])
    parser.add_argument("--steps", type=int, default=2000, help=f"in whole epochs of {STEPS_PER_EPOCH}")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works")
    args = parser.parse_args()
    if args.quick:
        args.lengths, args.steps, args.hidden = [20], STEPS_PER_EPOCH, 16
    if min(args.steps, args.hidden) < 1 or min(args.lengths) < 4:
        parser.error("sizes must be positive, and lengths at least 4")
    results = {}
    out = table("Adding problem", "cell", "T", "mean squared error", "within 0.1", "first/last gradient")
    try:
        store = Store(args.out / "adding.json")
        with progress() as bar:
            for length in args.lengths:
                for name in LAYERS:
                    line = bar.add_task(f"T {length} {name}", total=max(1, args.steps // STEPS_PER_EPOCH))
                    key = [name, length, args.steps, args.hidden]
                    advance = lambda line=line: bar.advance(line)  # noqa: E731
                    result = store.get(key, lambda key=key, advance=advance: run(*key, advance))
                    bar.update(line, completed=bar.tasks[line].total)
                    results[length, name] = result
                    norms = result["norms"][-1]
                    stopped = "fault" in result
                    out.add_row(
                        name,
                        str(length),
                        "stopped" if stopped else f"{result['mse']:.4f}",
                        "" if stopped else f"{result['accuracy']:.1%}",
                        f"{norms[0] / max(norms[-1], 1e-30):.1e}",
                    )
    except InputError as fault:
        raise SystemExit(f"adding: {fault}") from None
    console.print(out)
    for (length, name), result in results.items():
        if "fault" in result:
            console.print(f"{name}, T {length}: {result['fault']}", style="red")
    draw(results, args.lengths, args.out / "adding.png")
    console.print(f"wrote {args.out / 'adding.png'}")


if __name__ == "__main__":
    main()
