"""What CMake decides about the CUDA kernels, with a compiler that only claims to be nvcc."""

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Says what CMake asks of nvcc when it looks for a CUDA compiler; the C++ compiler does the work.
NVCC = """#!/bin/sh
root=$(dirname "$0")
case "$*" in
*--version*)
    echo "nvcc: NVIDIA (R) Cuda compiler driver"
    echo "Cuda compilation tools, release {major}.{minor}, V{major}.{minor}.1"
    exit ;;
*__cmake_determine_cuda*)
    echo "#\\$ TOP=$root"
    exit ;;
esac
printf '#$ LIBRARIES=-L%s\\n#$ cicc -arch compute_52\\n#$ c++ -o a.out -L%s\\n' "$root" "$root"
for argument; do
    shift
    case "$argument" in
    -v | --keep | --keep-dir | tmp | -x | cu) ;;
    -Xcompiler=* | --generate-code=* | -forward-unknown-to-host-compiler) ;;
    *.cu) set -- "$@" -x c++ "$argument" ;;
    *) set -- "$@" "$argument" ;;
    esac
done
exec c++ -D__CUDACC__ -D__NVCC__ -D__CUDACC_VER_MAJOR__={major} -D__CUDACC_VER_MINOR__={minor} \\
    -D__CUDACC_VER_BUILD__=1 "$@"
"""


def configure(folder: Path, version: tuple[int, int], *options: str) -> tuple[str, str]:
    """What CMake says, and the commands that would compile the sources."""
    toolkit = folder / "cuda" / "bin"
    (toolkit / "nvvm" / "libdevice").mkdir(parents=True)
    nvcc = toolkit / "nvcc"
    nvcc.write_text(NVCC.format(major=version[0], minor=version[1]))
    nvcc.chmod(0o755)
    build = folder / "build"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CUDA")}
    result = subprocess.run(
        ["cmake", "-S", str(ROOT), "-B", str(build), "-DFASTRNN_TESTS=OFF", *options],
        env=environment | {"PATH": f"{toolkit}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout, (build / "compile_commands.json").read_text()


@pytest.mark.parametrize("version", [(11, 0), (11, 8)])
def test_auto_leaves_an_old_toolkit_alone(tmp_path: Path, version: tuple[int, int]) -> None:
    said, commands = configure(tmp_path, version, "-DFASTRNN_CUDA=auto")
    assert "left out, nvcc 12.0 or later is needed" in said
    assert "dispatch.cpp" in commands
    assert ".cu" not in commands


def test_auto_takes_a_toolkit_that_knows_the_architectures(tmp_path: Path) -> None:
    said, commands = configure(tmp_path, (12, 0), "-DFASTRNN_CUDA=auto")
    assert "CUDA kernels: built" in said
    assert "compute_90a" in commands
    assert "-Werror" not in commands


def test_an_old_toolkit_on_demand_is_asked_for_what_it_knows(tmp_path: Path) -> None:
    _, commands = configure(tmp_path, (11, 8), "-DFASTRNN_CUDA=1")
    assert "code=compute_80" in commands
    assert "compute_90" not in commands


def test_warnings_are_errors_on_demand(tmp_path: Path) -> None:
    _, commands = configure(tmp_path, (12, 0), "-DFASTRNN_CUDA=1", "-DFASTRNN_WERROR=1")
    assert "-Werror=all-warnings" in commands
