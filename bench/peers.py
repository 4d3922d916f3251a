"""The registry of ways to run a recurrent layer, and those among them that are torch modules."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch

from bench.cases import Mode
from bench.episodes import Ended, Marked, SplitAndPad, StepByStep
from bench.options import LOOPED, OPTIONS, build_loop, build_option
from bench.problem import Problem, make_module, outputs_of, torch_step
from bench.runner import Runner, Settings, Unsupported


@dataclass(frozen=True)
class Peer:
    """One way to run a recurrent layer."""

    name: str
    about: str
    packages: tuple[str, ...]  # distributions; the first one's version is the peer's
    build: Callable[[Problem, Settings], Runner]
    only: str = ""  # the flag of a Mode without which this peer says nothing

    def suits(self, mode: Mode) -> bool:
        own = bool(self.only) and bool(getattr(mode, self.only))
        if mode.peers and self.name not in mode.peers and not own:
            return False
        return own or not self.only

    def missing(self) -> list[str]:
        return [name for name in self.packages if importlib.util.find_spec(name) is None]

    def version(self) -> str:
        try:
            return importlib.metadata.version(self.packages[0])
        except importlib.metadata.PackageNotFoundError:
            return "from the source tree"

    def install_line(self) -> str:
        return "pip install " + ("." if self.name.startswith("fastrnn") else " ".join(self.missing()))


def torch_context(problem: Problem) -> Callable[[], AbstractContextManager[object]]:
    return torch.enable_grad if problem.mode.training else torch.inference_mode


def _torch_runner(module: torch.nn.Module, problem: Problem) -> Runner:
    return Runner(
        torch_step(module, problem), lambda result: outputs_of(result, problem), torch_context(problem)
    )


def _build_fastrnn(problem: Problem, _: Settings) -> Runner:
    module = _fastrnn_module(problem)
    return _torch_runner(module if problem.resets is None else Marked(module, problem.resets), problem)


def _fastrnn_module(problem: Problem) -> torch.nn.Module:
    return make_module(importlib.import_module("fastrnn"), problem)


def _on_one_thread(build: Callable[[Problem, Settings], Runner]) -> Callable[[Problem, Settings], Runner]:
    return lambda problem, settings: replace(build(problem, settings), threads=1)


def _build_fastrnn_padded(problem: Problem, _: Settings) -> Runner:
    if problem.case.bidirectional:
        raise Unsupported("without packing the reverse direction would begin in the padding")
    runner = _torch_runner(_fastrnn_module(problem), problem)
    runner.call = torch_step(_fastrnn_module(problem), problem, padded=True)
    runner.skip = ("h_n", "c_n")
    runner.note = "the padded batch, unpacked"
    return runner


def _build_fastrnn_lengths(problem: Problem, _: Settings) -> Runner:
    runner = _build_fastrnn(problem, _)
    assert problem.lengths is not None
    runner.call = torch_step(Ended(_fastrnn_module(problem), problem.lengths), problem, padded=True)
    return runner


def _build_unmarked(problem: Problem, _: Settings) -> Runner:
    runner = _torch_runner(_fastrnn_module(problem), problem)
    runner.skip = tuple(problem.reference)
    runner.note = "as if no row began anew"
    return runner


def _build_loop(library: str) -> Callable[[Problem, Settings], Runner]:
    def build(problem: Problem, _: Settings) -> Runner:
        assert problem.resets is not None
        module = make_module(importlib.import_module(library), problem)
        return _torch_runner(StepByStep(module, problem.resets), problem)

    return build


def _build_split(library: str) -> Callable[[Problem, Settings], Runner]:
    def build(problem: Problem, _: Settings) -> Runner:
        assert problem.resets is not None
        module = make_module(importlib.import_module(library), problem)
        runner = _torch_runner(SplitAndPad(module, problem.resets), problem)
        runner.skip = ("h_n", "c_n")
        return runner

    return build


def _build_fastrnn_stream(problem: Problem, _: Settings) -> Runner:
    fastrnn = importlib.import_module("fastrnn")
    stream = fastrnn.Stream(_fastrnn_module(problem), problem.case.batch)
    start = problem.state if len(problem.state) > 1 else problem.state[0]
    x = problem.x[0]

    def call() -> Any:
        stream.state = start
        for _ in range(problem.repeats):
            y = stream.step(x)
        return y[None], stream.state

    return Runner(call, lambda result: outputs_of(result, problem), torch_context(problem))


def _build_fastrnn_serial(problem: Problem, _: Settings) -> Runner:
    case = problem.case
    if not case.bidirectional:
        raise Unsupported("it has one direction")
    fastrnn = importlib.import_module("fastrnn")
    layers = []
    for index, inputs in enumerate(case.layer_inputs()):
        pair = []
        for weights in problem.layer_weights(index):
            module = getattr(fastrnn, case.cell.upper())(inputs, case.hidden)
            module.load_state_dict(dict(zip(module.state_dict(), weights, strict=True)))
            pair.append(module)
        layers.append(pair)

    def call() -> Any:
        y, states = problem.x, []
        for forwards, backwards in layers:
            first, h = forwards(y)
            second, h_reverse = backwards(y.flip(0))
            y = torch.cat([first, second.flip(0)], 2)
            states += [h, h_reverse]
        if len(problem.state) == 1:
            return y, torch.cat(states)
        return y, tuple(torch.cat(parts) for parts in zip(*states, strict=True))

    return Runner(call, lambda result: outputs_of(result, problem), torch_context(problem))


def _build_fastrnn_quantized(weights: str) -> Callable[[Problem, Settings], Runner]:
    def build(problem: Problem, _: Settings) -> Runner:
        fastrnn = importlib.import_module("fastrnn")
        return _torch_runner(fastrnn.quantize(_fastrnn_module(problem), weights), problem)

    return build


def _build_torch_bfloat16(problem: Problem, _: Settings) -> Runner:
    module = make_module(torch.nn, problem).bfloat16()
    return Runner(
        torch_step(module, problem, torch.bfloat16),
        lambda result: outputs_of(result, problem),
        torch_context(problem),
    )


def _build_torch_int8(problem: Problem, _: Settings) -> Runner:
    import torch.ao.quantization as quantization

    if problem.case.cell == "rnn":
        raise Unsupported("torch.ao quantizes no RNN")
    plain = make_module(torch.nn, problem)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        module = quantization.quantize_dynamic(torch.nn.Sequential(plain), {type(plain)})[0]
    x = problem.x

    def call() -> Any:
        return module(x)

    return Runner(call, lambda result: outputs_of(result, problem), torch.no_grad)


def _build_torch(problem: Problem, settings: Settings) -> Runner:
    if problem.resets is not None:
        return _build_loop("torch.nn")(problem, settings)
    return _torch_runner(make_module(torch.nn, problem), problem)


def _build_compiled(problem: Problem, settings: Settings) -> Runner:
    """Dynamo runs RNN modules eagerly unless `allow_rnn`, which unrolls time: a second or more a step."""
    case = problem.case
    steps = case.time * case.layers * case.directions
    unrolled = steps <= settings.unroll and not problem.mode.ragged
    # workers would go on using the cores that the next measurement needs
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    torch.compiler.reset()
    module = make_module(torch.nn, problem)
    with torch._dynamo.config.patch(allow_rnn=unrolled):
        compiled = torch.compile(module)
        assert isinstance(compiled, torch.nn.Module)
        runner = _torch_runner(compiled, problem)
        with runner.context():
            runner.call()
    runner.note = "time unrolled" if unrolled else "RNN modules run eagerly under torch.compile"
    return runner


def _build_from(module: str, build: str) -> Callable[[Problem, Settings], Runner]:
    """For modules whose packages may be missing."""

    def imported(problem: Problem, settings: Settings) -> Runner:
        runner: Runner = getattr(importlib.import_module(module), build)(problem, settings)
        return runner

    return imported


SUBJECT = "fastrnn"
BASELINE = "torch"

PEERS = {
    peer.name: peer
    for peer in (
        Peer("fastrnn", "fastrnn's modules", ("fastrnn",), _build_fastrnn),
        Peer(
            "fastrnn-padded",
            "packed modes: fastrnn over the padded batch",
            ("fastrnn",),
            _build_fastrnn_padded,
            only="ragged",
        ),
        Peer(
            "fastrnn-lengths",
            "packed modes: the padded batch and its lengths",
            ("fastrnn",),
            _build_fastrnn_lengths,
            only="ragged",
        ),
        Peer(
            "fastrnn-unmarked",
            "resets mode: without resets",
            ("fastrnn",),
            _build_unmarked,
            only="resets",
        ),
        Peer(
            "fastrnn-split",
            "resets mode: the pieces as one padded batch",
            ("fastrnn",),
            _build_split("fastrnn"),
            only="resets",
        ),
        Peer(
            "fastrnn-loop",
            "resets mode: a call for each step",
            ("fastrnn",),
            _build_loop("fastrnn"),
            only="resets",
        ),
        Peer(
            "fastrnn-stream",
            "stream mode: fastrnn.Stream",
            ("fastrnn",),
            _build_fastrnn_stream,
            only="stream",
        ),
        Peer(
            "fastrnn-serial",
            "bidirectional cases: one direction after the other, each on all threads",
            ("fastrnn",),
            _build_fastrnn_serial,
            only="plain",
        ),
        Peer(
            "fastrnn-bfloat16",
            "quantized mode: fastrnn.quantize",
            ("fastrnn",),
            _build_fastrnn_quantized("bfloat16"),
            only="quantized",
        ),
        Peer(
            "fastrnn-int8",
            "quantized mode: fastrnn.quantize",
            ("fastrnn",),
            _build_fastrnn_quantized("int8"),
            only="quantized",
        ),
        Peer(
            "fastrnn-1",
            "server mode: after torch.set_num_threads(1)",
            ("fastrnn",),
            _on_one_thread(_build_fastrnn),
            only="server",
        ),
        *(
            Peer(
                f"fastrnn-{name}",
                "options mode: with the option",
                ("fastrnn",),
                build_option(name),
                only="options",
            )
            for name in OPTIONS
        ),
        *(
            Peer(
                f"{way}-{name}",
                f"options mode: torch's operations in a loop{', compiled' * compiled}",
                ("torch",),
                build_loop(name, compiled),
                only="options",
            )
            for name in LOOPED
            for way, compiled in (("loop", False), ("compiled", True))
        ),
        Peer("torch", "torch.nn, eager; resets mode: a call for each step", ("torch",), _build_torch),
        Peer(
            "torch-split",
            "resets mode: the pieces as one padded batch",
            ("torch",),
            _build_split("torch.nn"),
            only="resets",
        ),
        Peer(
            "torch-1",
            "server mode: after torch.set_num_threads(1)",
            ("torch",),
            _on_one_thread(_build_torch),
            only="server",
        ),
        Peer(
            "torch-bfloat16",
            "quantized mode: torch.nn in bfloat16",
            ("torch",),
            _build_torch_bfloat16,
            only="quantized",
        ),
        Peer(
            "torch-int8",
            "quantized mode: torch.ao's dynamic quantization",
            ("torch",),
            _build_torch_int8,
            only="quantized",
        ),
        Peer("compile", "torch.nn under torch.compile", ("torch",), _build_compiled),
        Peer(
            "onnxruntime",
            "the layer as an ONNX graph",
            ("onnxruntime", "onnx"),
            _build_from("bench.peers_onnx", "build_onnxruntime"),
        ),
        Peer(
            "onnxruntime-int8",
            "quantized mode: onnxruntime's dynamic quantization",
            ("onnxruntime", "onnx"),
            _build_from("bench.peers_onnx", "build_onnxruntime_int8"),
            only="quantized",
        ),
        Peer(
            "openvino",
            "the same ONNX graph",
            ("openvino", "onnx"),
            _build_from("bench.peers_onnx", "build_openvino"),
        ),
        Peer("jax", "lax.scan under jit", ("jax",), _build_from("bench.peers_jax", "build_jax")),
    )
}
