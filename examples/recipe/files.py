"""Input that is refused in one sentence, and pictures."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from checkpoint import InputError, write_atomically


def save_figure(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda name: figure.savefig(name, dpi=110))


def read_series(path: Path, column: str | None = None, gaps: bool = False) -> pd.Series:
    """A column of a CSV file as numbers [T], the last column unless one is named.

    Refuses text, infinities and an empty series; also missing values, unless gaps says that they are expected.
    """
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    try:
        table = pd.read_csv(path)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as fault:
        raise InputError(f"{path} cannot be read as CSV: {str(fault).strip()}") from fault
    if column is None:
        column = str(table.columns[-1])
    if column not in table.columns:
        raise InputError(f"{path} has no column '{column}'; it has {', '.join(map(str, table.columns))}")
    return check_series(table[column], f"{path}, column '{column}'", gaps)


def check_series(series: pd.Series, name: str, gaps: bool = False) -> pd.Series:
    """series as float64 [T]; an InputError if it holds what cannot be trained on."""
    numbers = pd.to_numeric(series, errors="coerce").astype(float)
    text = numbers.isna() & series.notna()
    if text.any():
        row = int(np.argmax(text))
        raise InputError(f"{name}: row {row + 1} holds '{series.iloc[row]}', which is not a number")
    if numbers.notna().sum() == 0:
        raise InputError(f"{name} is empty: there is nothing to train on")
    if np.isinf(numbers).any():
        raise InputError(f"{name}: row {int(np.argmax(np.isinf(numbers))) + 1} is infinite")
    missing = numbers.isna()
    if missing.any() and not gaps:
        raise InputError(
            f"{name}: {int(missing.sum())} values are missing (NaN), the first in row {int(np.argmax(missing)) + 1}; "
            "--gaps fills them by interpolation"
        )
    return numbers
