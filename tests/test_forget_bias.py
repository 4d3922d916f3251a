"""forget_bias: an initial value, and nothing else."""

import copy
import pickle
from typing import Any

import pytest
import torch

import fastrnn

both = pytest.mark.parametrize("cls", [fastrnn.LSTM, fastrnn.LSTMCell])


def biases(module: Any, kind: str) -> list[torch.Tensor]:
    return [p.detach() for name, p in module.named_parameters() if name.startswith(kind)]


@both
def test_values(cls: Any) -> None:
    options = {"num_layers": 2, "bidirectional": True} if cls is fastrnn.LSTM else {}
    torch.manual_seed(3)
    plain = cls(4, 6, **options)
    torch.manual_seed(3)
    module = cls(4, 6, forget_bias=1.5, **options)
    for again in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.manual_seed(3)
        again.reset_parameters()
        assert again.forget_bias == 1.5 and again.state_dict().keys() == plain.state_dict().keys()
        for name, parameter in again.named_parameters():
            expected = dict(plain.named_parameters())[name].detach().clone()
            if name.startswith("bias"):
                expected[6:12] = 1.5 if "ih" in name else 0.0
            assert torch.equal(parameter, expected), name
            assert parameter.requires_grad


@both
def test_what_it_leaves_alone(cls: Any) -> None:
    plain = cls(4, 6)
    assert plain.forget_bias is None and "forget_bias" not in repr(plain)
    assert any(bias[6:12].unique().numel() > 1 for bias in biases(plain, "bias_hh"))
    module = cls(4, 6, forget_bias=0)
    assert all((bias[6:12] == 0).all() for bias in biases(module, "bias"))
    module.load_state_dict(plain.state_dict())
    x = torch.randn(3, 4)
    torch.testing.assert_close(module(x), plain(x), rtol=0, atol=0)
    assert cls(4, 6, forget_bias=1, device="meta").forget_bias == 1.0
    assert cls(4, 6, forget_bias=1, layer_norm=True).forget_bias == 1.0


@both
def test_errors(cls: Any) -> None:
    with pytest.raises(ValueError, match=r"^forget_bias is an initial value of biases, and with bias=False"):
        cls(4, 6, bias=False, forget_bias=1.0)
    with pytest.raises(ValueError, match=r"^forget_bias must be finite, got inf$"):
        cls(4, 6, forget_bias=float("inf"))
    for wrong in (True, "1", [1.0]):
        with pytest.raises(TypeError, match=r"^forget_bias should be a number or None, got "):
            cls(4, 6, forget_bias=wrong)
