"""Files that are whole or absent; an error that is one sentence for the user."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class InputError(Exception):
    """What the user gave cannot be used; the message is one sentence for them."""


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Calls write with a temporary name beside path, then renames: an interruption leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    try:
        write(Path(name))
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def save_atomically(content: Any, path: Path) -> None:
    """torch.save of tensors and plain values; torch.load(path, weights_only=True) reads it back."""
    write_atomically(path, lambda name: torch.save(content, name))


def load_checkpoint(path: Path) -> Any:
    """What save_atomically wrote."""
    if not path.is_file():
        raise InputError(f"there is no checkpoint {path}")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as fault:
        raise InputError(f"{path} is not a checkpoint of this program") from fault
