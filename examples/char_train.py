"""Training of one character model that can be interrupted and shared among processes; see char_lm.py.

Truncated backpropagation through time: the text is read as B streams; a step goes through T characters of each, begins
with the state that the step before ended with, and sends no gradient further back.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # imported while a group exists, its default arguments would keep that alive
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from char_model import (
    ALPHABET,
    LAYERS,
    CharModel,
    State,
    batches,
    bits_per_character,
    detach,
    generate,
    read_corpus,
)
from checkpoint import InputError, load_checkpoint, save_atomically

SETTINGS = ("cell", "hidden", "batch", "time_steps", "seed", "characters", "processes")
console = Console()


@contextmanager
def processes() -> Iterator[tuple[int, int]]:
    """(rank, count) of those that torchrun started; (0, 1) without it."""
    if "WORLD_SIZE" not in os.environ:
        yield 0, 1
        return
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank(), dist.get_world_size()
        dist.barrier()  # one that leaves early may find the other still sending, and abort
    finally:
        gc.collect()  # of models that hold the group: its threads end with it, and one that outlives Python aborts
        dist.destroy_process_group()


def _gathered(value: Any, count: int) -> list[Any]:
    """The value of every process."""
    if count == 1:
        return [value]
    found: list[Any] = [None] * count
    dist.all_gather_object(found, value)
    return found


def _same_everywhere(model: nn.Module, count: int) -> bool:
    parameters = nn.utils.parameters_to_vector(model.parameters()).detach()
    return all(torch.equal(parameters, other) for other in _gathered(parameters, count))


def _as_tensors(state: State) -> list[Tensor]:
    return [] if state is None else list(state) if isinstance(state, tuple) else [state]


def _as_state(tensors: list[Tensor]) -> State:
    return None if not tensors else tuple(tensors) if len(tensors) > 1 else tensors[0]


def _check_settings(saved: dict[str, Any], wanted: dict[str, Any], path: Path) -> None:
    for name in SETTINGS:
        if saved[name] != wanted[name]:
            raise InputError(
                f"{path} was trained with {name} {saved[name]}, not {wanted[name]}: give the same, or another file"
            )


def _load(path: Path) -> dict[str, Any]:
    content = load_checkpoint(path)
    if not isinstance(content, dict) or not {*SETTINGS, "step", "losses", "model"} <= content.keys():
        raise InputError(f"{path} is not a checkpoint of this program")
    return content


def train_one(args: argparse.Namespace) -> None:
    """Trains up to step --steps, from the checkpoint if there is one."""
    with processes() as (rank, count):
        _train(args, rank, count)


def _train(args: argparse.Namespace, rank: int, count: int) -> None:
    cell = (args.cell or ["lstm"])[0]
    settings = {
        "cell": cell,
        "hidden": args.hidden,
        "batch": args.batch,
        "time_steps": args.time_steps,
        "seed": args.seed,
        "characters": 100_000 if args.quick else 1_000_000,
        "processes": count,
    }
    if args.batch % count:
        raise InputError(f"a batch of {args.batch} cannot be shared evenly by {count} processes")
    torch.manual_seed(args.seed)
    model = CharModel(LAYERS["fastrnn", cell], args.hidden)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    state: State = None
    step, losses = 0, []
    if args.checkpoint.exists():
        saved = _load(args.checkpoint)
        _check_settings(saved, settings, args.checkpoint)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        state = _as_state(saved["states"][rank])
        step, losses = saved["step"], saved["losses"]
        if rank == 0:
            console.print(f"going on from step {step} of {args.checkpoint}", highlight=False, soft_wrap=True)
    train_ids, validation_ids = read_corpus(settings["characters"])
    chunks = batches(train_ids, args.batch, args.time_steps)[..., rank::count]
    trained = DistributedDataParallel(model) if count > 1 else model

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    shows = TextColumn("{task.fields[loss]}")
    with Progress(*columns, shows, console=console, disable=rank > 0) as progress:
        task = progress.add_task(f"training {cell.upper()}", total=args.steps, completed=step, loss="")
        while step < args.steps:
            place = step % len(chunks)
            if place == 0:
                state = None  # the streams begin again
            ids, targets = chunks[place][:-1], chunks[place][1:]
            logits, state = trained(ids, state)
            state = detach(state)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            step += 1
            bits = loss.item() / math.log(2)
            if not math.isfinite(bits):
                raise InputError(
                    f"the loss of step {step} is {bits}: try a smaller --hidden or another --seed"
                )
            losses.append(bits)
            progress.update(task, completed=step, loss=f"bits/char: {bits:.3f}")
            if step % args.every == 0 or step == args.steps:
                states = _gathered(_as_tensors(state), count)
                if rank == 0:
                    content = {
                        "model": model.state_dict(),
                        "optimizer": optimizer.state_dict(),
                        "states": states,
                    }
                    save_atomically({**settings, **content, "step": step, "losses": losses}, args.checkpoint)
    if count > 1:
        equal = _same_everywhere(model, count)
        if rank == 0:
            word = "equal" if equal else "DIFFERENT"
            console.print(f"parameters are {word} in all {count} processes", highlight=False, soft_wrap=True)
        if not equal:
            raise InputError("the processes went apart")
    if rank == 0:
        score = bits_per_character(model, validation_ids)
        console.print(
            f"step {step}: training {losses[-1]:.4f}, validation {score:.4f} bits per character; {args.checkpoint}",
            highlight=False,
            soft_wrap=True,
        )


def sample(args: argparse.Namespace) -> None:
    """Writes text with the model of a checkpoint."""
    saved = _load(args.checkpoint)
    unknown = sorted(set(args.prompt) - set(ALPHABET))
    if unknown or not args.prompt:
        raise InputError(f"the prompt must have characters, and only those of ASCII text; not {unknown}")
    model = CharModel(LAYERS["fastrnn", saved["cell"]], saved["hidden"])
    model.load_state_dict(saved["model"])
    text, _ = generate(model, args.prompt, args.sample, args.seed)
    print(text)
