"""How the cost model spreads layers over more cores than this machine has: `python -m bench.scaling`.

Nothing is timed. The kernels' own choice is asked for each number of cores; a barrier costs 0.4 µs and 0.1 µs more for
each thread that waits at it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import torch

import fastrnn  # noqa: F401  (loads the ops)
from bench.cases import Case
from bench.markdown import fill, table
from bench.report import duration

CORES = (1, 2, 8, 32, 64)
CASES = """
lstm-T100-B1-I128-H128 lstm-T100-B1-I1024-H1024 gru-T50-B16-I256-H256 lstm-T1000-B8-I128-H128 lstm-T50-B128-I1024-H1024
gru-T200-B1-I40-H256-bi
"""


class Plan(NamedTuple):
    threads: int
    directions: int  # at once
    row_parts: int
    unit_parts: int
    seconds: float


def plan(case: Case, cores: int) -> Plan:
    sizes = (case.cell, case.time, case.batch, case.input, case.hidden, case.bidirectional)
    return Plan(*torch.ops.fastrnn.plan(*sizes, cores))


def scaling_table() -> str:
    """Rows: cases; of each number of cores rows x units, the time of a step, and how much faster than one core."""
    rows = []
    for name in CASES.split():
        case = Case.parse(name)
        assert case is not None
        cells = [name]
        alone = plan(case, 1).seconds
        for cores in CORES:
            found = plan(case, cores)
            split = f"{found.row_parts} x {found.unit_parts}" + (
                " a direction" if found.directions == 2 else ""
            )
            cells.append(f"{split}, {duration(found.seconds / case.time)}, {alone / found.seconds:.1f}x")
        rows.append(cells)
    return table(["case", *(f"{cores} cores" if cores > 1 else "1 core" for cores in CORES)], rows)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.scaling", description=__doc__)
    parser.add_argument(
        "--write", type=Path, metavar="PAGE", help="put the table between the page's scaling marks"
    )
    args = parser.parse_args(argv)
    if args.write is None:
        print(scaling_table())
        return 0
    if not fill(args.write, {"scaling": scaling_table}):
        print(f"no scaling marks in {args.write}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
