"""Private names of torch stand in one file."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import fastrnn
from fastrnn import _compat

PACKAGE = Path(fastrnn.__file__).parent
# nn.Module's own, which its subclasses may use, and a method of named tuples
PUBLIC = {"_parameters", "_buffers", "_modules", "_replace"}


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def _defined(tree: ast.AST) -> set[str]:
    """Names that a file makes: functions, classes, variables, fields, attributes of self."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return found


def _private_names(tree: ast.AST) -> set[str]:
    """Private attributes that a file reads, private modules and names that it imports from torch."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.Import):
            found |= {part for alias in node.names for part in alias.name.split(".")}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch"):
            found |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
    return {name for name in found if _is_private(name)}


def test_one_file_uses_private_names_of_torch() -> None:
    trees = {path.name: ast.parse(path.read_text()) for path in sorted(PACKAGE.glob("*.py"))}
    compat = trees.pop("_compat.py")
    own = set.union(*map(_defined, trees.values())) | PUBLIC
    foreign = {name: found for name, tree in trees.items() if (found := _private_names(tree) - own)}
    assert not foreign
    kept = _private_names(compat) - _defined(compat)
    assert kept, "the file of private names has none: this test reads the wrong thing"


HIDE = """
import importlib.util
import sys
import torch
import torch.autograd.forward_ad
hidden = [
    (owner, name, getattr(owner, name))
    for owner, name in [
        (torch._C, "_are_functorch_transforms_active"),
        (torch._C, "_is_any_autocast_enabled"),
        (torch._C._functorch, "is_legacy_batchedtensor"),
    ]
]
for owner, name, _ in hidden:
    delattr(owner, name)
level = torch.autograd.forward_ad._current_level
del torch.autograd.forward_ad._current_level
fake, sys.modules["torch._subclasses.fake_tensor"] = sys.modules["torch._subclasses.fake_tensor"], None
spec = importlib.util.spec_from_file_location("fastrnn._compat", sys.argv[1])
sys.modules["fastrnn._compat"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["fastrnn._compat"])
for owner, name, value in hidden:  # torch needs them itself
    setattr(owner, name, value)
torch.autograd.forward_ad._current_level = level
sys.modules["torch._subclasses.fake_tensor"] = fake
import fastrnn
torch.manual_seed(0)
for name in ("LSTM", "GRU", "RNN"):
    plain, x = getattr(torch.nn, name)(3, 4), torch.randn(5, 2, 3)
    fast = getattr(fastrnn, name)(3, 4)
    fast.load_state_dict(plain.state_dict())
    for scope in (torch.no_grad, torch.enable_grad):
        with scope():
            torch.testing.assert_close(fast(x)[0], plain(x)[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(x)[0].dtype == plain(x)[0].dtype
    fast(x)[0].sum().backward()
    plain(x)[0].sum().backward()
    torch.testing.assert_close(fast.weight_hh_l0.grad, plain.weight_hh_l0.grad)
print("served")
"""


def test_a_torch_without_them_is_served() -> None:
    command = [sys.executable, "-c", HIDE, str(PACKAGE / "_compat.py")]
    done = subprocess.run(command, cwd=PACKAGE.parent, capture_output=True, text=True)
    assert done.stdout == "served\n", done.stderr


def test_an_import_leaves_torchs_compiler_out() -> None:
    """It takes a second to load, of every program's start."""
    code = "import sys, torch; before = set(sys.modules); import fastrnn; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], cwd=PACKAGE.parent, capture_output=True, text=True)
    loaded = set(done.stdout.split())
    assert "fastrnn._ops" in loaded, done.stderr
    assert "torch._dynamo" not in loaded


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.RNN])
def test_names_of_weights(cls: type[nn.RNNBase]) -> None:
    module = cls(3, 4, 2, bidirectional=True)
    names = [name for name, _ in module.named_parameters()]
    assert _compat.weight_names(module) == names
    assert [n for part in _compat.weight_names_by_direction(module) for n in part] == names


def test_what_calls_an_op() -> None:
    overload = torch.ops.aten.add.Tensor
    assert torch.equal(_compat.direct(overload)(torch.ones(2), torch.ones(2)), torch.full((2,), 2.0))
    assert _compat.direct(len) is len
