"""d loss / d h_t of every layer and time step: where gradients vanish or explode, and where NaN begins."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

import fastrnn

_LARGE = 1e6  # more than any h_t that is of use
_EXPLODING = "exploding activations, from a learning rate too high or an unbounded activation: lower the rate, use tanh"

Record = dict[str, list[Tensor]]  # h_t [B, H] of each layer, in time's order


def _step(layer: nn.RNNBase, weights: Sequence[Tensor], x: Tensor, state: list[Tensor]) -> list[Tensor]:
    """x [1, B, I], state [h (, c)] of [1, B, H] -> the next state"""
    bias, activation = layer.bias, getattr(layer, "activation", "tanh")
    if layer.mode == "LSTM":
        _, *after = fastrnn.functional.lstm(x, state, weights, has_biases=bias, activation=activation)
    elif layer.mode == "GRU":
        options: Any = {"reset_after": getattr(layer, "reset_after", True), "activation": activation}
        _, *after = fastrnn.functional.gru(x, state[0], weights, has_biases=bias, **options)
    else:
        nonlinearity = layer.mode.removeprefix("RNN_").lower()
        _, *after = fastrnn.functional.rnn(x, state[0], weights, has_biases=bias, nonlinearity=nonlinearity)
    return after


def _forward(layer: nn.RNNBase, name: str, record: Record, x: Any, hx: Any = None) -> tuple[Tensor, Any]:
    """The layer's forward, one time step a call: in the fused call no h_t can be reached."""
    if isinstance(x, PackedSequence) or x.dim() != 3:
        raise ValueError(f"{name or 'the layer'}: gradients are watched on input [T, B, I] or [B, T, I] only")
    x = x.transpose(0, 1) if layer.batch_first else x
    directions, states = (2 if layer.bidirectional else 1), (2 if layer.mode == "LSTM" else 1)
    rows = layer.num_layers * directions
    if hx is None:
        widths = (layer.proj_size or layer.hidden_size, layer.hidden_size)
        initial = [x.new_zeros(rows, x.shape[1], width) for width in widths[:states]]
    else:
        initial = list(hx) if states == 2 else [hx]
    finals = []
    outputs: list[Tensor] = []
    for row, weights in enumerate(layer.all_weights):
        reverse = row % directions == 1
        index = row // directions
        if not reverse:
            if index > 0:
                x = nn.functional.dropout(torch.cat(outputs, -1), layer.dropout, layer.training)
            outputs = []
        state = [part[row : row + 1] for part in initial]
        hidden: list[Tensor] = []
        for t in range(len(x))[:: -1 if reverse else 1]:
            state = _step(layer, weights, x[t : t + 1], state)
            hidden.append(state[0])
        hidden = hidden[::-1] if reverse else hidden
        prefix = f"{name}." if name else ""
        record[f"{prefix}layer {index}{' reverse' if reverse else ''}"] = hidden
        outputs.append(torch.cat(hidden))
        finals.append(state)
    y = torch.cat(outputs, -1)
    last = tuple(torch.cat(parts) for parts in zip(*finals, strict=True))
    return (y.transpose(0, 1) if layer.batch_first else y), (last if states == 2 else last[0])


@contextmanager
def unrolled(model: nn.Module) -> Iterator[Record]:
    """Runs the recurrent layers in model step by step, and records every h_t as a node of autograd's graph."""
    record: Record = {}
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.RNNBase)}
    for name, layer in layers.items():
        layer.forward = partial(_forward, layer, name, record)  # type: ignore[method-assign]
    try:
        yield record
    finally:
        for layer in layers.values():
            del layer.forward  # the class's own shows again


def hidden_gradients(model: nn.Module, loss: Callable[[], Tensor]) -> dict[str, Tensor]:
    """The norm of d loss / d h_t over batch and units, [T] for each layer; loss() runs the model."""
    with torch.enable_grad(), unrolled(model) as record:
        value = loss()
        flat = [h for hidden in record.values() for h in hidden]
        gradients = iter(torch.autograd.grad(value, flat, allow_unused=True, materialize_grads=True))
        return {
            name: torch.stack([next(gradients).norm() for _ in hidden]) for name, hidden in record.items()
        }


class WatchGradients(Callback):
    """Measures hidden_gradients every `every` training steps, and stops the run at the first NaN or Inf.

    The task has a method loss(batch). norms[name] is a list of [T]; steps says when each was taken.
    """

    def __init__(self, every: int = 100, rows: int = 16) -> None:
        self.every, self.rows = every, rows  # of the batch; a step-by-step run is slower than a fused one
        self.norms: dict[str, list[Tensor]] = {}
        self.steps: list[int] = []
        self._batch: Any = None

    def on_train_batch_start(self, trainer: L.Trainer, task: Any, batch: Any, index: int) -> None:
        self._batch = batch
        if self.every and trainer.global_step % self.every == 0:
            part = [tensor[: self.rows] for tensor in batch]
            self.steps.append(trainer.global_step)
            for name, norm in hidden_gradients(task, lambda: task.loss(part)).items():
                self.norms.setdefault(name, []).append(norm.cpu())

    def on_before_optimizer_step(self, trainer: L.Trainer, task: Any, optimizer: Any) -> None:
        gradients = [p.grad for p in task.parameters() if p.grad is not None]
        if not torch.nn.utils.get_total_norm(gradients).isfinite():
            raise FloatingPointError(f"step {trainer.global_step}: {locate(task, self._batch)}")


def locate(task: Any, batch: Sequence[Tensor]) -> str:
    """Where NaN or Inf begins in the loss of a batch or its gradients, and the likely cause."""
    x, y = batch
    if not x.isfinite().all():
        return _in_data("input", x)
    for name, parameter in task.named_parameters():
        if not parameter.isfinite().all():
            cause = "the last update, a learning rate too high"
            return f"the parameter {name} holds {_kind(parameter)}; likely cause: {cause}"
    with torch.enable_grad(), unrolled(task) as record:
        loss = task.loss(batch)
        for name, hidden in record.items():
            for t, h in enumerate(hidden):
                if not h.isfinite().all():
                    return f"h_t of {name} holds {_kind(h)} from time step {t} on; likely cause: {_EXPLODING}"
        if not loss.isfinite():
            if not y.isfinite().all():  # gaps that the loss leaves out do no harm
                return _in_data("target", y)
            largest = max((float(h.abs().max()) for hidden in record.values() for h in hidden), default=0.0)
            if largest > _LARGE:
                return f"the loss is {_kind(loss)} for h_t of up to {largest:.0e}; likely cause: {_EXPLODING}"
            cause = "the loss itself, a log or a division"
            return f"the loss is {_kind(loss)} though every h_t is finite; likely cause: {cause}"
        flat = [h for hidden in record.values() for h in hidden] or [loss]  # a model without recurrent layers
        gradients = iter(torch.autograd.grad(loss, flat, allow_unused=True, materialize_grads=True))
        for name, hidden in reversed([(n, [next(gradients) for _ in h]) for n, h in record.items()]):
            for t in reversed(range(len(hidden))):  # the order in which the backward pass meets them
                if not hidden[t].isfinite().all():
                    return (
                        f"d loss / d h_t of {name} holds {_kind(hidden[t])} from time step {t} backwards; likely "
                        "cause: exploding gradients: shorter sequences, a gated cell, or smaller weights"
                    )
    return "the gradient of a parameter overflows though every h_t and its gradient are finite; scale the loss down"


def _in_data(what: str, tensor: Tensor) -> str:
    place = (~tensor.isfinite()).nonzero()[0].tolist()
    return (
        f"the {what} holds {_kind(tensor)} at {place}; likely cause: missing values or a division in the data"
    )


def _kind(tensor: Tensor) -> str:
    return "NaN" if tensor.isnan().any() else "Inf"
