"""One parameter at a time: runs that differ from a base configuration in a single value, kept as they finish."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

from checkpoint import InputError, write_atomically
from recipe.files import save_figure
from recipe.show import progress
from recipe.task import Config


class Store:
    """Results by key in one JSON file, written whole after each, so that an interrupted program goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, Any] = {}
        if path.exists():
            try:
                self.results = json.loads(path.read_text())
            except ValueError as fault:
                raise InputError(f"{path} is not a file of results; remove it to start anew") from fault

    def get(self, key: Any, run: Callable[[], Any]) -> Any:
        """The result that is kept for key, else that of run()."""
        name = json.dumps(key, sort_keys=True)
        if name not in self.results:
            self.results[name] = run()
            text = json.dumps(self.results, indent=0)
            write_atomically(self.path, lambda path: path.write_text(text) and None)
        return self.results[name]


@dataclass(frozen=True)
class Outcome:
    """A run of a sweep: result holds at least score, train and validation (losses by epoch)."""

    parameter: str
    value: Any
    result: Mapping[str, Any]


def sweep(
    base: Config, values: Mapping[str, Sequence[Any]], run: Callable[[Config], dict[str, Any]], store: Store
) -> list[Outcome]:
    """Runs the base configuration with each value of each parameter; what the store has is not run again."""
    plan = [(parameter, value) for parameter, options in values.items() for value in options]
    outcomes = []
    with progress() as bar:
        task = bar.add_task("sweep", total=len(plan))
        for parameter, value in plan:
            bar.update(task, description=f"{parameter} = {value}")
            config = replace(base, **{parameter: value})
            result = store.get(asdict(config), lambda config=config: run(config))
            outcomes.append(Outcome(parameter, value, result))
            bar.advance(task)
    return outcomes


def draw(outcomes: Sequence[Outcome], score: str, path: Path) -> None:
    """A row of pictures: validation curves by parameter; below, the score of each value."""
    parameters = list(dict.fromkeys(outcome.parameter for outcome in outcomes))
    figure, axes = plt.subplots(
        2, len(parameters), figsize=(3.6 * len(parameters), 6), squeeze=False, layout="constrained"
    )
    for parameter, (upper, lower) in zip(parameters, axes.T, strict=True):
        group = [outcome for outcome in outcomes if outcome.parameter == parameter]
        for outcome in group:
            upper.semilogy(outcome.result["validation"], label=str(outcome.value))
        upper.set(title=parameter, xlabel="epoch", ylabel="validation loss")
        upper.legend(fontsize="small")
        lower.plot([str(outcome.value) for outcome in group], [o.result["score"] for o in group], "o-")
        lower.set(xlabel=parameter, ylabel=score)
    save_figure(figure, path)
    plt.close(figure)
