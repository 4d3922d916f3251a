"""Loads the compiled extension, and with it the ops ``torch.ops.fastrnn``."""

import importlib
from pathlib import Path

try:
    _extension = importlib.import_module("fastrnn._C")
except ImportError as error:
    raise ImportError(
        f"fastrnn's compiled extension cannot be loaded: {error}. Build it with `pip install .` or `pip install -e .` "
        "in fastrnn's source tree, for this Python and a torch of 2.11 or later. An installed fastrnn is hidden by "
        "the fastrnn/ folder of the source tree where Python is started there."
    ) from error

forward_by_address, own_watch = _extension.forward, _extension.own_watch  # csrc/torch/step.h
# the ops, for programs without Python
library_path = Path(str(_extension.__file__)).with_name("libfastrnn_ops.so")
