"""Snapshot ensembling (Huang et al. 2017): one run, several minima, one averaged prediction."""

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from recipe.task import Task


class SnapshotEnsemble(Callback):
    """Keeps the weights at the end of every cosine cycle of a run with schedule="restarts"."""

    def __init__(self) -> None:
        self.snapshots: list[dict[str, Tensor]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, task: L.LightningModule) -> None:
        assert isinstance(task, Task)
        if (trainer.current_epoch + 1) % task.config.cycle == 0:
            self.snapshots.append({k: v.detach().cpu().clone() for k, v in task.state_dict().items()})

    def predict(self, task: Task, x: Tensor, probabilities: bool = False) -> Tensor:
        """The mean of all snapshots' outputs [N, ...], of their softmax if probabilities; task keeps its weights."""
        before = {name: value.clone() for name, value in task.state_dict().items()}
        outputs = []
        for snapshot in self.snapshots:
            task.load_state_dict(snapshot)
            y = task.predict(x)
            outputs.append(y.softmax(-1) if probabilities else y)
        task.load_state_dict(before)
        return torch.stack(outputs).mean(0)
