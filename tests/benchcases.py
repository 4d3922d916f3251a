"""Cases and made-up results for the tests of the bench suite."""

from bench.cases import Case
from bench.limits import Constants
from bench.results import Result, Run
from bench.timing import Timing

CONSTANTS = Constants(2, peak=1e11, bandwidth={1 << 16: 1e11, 1 << 24: 1e10}, handoff=1e-7, measured=False)


def case_of(name: str) -> Case:
    case = Case.parse(name)
    assert case is not None
    return case


def made_up(name: str, mode: str, **seconds: float) -> Result:
    """A result of these times."""
    case = case_of(name)
    result = Result(name, case.cell, mode, case.batch, case.time, case.hidden, limit=0.5, bound="weights")
    result.timings = {peer: Timing(time, time, time, [time], 0.0) for peer, time in seconds.items()}
    return result


def run_of(*results: Result) -> Run:
    versions = {peer: "1" for result in results for peer in result.timings}
    return Run({"cpu": "some", "cores": 2}, {"threads": 1}, CONSTANTS.to_json(), versions, list(results))
