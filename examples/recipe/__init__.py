"""The parts of a training recipe that the examples share, for Lightning."""

from checkpoint import InputError, save_atomically
from recipe.diagnose import DiagnoseLoss, Diagnosis, diagnose
from recipe.ensemble import SnapshotEnsemble
from recipe.files import read_series
from recipe.gradients import WatchGradients, hidden_gradients
from recipe.sweep import Store, sweep
from recipe.task import Config, Task, choose_device, fit, loader

__all__ = [
    "Config",
    "DiagnoseLoss",
    "Diagnosis",
    "InputError",
    "SnapshotEnsemble",
    "Store",
    "Task",
    "WatchGradients",
    "choose_device",
    "diagnose",
    "fit",
    "hidden_gradients",
    "loader",
    "read_series",
    "save_atomically",
    "sweep",
]
