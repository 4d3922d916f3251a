"""What the curves of a run say: robust slopes of training and validation loss, and what to try next."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from scipy.stats import theilslopes

FALLING, FLAT, RISING = "falling", "flat", "rising"
ADVICE = {
    "learning": "go on: more epochs; anneal the learning rate when the curves level out",
    "overfitting": "regularise: early stopping, dropout, weight decay, averaging, more or augmented data, fewer units",
    "underfitting or shift": "more units or layers, less regularisation; check that training and validation data "
    "are drawn and scaled alike",
    "bottleneck": "learning rate up or down by 3, another batch size or optimizer; then the data: does the input say "
    "what the target asks?",
    "structure or rate problem": "learning rate down by 10, clip gradients, check loss, initialisation and activation",
    "data problem": "check labels, shuffling and the split; is dropout or augmentation so strong that only "
    "training suffers?",
}
CASES = {
    (FALLING, FALLING): "learning",
    (FALLING, RISING): "overfitting",
    (FALLING, FLAT): "underfitting or shift",
    (FLAT, FLAT): "bottleneck",
    (RISING, RISING): "structure or rate problem",
    (RISING, FALLING): "data problem",
    # half a step from a neighbour
    (FLAT, FALLING): "learning",
    (FLAT, RISING): "overfitting",
    (RISING, FLAT): "structure or rate problem",
}


@dataclass(frozen=True)
class Diagnosis:
    """A case of CASES with the trends that led to it; changes are relative to the loss, over the window."""

    case: str
    train: str
    validation: str
    train_change: float
    validation_change: float
    points: int
    converged: bool = False  # validation loss is flat at its lowest, well below where it began
    gap: float = 0.0  # once converged: how far training loss is below, relative to validation loss

    @property
    def label(self) -> str:
        return f"{self.case} (converged)" if self.converged else self.case

    @property
    def advice(self) -> str:
        if not self.converged:
            return ADVICE[self.case]
        aim = "regularisation" if self.gap > 0.5 else "more units, other inputs"
        return f"stop here; if that is not low enough, {aim} (training loss is {self.gap:.0%} below)"

    def __str__(self) -> str:
        return (
            f"{self.label}: over the last {self.points} values training loss is {self.train} "
            f"({self.train_change:+.0%}), validation loss {self.validation} ({self.validation_change:+.0%}). "
            f"Try: {self.advice}."
        )


def trend(losses: Sequence[float], tolerance: float = 0.05) -> tuple[str, float]:
    """(falling, flat or rising; change over the curve relative to its median).

    The slope is Theil and Sen's median of the slopes of all pairs, which a few spikes do not move. A curve is flat
    where the change is below the tolerance, or the slope's 95 % confidence interval holds zero.
    """
    curve = np.asarray(losses, dtype=float)
    if not np.isfinite(curve).all():
        return RISING, math.inf
    slope, _, low, high = theilslopes(curve, np.arange(len(curve)))
    change = float(slope) * (len(curve) - 1) / max(float(np.median(np.abs(curve))), 1e-12)
    if abs(change) < tolerance or low <= 0 <= high:
        return FLAT, change
    return (RISING if change > 0 else FALLING), change


def settled(losses: Sequence[float], window: int, tolerance: float) -> bool:
    """Whether the last window of a curve is at the lowest level of all, and below half of where the curve began."""
    curve = np.asarray(losses, dtype=float)
    levels = np.median(np.lib.stride_tricks.sliding_window_view(curve, window), axis=1)
    return bool(levels[-1] <= (1 + tolerance) * levels.min() and levels[-1] < 0.5 * curve[0])


def diagnose(
    train: Sequence[float], validation: Sequence[float], window: int = 10, tolerance: float = 0.05
) -> Diagnosis:
    """The case that the last `window` epochs of two loss curves show."""
    if len(train) != len(validation):
        raise ValueError(f"{len(train)} epochs of training loss but {len(validation)} of validation loss")
    if min(len(train), window) < 4:
        raise ValueError("a diagnosis needs 4 epochs or more")
    left, left_change = trend(train[-window:], tolerance)
    right, right_change = trend(validation[-window:], tolerance)
    points = min(window, len(train))
    done = left != RISING and right == FLAT and settled(validation, points, tolerance)
    gap = 1 - float(np.median(train[-window:]) / max(np.median(validation[-window:]), 1e-12)) if done else 0.0
    return Diagnosis(CASES[left, right], left, right, left_change, right_change, points, done, gap)


class DiagnoseLoss(Callback):
    """Keeps the loss curves of a run, and at its end says which case they show."""

    def __init__(self, window: int = 10, tolerance: float = 0.05) -> None:
        self.window, self.tolerance = window, tolerance
        self.train: list[float] = []
        self.validation: list[float] = []
        self.rates: list[float] = []  # the learning rate of each epoch
        self.diagnosis: Diagnosis | None = None

    def on_train_epoch_start(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self.train.append(float(trainer.callback_metrics["train_loss"]))
        self.validation.append(float(trainer.callback_metrics["val_loss"]))

    def on_fit_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        if len(self.train) >= 4:
            self.diagnosis = diagnose(self.train, self.validation, self.window, self.tolerance)
