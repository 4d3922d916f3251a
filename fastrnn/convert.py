"""Swaps torch.nn's recurrent modules for fastrnn's, and back."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from fastrnn._base import Base
from fastrnn._compat import forget_compiled
from fastrnn.cells import GRUCell, LSTMCell, RNNCell
from fastrnn.modules import GRU, LSTM, RNN

__all__ = ["patch_torch", "replace_modules", "restore_modules"]

_TO_FASTRNN: dict[type[nn.Module], type[nn.Module]] = {
    nn.LSTM: LSTM,
    nn.GRU: GRU,
    nn.RNN: RNN,
    nn.LSTMCell: LSTMCell,
    nn.GRUCell: GRUCell,
    nn.RNNCell: RNNCell,
}
_TO_TORCH = {ours: theirs for theirs, ours in _TO_FASTRNN.items()}


def replace_modules(model: nn.Module) -> nn.Module:
    """Swaps every torch.nn.LSTM, GRU, RNN, LSTMCell, GRUCell and RNNCell in model for fastrnn's.

    The new modules share the Parameters, the hooks, the buffers and the parametrizations of the old ones, so that
    optimizers and hook handles go on working. Subclasses of the six are left alone. A module that is found in several
    places stays one module.

    Returns:
        model, or the new module if model itself is one of the six
    """
    return _swap(model, _TO_FASTRNN)


def restore_modules(model: nn.Module) -> nn.Module:
    """Undoes :func:`replace_modules`: swaps every fastrnn module in model for torch.nn's, but for those that
    :func:`quantize` made. ``recompute=True``, which changes no result, is dropped.

    Returns:
        model, or the new module if model itself is a fastrnn module

    Raises:
        ValueError: a module has an option that torch.nn lacks; model is then unchanged
    """
    for name, module in model.named_modules():
        if not isinstance(module, Base) or type_before_parametrizations(module) not in _TO_TORCH:
            continue
        options = [f"{key}={value!r}" for key, value in module._changed_options().items()]
        if options:
            where = f"module '{name}'" if name else "the model itself"
            raise ValueError(f"torch.nn has no {' and '.join(options)}, which {where} has: {module}")
    return _swap(model, _TO_TORCH)


def _swap(model: nn.Module, classes: dict[type[nn.Module], type[nn.Module]]) -> nn.Module:
    made: dict[nn.Module, nn.Module] = {}

    def swapped(module: nn.Module) -> nn.Module:
        if type_before_parametrizations(module) not in classes:
            return module
        if module not in made:
            made[module] = _as(classes[type_before_parametrizations(module)], module)
        return made[module]

    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None:
                parent._modules[name] = swapped(child)
    return swapped(model)


def _as(cls: type[nn.Module], module: nn.Module) -> nn.Module:
    """A module of another class with the very same state: the containers of parameters and hooks are shared."""
    if type_before_parametrizations(module) is not type(module):
        # the class that torch made for the parametrized module has its weights as properties
        injected = {k: v for k, v in vars(type(module)).items() if k not in ("__dict__", "__weakref__")}
        cls = type(type(module).__name__, (cls,), injected)
    new = cls.__new__(cls)
    new.__dict__.update(module.__dict__)
    forget_compiled(new)  # what module.compile() made runs the old module
    if isinstance(module, Base):
        for option in (*module._options, "recompute"):
            new.__dict__.pop(option, None)
    new.__dict__.update(getattr(new, "_options", {}))
    return new


_PLACES = (nn, nn.modules, nn.modules.rnn)
_patch_lock = threading.Lock()
_patch_depth = 0
_patched: list[tuple[Any, str, Any]] = []


@contextmanager
def patch_torch() -> Iterator[None]:
    """Within it, ``torch.nn.LSTM`` and its kind are fastrnn's, so that code which is not yours builds fastrnn modules.

    It replaces the attributes of torch.nn, torch.nn.modules and torch.nn.modules.rnn. A name that was imported before
    (``from torch.nn import LSTM``) and a class that was derived before keep torch's class; modules that exist stay as
    they are, and are no instances of what ``torch.nn.LSTM`` means within. The patch holds for all threads of the
    process while any of them is within; it may be nested.
    """
    global _patch_depth
    with _patch_lock:
        _patch_depth += 1
        if _patch_depth == 1:
            for place in _PLACES:
                for ours in _TO_TORCH:
                    _patched.append((place, ours.__name__, getattr(place, ours.__name__)))
                    setattr(place, ours.__name__, ours)
    try:
        yield
    finally:
        with _patch_lock:
            _patch_depth -= 1
            if _patch_depth == 0:
                while _patched:
                    setattr(*_patched.pop())
