"""Each instruction set that this CPU has against the generic build, and how one is chosen."""

import os
import subprocess
import sys
from itertools import product

import pytest
import torch

from helpers import BF16, CELLS, F16, F32, F64, Case, assert_same, fast_module, make_inputs, run_module

OPS = torch.ops.fastrnn
PREFERENCE = ["amx", "avx512", "avx2", "generic"]
COMPILED = OPS.compiled_isas().split(",")
SUPPORTED = OPS.supported_isas().split(",")


def test_lists_are_in_order_of_preference() -> None:
    assert [name for name in PREFERENCE if name in COMPILED] == COMPILED
    assert [name for name in COMPILED if name in SUPPORTED] == SUPPORTED
    assert SUPPORTED[-1] == "generic"


def test_best_is_the_default() -> None:
    assert OPS.active_isa() == os.environ.get("FASTRNN_FORCE_ISA", SUPPORTED[0])


def test_force_and_return() -> None:
    for name in SUPPORTED:
        OPS.force_isa(name)
        assert OPS.active_isa() == name
    OPS.force_isa("")
    test_best_is_the_default()


@pytest.mark.parametrize("name", ["sse9", "AVX2", " avx2", "avx512 ", "none"])
def test_unknown_name_is_an_error(name: str) -> None:
    before = OPS.active_isa()
    with pytest.raises(RuntimeError, match=name.strip()):
        OPS.force_isa(name)
    assert OPS.active_isa() == before


def test_what_the_cpu_lacks_is_an_error() -> None:
    lacking = [name for name in PREFERENCE if name not in SUPPORTED]
    for name in lacking:
        with pytest.raises(RuntimeError, match=name):
            OPS.force_isa(name)


SIZES = [
    (3, 5, 4, 1),
    (1, 7, 3, 13),
    (5, 3, 6, 16),
    (4, 3, 5, 31),
    (9, 4, 17, 40),
    (2, 3, 3, 131),
    (33, 2, 9, 64),
]
TOLERANCES = {F64: 1e-12, F32: 1e-5, BF16: 4e-2, F16: 5e-3}


def _cases() -> list[Case]:
    found = []
    for cell, (batch, time, size, hidden), dtype in product(CELLS, SIZES, (F32, F64)):
        if cell == "lstm_proj" and hidden < 2:
            continue
        found.append(Case(cell, batch, time, size, hidden, bidirectional=dtype == F64, dtype=dtype))
    found += [Case(cell, 5, 4, 6, 21, layout="unsorted", dtype=F32, bidirectional=True) for cell in CELLS]
    found += [Case(cell, 5, 4, 6, 21, dtype=dtype) for cell in CELLS for dtype in (BF16, F16)]
    for activation, cell in product(("softsign", "relu", "hardtanh"), ("lstm", "gru")):
        found.append(Case(cell, 5, 4, 6, 21, activation=activation, dtype=F32))
    found += [
        Case("gru", *size, reset_after=False, layout=layout, dtype=dtype)
        for size, dtype, layout in product(SIZES, (F32, F64), ("padded", "packed"))
    ]
    return found


@pytest.mark.parametrize("case", _cases(), ids=str)
@pytest.mark.parametrize("isa", [name for name in SUPPORTED if name != "generic"] or ["generic"])
def test_equal_to_generic(isa: str, case: Case) -> None:
    module, inputs = fast_module(case), make_inputs(case)
    OPS.force_isa("generic")
    expected = run_module(module, case, inputs)
    OPS.force_isa(isa)
    actual = run_module(module, case, inputs)
    tolerance = TOLERANCES[case.dtype]
    scale = {name: max(1.0, float(value.abs().max())) for name, value in expected.items()}
    assert_same(
        {name: value / scale[name] for name, value in actual.items()},
        {name: value / scale[name] for name, value in expected.items()},
        rtol=tolerance,
        atol=tolerance,
    )


def test_backward_may_run_on_another_isa_than_forward() -> None:
    """The reserve has one layout for all."""
    case = Case("lstm", 5, 6, 4, 21, dtype=F32)
    module, inputs = fast_module(case), make_inputs(case)
    found = []
    for forward, backward in product(SUPPORTED, SUPPORTED):
        OPS.force_isa(forward)
        loss = module(inputs.x, inputs.state())[0].square().sum()
        OPS.force_isa(backward)
        found.append(torch.autograd.grad(loss, list(module.parameters())))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)


REPORT = (
    "import fastrnn, torch; fastrnn.GRU(2, 3)(torch.zeros(1, 1, 2)); print(torch.ops.fastrnn.active_isa())"
)


def _python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("name", SUPPORTED[1:] or SUPPORTED)
def test_environment_variable(name: str) -> None:
    result = _python(REPORT, FASTRNN_FORCE_ISA=name)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [name]


def test_environment_variable_with_an_unknown_name() -> None:
    name = "AVX2"
    result = _python(REPORT, FASTRNN_FORCE_ISA=name)
    assert result.returncode == 1, result.stdout  # an exception, not a crash
    assert name in result.stderr
    assert "FASTRNN_FORCE_ISA" in result.stderr


def test_info_names_the_active_isa() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "fastrnn.info"],
        env=os.environ | {"FASTRNN_FORCE_ISA": "generic"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for word in ("generic", "cuda", "threads"):
        assert word in result.stdout.lower()
