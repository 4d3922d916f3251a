"""What fastrnn aims at, held against a run: each line is met or missed, with its number."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.peers import SUBJECT
from bench.results import Result, Run, geometric_mean

_EXPORTS = ("torch", "compile", "onnxruntime", "openvino")
_TRAINERS = ("torch", "compile", "jax")


@dataclass(frozen=True)
class Verdict:
    """value is None where the run holds no case for the target."""

    what: str
    aim: float
    value: float | None
    where: str = ""

    @property
    def met(self) -> bool:
        return self.value is not None and self.value >= self.aim


def _mean(
    what: str, aim: float, results: Iterable[Result], measure: Callable[[Result], float | None]
) -> Verdict:
    return Verdict(f"{what}, geometric mean", aim, geometric_mean(measure(result) for result in results))


def _least(
    what: str, aim: float, results: Iterable[Result], measure: Callable[[Result], float | None]
) -> Verdict:
    values = {result.case: value for result in results if (value := measure(result)) is not None}
    if not values:
        return Verdict(f"{what}, every case", aim, None)
    worst = min(values, key=lambda case: values[case])
    return Verdict(f"{what}, every case", aim, values[worst], worst)


def verdicts(run: Run) -> list[Verdict]:
    """Every target that the run's modes say something about."""

    def of(mode: str, cell: str = "") -> list[Result]:
        return [result for result in run.results if result.mode == mode and cell in ("", result.cell)]

    def best(peers: tuple[str, ...]) -> Callable[[Result], float | None]:
        return lambda result: result.best_ratio(peers)

    def against(peer: str) -> Callable[[Result], float | None]:
        return lambda result: result.ratio(peer)

    def fraction(result: Result) -> float | None:
        return result.fraction

    def stream_object(result: Result) -> float | None:
        found, own = result.ratio("onnxruntime"), result.ratio("fastrnn-stream")
        return found / own if found and own else None

    def own(variant: str, over: str = SUBJECT) -> Callable[[Result], float | None]:
        return lambda result: result.speedup(variant, over)

    infer, train, quantized = of("infer"), of("train"), of("quantized")
    lines = [
        _least(
            "inference against the best of torch, compile, onnxruntime, openvino", 1.0, infer, best(_EXPORTS)
        ),
        _mean(
            "inference against the best of torch, compile, onnxruntime, openvino", 1.5, infer, best(_EXPORTS)
        ),
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
        _least("share of the limit, B >= 16", 0.85, (r for r in infer if r.batch >= 16), fraction),
        _least(
            "share of the limit, B 1, H >= 128",
            0.7,
            (r for r in infer if r.batch == 1 and r.hidden >= 128 and r.time > 1),
            fraction,
        ),
    ]
    return [line for line in lines if line.value is not None]
