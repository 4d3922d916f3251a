"""One hyperparameter at a time: a recurrent digit reader, varied from a base configuration, judged on validation.

Each run is kept in out/tune.json as it finishes; after an interruption the same command goes on. Prints the validation
loss and accuracy of each value and draws the curves.

    python examples/tune.py [--model lstm] [--parameters lr batch ...] [--quick]
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from digits import CONFIG, MODELS, Data, accuracy, read_digits, train
from recipe import Config, InputError, Store, sweep
from recipe.show import console, table
from recipe.sweep import Outcome, draw

VALUES: dict[str, list[Any]] = {
    "lr": [3e-4, 1e-3, 3e-3, 1e-2, 3e-2],
    "batch": [8, 32, 128, 512],
    "hidden": [16, 64, 128, 256],
    "optimizer": ["adam", "rmsprop", "adagrad", "sgd", "nesterov"],
    "schedule": ["constant", "cosine", "step", "restarts"],
    "dropout": [0.0, 0.2, 0.5],
    "weight_decay": [0.0, 1e-5, 1e-4, 1e-3],
    "clip": [0.0, 0.5, 5.0, 15.0],
}
RATES = {"sgd": 0.1, "nesterov": 0.1, "adagrad": 0.03, "rmsprop": 1e-3}  # each optimizer's own scale


def run(model: str, config: Config, data: Data) -> dict[str, Any]:
    result = train(model, config, data, "cpu", lambda: None)
    images, labels = data.validation
    diagnosis = result.curves.diagnosis
    return {
        "score": accuracy(result.task.predict(images), labels),
        "train": result.curves.train,
        "validation": result.curves.validation,
        "case": diagnosis.label if diagnosis else "",
        "seconds": result.seconds,
    }


def report(outcomes: list[Outcome]) -> None:
    out = table("Validation", "parameter", "value", "lowest loss", "accuracy", "seconds", "the curves say")
    last = ""
    for outcome in outcomes:
        result = outcome.result
        out.add_row(
            outcome.parameter if outcome.parameter != last else "",
            str(outcome.value),
            f"{min(result['validation']):.4f}",
            f"{result['score']:.2%}",
            f"{result['seconds']:.1f}",
            result["case"],
        )
        last = outcome.parameter
    console.print(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--model", choices=tuple(MODELS), default="lstm")
    parser.add_argument(
        "--parameters", nargs="+", choices=tuple(VALUES), default=list(VALUES), metavar="NAME"
    )
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    parser.add_argument("--quick", action="store_true", help="a few seconds, to see that it works")
    args = parser.parse_args()
    if args.epochs < 1:
        parser.error("--epochs must be positive")
    values = {name: VALUES[name][:2] if args.quick else VALUES[name] for name in args.parameters}
    base = replace(CONFIG, epochs=4 if args.quick else args.epochs, patience=0)
    data = read_digits(base.seed)

    def run_own_rate(config: Config) -> dict[str, Any]:
        return run(args.model, replace(config, lr=RATES.get(config.optimizer, config.lr)), data)

    try:
        outcomes = sweep(base, values, run_own_rate, Store(args.out / f"tune_{args.model}.json"))
    except (FloatingPointError, InputError) as fault:
        raise SystemExit(f"tune: {fault}") from None
    report(outcomes)
    draw(outcomes, "validation accuracy", args.out / f"tune_{args.model}.png")
    console.print(f"wrote {args.out / f'tune_{args.model}.png'}")


if __name__ == "__main__":
    main()
