"""`python -m bench`: see `python -m bench --help`."""

import sys

try:
    from bench.run import main
except ModuleNotFoundError as error:
    if error.name == "bench" or (error.name or "").startswith("bench."):
        raise
    sys.exit(f"python -m bench needs {error.name}: pip install {error.name}")

if __name__ == "__main__":
    sys.exit(main())
