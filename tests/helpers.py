"""Pairs of modules with equal weights, one way to run them, and comparison of every result by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn._spec import FAMILIES

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
DTYPE_NAMES = {F32: "f32", F64: "f64", BF16: "bf16", F16: "f16"}
CELLS = ("lstm", "lstm_proj", "gru", "rnn_tanh", "rnn_relu")
LAYOUTS = ("padded", "packed", "unsorted", "unbatched")

Results = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """One module and one shape of input. "unsorted" is a PackedSequence that had to be sorted."""

    cell: str = "lstm"
    batch: int = 3
    time: int = 5
    input: int = 4
    hidden: int = 6
    layers: int = 1
    bidirectional: bool = False
    bias: bool = True
    batch_first: bool = False
    layout: str = "padded"
    dtype: torch.dtype = F64
    state: bool = True
    reset_after: bool = True
    activation: str = "tanh"
    layer_norm: bool = False
    heads: int = 1

    def __str__(self) -> str:
        parts = [self.cell, f"B{self.batch}", f"T{self.time}", f"I{self.input}", f"H{self.hidden}"]
        parts += [f"L{self.layers}"] * (self.layers > 1)
        parts += ["bi"] * self.bidirectional + ["nobias"] * (not self.bias) + ["bf"] * self.batch_first
        parts += [self.layout] * (self.layout != "padded") + ["nostate"] * (not self.state)
        parts += ["before"] * (not self.reset_after) + [self.activation] * (self.activation != "tanh")
        parts += ["ln"] * self.layer_norm + [f"heads{self.heads}"] * (self.heads > 1)
        return "-".join([*parts, DTYPE_NAMES[self.dtype]])

    @property
    def kind(self) -> str:
        return self.cell.split("_")[0]

    @property
    def choice(self) -> tuple[bool | str, ...]:
        """The values of the cell's own options."""
        own = {
            "nonlinearity": self.cell.removeprefix("rnn_"),
            "reset_after": self.reset_after,
            "activation": self.activation,
            "layer_norm": self.layer_norm,
        }
        return tuple(own.get(option.name, option.default) for option in FAMILIES[self.kind].options)

    @property
    def projection(self) -> int:
        return max(1, self.hidden // 2) if self.cell == "lstm_proj" else 0

    @property
    def width(self) -> int:
        return self.projection or self.hidden

    @property
    def directions(self) -> int:
        return 2 if self.bidirectional else 1

    @property
    def packed(self) -> bool:
        return self.layout in ("packed", "unsorted")

    @property
    def outputs(self) -> tuple[str, ...]:
        return ("y", "h_n", "c_n") if self.kind == "lstm" else ("y", "h_n")

    @property
    def plain(self) -> bool:
        """Whether torch.nn has it."""
        return self.reset_after and self.activation == "tanh" and not self.layer_norm and self.heads == 1

    @property
    def operands(self) -> tuple[str, ...]:
        """Parameters of a layer and direction that torch.nn lacks."""
        if not self.layer_norm:
            return ()
        gains = ("ln_ih_weight", "ln_hh_weight")
        return (*gains, "ln_c_weight", "ln_c_bias") if self.kind == "lstm" else gains

    def but(self, **changes: Any) -> Case:
        return replace(self, **changes)


def module_arguments(case: Case) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "input_size": case.input,
        "hidden_size": case.hidden,
        "num_layers": case.layers,
        "bias": case.bias,
        "batch_first": case.batch_first,
        "bidirectional": case.bidirectional,
        "dtype": case.dtype,
    }
    if case.projection:
        arguments["proj_size"] = case.projection
    if case.kind == "rnn":
        arguments["nonlinearity"] = case.cell.removeprefix("rnn_")
    return arguments


def torch_module(case: Case) -> nn.RNNBase:
    return getattr(nn, case.kind.upper())(**module_arguments(case))


def fast_module(case: Case) -> nn.RNNBase:
    options: dict[str, Any] = {} if case.activation == "tanh" else {"activation": case.activation}
    if not case.reset_after:
        options["reset_after"] = False
    if case.layer_norm:
        options["layer_norm"] = True
    if case.heads > 1:
        options["heads"] = case.heads
    module: nn.RNNBase = getattr(fastrnn, case.kind.upper())(**module_arguments(case), **options)
    generator = torch.Generator().manual_seed(len(str(case)))
    for name, parameter in module.named_parameters():
        if name.startswith(case.operands):  # unlike what they begin as
            parameter.data.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
    return module


def module_pair(case: Case) -> tuple[nn.RNNBase, nn.RNNBase]:
    """A fastrnn module and a torch.nn module with equal weights."""
    fast, plain = fast_module(case), torch_module(case)
    plain.load_state_dict(fast.state_dict(), strict=True)
    return fast, plain


@dataclass
class Inputs:
    """Leaf tensors and, for packed layouts, the lengths."""

    x: Tensor
    h0: Tensor | None = None
    c0: Tensor | None = None
    lengths: Tensor | None = None

    def to(self, dtype: torch.dtype) -> Inputs:
        def cast(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.detach().to(dtype)

        x = cast(self.x)
        assert x is not None
        return Inputs(x, cast(self.h0), cast(self.c0), self.lengths)

    def state(self) -> Any:
        if self.h0 is None:
            return None
        return self.h0 if self.c0 is None else (self.h0, self.c0)


def make_lengths(case: Case) -> Tensor | None:
    if not case.packed:
        return None
    lengths = torch.tensor([max(1, case.time - 2 * index) for index in range(case.batch)])
    return lengths if case.layout == "packed" else lengths.roll(1)


def make_inputs(case: Case, seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=F64).to(case.dtype)

    rows = case.layers * case.directions
    if case.layout == "unbatched":
        x = normal(case.time, case.input)
        h0, c0 = normal(rows, case.width), normal(rows, case.hidden)
    else:
        lead = (case.batch, case.time) if case.batch_first else (case.time, case.batch)
        x = normal(*lead, case.input)
        h0, c0 = normal(rows, case.batch, case.width), normal(rows, case.batch, case.hidden)
    return Inputs(
        x,
        h0 if case.state else None,
        c0 if case.state and case.kind == "lstm" else None,
        make_lengths(case),
    )


def pack(x: Tensor, lengths: Tensor | None, batch_first: bool) -> Tensor | PackedSequence:
    if lengths is None:
        return x
    return pack_padded_sequence(x, lengths, batch_first=batch_first, enforce_sorted=False)


def flat_outputs(outputs: Any) -> tuple[Tensor, ...]:
    """(y, h_n) or (y, (h_n, c_n)) as a flat tuple of tensors, the packed data for a PackedSequence."""
    y, state = outputs
    y = y.data if isinstance(y, PackedSequence) else y
    return (y, *state) if isinstance(state, tuple) else (y, state)


def cotangent(name: str, like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return torch.randn(like.shape, generator=generator, dtype=F64).to(like.dtype)


Forward = Callable[[Any, Any], Any]


def run(
    forward: Forward,
    parameters: Iterable[tuple[str, Tensor]],
    inputs: Inputs,
    *,
    batch_first: bool = False,
    feed: Sequence[str] = ("y", "h_n", "c_n"),
) -> Results:
    """Outputs and, as d_<name>, the gradients that the outputs named in feed send to every leaf."""
    leaves = {"x": inputs.x, "h0": inputs.h0, "c0": inputs.c0}
    leaves = {k: v.detach().clone().requires_grad_() for k, v in leaves.items() if v is not None}
    named = {name: p for name, p in parameters if p.requires_grad}
    fresh = Inputs(leaves["x"], leaves.get("h0"), leaves.get("c0"), inputs.lengths)
    outputs = flat_outputs(forward(pack(fresh.x, fresh.lengths, batch_first), fresh.state()))
    results = dict(zip(("y", "h_n", "c_n"), outputs, strict=False))
    fed = {name: results[name] for name in feed if name in results}
    targets = {**leaves, **named}
    gradients = torch.autograd.grad(
        list(fed.values()),
        list(targets.values()),
        [cotangent(name, value) for name, value in fed.items()],
        materialize_grads=True,
    )
    found = {name: value.detach() for name, value in results.items()}
    return found | {f"d_{name}": g for name, g in zip(targets, gradients, strict=True)}


@contextmanager
def threads_for(module: nn.Module) -> Iterator[None]:
    """Two threads for a fastrnn module; torch's own keep what they have."""
    threads = torch.get_num_threads()
    if type(module).__module__.startswith("fastrnn"):
        torch.set_num_threads(2)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run_module(module: nn.Module, case: Case, inputs: Inputs, **options: Any) -> Results:
    with threads_for(module):
        return run(module, module.named_parameters(), inputs, batch_first=case.batch_first, **options)


def run_forward(module: nn.Module, case: Case, inputs: Inputs) -> Results:
    """Outputs alone, without a graph."""
    with torch.no_grad(), threads_for(module):
        outputs = flat_outputs(module(pack(inputs.x, inputs.lengths, case.batch_first), inputs.state()))
    return dict(zip(("y", "h_n", "c_n"), outputs, strict=False))


def reference_forward(case: Case, parameters: dict[str, Tensor], masks: Sequence[Tensor] = ()) -> Forward:
    """A stack of fastrnn.reference layers that is called as a torch.nn module is; masks of each layer and direction."""

    weights = ["weight_ih", "weight_hh"] + ["bias_ih", "bias_hh"] * case.bias
    weights += ["weight_hr"] * bool(case.projection)

    def of_layer(kinds: Sequence[str], layer: int) -> list[Tensor]:
        suffixes = ["", "_reverse"][: case.directions]
        return [parameters[f"{kind}_l{layer}{suffix}"] for suffix in suffixes for kind in kinds]

    def one_layer(x: Tensor, h0: Any, c0: Any, layer: int, sizes: Any, first: bool) -> Any:
        family = FAMILIES[case.kind]
        flags = (case.bias, first, case.bidirectional)
        states = (h0, c0)[: family.states]
        given = of_layer(weights, layer), sizes, of_layer(case.operands, layer)
        own = masks[layer * case.directions : (layer + 1) * case.directions]
        return family.reference(x, *states, *given, *flags, *case.choice, own)

    def forward(x: Any, state: Any) -> Any:
        packed, unbatched = isinstance(x, PackedSequence), case.layout == "unbatched"
        states = () if state is None else state if isinstance(state, tuple) else (state,)
        sizes = x.batch_sizes if packed else None
        rows = x.data if packed else x
        if unbatched:
            rows = rows.unsqueeze(0 if case.batch_first else 1)
            states = tuple(s.unsqueeze(1) for s in states)
        if packed and x.sorted_indices is not None:
            states = tuple(s.index_select(1, x.sorted_indices) for s in states)
        finals = []
        for layer in range(case.layers):
            part = slice(layer * case.directions, (layer + 1) * case.directions)
            h0, c0 = ([s[part] for s in states] + [None, None])[:2]
            rows, *final = one_layer(rows, h0, c0, layer, sizes, case.batch_first and not packed)
            finals.append(final)
        ends = tuple(torch.cat(parts) for parts in zip(*finals, strict=True))
        if packed and x.unsorted_indices is not None:
            ends = tuple(s.index_select(1, x.unsorted_indices) for s in ends)
        if unbatched:
            rows = rows.squeeze(0 if case.batch_first else 1)
            ends = tuple(s.squeeze(1) for s in ends)
        return rows, ends if case.kind == "lstm" else ends[0]

    return forward


def run_reference(
    module: nn.Module, case: Case, inputs: Inputs, masks: Sequence[Tensor] = (), **options: Any
) -> Results:
    """The reference with a module's parameters."""
    parameters = dict(module.named_parameters())
    forward = reference_forward(case, parameters, masks)
    return run(forward, parameters.items(), inputs, batch_first=case.batch_first, **options)


def assert_same(actual: Results, expected: Results, *, rtol: float, atol: float) -> None:
    assert actual.keys() == expected.keys()
    for name, want in expected.items():
        got = actual[name]
        assert got.dtype == want.dtype, f"{name}: {got.dtype} is not {want.dtype}"
        assert got.shape == want.shape, f"{name}: {tuple(got.shape)} is not {tuple(want.shape)}"
        torch.testing.assert_close(
            got, want, rtol=rtol, atol=atol, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_bitwise(actual: Results, expected: Results) -> None:
    assert actual.keys() == expected.keys()
    for name, want in expected.items():
        assert torch.equal(actual[name], want), f"{name} differs"


def relative_error(actual: Tensor, exact: Tensor) -> float:
    """Largest error over the largest exact value."""
    if exact.numel() == 0:
        return 0.0
    actual, exact = actual.detach(), exact.detach()
    return float((actual.double() - exact).abs().max() / exact.abs().max().clamp_min(1e-30))


def fast_cell_pair(name: str, *sizes: int, **options: Any) -> tuple[nn.Module, nn.Module]:
    """Single-step modules with equal weights; name is a class, for RNNCell with "-nonlinearity"."""
    kind, _, nonlinearity = name.partition("-")
    if nonlinearity:
        options["nonlinearity"] = nonlinearity
    fast, plain = getattr(fastrnn, kind)(*sizes, **options), getattr(nn, kind)(*sizes, **options)
    plain.load_state_dict(fast.state_dict(), strict=True)
    return fast, plain


def run_cell(module: nn.Module, x: Tensor, states: Sequence[Tensor]) -> Results:
    """Outputs and gradients of a single-step module."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, *states)]
    state = None if not states else leaves[1] if len(states) == 1 else tuple(leaves[1:])
    outputs = module(leaves[0], state)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    results = dict(zip(("h", "c"), outputs, strict=False))
    targets = dict(zip(("x", "h0", "c0"), leaves, strict=False)) | dict(module.named_parameters())
    gradients = torch.autograd.grad(
        outputs,
        list(targets.values()),
        [cotangent(name, value) for name, value in results.items()],
        materialize_grads=True,
    )
    found = {name: value.detach() for name, value in results.items()}
    return found | {f"d_{name}": g for name, g in zip(targets, gradients, strict=True)}
