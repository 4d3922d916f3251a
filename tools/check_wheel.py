"""Audits a wheel and runs it: `python tools/check_wheel.py WHEEL [PYTHON ...]`.

The wheel must hold to Python's limited API and to LibTorch's stable ABI, record no folders of the machine that built
it, and work under each PYTHON given (default: this one), whose torch may be any from 2.11 on.
"""

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

# what a stable-ABI extension may ask of the loader: versioned system libraries, Python, and torch's C functions
ALLOWED = re.compile(
    r".*@(GLIBC|GLIBCXX|CXXABI|GCC|GOMP|OMP)_[\w.]+$|Py[A-Z]\w+$|_Py_\w+$|aoti_torch_\w+$|torch_\w+$"
)
NEEDED = re.compile(
    r"(libtorch_cpu\.so|libgomp\.so\.1|lib(stdc\+\+|gcc_s|c|m|dl|rt|pthread)\.so\.\d|ld-linux.*)$"
)

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


def output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def check_library(library: Path) -> None:
    undefined = output("nm", "-D", "--undefined-only", str(library)).splitlines()
    # a weak symbol may stay undefined
    strong = [line.split()[-1] for line in undefined if line.split()[-2] == "U"]
    foreign = [symbol for symbol in strong if not ALLOWED.match(symbol)]
    assert not foreign, f"symbols outside the stable ABIs: {foreign}"
    defined = [line.split()[-1] for line in output("nm", "-D", "--defined-only", str(library)).splitlines()]
    assert defined == ["PyInit__C"], f"exports {defined}"
    dynamic = output("readelf", "-d", str(library))
    assert not re.search(r"\((RPATH|RUNPATH)\)", dynamic), "records a search path"
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert all(NEEDED.match(name) for name in needed), f"needs {needed}"
    print(f"{len(strong)} symbols asked for, all in the stable ABIs; needs {', '.join(needed)}")


def main(wheel: str, pythons: list[str]) -> None:
    assert re.match(r"fastrnn-[\d.]+-cp310-abi3-\w+\.whl$", Path(wheel).name), wheel
    tools = Path(sys.executable).parent
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        package = Path(folder, "fastrnn")
        subprocess.run([tools / "abi3audit", "--strict", "--summary", wheel], check=True)
        subprocess.run([tools / "torch-abi-audit", "--check", "both", package], check=True)
        check_library(package / "_C.abi3.so")
        for python in pythons:
            smoke = f"import sys; sys.path.insert(0, sys.argv[1])\n{SMOKE}"
            subprocess.run([python, "-c", smoke, folder], cwd=folder, check=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] or [sys.executable])
