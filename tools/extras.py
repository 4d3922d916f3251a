"""Prints the requirements of an extra of pyproject.toml, to install them without building the project."""

import sys
from pathlib import Path

try:
    import tomllib
except ImportError:  # Python 3.10
    from pip._vendor import tomli as tomllib

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
print(" ".join(project["optional-dependencies"][sys.argv[1]]))
