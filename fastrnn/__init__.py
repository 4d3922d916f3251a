"""Recurrent layers that drop in for torch.nn's and run as fused kernels."""

from importlib.metadata import PackageNotFoundError, version

from fastrnn import functional
from fastrnn._ops import release_memory
from fastrnn.cells import GRUCell, LSTMCell, RNNCell
from fastrnn.convert import patch_torch, replace_modules, restore_modules
from fastrnn.modules import GRU, LSTM, RNN
from fastrnn.own_modules import SLSTM, IndRNN, MinGRU, MinLSTM
from fastrnn.quantized import quantize
from fastrnn.stream import Stream

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "SLSTM",
    "GRUCell",
    "IndRNN",
    "LSTMCell",
    "MinGRU",
    "MinLSTM",
    "RNNCell",
    "Stream",
    "__version__",
    "functional",
    "patch_torch",
    "quantize",
    "release_memory",
    "replace_modules",
    "restore_modules",
]

try:
    __version__ = version("fastrnn")
except PackageNotFoundError:  # a source tree on sys.path
    __version__ = "0+unknown"
