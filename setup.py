"""Builds the extension with CMake; everything else is in pyproject.toml."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT / "tools"))

from build_backend import torch_dir  # noqa: E402

OPS = "libfastrnn_ops.so"


class CMakeBuild(build_ext):
    """Configures and builds the CMake target `_C`, and copies its library to where setuptools wants it, and the one
    that it links to beside it."""

    def build_extension(self, ext: Extension) -> None:
        torch = torch_dir()
        if torch is None:
            raise SystemExit("fastrnn: building needs torch >= 2.11; install it, or build with isolation")
        ninja = shutil.which("ninja")
        build = ROOT / "build" / ("wheel-ninja" if ninja else "wheel-make")
        jobs = os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1)
        subprocess.run(
            [
                "cmake",
                *("-S", str(ROOT), "-B", str(build)),
                *(("-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}") if ninja else ("-G", "Unix Makefiles")),
                f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
                f"-DFASTRNN_CUDA={os.environ.get('FASTRNN_CUDA', 'auto')}",
                f"-DFASTRNN_WERROR={os.environ.get('FASTRNN_WERROR', '0')}",
                f"-DFASTRNN_TORCH_DIR={torch}",
                f"-DPython_EXECUTABLE={sys.executable}",
                "-DFASTRNN_TORCH=ON",
                "-DFASTRNN_TESTS=OFF",
            ],
            check=True,
        )
        subprocess.run(["cmake", "--build", str(build), "--target", "_C", "--parallel", jobs], check=True)
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(build / "_C.abi3.so", target)
        shutil.copyfile(build / OPS, target.parent / OPS)

    def copy_extensions_to_source(self) -> None:
        super().copy_extensions_to_source()
        built = Path(self.build_lib, "fastrnn", OPS)
        shutil.copyfile(built, ROOT / "fastrnn" / OPS)

    def get_outputs(self) -> list[str]:
        return [*super().get_outputs(), str(Path(self.build_lib, "fastrnn", OPS))]


class LimitedApiWheel(bdist_wheel):
    """A wheel for every CPython from 3.10 on."""

    def finalize_options(self) -> None:
        self.py_limited_api = "cp310"
        super().finalize_options()


setup(
    ext_modules=[Extension("fastrnn._C", sources=[], py_limited_api=True)],
    cmdclass={"build_ext": CMakeBuild, "bdist_wheel": LimitedApiWheel},
)
