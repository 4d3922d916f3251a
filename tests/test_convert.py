"""Swapping torch.nn modules for fastrnn's and back, in models and in code that builds its own."""

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import fastrnn


class Model(nn.Module):
    """Recurrent modules at several depths, one of them used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.encoder = nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True, dropout=0.3)
        self.blocks = nn.ModuleList(
            [nn.ModuleDict({"rnn": nn.GRU(16, 8, bias=False)}), nn.RNN(8, 8, 1, "relu")]
        )
        self.projected = nn.LSTM(8, 8, proj_size=3)
        self.steps = nn.ModuleList(
            [nn.LSTMCell(3, 5), nn.GRUCell(5, 5), nn.RNNCell(5, 4, nonlinearity="relu")]
        )
        self.again = self.blocks[1]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        y, _ = self.encoder(self.embed(tokens))
        y, _ = self.blocks[0]["rnn"](y)
        y, _ = self.blocks[1](y)
        y, _ = self.again(y)
        y, _ = self.projected(y)
        h, _ = self.steps[0](y[-1])
        return self.steps[2](self.steps[1](h))


RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def _recurrent(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if isinstance(m, RECURRENT)}


def _library(module: nn.Module) -> str:
    return type(module).__module__.split(".")[0]


def test_replace_and_restore() -> None:
    model = Model().eval()
    tokens = torch.randint(11, (4, 7))
    before = model(tokens)
    parameters = dict(model.named_parameters())
    text, state = repr(model), model.state_dict()
    fast = fastrnn.replace_modules(model)
    assert {_library(m) for m in _recurrent(fast).values()} == {"fastrnn"}
    assert len(_recurrent(fast)) == 7
    assert repr(fast) == text
    assert list(fast.state_dict()) == list(state)
    torch.testing.assert_close(fast(tokens), before)
    for name, parameter in fast.named_parameters():
        assert parameter is parameters[name]
    assert not any(m.training for m in fast.modules())
    plain = fastrnn.restore_modules(fast)
    assert {_library(m) for m in _recurrent(plain).values()} == {"torch"}
    assert all(type(m) in _torch_types() for m in _recurrent(plain).values())
    assert repr(plain) == text
    torch.testing.assert_close(plain(tokens), before, rtol=0, atol=0)
    for name, parameter in plain.named_parameters():
        assert parameter is parameters[name]


def _torch_types() -> set[type]:
    return {nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell}


def test_a_module_used_twice_stays_one() -> None:
    model = fastrnn.replace_modules(Model())
    assert model.again is model.blocks[1]
    assert fastrnn.restore_modules(model).again is model.blocks[1]


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_the_model_is_the_module(name: str) -> None:
    plain = getattr(nn, name)(3, 4)
    fast = fastrnn.replace_modules(plain)
    assert type(fast) is getattr(fastrnn, name)
    for ours, theirs in zip(fast.parameters(), plain.parameters(), strict=True):
        assert ours is theirs
    back = fastrnn.restore_modules(fast)
    assert type(back) is getattr(nn, name)
    assert dict(back.named_parameters()).keys() == dict(plain.named_parameters()).keys()


def test_every_attribute_is_kept() -> None:
    options: dict[str, Any] = {"num_layers": 2, "bias": False, "batch_first": True, "dropout": 0.2}
    for plain in (
        nn.LSTM(3, 6, bidirectional=True, proj_size=2, **options),
        nn.GRU(3, 6, bidirectional=True, **options),
        nn.RNN(3, 6, nonlinearity="relu", **options),
    ):
        plain.note = "kept"
        fast = fastrnn.replace_modules(copy.deepcopy(plain))
        assert repr(fast) == repr(plain)
        assert fast.note == "kept"
        for key in ("mode", "input_size", "hidden_size", "proj_size", *options, "bidirectional", "training"):
            assert getattr(fast, key) == getattr(plain, key), key


def test_training_flag_and_frozen_weights() -> None:
    model = nn.Sequential(nn.GRU(3, 4).eval(), nn.Identity())
    model[0].weight_hh_l0.requires_grad_(False)
    assert model.training
    assert not model[0].training
    fast = fastrnn.replace_modules(model)
    assert fast.training
    assert not fast[0].training
    assert not fast[0].weight_hh_l0.requires_grad
    assert fast[0].weight_ih_l0.requires_grad
    assert not fastrnn.restore_modules(fast)[0].training


def test_hooks_are_kept() -> None:
    seen: list[str] = []
    model = nn.Sequential(nn.GRU(3, 4))
    model[0].register_forward_pre_hook(lambda m, args: seen.append("pre"))
    handle = model[0].register_forward_hook(lambda m, args, out: seen.append("post"))
    model[0].register_full_backward_hook(lambda m, gin, gout: seen.append("backward"))
    model[0].weight_hh_l0.register_hook(lambda grad: seen.append("weight"))
    model[0].register_state_dict_pre_hook(lambda *args: seen.append("state"))
    fast = fastrnn.replace_modules(model)
    x = torch.randn(5, 2, 3, requires_grad=True)
    fast[0](x)[0].sum().backward()
    fast.state_dict()
    assert sorted(seen) == ["backward", "post", "pre", "state", "weight"]
    handle.remove()
    seen.clear()
    fast[0](x)
    assert seen == ["pre"]


def test_optimiser_goes_on() -> None:
    """The optimiser made before the swap moves the weights that the new modules use."""
    model = nn.Sequential(nn.GRU(3, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    x = torch.randn(5, 2, 3)
    fast = fastrnn.replace_modules(model)
    before = fast[0](x)[0]
    before.sum().backward()
    optimizer.step()
    assert (fast[0](x)[0] - before).abs().max() > 1e-3


def test_other_modules_are_left_alone() -> None:
    class Custom(nn.LSTM):
        def forward(self, input: torch.Tensor, hx: Any = None) -> Any:
            return input, hx

    model = nn.Sequential(Custom(3, 3), nn.Linear(3, 3))
    linear = model[1]
    fast = fastrnn.replace_modules(model)
    assert type(fast[0]) is Custom
    assert fast[1] is linear


def test_replacing_twice_changes_nothing_more() -> None:
    model = fastrnn.replace_modules(Model())
    modules = list(model.modules())
    assert list(fastrnn.replace_modules(model).modules()) == modules
    restored = fastrnn.restore_modules(model)
    modules = list(restored.modules())
    assert list(fastrnn.restore_modules(restored).modules()) == modules


def test_dtype_and_device_are_kept() -> None:
    model = fastrnn.replace_modules(Model().double())
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    model = fastrnn.replace_modules(Model().to("meta"))
    assert all(p.is_meta for p in model.parameters())


def test_parametrized_modules() -> None:
    """Their class is made by torch at run time; either way the values and the parameters stay."""
    model = nn.Sequential(nn.GRU(3, 4))
    parametrizations.weight_norm(model[0], "weight_hh_l0")
    x = torch.randn(5, 2, 3)
    before, names = model[0](x)[0], [name for name, _ in model.named_parameters()]
    fast = fastrnn.replace_modules(model)
    torch.testing.assert_close(fast[0](x)[0], before)
    assert [name for name, _ in fast.named_parameters()] == names


def test_options_that_torch_lacks_cannot_be_restored_silently() -> None:
    for module in (fastrnn.GRU(3, 4, reset_after=False), fastrnn.LSTM(3, 4, activation="relu")):
        with pytest.raises(ValueError, match=r"reset_after|activation"):
            fastrnn.restore_modules(nn.Sequential(module))


def test_restored_modules_have_no_attribute_of_ours() -> None:
    model = nn.Sequential(
        fastrnn.LSTM(3, 4, recompute=True), fastrnn.GRU(3, 4, recompute=True), fastrnn.GRUCell(3, 4)
    )
    x = torch.randn(5, 2, 3)
    before = model[1](x)[0]
    restored = fastrnn.restore_modules(model)
    torch.testing.assert_close(restored[1](x)[0], before)
    for module, plain in zip(restored, (nn.LSTM(3, 4), nn.GRU(3, 4), nn.GRUCell(3, 4)), strict=True):
        assert set(vars(module)) <= set(vars(plain)) | {"_compiled_call_impl"}
    assert not fastrnn.replace_modules(restored)[0].recompute


def test_patch_torch() -> None:
    originals = [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell]
    with fastrnn.patch_torch():
        model = Model()
        assert {_library(m) for m in _recurrent(model).values()} == {"fastrnn"}
        assert torch.nn.modules.rnn.LSTM is fastrnn.LSTM
        assert isinstance(nn.GRU(3, 4), torch.nn.RNNBase)
    assert [nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell] == originals
    assert torch.nn.modules.rnn.LSTM is originals[0]
    assert {_library(m) for m in _recurrent(Model()).values()} == {"torch"}
    torch.manual_seed(3)
    plain = Model().eval()
    torch.manual_seed(3)
    with fastrnn.patch_torch():
        fast = Model().eval()
    tokens = torch.randint(11, (4, 7))
    torch.testing.assert_close(fast(tokens), plain(tokens))


def test_patch_torch_ends_with_an_exception_and_nests() -> None:
    original = nn.LSTM
    with pytest.raises(KeyError), fastrnn.patch_torch():
        raise KeyError
    assert nn.LSTM is original
    with fastrnn.patch_torch():
        with fastrnn.patch_torch():
            assert type(nn.LSTM(3, 4)) is fastrnn.LSTM
        assert type(nn.LSTM(3, 4)) is fastrnn.LSTM
    assert nn.LSTM is original


def test_isinstance_still_holds_while_patched() -> None:
    """Modules made before the patch are still recurrent modules to code that looks for them."""
    before = nn.LSTM(3, 4)
    with fastrnn.patch_torch():
        assert isinstance(before, nn.RNNBase)
        assert isinstance(nn.LSTM(3, 4), nn.LSTM)


def test_a_module_that_was_compiled_is_swapped():
    model = nn.LSTM(5, 8, 2, dropout=0.9)
    model.compile(backend="eager")
    swapped = fastrnn.replace_modules(model).eval()
    x = torch.randn(4, 3, 5)
    assert torch.equal(swapped(x)[0], swapped(x)[0])
