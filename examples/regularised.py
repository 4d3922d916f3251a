"""A little text and a large LSTM: what layer normalisation, zoneout and recurrent dropout do for the validation loss.

A character model on the text of char_lm.py, of which it gets so little that a plain LSTM soon learns it by heart. Every
variant has the same weights to begin with, text, optimizer and number of epochs, for each of several seeds. Prints bits
per character on files that were not trained on, and draws the curves. Runs are kept in out/regularised.json as they
finish; after an interruption the same command goes on.

    python examples/regularised.py [--variants plain zoneout ...] [--seeds 3] [--epochs 14] [--quick]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor, nn

import fastrnn
from char_model import CharModel, State, batches, bits_per_character, detach, read_corpus
from recipe import InputError, Store
from recipe.files import save_figure
from recipe.show import console, progress, table

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer norm": {"layer_norm": True},
    "zoneout": {"zoneout": (0.05, 0.5)},  # of h and c, as Krueger et al. have them for characters
    "recurrent dropout": {"recurrent_dropout": 0.3},
}
CORPUS = 1_000_000  # characters to choose from
PIECE = 1000  # characters in a row
BATCH, STEPS = 32, 100
RATE, CLIP = 3e-3, 5.0


def spread(data: Tensor, characters: int) -> Tensor:
    """So many of all characters, in pieces from beginning to end: a few whole files are no sample."""
    pieces = data[: len(data) // PIECE * PIECE].view(-1, PIECE)
    return pieces[torch.linspace(0, len(pieces) - 1, characters // PIECE).long()].flatten()


def run(
    variant: str,
    seed: int,
    epochs: int,
    hidden: int,
    data: tuple[Tensor, Tensor],
    advance: Callable[[], None],
) -> dict[str, Any]:
    """Bits per character by epoch, of training and validation, and the median time of a step."""
    torch.manual_seed(seed)
    model = CharModel(partial(fastrnn.LSTM, **VARIANTS[variant]), hidden)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    train, validation = data
    chunks = batches(train, BATCH, STEPS)
    result: dict[str, Any] = {"train": [], "validation": []}
    seconds = []
    for _ in range(epochs):
        model.train()
        state: State = None
        losses = []
        for chunk in chunks:
            begin = time.perf_counter()
            logits, state = model(chunk[:-1], state)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), chunk[1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP)
            optimizer.step()
            state = detach(state)
            seconds.append(time.perf_counter() - begin)
            losses.append(loss.item() / math.log(2))
        model.eval()
        result["train"].append(mean(losses))
        result["validation"].append(bits_per_character(model, validation))
        advance()
    return result | {"step": median(seconds)}


Results = dict[str, list[dict[str, Any]]]


def report(results: Results) -> None:
    """The lowest validation loss, that of early stopping, over the seeds."""
    out = table(
        "Bits per character", "variant", "validation", "spread", "epoch", "at the end", "training then", "ms a step"
    )  # fmt: skip
    for variant, runs in results.items():
        lowest = [min(run["validation"]) for run in runs]
        out.add_row(
            variant,
            f"{mean(lowest):.4f}",
            f"{stdev(lowest):.4f}" if len(lowest) > 1 else "",
            f"{mean(1 + run['validation'].index(min(run['validation'])) for run in runs):.1f}",
            f"{mean(run['validation'][-1] for run in runs):.4f}",
            f"{mean(run['train'][-1] for run in runs):.4f}",
            f"{mean(run['step'] for run in runs) * 1e3:.1f}",
        )
    console.print(out)
    if "plain" not in results:
        return
    plain = [min(run["validation"]) for run in results["plain"]]
    for variant, runs in results.items():
        if variant == "plain":
            continue
        gains = [before - min(run["validation"]) for before, run in zip(plain, runs, strict=True)]
        better = sum(gain > 0 for gain in gains)
        console.print(
            f"{variant}: {mean(gains):+.4f} bits per character to the good, better with {better} of {len(gains)} seeds"
        )


def draw(results: Results, path: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    for axis, part in zip(axes, ("train", "validation"), strict=True):
        for place, (variant, runs) in enumerate(results.items()):
            for number, one in enumerate(runs):
                epochs = range(1, len(one[part]) + 1)
                label = None if number else variant
                axis.plot(epochs, one[part], color=f"C{place}", lw=1.2, label=label)
        axis.set(xlabel="epoch")
    axes[0].set(title="Training", ylabel="bits per character")
    lowest = min(min(run["validation"]) for runs in results.values() for run in runs)
    axes[1].set(title="Validation", ylim=(lowest - 0.05, lowest + 0.5))
    axes[1].legend()
    save_figure(figure, path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--variants", nargs="+", choices=tuple(VARIANTS), default=list(VARIANTS), metavar="VARIANT"
    )
    parser.add_argument("--characters", type=int, default=100_000, help="of the text to train on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works")
    args = parser.parse_args()
    if args.quick:
        args.characters, args.seeds, args.epochs, args.hidden = 40_000, 1, 4, 128
    if min(args.seeds, args.epochs, args.hidden) < 1:
        parser.error("sizes must be positive")
    if not 10_000 <= args.characters <= CORPUS:
        parser.error(f"--characters must be from 10000 to {CORPUS}")
    train, validation = read_corpus(CORPUS)
    data = spread(train, args.characters), spread(validation, 20_000 if args.quick else 50_000)
    console.print(f"{len(data[0]):,} characters to train on, {len(data[1]):,} to validate")
    results: Results = {}
    try:
        store = Store(args.out / "regularised.json")
        with progress() as bar:
            for variant in args.variants:
                line = bar.add_task(variant, total=args.seeds * args.epochs)
                for seed in range(args.seeds):
                    settings = [variant, seed, args.epochs, args.hidden]
                    one = store.get(
                        [*settings, VARIANTS[variant], args.characters],
                        lambda s=settings, line=line: run(*s, data, lambda: bar.advance(line)),
                    )
                    results.setdefault(variant, []).append(one)
                    bar.update(line, completed=(seed + 1) * args.epochs)
    except InputError as fault:
        raise SystemExit(f"regularised: {fault}") from None
    report(results)
    draw(results, args.out / "regularised.png")
    console.print(f"wrote {args.out / 'regularised.png'}")


if __name__ == "__main__":
    main()
