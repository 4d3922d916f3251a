"""Every style check, or those named: `python tools/lint.py [ruff] [format] [types] [clang-format] [rules]`."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CPP_SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
SUFFIXES = CPP_SUFFIXES | {".py", ".pyi", ".cmake", ".sh"}
FOLDERS = ("bench", "cmake", "csrc", "examples", "fastrnn", "tests", "tools")
LONGEST_FILE = 400
TORCH_FREE = ("csrc/cells/", "csrc/cpu/", "csrc/cuda/", "csrc/include/", "tests/csrc/")
TORCH_INCLUDE = re.compile(r'\s*#\s*include\s*[<"](torch|ATen|c10|pybind11|Python\.h)')


def sources() -> list[str]:
    """The project's source files, relative to the root."""
    found = [*ROOT.glob("*")] + [path for folder in FOLDERS for path in (ROOT / folder).rglob("*")]
    return sorted(str(path.relative_to(ROOT)) for path in found if path.suffix in SUFFIXES and path.is_file())


def run(*command: str) -> bool:
    return subprocess.run(command, cwd=ROOT).returncode == 0


def ruff() -> bool:
    return run(sys.executable, "-m", "ruff", "check", ".")


def ruff_format() -> bool:
    return run(sys.executable, "-m", "ruff", "format", "--check", ".")


def types() -> bool:
    return run(sys.executable, "-m", "mypy")


def clang_format() -> bool:
    paths = [path for path in sources() if Path(path).suffix in CPP_SUFFIXES]
    return run(str(Path(sys.executable).parent / "clang-format"), "--dry-run", "--Werror", *paths)


def rules() -> bool:
    """The project's own: kernels see no torch, and files stay short enough to be read."""
    faults = []
    for path in sources():
        lines = (ROOT / path).read_text().splitlines()
        if len(lines) > LONGEST_FILE:
            faults.append(f"{path}: {len(lines)} lines; split it, {LONGEST_FILE} is the limit")
        if path.startswith(TORCH_FREE):
            faults += [
                f"{path}:{number}: the kernels must build without torch and Python"
                for number, line in enumerate(lines, 1)
                if TORCH_INCLUDE.match(line)
            ]
    print("\n".join(faults) if faults else "All rules kept")
    return not faults


CHECKS = {"ruff": ruff, "format": ruff_format, "types": types, "clang-format": clang_format, "rules": rules}


def main(names: list[str]) -> int:
    unknown = set(names) - set(CHECKS)
    if unknown:
        sys.exit(f"lint: unknown check {', '.join(sorted(unknown))}; there are {', '.join(CHECKS)}")
    failed = []
    for name in names or CHECKS:
        print(f"-- {name}", flush=True)
        if not CHECKS[name]():
            failed.append(name)
    if failed:
        print(f"lint: failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
