"""The ops' library serves programs that have no Python package of ours, or no Python at all."""

import subprocess
import sys
from pathlib import Path

import torch

from fastrnn import _library

LIBRARY = _library.library_path
TORCH = Path(torch.__file__).parent / "lib"

ALONE = """
import json, sys, torch
torch.ops.load_library(sys.argv[1])
facts = json.loads(torch.ops.fastrnn.describe())
cell = [cell["name"] for cell in facts["cells"]].index("gru")
spec = cell << facts["spec"]["cell"][0] | 1 << facts["spec"]["has_biases"][0]
torch.manual_seed(0)
x, h0 = torch.randn(5, 3, 4), torch.randn(1, 3, 6)
module = torch.nn.GRU(4, 6)
with torch.no_grad():
    y, h_n = torch.ops.fastrnn.layer_forward(x, [h0], list(module.parameters()), None, [], spec, False)
    torch.testing.assert_close((y, h_n), module(x, h0))
assert not any(name.partition(".")[0] == "fastrnn" for name in sys.modules)
"""

PROGRAM = r"""
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

static void* open_library(const char* path) {
    void* const library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
    if (!library) {
        std::fprintf(stderr, "%s\n", dlerror());
        std::exit(1);
    }
    return library;
}

int main(int, char** paths) {
    void* const torch = open_library(paths[1]);
    void* const ops = open_library(paths[2]);
    using Dispatch = int32_t (*)(const char*, const char*, uint64_t*);
    const auto dispatch = reinterpret_cast<Dispatch>(dlsym(torch, "aoti_torch_call_dispatcher"));
    uint64_t result = 0;
    if (!dispatch || dispatch("fastrnn::num_threads", "", &result) != 0 || result < 1) return 2;
    if (!dlsym(ops, "fastrnn_step")) return 3;
    if (dlsym(RTLD_DEFAULT, "Py_IsInitialized")) return 4;
    return 0;
}
"""


def run(*command: str | Path) -> str:
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, (result.returncode, result.stderr)
    return result.stdout


def test_library_asks_nothing_of_python() -> None:
    undefined = [line.split()[-1] for line in run("nm", "-D", "--undefined-only", LIBRARY).splitlines()]
    assert any(symbol.startswith("aoti_torch_") for symbol in undefined)
    assert not [symbol for symbol in undefined if symbol.startswith(("Py", "_Py"))]


def test_ops_run_without_the_package() -> None:
    run(sys.executable, "-c", ALONE, LIBRARY)


def test_program_without_python(tmp_path: Path) -> None:
    source, program = tmp_path / "program.cpp", tmp_path / "program"
    source.write_text(PROGRAM)
    run("c++", "-std=c++17", source, "-o", program, "-ldl")
    run(program, TORCH / "libtorch_cpu.so", LIBRARY)


def test_info_says_where_it_is() -> None:
    assert str(LIBRARY) in run(sys.executable, "-m", "fastrnn.info")
