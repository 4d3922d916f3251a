"""Capital letters restored in docstrings of Python's standard library, 1 to 400 characters long, with `lengths=`.

A bidirectional LSTM reads a docstring in lower case and says for each letter whether it was a capital. Compares one
training step with lengths=, with a PackedSequence and with padding alone, through fastrnn and torch.nn: time, loss and
gradients. Then trains with lengths= and prints precision, recall and F1 on files that took no part in training, beside
rules: capitals where sentences begin, and words as the training text has them most often. Draws lengths, times and
curves.

    python examples/ragged.py [--epochs 8] [--quick]
"""

from __future__ import annotations

import argparse
import ast
import re
import sysconfig
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import lightning as L
import matplotlib.pyplot as plt
import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torchmetrics.functional.classification import binary_f1_score, binary_precision, binary_recall

import fastrnn
from char_model import ALPHABET, INSTALLED, VOCABULARY
from recipe import Config, DiagnoseLoss, InputError, Task, fit, loader
from recipe.files import save_figure
from recipe.show import console, progress, table

CONFIG = Config(lr=1e-2, schedule="cosine", clip=1.0, dropout=0.3, epochs=8, batch=32, hidden=128)
LONGEST = 400  # characters of a docstring that are read
PADDING = 0  # as a character; those of ALPHABET begin at 1
NONE = -1.0  # the target where there is no letter
TESTS = {"test", "tests", "idle_test", "lib2to3"}  # folders whose docstrings are few, or there twice
SENTENCE = re.compile(r"(?:^|[.!?] )[^a-z]*([a-z])")
WORD = re.compile(r"[a-z]+")


def read_docstrings() -> list[list[str]]:
    """Those of files to train on (80 %), to validate and to test on (10 % each); none is there twice."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(path for path in folder.rglob("*.py") if not (INSTALLED | TESTS) & set(path.parts))
    parts: list[list[str]] = [[], [], []]
    known: set[str] = set()
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(0)).tolist()
    for count, place in enumerate(order):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the files' own syntax
            tree = ast.parse(files[place].read_text(encoding="utf-8", errors="replace"))
        for node in ast.walk(tree):
            if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            text = " ".join((ast.get_docstring(node) or "").split())[:LONGEST]
            if text and text.isascii() and text not in known:
                known.add(text)
                parts[max(0, count % 10 - 7)].append(text)
    if min(map(len, parts)) < 50:
        raise InputError(
            f"too few docstrings in {folder}: this Python is installed without its library's source"
        )
    return parts


def encode(texts: list[str]) -> tuple[Tensor, Tensor]:
    """ids [N, LONGEST] of the texts in lower case; targets [N, LONGEST], 1 for a capital, 0 for another letter"""
    ids = torch.full((len(texts), LONGEST), PADDING)
    targets = torch.full((len(texts), LONGEST), NONE)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = torch.tensor([ALPHABET.find(c) % VOCABULARY + 1 for c in text.lower()])
        targets[row, : len(text)] = torch.tensor([float(c.isupper()) if c.isalpha() else NONE for c in text])
    return ids, targets


class Restorer(nn.Module):
    """ids [B, T] -> logits [B, T]; rows end where the padding begins"""

    def __init__(self, layer: Callable[..., nn.LSTM], config: Config) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY + 1, 64, padding_idx=PADDING)
        self.rnn = layer(64, config.hidden, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Dropout(config.dropout), nn.Linear(2 * config.hidden, 1))

    def recur(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.rnn(x, lengths=lengths)[0]

    def forward(self, ids: Tensor) -> Tensor:
        lengths = (ids != PADDING).sum(1)
        return self.head(self.recur(self.embed(ids), lengths)).squeeze(-1)


class PackingRestorer(Restorer):
    def recur(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=x.shape[1])[0]


class PaddingRestorer(Restorer):
    """The reverse direction begins in the padding: not the same numbers."""

    def recur(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.rnn(x)[0]


WAYS: dict[str, Callable[[Config], Restorer]] = {
    "fastrnn, lengths=": lambda c: Restorer(fastrnn.LSTM, c),
    "fastrnn, PackedSequence": lambda c: PackingRestorer(fastrnn.LSTM, c),
    "fastrnn, padding alone": lambda c: PaddingRestorer(fastrnn.LSTM, c),
    "torch.nn, PackedSequence": lambda c: PackingRestorer(nn.LSTM, c),
    "torch.nn, padding alone": lambda c: PaddingRestorer(nn.LSTM, c),
}


def loss_of_letters(logits: Tensor, targets: Tensor) -> Tensor:
    letters = targets != NONE
    return nn.functional.binary_cross_entropy_with_logits(logits[letters], targets[letters])


def compare_ways(ids: Tensor, targets: Tensor, config: Config, batches: int) -> dict[str, tuple[float, ...]]:
    """Seconds of a training step, loss and the gradient's relative distance from torch.nn's PackedSequence."""
    torch.manual_seed(config.seed)
    models = {way: make(replace(config, dropout=0.0)) for way, make in WAYS.items()}
    for model in models.values():
        model.load_state_dict(models["fastrnn, lengths="].state_dict())
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    losses, gradients = {}, {}
    # gradients decay within the padding; as denormal numbers they would make padding alone three times slower still
    torch.set_flush_denormal(True)
    for rows in torch.randperm(len(ids))[: batches * config.batch].split(config.batch):
        longest = int((ids[rows] != PADDING).sum(1).max())
        x, y = ids[rows, :longest], targets[rows, :longest]
        for way, model in models.items():
            model.zero_grad()
            begin = time.perf_counter()
            loss = loss_of_letters(model(x), y)
            loss.backward()
            seconds[way].append(time.perf_counter() - begin)
            losses[way] = loss.item()
            gradients[way] = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.set_flush_denormal(False)
    right = gradients["torch.nn, PackedSequence"]
    apart = {way: float((found - right).norm() / right.norm()) for way, found in gradients.items()}
    for way in ("fastrnn, lengths=", "fastrnn, PackedSequence"):
        if not apart[way] < 1e-4:
            raise SystemExit(f"ragged: the gradients of {way} and torch.nn are {apart[way]:.1e} apart")
    return {way: (median(seconds[way]), losses[way], apart[way]) for way in WAYS}


def show_ways(ways: dict[str, tuple[float, ...]], config: Config) -> Table:
    out = table(
        f"A training step of {config.batch} docstrings", "way", "ms", "times", "loss", "gradient apart"
    )
    first = next(iter(ways.values()))[0]
    for way, (seconds, loss, apart) in ways.items():
        out.add_row(way, f"{seconds * 1e3:.1f}", f"{seconds / first:.2f}", f"{loss:.6f}", f"{apart:.0e}")
    return out


class Rules:
    """Capitals where sentences begin and, told a text to learn from, words as it has them most often elsewhere."""

    def __init__(self, texts: list[str] = ()) -> None:  # type: ignore[assignment]
        forms: dict[str, Counter[str]] = {}
        for text in texts:
            lower = text.lower()
            begins = {match.start(1) for match in SENTENCE.finditer(lower)}
            for match in WORD.finditer(lower):
                if match.start() not in begins:
                    forms.setdefault(match[0], Counter())[text[match.start() : match.end()]] += 1
        self.forms = {word: forms[word].most_common(1)[0][0] for word in forms}

    def restore(self, text: str) -> str:
        lower = text.lower()
        restored = WORD.sub(lambda match: self.forms.get(match[0], match[0]), lower)
        for match in SENTENCE.finditer(lower):
            place = match.start(1)
            restored = restored[:place] + restored[place].upper() + restored[place + 1 :]
        return restored


def restore(logits: Tensor, text: str) -> str:
    """logits [LONGEST]"""
    signs = zip(text.lower(), logits[: len(text)].tolist(), strict=True)
    return "".join(character.upper() if logit > 0 else character for character, logit in signs)


def score(name: str, restored: list[str], texts: list[str]) -> list[str]:
    found, right = ("".join(part) for part in (restored, texts))
    pairs = [(a.isupper(), b.isupper()) for a, b in zip(found, right, strict=True) if b.isalpha()]
    guess, truth = torch.tensor(pairs).long().T
    measures = (binary_precision, binary_recall, binary_f1_score)
    return [name, *(f"{float(measure(guess, truth)):.1%}" for measure in measures)]


def draw(texts: list[str], ways: dict[str, tuple[float, ...]], curves: DiagnoseLoss, path: Path) -> None:
    figure, axes = plt.subplots(1, 3, figsize=(15, 4), layout="constrained")
    axes[0].hist([len(text) for text in texts], bins=40)
    axes[0].set(title="Docstrings to train on", xlabel="characters", ylabel="docstrings")
    milliseconds = [seconds * 1e3 for seconds, *_ in ways.values()]
    bars = axes[1].barh(list(ways), milliseconds)
    axes[1].bar_label(bars, fmt="%.0f", padding=2)
    axes[1].invert_yaxis()
    axes[1].set(title="A training step", xlabel="ms")
    axes[2].plot(range(1, len(curves.train) + 1), curves.train, "o-", label="training")
    axes[2].plot(range(1, len(curves.validation) + 1), curves.validation, "o-", label="validation")
    axes[2].set(title="Cross entropy of letters", xlabel="epoch", ylim=0)
    axes[2].legend()
    save_figure(figure, path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--epochs", type=int, default=CONFIG.epochs)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error("--epochs must be positive")
    config = replace(CONFIG, epochs=args.epochs, seed=args.seed)
    try:
        train, validation, test = read_docstrings()
    except InputError as fault:
        raise SystemExit(f"ragged: {fault}") from None
    if args.quick:
        config = replace(config, epochs=3, hidden=64, batch=16)
        train, validation, test = train[:1000], validation[:200], test[:200]
    mean = sum(map(len, train)) / len(train)
    console.print(
        f"docstrings: {len(train)} to train, {len(validation)} to validate, {len(test)} to test; "
        f"{mean:.0f} characters on average, {max(map(len, train))} at most"
    )
    tensors = encode(train)
    ways = compare_ways(*tensors, config, 2 if args.quick else 15)
    console.print(show_ways(ways, config))

    L.seed_everything(config.seed, verbose=False)
    task, curves = Task(Restorer(fastrnn.LSTM, config), config, loss_of_letters), DiagnoseLoss()
    loaders = loader(*tensors, config.batch, shuffle=True), loader(*encode(validation), config.batch)
    try:
        with progress() as bar:
            line = bar.add_task("training", total=config.epochs)
            fit(task, *loaders, [curves], "cpu", lambda: bar.advance(line))
    except FloatingPointError as fault:
        raise SystemExit(f"ragged: {fault}") from None
    logits = task.predict(encode(test)[0], config.batch)
    rules = {"sentences' first letters": Rules(), "and words as in training": Rules(train)}
    restored = {name: [rule.restore(text) for text in test] for name, rule in rules.items()}
    restored["LSTM"] = [restore(row, text) for row, text in zip(logits, test, strict=True)]
    out = table("Capitals of the test", "method", "precision", "recall", "F1")
    for name, texts in restored.items():
        out.add_row(*score(name, texts, test))
    console.print(out)
    for place in range(0, len(test), len(test) // 3 + 1):
        console.print(f"  was  {test[place][:90]}\n  is   {restored['LSTM'][place][:90]}", markup=False)
    draw(train, ways, curves, args.out / "ragged.png")
    console.print(f"wrote {args.out / 'ragged.png'}")


if __name__ == "__main__":
    main()
