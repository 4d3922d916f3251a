"""A character language model, the text that it learns, and what can be asked of it."""

from __future__ import annotations

import math
import sysconfig
import time
from pathlib import Path

import torch
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
State = Tensor | tuple[Tensor, ...] | None  # of a recurrent layer


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
