"""A character language model on the source of Python's standard library.

Without --checkpoint: torch.nn and fastrnn side by side. Both models start from the same weights and see the same
batches; blocks of training steps take turns, so that a drift of the machine's speed hits both. Prints the two loss
curves, bits per character on files that were not trained on, a sample, and the ratios of training and generation
speed; writes a picture.

    python examples/char_lm.py [--cell lstm gru] [--steps 240] [--quick]

With --checkpoint: one fastrnn model, for as long as you like. The file is written every --every steps; the same command
goes on where it ended. --sample writes text with what was learned. torchrun shares each batch among processes.

    python examples/char_lm.py --checkpoint char.pt --steps 2000
    python examples/char_lm.py --checkpoint char.pt --sample 500 --prompt "class "
    torchrun --nproc-per-node 2 examples/char_lm.py --checkpoint char.pt --steps 2000
"""

from __future__ import annotations

import argparse
import copy
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn

from char_model import LAYERS, CharModel, State, batches, bits_per_character, detach, generate, read_corpus
from char_train import sample, train_one
from checkpoint import InputError

BLOCK = 10  # training steps before the other model's turn
EARLY = 20  # steps after which rounding errors have grown too little to show in the loss
console = Console()


@dataclass
class Runner:
    """One model in training."""

    name: str
    model: CharModel
    optimizer: torch.optim.Optimizer
    state: State = None
    seconds: list[float] = field(default_factory=list)  # of each step
    losses: list[float] = field(default_factory=list)  # bits per character

    def step(self, ids: Tensor, targets: Tensor) -> None:
        begin = time.perf_counter()
        logits, state = self.model(ids, self.state)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.state = detach(state)
        self.seconds.append(time.perf_counter() - begin)
        self.losses.append(loss.item() / math.log(2))


def train(cell: str, args: argparse.Namespace, data: Tensor) -> dict[str, Runner]:
    """Both models of one cell, from the same weights, on the same batches."""
    torch.manual_seed(args.seed)
    first = CharModel(LAYERS["torch", cell], args.hidden)
    second = CharModel(LAYERS["fastrnn", cell], args.hidden)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    runners = {
        name: Runner(name, model, torch.optim.Adam(model.parameters(), lr=4e-3))
        for name, model in (("torch", first), ("fastrnn", second))
    }
    chunks = batches(data, args.batch, args.time_steps)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, TextColumn("{task.fields[loss]}"), console=console) as progress:
        task = progress.add_task(f"training {cell.upper()} x 2", total=args.steps, loss="")
        for start in range(0, args.steps, BLOCK):
            block = [chunks[i % len(chunks)] for i in range(start, min(start + BLOCK, args.steps))]
            for runner in runners.values():
                for chunk in block:
                    runner.step(chunk[:-1], chunk[1:])
            losses = ", ".join(f"{runner.name} {runner.losses[-1]:.3f}" for runner in runners.values())
            progress.update(task, advance=len(block), loss=f"bits/char: {losses}")
    return runners


def report(
    cell: str, runners: dict[str, Runner], validation: Tensor, args: argparse.Namespace
) -> dict[str, float]:
    """Prints what came out; returns the times for the picture, in milliseconds."""
    ours, theirs = runners["fastrnn"], runners["torch"]
    console.print(f"\n[bold]{cell.upper()}[/], hidden {args.hidden}: training loss in bits per character")
    marks = sorted({*range(0, args.steps, max(1, args.steps // 8)), args.steps - 1})
    for step in marks:
        difference = abs(ours.losses[step] - theirs.losses[step])
        console.print(
            f"  step {step + 1:4}   torch {theirs.losses[step]:.6f}   fastrnn {ours.losses[step]:.6f}"
            f"   difference {difference:.1e}",
            highlight=False,
        )
    early = max(abs(a - b) for a, b in zip(ours.losses[:EARLY], theirs.losses[:EARLY], strict=True))
    console.print(f"  largest difference over the first {EARLY} steps: {early:.1e}", highlight=False)
    scores = {name: bits_per_character(runner.model, validation) for name, runner in runners.items()}
    console.print(
        f"  validation  torch {scores['torch']:.4f}   fastrnn {scores['fastrnn']:.4f}", highlight=False
    )
    turns = [
        {n: generate(r.model, "def ", args.generate, i)[1] for n, r in runners.items()} for i in range(5)
    ]
    speed = {name: median(turn[name] for turn in turns) for name in runners}
    text, _ = generate(ours.model, "def ", 300, args.seed)
    console.print("  a sample of fastrnn's model:", highlight=False)
    for line in text.splitlines()[:10]:
        console.print("    | " + line[:72], highlight=False, markup=False)
    times = {
        "train torch": median(theirs.seconds) * 1e3,
        "train fastrnn": median(ours.seconds) * 1e3,
        "generate torch": speed["torch"] * 1e3,
        "generate fastrnn": speed["fastrnn"] * 1e3,
    }
    for what, unit in (("train", "ms a step"), ("generate", "ms a character")):
        before, after = times[f"{what} torch"], times[f"{what} fastrnn"]
        console.print(
            f"  {what:9} torch {before:8.3f}   fastrnn {after:8.3f} {unit}: [bold]{before / after:.2f} x[/]",
            highlight=False,
        )
    return times


def draw(results: dict[str, tuple[dict[str, Runner], dict[str, float]]], path: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(15, 4.5), width_ratios=[2, 1, 1], layout="constrained")
    colours = {"torch": "tab:gray", "fastrnn": "tab:orange"}
    for cell, (runners, _) in results.items():
        style = "-" if cell == "lstm" else "--"
        for name, runner in runners.items():
            axes[0].plot(
                runner.losses,
                style,
                color=colours[name],
                lw=3 if name == "torch" else 1.2,
                label=f"{name} {cell.upper()}",
            )
    axes[0].set(
        xlabel="training step",
        ylabel="bits per character",
        title="Training loss from the same weights and batches",
    )
    axes[0].legend()
    for axis, what, unit in ((axes[1], "train", "ms a step"), (axes[2], "generate", "ms a character")):
        for place, (_, times) in enumerate(results.values()):
            before, after = times[f"{what} torch"], times[f"{what} fastrnn"]
            axis.bar(place - 0.2, before, 0.38, color=colours["torch"])
            axis.bar(place + 0.2, after, 0.38, color=colours["fastrnn"])
            axis.annotate(f"{before / after:.1f} x", (place + 0.2, after), ha="center", va="bottom")
        axis.set_xticks(range(len(results)), [cell.upper() for cell in results])
        axis.set(ylabel=unit, title={"train": "Training", "generate": "Generation"}[what])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    console.print(f"\nwrote {path}", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--cell", nargs="+", choices=("lstm", "gru"), help="default: both; the LSTM with --checkpoint"
    )
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--time-steps", type=int, default=100, help="characters a step goes back")
    parser.add_argument("--generate", type=int, default=400, help="characters to time the generation on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "char_lm.png")
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="train one model, kept in FILE")
    parser.add_argument("--every", type=int, default=100, help="steps from one checkpoint to the next")
    parser.add_argument(
        "--sample", type=int, metavar="LENGTH", help="write characters with the model in --checkpoint"
    )
    parser.add_argument("--prompt", default="def ", help="what the sample begins with")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.hidden, args.generate = min(args.steps, 12), min(args.hidden, 64), 40
    sizes = (
        args.steps,
        args.hidden,
        args.batch,
        args.time_steps,
        args.generate,
        args.every,
        args.sample or 1,
    )
    if min(sizes) < 1:
        parser.error("sizes must be positive")
    if args.sample and not args.checkpoint:
        parser.error("--sample needs a --checkpoint")
    if args.checkpoint:
        try:
            sample(args) if args.sample else train_one(args)
        except InputError as fault:
            raise SystemExit(f"char_lm: {fault}") from None
        return
    compare(args)


def compare(args: argparse.Namespace) -> None:
    train_ids, validation_ids = read_corpus(100_000 if args.quick else 1_000_000)
    console.print(
        f"{len(train_ids):,} characters to train on, {len(validation_ids):,} to validate; "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads",
        highlight=False,
    )
    results = {}
    for cell in args.cell or ("lstm", "gru"):
        runners = train(cell, args, train_ids)
        results[cell] = runners, report(cell, runners, validation_ids, args)
    draw(results, args.out)


if __name__ == "__main__":
    main()
