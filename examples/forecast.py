"""Forecasts of a real time series: LSTM and GRU beside a seasonal-naive and a linear forecast.

Series: weekly CO2 at Mauna Loa with its gaps, yearly sunspots, monthly El Niño temperatures, or a column of a CSV file.
Windows and scaling come from training data alone; the last 15 % of the series is the test. The networks correct the
linear forecast, and are told the season. Prints the mean absolute error (MAE) in the series' own unit, and draws it by
horizon.

    python examples/forecast.py [--series co2 sunspots elnino | --csv FILE --period N] [--quick]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import lightning as L
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LinearRegression
from statsmodels.datasets import co2, elnino, sunspots
from torch import Tensor, nn
from torchmetrics.functional import mean_absolute_error

import fastrnn
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
    read_series,
)
from recipe.files import save_figure
from recipe.show import console, progress, table

CONFIG = Config(
    lr=2e-3,
    schedule="restarts",
    cycles=3,
    clip=5.0,
    dropout=0.2,
    weight_decay=1e-4,
    epochs=90,
    batch=64,
    hidden=96,
)
LAYERS = {"LSTM": fastrnn.LSTM, "GRU": fastrnn.GRU}


@dataclass(frozen=True)
class Series:
    """values [N] with NaN in gaps; a season takes `period` of them, a forecast is `horizon` from `window` before."""

    name: str
    unit: str
    values: np.ndarray
    period: float
    window: int
    horizon: int
    linear_learns: bool = True  # the linear part of the networks goes on learning with the rest


def elnino_months() -> np.ndarray:
    return elnino.load_pandas().data.drop(columns="YEAR").to_numpy().ravel()


SERIES: dict[str, Callable[[], Series]] = {
    "co2": lambda: Series("co2", "ppm", co2.load_pandas().data["co2"].to_numpy(), 365.2425 / 7, 104, 26),
    "sunspots": lambda: Series(
        "sunspots", "spots", sunspots.load_pandas().data["SUNACTIVITY"].to_numpy(), 11, 33, 11
    ),
    # by validation error: 0.78 °C against 0.80 where it learns
    "elnino": lambda: Series("elnino", "°C", elnino_months(), 12, 24, 6, linear_learns=False),
}


@dataclass
class Windows:
    """Parts of a series relative to the last value that a forecast sees, in units of the training scale.

    x [N, window, 4]: values, whether each was measured, sine and cosine of the time of the season; y [N, horizon], with
    NaN in gaps; last [N, 1], in the series' own unit.
    """

    x: Tensor
    y: Tensor
    last: Tensor
    scale: float

    def mae(self, forecast: Tensor) -> Tensor:
        """By horizon [horizon], where something was measured."""
        steps = [self.y[:, h].isfinite() for h in range(self.y.shape[1])]
        errors = [mean_absolute_error(forecast[m, h], self.y[m, h]) for h, m in enumerate(steps)]
        return torch.stack(errors) * self.scale


def cut(series: Series) -> tuple[Windows, Windows, Windows]:
    """Windows for training (70 %), validation and test (15 % each) in time's order; no target is in two of them."""
    length = series.window + series.horizon
    values, N = series.values, len(series.values)
    edges = int(0.7 * N), int(0.85 * N), N
    if edges[0] < length + 10 or N - edges[1] < series.horizon:
        raise InputError(
            f"{series.name} has {N} values; a window of {series.window} and a horizon of {series.horizon} need "
            f"{int((length + 10) / 0.7) + 1} or more"
        )
    measured = np.isfinite(values)
    filled = pd.Series(values).interpolate(limit_direction="both").to_numpy()
    parts, scale = [], 0.0
    for begin, end in zip((series.window, *edges), edges, strict=False):
        origins = np.arange(begin, end - series.horizon + 1)
        # a gap that reaches past a window's end is filled with the last measured value: the future is unknown
        seen = np.stack([filled[i - series.window : i] for i in origins])
        known = np.stack([measured[i - series.window : i] for i in origins])
        for row, mask in zip(seen, known, strict=True):
            if mask.any() and not mask[-1]:
                place = len(mask) - 1 - int(np.argmax(mask[::-1]))
                row[place:] = row[place]
        y = np.stack([values[i : i + series.horizon] for i in origins])
        last = seen[:, -1:]
        scale = scale or float(np.std(seen - last)) or 1.0
        times = origins[:, None] + np.arange(-series.window, 0)
        phase = 2 * np.pi / series.period * times
        x = np.stack([(seen - last) / scale, known, np.sin(phase), np.cos(phase)], -1)
        tensors = (torch.tensor(part, dtype=torch.float32) for part in (x, (y - last) / scale, last))
        parts.append(Windows(*tensors, scale))
    return parts[0], parts[1], parts[2]


class Forecaster(nn.Module):
    """x [B, window, 4] -> [B, horizon]: a linear forecast, corrected by a recurrent one (as in LSTNet)

    linear: the least-squares forecast
    """

    def __init__(
        self, layer: Callable[..., nn.RNNBase], config: Config, linear: LinearRegression, linear_learns: bool
    ) -> None:
        super().__init__()
        horizon, window = linear.coef_.shape
        self.rnn = layer(4, config.hidden, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(config.hidden, horizon))
        self.linear = nn.Linear(window, horizon).requires_grad_(linear_learns)
        with torch.no_grad():
            self.linear.weight.copy_(torch.from_numpy(linear.coef_))
            self.linear.bias.copy_(torch.from_numpy(linear.intercept_))
            for parameter in self.head[1].parameters():
                parameter.zero_()  # training begins at the linear forecast

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x[..., 0]) + self.head(self.rnn(x)[0][:, -1])


def masked_l1(forecast: Tensor, y: Tensor) -> Tensor:
    """The mean absolute error where y is measured."""
    measured = y.isfinite()
    return (forecast - y.nan_to_num()).abs().mul(measured).sum() / measured.sum().clamp(min=1)


def forecasts(
    series: Series, config: Config, device: str
) -> tuple[Windows, dict[str, Tensor], dict[str, DiagnoseLoss]]:
    """(test windows, forecasts [N, horizon] of them by method, curves of the networks)"""
    train, validation, test = cut(series)
    whole = train.y.isfinite().all(1)
    if whole.sum() < 10:
        raise InputError(f"{series.name}: too few training windows without a gap in their target")
    linear = LinearRegression().fit(train.x[whole, :, 0].numpy(), train.y[whole].numpy())
    period = round(series.period)
    season = [series.window - period + h % period for h in range(series.horizon)]
    curves = {name: DiagnoseLoss() for name in LAYERS}
    results = {
        "seasonal naive": test.x[:, season, 0],
        "linear": torch.tensor(linear.predict(test.x[..., 0].numpy()), dtype=torch.float32),
    }
    with progress() as bar:
        for name, layer in LAYERS.items():
            line = bar.add_task(f"{series.name} {name}", total=config.epochs)
            L.seed_everything(config.seed, verbose=False)
            model = Forecaster(layer, config, linear, series.linear_learns)
            task = Task(model, config, masked_l1)
            snapshots = SnapshotEnsemble()
            loaders = (
                loader(train.x, train.y, config.batch, shuffle=True),
                loader(validation.x, validation.y, 512),
            )
            callbacks = [snapshots, curves[name], WatchGradients(every=0)]
            fit(task, *loaders, callbacks, device, lambda line=line: bar.advance(line))
            results[name] = snapshots.predict(task, test.x)
    return test, results, curves


def draw(series: Series, test: Windows, results: dict[str, Tensor], path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(13, 4.5), layout="constrained")
    place = len(test.x) // 2
    context = test.x[place, :, 0] * test.scale + test.last[place]
    axes[0].plot(range(-len(context) + 1, 1), context, color="tab:gray", label="seen")
    ahead = range(1, series.horizon + 1)
    axes[0].plot(ahead, test.y[place] * test.scale + test.last[place], "k.", label="measured later")
    for name, forecast in results.items():
        axes[0].plot(ahead, forecast[place] * test.scale + test.last[place], label=name)
        axes[1].plot(ahead, test.mae(forecast), label=name)
    axes[0].set(title=f"{series.name}: one forecast", xlabel="step", ylabel=series.unit)
    axes[1].set(title="Error by horizon", xlabel="steps ahead", ylabel=f"MAE, {series.unit}", ylim=0)
    axes[0].legend()
    axes[1].legend()
    save_figure(figure, path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--series", nargs="+", choices=tuple(SERIES), default=list(SERIES))
    parser.add_argument("--csv", type=Path, help="a file of your own instead; its last column, or --column")
    parser.add_argument("--column")
    parser.add_argument("--gaps", action="store_true", help="missing values are expected in the CSV file")
    parser.add_argument("--period", type=int, default=12, help="values in a season of the CSV file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", choices=("auto", "cuda", "mps", "cpu"), default="auto")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works")
    args = parser.parse_args()
    if args.period < 1:
        parser.error("--period must be positive")
    config = replace(CONFIG, seed=args.seed, **({"epochs": 3, "hidden": 16} if args.quick else {}))
    try:
        device = choose_device(args.device)
        if args.csv:
            values = read_series(args.csv, args.column, args.gaps).to_numpy()
            chosen = [Series(args.csv.stem, "value", values, args.period, 2 * args.period, args.period)]
        else:
            chosen = [SERIES[name]() for name in args.series]
        for series in chosen:
            test, results, curves = forecasts(series, config, device)
            gaps = int(np.isnan(series.values).sum())
            out = table(
                f"{series.name}: {len(series.values)} values, {gaps} missing; {len(test.x)} forecasts of "
                f"{series.horizon} steps",
                "forecast",
                f"MAE, {series.unit}",
                "the curves say",
            )
            for name, forecast in results.items():
                diagnosis = curves[name].diagnosis if name in curves else None
                out.add_row(name, f"{test.mae(forecast).mean():.3f}", diagnosis.label if diagnosis else "")
            console.print(out)
            errors = {name: float(test.mae(forecast).mean()) for name, forecast in results.items()}
            best = min(errors["seasonal naive"], errors["linear"])
            for name in LAYERS:
                verb = "beats both baselines" if errors[name] < best else "does not beat both baselines"
                console.print(f"{name} {verb}: {errors[name] / best - 1:+.1%} to the better one")
            path = args.out / f"forecast_{series.name}.png"
            draw(series, test, results, path)
            console.print(f"wrote {path}")
    except (FloatingPointError, InputError) as fault:
        raise SystemExit(f"forecast: {fault}") from None


if __name__ == "__main__":
    main()
