"""A model, its loss and its optimizer as a LightningModule; one Config names every choice of the recipe."""

import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler, TensorDataset

from checkpoint import InputError

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=".*does not have many workers.*")
warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)`.*")


@dataclass(frozen=True)
class Config:
    """The hyperparameters of a run. docs/recipes.md says when to reach for which."""

    optimizer: str = "adam"
    lr: float = 3e-3
    momentum: float = 0.9  # of sgd, nesterov and rmsprop
    weight_decay: float = 0.0  # on weight matrices; biases are left alone
    schedule: str = "constant"
    cycles: int = 4  # of schedule "restarts"; SnapshotEnsemble takes a snapshot at the end of each
    clip: float = 5.0  # largest norm of all gradients together; 0 does not clip
    dropout: float = 0.0
    averaging: float = 0.0  # decay of an exponential moving average of the weights; 0 does not average
    patience: int = 0  # epochs without a better validation loss before the run stops; 0 runs all epochs
    epochs: int = 40
    batch: int = 32
    hidden: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"unknown optimizer '{self.optimizer}'; there are {', '.join(OPTIMIZERS)}")
        if self.schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule '{self.schedule}'; there are {', '.join(SCHEDULES)}")

    @property
    def cycle(self) -> int:
        """Epochs between two restarts."""
        return max(1, self.epochs // self.cycles)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], Config], Optimizer]] = {
    "sgd": lambda groups, c: torch.optim.SGD(groups, lr=c.lr, momentum=c.momentum),
    "nesterov": lambda groups, c: torch.optim.SGD(groups, lr=c.lr, momentum=c.momentum, nesterov=True),
    "rmsprop": lambda groups, c: torch.optim.RMSprop(groups, lr=c.lr),
    "adagrad": lambda groups, c: torch.optim.Adagrad(groups, lr=c.lr),
    "adam": lambda groups, c: torch.optim.Adam(groups, lr=c.lr),
    "adamw": lambda groups, c: torch.optim.AdamW(groups, lr=c.lr),  # decay apart from the gradient's scaling
}
SCHEDULES: dict[str, Callable[[Optimizer, Config], lr_scheduler.LRScheduler]] = {
    "constant": lambda optimizer, c: lr_scheduler.ConstantLR(optimizer, factor=1.0),
    "cosine": lambda optimizer, c: lr_scheduler.CosineAnnealingLR(optimizer, T_max=c.epochs),
    "step": lambda optimizer, c: lr_scheduler.StepLR(optimizer, step_size=max(1, c.epochs // 3), gamma=0.3),
    "restarts": lambda optimizer, c: lr_scheduler.CosineAnnealingWarmRestarts(optimizer, T_0=c.cycle),
}


class Task(L.LightningModule):
    """model(x) against y; batches are (x [B, ...], y [B, ...])."""

    def __init__(
        self, model: nn.Module, config: Config, criterion: Callable[[Tensor, Tensor], Tensor]
    ) -> None:
        super().__init__()
        self.model, self.config, self.criterion = model, config, criterion

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)

    def loss(self, batch: Sequence[Tensor]) -> Tensor:
        x, y = batch
        return self.criterion(self(x), y)

    def training_step(self, batch: Sequence[Tensor], index: int) -> Tensor:
        loss = self.loss(batch)
        self.log("train_loss", loss.detach(), on_step=False, on_epoch=True, batch_size=len(batch[0]))
        return loss

    def validation_step(self, batch: Sequence[Tensor], index: int) -> None:
        self.log("val_loss", self.loss(batch), batch_size=len(batch[0]))

    def configure_optimizers(self) -> dict[str, Any]:
        decay = [p for p in self.parameters() if p.dim() > 1]
        free = [p for p in self.parameters() if p.dim() <= 1]
        groups = [
            {"params": decay, "weight_decay": self.config.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ]
        optimizer = OPTIMIZERS[self.config.optimizer]([g for g in groups if g["params"]], self.config)
        return {
            "optimizer": optimizer,
            "lr_scheduler": SCHEDULES[self.config.schedule](optimizer, self.config),
        }

    @torch.inference_mode()
    def predict(self, x: Tensor, batch: int = 512) -> Tensor:
        """model(x) [N, ...] in evaluation mode, on the CPU."""
        self.eval()
        device = next(self.parameters()).device
        return torch.cat([self(part.to(device)).cpu() for part in x.split(batch)])


def choose_device(wanted: str = "auto") -> str:
    """The first of cuda, mps and cpu that this machine has, or the one that is wanted."""
    has = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if wanted == "auto":
        return next(name for name, there in has.items() if there)
    if not has.get(wanted, False):
        raise InputError(
            f"this machine has no device '{wanted}'; it has {', '.join(n for n in has if has[n])}"
        )
    return wanted


def loader(x: Tensor, y: Tensor, batch: int, shuffle: bool = False) -> DataLoader[Any]:
    """Mini-batches of up to `batch` rows; the last, smaller one is kept."""
    data = TensorDataset(x, y)
    order = RandomSampler(data) if shuffle else SequentialSampler(data)
    # a batch's indices are looked up at once; DataLoader's own batching would stack row by row
    return DataLoader(data, sampler=BatchSampler(order, batch, drop_last=False), batch_size=None)


class _Advance(Callback):
    def __init__(self, advance: Callable[[], None]) -> None:
        self.advance = advance

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        self.advance()


def fit(
    task: Task,
    train: DataLoader[Any],
    validation: DataLoader[Any],
    callbacks: Sequence[Callback] = (),
    device: str = "auto",
    advance: Callable[[], None] = lambda: None,
) -> Task:
    """Trains task; with patience, or without averaging and restarts, the epoch with the lowest validation loss stays.

    advance is called after every epoch, for a progress bar.
    """
    config, extra = task.config, [*callbacks, _Advance(advance)]
    if config.patience:
        extra.append(EarlyStopping("val_loss", patience=config.patience, check_finite=False))
    if config.averaging:
        extra.append(EMAWeightAveraging(decay=config.averaging))
    keep_best = bool(config.patience) or not (config.averaging or config.schedule == "restarts")
    with tempfile.TemporaryDirectory() as folder:
        best = ModelCheckpoint(folder, monitor="val_loss", save_top_k=1, save_weights_only=True)
        trainer = L.Trainer(
            max_epochs=config.epochs,
            accelerator=choose_device(device),
            devices=1,
            gradient_clip_val=config.clip or None,
            callbacks=[*extra, best] if keep_best else extra,
            enable_checkpointing=keep_best,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            log_every_n_steps=1_000_000,
        )
        trainer.fit(task, train, validation)
        if keep_best and Path(best.best_model_path).is_file():
            state = torch.load(best.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
            task.load_state_dict(state)
    return task
