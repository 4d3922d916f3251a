"""PEP 517 backend: setuptools, and as build requirements only what the machine lacks.

The wheel is the same whichever torch from 2.11 on it is built against, so a torch that is already installed beside the
pip that builds is used as it is, also from an isolated build environment: a second copy is gigabytes to download.
"""

import importlib.util
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

from setuptools import build_meta
from setuptools.build_meta import *  # noqa: F403

TORCH = "torch==2.13.0"
OLDEST_TORCH = (2, 11)
OLDEST_CMAKE = (3, 22)


def _version(text: str) -> tuple[int, ...]:
    match = re.search(r"(\d+)\.(\d+)", text)
    return tuple(int(part) for part in match.groups()) if match else (0, 0)


def torch_dir() -> Path | None:
    """The folder of a torch package to build against, or None."""
    spec = importlib.util.find_spec("torch")
    folders = [Path(spec.origin).parent] if spec and spec.origin else []
    folders += [Path(sysconfig.get_path(name)) / "torch" for name in ("platlib", "purelib")]
    for folder in folders:
        version = folder / "version.py"
        if version.is_file() and _version(version.read_text()) >= OLDEST_TORCH:
            return folder
    return None


def _cmake_version() -> tuple[int, ...]:
    cmake = shutil.which("cmake")
    return (
        _version(subprocess.run([cmake, "--version"], capture_output=True, text=True).stdout)
        if cmake
        else (0, 0)
    )


def _requirements() -> list[str]:
    needed = []
    if _cmake_version() < OLDEST_CMAKE:
        needed.append("cmake>=3.22")
    if not shutil.which("ninja"):
        needed.append("ninja")
    if torch_dir() is None:
        needed.append(TORCH)
    return needed


def get_requires_for_build_wheel(config_settings: Any = None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + _requirements()


def get_requires_for_build_editable(config_settings: Any = None) -> list[str]:
    return build_meta.get_requires_for_build_editable(config_settings) + _requirements()
