"""What fastrnn aims at, held against a run: each line is met or missed, with its number."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.options import COMPILED_AIM, LOOP_AIM, LOOPED, OPTIONS
from bench.peers import SUBJECT
from bench.results import Result, Run, geometric_mean

_EXPORTS = ("torch", "onnxruntime", "openvino")
_TRAINERS = ("torch", "compile", "jax")


Measure = Callable[[Result], float | None]


@dataclass(frozen=True)
class Verdict:
    """value is None where the run holds no case for the target; cases: each one's value, the least first."""

    what: str
    aim: float
    value: float | None
    cases: tuple[tuple[str, float], ...] = ()

    @property
    def met(self) -> bool:
        return self.value is not None and self.value >= self.aim

    @property
    def where(self) -> str:
        """The least case, or every case below the aim with its value."""
        if self.met:
            return self.cases[0][0] if self.cases else ""
        return ", ".join(f"{case} {value:.3g}" for case, value in self.cases if value < self.aim)


def _mean(what: str, aim: float, results: Iterable[Result], measure: Measure) -> Verdict:
    return Verdict(f"{what}, geometric mean", aim, geometric_mean(measure(result) for result in results))


def _least(what: str, aim: float, results: Iterable[Result], measure: Measure) -> Verdict:
    values = [(result.case, value) for result in results if (value := measure(result)) is not None]
    values.sort(key=lambda pair: pair[1])
    return Verdict(f"{what}, every case", aim, values[0][1] if values else None, tuple(values))


def verdicts(run: Run) -> list[Verdict]:
    """Every target that the run's modes say something about."""

    def of(mode: str, cell: str = "") -> list[Result]:
        return [result for result in run.results if result.mode == mode and cell in ("", result.cell)]

    def best(peers: tuple[str, ...]) -> Measure:
        return lambda result: result.best_ratio(peers)

    def against(peer: str, figure: str = "") -> Measure:
        return lambda result: result.ratio(peer, figure)

    def fraction(result: Result) -> float | None:
        return result.fraction

    def stream_object(result: Result) -> float | None:
        found, own = result.ratio("onnxruntime"), result.ratio("fastrnn-stream")
        return found / own if found and own else None

    def own(variant: str, over: str = SUBJECT) -> Measure:
        return lambda result: result.speedup(variant, over)

    def calm(result: Result) -> float | None:
        subject = result.timings.get(SUBJECT)
        return subject.figures["quiet"] / subject.figures["p90"] if subject else None

    infer, train, quantized = of("infer"), of("train"), of("quantized")
    step, loop, options = of("cell-step"), of("cell-loop"), of("options")
    at_once, busy = [r for r in of("server") if "-x" in r.case], of("busy")
    lines = [
        _least("inference against the best of torch, onnxruntime, openvino", 1.0, infer, best(_EXPORTS)),
        _mean("inference against the best of torch, onnxruntime, openvino", 1.5, infer, best(_EXPORTS)),
        *(
            _mean(f"{cell} inference against torch", aim, of("infer", cell), against("torch"))
            for cell, aim in (("lstm", 2.0), ("gru", 2.5), ("rnn", 2.0))
        ),
        _least("training against the best of torch, compile, jax", 1.0, train, best(_TRAINERS)),
        *(
            _mean(
                f"{cell} training against the best of torch, compile, jax",
                aim,
                of("train", cell),
                best(_TRAINERS),
            )
            for cell, aim in (("lstm", 1.8), ("gru", 2.5), ("rnn", 2.5))
        ),
        _mean("packed against its own padded batch", 1 / 0.6, of("packed"), against("fastrnn-padded")),
        _mean(
            "packed training against its own padded batch",
            1 / 0.6,
            of("packed-train"),
            against("fastrnn-padded"),
        ),
        _mean("packed training against torch", 3.0, of("packed-train"), against("torch")),
        _least(
            "lengths against packing",
            0.95,
            of("packed") + of("packed-train"),
            own("fastrnn-lengths", SUBJECT),
        ),
        _least("resets against none", 1 / 1.05, of("resets-train"), own(SUBJECT, "fastrnn-unmarked")),
        _least("resets against torch step by step", 1.0, of("resets-train"), against("torch")),
        *(
            _least(
                f"the plain cell's time over that with {name}",
                1 / option.aim,
                options,
                own(f"fastrnn-{name}"),
            )
            for name, option in OPTIONS.items()
        ),
        *(
            _least(f"{name} against {what}", aim, options, own(f"fastrnn-{name}", f"{way}-{name}"))
            for name in LOOPED
            for way, what, aim in (
                ("loop", "a loop over steps", LOOP_AIM),
                ("compiled", "that loop compiled", COMPILED_AIM),
            )
        ),
        _least("one streaming step against onnxruntime", 1.0, of("stream"), against("onnxruntime")),
        _least("fastrnn.Stream against onnxruntime", 2.0, of("stream"), stream_object),
        _least("two directions at once against one after the other", 1.3, infer, against("fastrnn-serial")),
        _mean("bfloat16 weights against float32, B 1, H >= 512", 1.6, quantized, own("fastrnn-bfloat16")),
        _least(
            "bfloat16 weights against torch bfloat16",
            1.0,
            quantized,
            own("fastrnn-bfloat16", "torch-bfloat16"),
        ),
        _mean("int8 weights against float32, B 1, H >= 512", 2.5, quantized, own("fastrnn-int8")),
        _least("int8 weights against torch.ao", 1.0, quantized, own("fastrnn-int8", "torch-int8")),
        _least("int8 weights against onnxruntime's", 1.0, quantized, own("fastrnn-int8", "onnxruntime-int8")),
        _least("one step of a cell against torch", 1.0, step, against("torch")),
        _least("20 steps of a cell, forward and backward, against torch", 1.0, loop, against("torch")),
        _mean("cells against torch", 1.4, step + loop, against("torch")),
        _least("layers over 1, 2 and 4 steps against torch", 1.0, of("cell-short"), against("torch")),
        _least(
            "layers over 1, 2 and 4 steps, forward and backward, against torch",
            1.0,
            of("cell-short-train"),
            against("torch"),
        ),
        _least("several Python threads at once against torch", 1.0, at_once, against("torch")),
        _least(
            "several Python threads at once against one intra-op thread", 0.9, at_once, against("fastrnn-1")
        ),
        _least("p90 beside busy cores against torch's", 1.0, busy, against("torch", "p90")),
        _least("the worst p90 of a round against torch's worst", 1.0, busy, against("torch", "worst p90")),
        _least(
            "quiet median over the p90 beside busy cores, LSTM T100 B1 H128",
            0.5,
            (r for r in busy if r.case == "lstm-T100-B1-I128-H128"),
            calm,
        ),
        _least("share of the limit, B >= 16", 0.85, (r for r in infer if r.batch >= 16), fraction),
        _least(
            "share of the limit, B 1, H >= 128",
            0.7,
            (r for r in infer if r.batch == 1 and r.hidden >= 128 and r.time > 1),
            fraction,
        ),
    ]
    return [line for line in lines if line.value is not None]
