"""Audits a wheel and runs it: `python tools/check_wheel.py WHEEL [PYTHON ...]`.

The wheel must hold to Python's limited API and to LibTorch's stable ABI, record no folders of the machine that built
it, and work under each PYTHON given (default: this one), whose torch may be any from 2.11 on.
"""

import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

OPS, EXTENSION = "libfastrnn_ops.so", "_C.abi3.so"
SYSTEM_SYMBOLS = r".*@(GLIBC|GLIBCXX|CXXABI|GCC|GOMP|OMP)_[\w.]+$"
SYSTEM_LIBRARIES = r"lib(stdc\+\+|gcc_s|c|m|dl|rt|pthread)\.so\.\d$|ld-linux.*$"


@dataclass
class Expected:
    """What a library may ask of the loader beside the system's libraries, and what it offers."""

    symbols: str
    libraries: str
    exports: list[str]
    search_path: list[str]


LIBRARIES = {
    # torch's C functions
    OPS: Expected(
        r"aoti_torch_\w+$|torch_\w+$",
        r"libtorch_cpu\.so$|libgomp\.so\.1$",
        ["fastrnn_delete_watch", "fastrnn_has_moved", "fastrnn_step"],
        [],
    ),
    EXTENSION: Expected(
        r"Py[A-Z]\w+$|_Py_\w+$|fastrnn_(step|has_moved|delete_watch)$", OPS, ["PyInit__C"], ["$ORIGIN"]
    ),
}

SMOKE = """
import sys, torch, fastrnn
from pathlib import Path
assert Path(fastrnn.__file__).is_relative_to(sys.argv[1]), fastrnn.__file__
for name in "LSTM", "GRU", "RNN":
    ours, theirs = getattr(fastrnn, name)(5, 33, 2), getattr(torch.nn, name)(5, 33, 2)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(7, 3, 5)
    for layer in ours, theirs:
        layer(x)[0].square().sum().backward()
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])
    for (parameter, p), (_, q) in zip(ours.named_parameters(), theirs.named_parameters()):
        torch.testing.assert_close(p.grad, q.grad, msg=lambda text: f"{parameter}: {text}")
pools = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libgomp" in line}
assert len(pools) == 1, f"more than one OpenMP runtime: {pools}"
print(f"works under torch {torch.__version__}, Python {sys.version.split()[0]}; threads of {pools.pop()}")
"""

# the ops without the package
SMOKE_OPS = """
import sys, torch
torch.ops.load_library(sys.argv[1])
print(f"the ops alone run on {torch.ops.fastrnn.active_isa()}")
assert not any(name.partition(".")[0] == "fastrnn" for name in sys.modules)
"""


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def check_library(library: Path) -> None:
    expected = LIBRARIES[library.name]
    undefined = output("nm", "-D", "--undefined-only", str(library)).splitlines()
    # a weak symbol may stay undefined
    strong = [line.split()[-1] for line in undefined if line.split()[-2] == "U"]
    foreign = [symbol for symbol in strong if not re.match(f"{SYSTEM_SYMBOLS}|{expected.symbols}", symbol)]
    assert not foreign, f"{library.name}: symbols outside the stable ABIs: {foreign}"
    defined = [line.split()[-1] for line in output("nm", "-D", "--defined-only", str(library)).splitlines()]
    assert defined == expected.exports, f"{library.name}: exports {defined}"
    dynamic = output("readelf", "-d", str(library))
    search_path = re.findall(r"\((?:RPATH|RUNPATH)\).*\[(.*)\]", dynamic)
    assert search_path == expected.search_path, f"{library.name}: searches {search_path}"
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    foreign = [name for name in needed if not re.match(f"{SYSTEM_LIBRARIES}|{expected.libraries}", name)]
    assert not foreign, f"{library.name}: needs {foreign}"
    print(
        f"{library.name}: {len(strong)} symbols asked for, all in the stable ABIs; needs {', '.join(needed)}"
    )


def main(wheel: str, pythons: list[str]) -> None:
    assert re.match(r"fastrnn-[\d.]+-cp310-abi3-\w+\.whl$", Path(wheel).name), wheel
    tools = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        package = Path(folder, "fastrnn")
        subprocess.run([tools / "abi3audit", "--strict", "--summary", wheel], check=True)
        subprocess.run([tools / "torch-abi-audit", "--check", "both", package], check=True)
        assert {path.name for path in package.glob("*.so")} == set(LIBRARIES)
        for name in LIBRARIES:
            check_library(package / name)
        for python in pythons:
            smoke = f"import sys; sys.path.insert(0, sys.argv[1])\n{SMOKE}"
            subprocess.run([python, "-c", smoke, folder], cwd=folder, check=True)
            subprocess.run([python, "-c", SMOKE_OPS, package / OPS], cwd=folder, check=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] or [sys.executable])
