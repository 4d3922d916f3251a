"""A character language model on the source of Python's standard library, with torch.nn and with fastrnn.

Both models start from the same weights and see the same batches; blocks of training steps take turns, so that
a drift of the machine's speed hits both. Prints the two loss curves, bits per character on files that were not
trained on, a sample, and the ratios of training and generation speed; writes a picture of the curves and times.

    python examples/char_lm.py [--cell lstm gru] [--steps 240] [--quick]
"""

from __future__ import annotations

import argparse
import copy
import math
import sysconfig
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

import fastrnn

LAYERS = {
    ("torch", "lstm"): nn.LSTM,
    ("torch", "gru"): nn.GRU,
    ("fastrnn", "lstm"): fastrnn.LSTM,
    ("fastrnn", "gru"): fastrnn.GRU,
}
ALPHABET = "\n" + "".join(map(chr, range(32, 127)))  # what else a file holds becomes the last class
VOCABULARY = len(ALPHABET) + 1
INSTALLED = {"site-packages", "dist-packages"}  # what is not the standard library's own
BLOCK = 10  # training steps before the other model's turn
EARLY = 20  # steps after which rounding errors have grown too little to show in the loss
State = Tensor | tuple[Tensor, ...] | None  # of a recurrent layer
console = Console()


class CharModel(nn.Module):
    """ids [T, B] -> logits [T, B, VOCABULARY]"""

    def __init__(self, layer: type[nn.Module], hidden: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 64)
        self.rnn = layer(64, hidden)
        self.head = nn.Linear(hidden, VOCABULARY)

    def forward(self, ids: Tensor, state: State = None) -> tuple[Tensor, State]:
        y, state = self.rnn(self.embed(ids), state)
        return self.head(y), state


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


def detach(state: State) -> State:
    if isinstance(state, tuple):
        return tuple(part.detach() for part in state)
    return None if state is None else state.detach()


def read_corpus(characters: int) -> tuple[Tensor, Tensor]:
    """(training, validation) ids of the standard library's source; every tenth file validates."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in folder.rglob("*.py") if not INSTALLED & set(path.parts))
    if len(files) < 10:
        raise SystemExit(
            f"no Python source to train on in {folder}: this Python is installed without its library's source"
        )
    ids = torch.full((0x110000,), VOCABULARY - 1, dtype=torch.uint8)
    ids[[ord(character) for character in ALPHABET]] = torch.arange(len(ALPHABET), dtype=torch.uint8)
    parts: tuple[list[Tensor], list[Tensor]] = [], []
    sizes = [0, 0]
    limits = characters, characters // 10
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
    for place in order:
        which = int(place % 10 == 0)
        if sizes[which] >= limits[which]:
            continue
        text = files[place].read_text(encoding="utf-8", errors="replace")
        parts[which].append(ids[[ord(character) for character in text]])
        sizes[which] += len(text)
    train, validation = (torch.cat(part).long()[:limit] for part, limit in zip(parts, limits, strict=True))
    return train, validation


def batches(data: Tensor, batch: int, time_steps: int) -> Tensor:
    """[count, T + 1, B]: B streams, cut so that each batch goes on where the last one ended."""
    length = (len(data) - 1) // batch
    streams = data[: length * batch].view(batch, length).t()
    return streams.unfold(0, time_steps + 1, time_steps).transpose(1, 2)


@torch.inference_mode()
def bits_per_character(model: CharModel, data: Tensor) -> float:
    total, count, state = 0.0, 0, None
    for chunk in batches(data, 32, 200):
        logits, state = model(chunk[:-1], state)
        total += nn.functional.cross_entropy(
            logits.flatten(0, 1), chunk[1:].flatten(), reduction="sum"
        ).item()
        count += chunk[1:].numel()
    return total / count / math.log(2)


@torch.inference_mode()
def generate(model: CharModel, prompt: str, length: int, seed: int) -> tuple[str, float]:
    """(text, seconds a character), one character at a time."""
    random = torch.Generator().manual_seed(seed)
    logits, state = model(torch.tensor([[ALPHABET.index(character)] for character in prompt]))
    text, begin = prompt, time.perf_counter()
    for _ in range(length):
        chances = torch.softmax(logits[-1, 0] / 0.7, 0)
        index = int(torch.multinomial(chances, 1, generator=random))
        text += (ALPHABET + "?")[index]
        logits, state = model(torch.tensor([[index]]), state)
    return text, (time.perf_counter() - begin) / length


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
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--cell", nargs="+", choices=("lstm", "gru"), default=["lstm", "gru"])
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--time-steps", type=int, default=100, help="characters a step goes back")
    parser.add_argument("--generate", type=int, default=400, help="characters to time the generation on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out" / "char_lm.png")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.hidden, args.generate = 12, 64, 40
    if min(args.steps, args.hidden, args.batch, args.time_steps, args.generate) < 1:
        parser.error("sizes must be positive")
    train_ids, validation_ids = read_corpus(100_000 if args.quick else 1_000_000)
    console.print(
        f"{len(train_ids):,} characters to train on, {len(validation_ids):,} to validate; "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads",
        highlight=False,
    )
    results = {}
    for cell in args.cell:
        runners = train(cell, args, train_ids)
        results[cell] = runners, report(cell, runners, validation_ids, args)
    draw(results, args.out)


if __name__ == "__main__":
    main()
