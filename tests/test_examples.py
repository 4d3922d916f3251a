"""The example programs run in their short form and print what they promise."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_char_lm(tmp_path: Path) -> None:
    picture = tmp_path / "out" / "char_lm.png"
    command = [sys.executable, str(ROOT / "examples" / "char_lm.py"), "--quick", "--out", str(picture)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    differences = [float(found) for found in re.findall(r"difference ([\d.e+-]+)", done.stdout)]
    assert differences
    assert max(differences) < 1e-3
    for what in ("train", "generate"):
        assert len(re.findall(rf"{what} +torch .* fastrnn .*: [\d.]+ x", done.stdout)) == 2, done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG")
