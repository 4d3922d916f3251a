"""The contract of torch.nn's modules: arguments, names, state, initial values, copies, hooks, dropout."""

import copy
import inspect
import io
import pickle
import warnings
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

import fastrnn
from helpers import (
    CELLS,
    F32,
    F64,
    Case,
    assert_bitwise,
    assert_same,
    fast_module,
    make_inputs,
    module_pair,
    pack,
    run_module,
    torch_module,
)

LAYERS = ["RNN", "GRU", "LSTM"]
STEPS = ["RNNCell", "GRUCell", "LSTMCell"]
NAMES = [*LAYERS, *STEPS]


def _classes(name: str) -> tuple[type, type]:
    return getattr(fastrnn, name), getattr(nn, name)


# positional arguments in torch.nn's order; every prefix of each is a call
POSITIONS: dict[str, list[Any]] = {
    "RNN": [5, 7, 2, "relu", False, True, 0.25, True],
    "GRU": [5, 7, 2, False, True, 0.25, True],
    "LSTM": [5, 7, 2, False, True, 0.25, True, 3],
    "RNNCell": [5, 7, False, "relu"],
    "GRUCell": [5, 7, False],
    "LSTMCell": [5, 7, False],
}
ATTRIBUTES = ["mode", "nonlinearity", "training", *nn.LSTM.__constants__]


def _described(module: nn.Module) -> dict[str, Any]:
    shapes = {name: (p.shape, p.dtype, p.device, p.requires_grad) for name, p in module.named_parameters()}
    values = {name: getattr(module, name) for name in ATTRIBUTES if name in module.__dict__}
    return shapes | values | {"registered": list(module._parameters)}  # a cell without bias registers None


@pytest.mark.parametrize(("name", "count"), [(n, c) for n in NAMES for c in range(2, len(POSITIONS[n]) + 1)])
def test_positional_arguments_and_defaults(name: str, count: int) -> None:
    fast, plain = _classes(name)
    arguments = POSITIONS[name][:count]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        modules = []
        for build in (fast, plain):
            torch.manual_seed(3)
            modules.append(build(*arguments))
    ours, theirs = modules
    assert _described(ours) == _described(theirs)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert_bitwise(ours.state_dict(), theirs.state_dict())  # equal initial values for an equal seed


@pytest.mark.parametrize("name", NAMES)
def test_keyword_arguments(name: str) -> None:
    fast, plain = _classes(name)
    options: dict[str, Any] = {
        "input_size": 3,
        "hidden_size": 4,
        "bias": False,
        "device": "cpu",
        "dtype": F64,
    }
    if name in LAYERS:
        options |= {"num_layers": 2, "batch_first": True, "dropout": 0.5, "bidirectional": True}
    if name == "LSTM":
        options["proj_size"] = 2
    if name.startswith("RNN"):
        options["nonlinearity"] = "relu"
    assert _described(fast(**options)) == _described(plain(**options))
    assert repr(fast(**options)) == repr(plain(**options))


@pytest.mark.parametrize("name", NAMES)
def test_default_dtype_and_device_context(name: str) -> None:
    fast, plain = _classes(name)
    torch.set_default_dtype(F64)
    try:
        assert _described(fast(3, 4)) == _described(plain(3, 4))
    finally:
        torch.set_default_dtype(F32)
    with torch.device("meta"):
        assert _described(fast(3, 4)) == _described(plain(3, 4))


def test_options_come_after_torchs_arguments_by_keyword_only() -> None:
    parameters = inspect.signature(fastrnn.GRU.__init__).parameters
    assert parameters["reset_after"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["reset_after"].default is True
    for build in (fastrnn.GRU, fastrnn.LSTM):
        parameters = inspect.signature(build.__init__).parameters
        assert parameters["activation"].kind is inspect.Parameter.KEYWORD_ONLY
        assert parameters["activation"].default == "tanh"
    assert fastrnn.GRU(3, 4, reset_after=False).reset_after is False
    assert fastrnn.LSTM(3, 4, activation="relu").activation == "relu"


def test_options_show_in_repr_only_when_set() -> None:
    assert repr(fastrnn.GRU(3, 4)) == repr(nn.GRU(3, 4))
    text = repr(fastrnn.GRU(3, 4, reset_after=False, activation="softsign"))
    assert "reset_after=False" in text
    assert "softsign" in text
    assert "hardtanh" in repr(fastrnn.LSTM(3, 4, activation="hardtanh"))


def test_options_are_checked() -> None:
    for build in (fastrnn.GRU, fastrnn.LSTM):
        with pytest.raises(ValueError, match="swish"):
            build(3, 4, activation="swish")


@pytest.mark.parametrize("name", NAMES)
def test_class_hierarchy(name: str) -> None:
    module = getattr(fastrnn, name)(3, 4)
    assert isinstance(module, nn.RNNBase if name in LAYERS else nn.RNNCellBase)
    assert type(module).__name__ == name
    assert type(module).__module__.split(".")[0] == "fastrnn"
    found = nn.Sequential(nn.Linear(2, 2), module).modules()
    assert [m for m in found if isinstance(m, nn.RNNBase | nn.RNNCellBase)] == [module]


MANY = [
    Case(cell, layers=layers, bidirectional=bi, bias=bias)
    for cell, layers, bi, bias in product(CELLS, (1, 2), (False, True), (True, False))
]


@pytest.mark.parametrize("case", MANY, ids=str)
def test_state_dict_both_ways_and_all_weights(case: Case) -> None:
    fast, plain = fast_module(case), torch_module(case)
    expected = copy.deepcopy(plain.state_dict())
    fast.load_state_dict(expected, strict=True)
    assert_bitwise(fast.state_dict(), expected)
    other = torch_module(case)
    other.load_state_dict(fast.state_dict(), strict=True)
    assert_bitwise(other.state_dict(), expected)
    assert [len(layer) for layer in fast.all_weights] == [len(layer) for layer in plain.all_weights]
    for ours, theirs in zip(fast.all_weights, plain.all_weights, strict=True):
        for mine, want in zip(ours, theirs, strict=True):
            assert isinstance(mine, nn.Parameter)
            assert torch.equal(mine, want)
    names = dict(fast.named_parameters())
    assert {id(p) for layer in fast.all_weights for p in layer} == {id(p) for p in names.values()}


@pytest.mark.parametrize("name", NAMES)
def test_reset_parameters(name: str) -> None:
    fast, plain = (build(5, 7) for build in _classes(name))
    for module in (fast, plain):
        torch.manual_seed(11)
        module.reset_parameters()
    assert_bitwise(fast.state_dict(), plain.state_dict())


@pytest.mark.parametrize("cell", CELLS)
def test_flatten_parameters_does_nothing_and_never_warns(cell: str) -> None:
    case = Case(cell, layers=2, bidirectional=True, dtype=F32)
    module, inputs = fast_module(case), make_inputs(case)
    pointers = [p.data_ptr() for p in module.parameters()]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert module.flatten_parameters() is None
        module(inputs.x, inputs.state())
        other = copy.deepcopy(module)
        other(inputs.x, inputs.state())
        other.flatten_parameters()
    assert [p.data_ptr() for p in module.parameters()] == pointers


def _copies() -> list[Any]:
    def saved(module: nn.Module) -> nn.Module:
        buffer = io.BytesIO()
        torch.save(module, buffer)
        buffer.seek(0)
        return torch.load(buffer, weights_only=False)

    return [
        pytest.param(copy.deepcopy, id="deepcopy"),
        pytest.param(copy.copy, id="copy"),
        pytest.param(lambda m: pickle.loads(pickle.dumps(m)), id="pickle"),
        pytest.param(saved, id="save"),
    ]


OPTION_CASES = [Case("gru", reset_after=False, activation="softsign"), Case("lstm", activation="relu")]


@pytest.mark.parametrize("duplicate", _copies())
@pytest.mark.parametrize("case", [*MANY[::3], *OPTION_CASES], ids=str)
def test_copies(case: Case, duplicate: Any) -> None:
    module, inputs = fast_module(case).eval(), make_inputs(case)
    before = module(inputs.x, inputs.state())
    other = duplicate(module)
    assert type(other) is type(module)
    assert repr(other) == repr(module)
    assert other.training is False
    torch.testing.assert_close(other(inputs.x, inputs.state()), before, rtol=0, atol=0)
    if duplicate is not copy.copy:
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        torch.testing.assert_close(module(inputs.x, inputs.state()), before, rtol=0, atol=0)
        assert not other(inputs.x, None)[0].any()


@pytest.mark.parametrize("name", STEPS)
def test_copies_of_cell_modules(name: str) -> None:
    module, x = getattr(fastrnn, name)(3, 4), torch.randn(2, 3)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(other(x), module(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_save_and_load_weights_only(name: str) -> None:
    fast, plain = (build(3, 4) for build in _classes(name))
    for source, target in ((fast, plain), (plain, fast), (fast, getattr(fastrnn, name)(3, 4))):
        source.reset_parameters()
        buffer = io.BytesIO()
        torch.save(source.state_dict(), buffer)
        buffer.seek(0)
        target.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
        assert_bitwise(target.state_dict(), source.state_dict())


def test_hooks() -> None:
    module = fastrnn.LSTM(3, 4)
    seen: list[str] = []
    module.register_forward_pre_hook(lambda m, args: seen.append("pre"))
    module.register_forward_hook(lambda m, args, out: (out[0] * 2, out[1]))
    module.register_full_backward_hook(lambda m, grad_in, grad_out: seen.append("backward"))
    module.weight_hh_l0.register_hook(lambda grad: seen.append("weight") or grad * 0)
    module.weight_ih_l0.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated"))
    x = torch.randn(5, 2, 3, requires_grad=True)
    y, _ = module(x)
    plain = nn.LSTM(3, 4)
    plain.load_state_dict(module.state_dict())
    torch.testing.assert_close(y, 2 * plain(x)[0])
    y.sum().backward()
    assert seen[0] == "pre"
    assert sorted(seen[1:]) == ["accumulated", "backward", "weight"]
    assert not module.weight_hh_l0.grad.any()


def _dropout_cases() -> list[Case]:
    found = [
        Case(cell, layers=3, bidirectional=bi, batch_first=first, layout=layout, dtype=dtype)
        for cell, bi, first, layout, dtype in product(
            CELLS, (False, True), (False, True), ("padded", "packed", "unbatched"), (F32, F64)
        )
    ]
    return [case for case in found if not (case.packed and case.batch_first)]


@pytest.mark.parametrize("case", _dropout_cases(), ids=str)
def test_dropout_has_torchs_masks(case: Case) -> None:
    inputs = make_inputs(case)
    fast, plain = module_pair(case)
    results = []
    for module in (fast, plain):
        module.dropout = 0.5
        torch.manual_seed(5)
        results.append(run_module(module, case, inputs))
    tolerance = 1e-10 if case.dtype == F64 else 3e-5
    assert_same(*results, rtol=tolerance, atol=tolerance)


def test_dropout_only_in_training_and_between_layers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        single = fastrnn.GRU(3, 4, dropout=0.9)
        deep = fastrnn.GRU(3, 4, 2, dropout=0.9)
    x = torch.randn(5, 2, 3)
    torch.testing.assert_close(single(x), single(x), rtol=0, atol=0)
    assert not torch.equal(deep(x)[0], deep(x)[0])
    deep.eval()
    torch.testing.assert_close(deep(x), deep(x), rtol=0, atol=0)
    all_dropped = fastrnn.GRU(3, 4, 2, dropout=1.0)
    plain = nn.GRU(3, 4, 2, dropout=1.0)
    plain.load_state_dict(all_dropped.state_dict())
    torch.testing.assert_close(all_dropped(x), plain(x))


def test_packed_output_keeps_the_indices() -> None:
    case = Case("lstm", layout="unsorted")
    fast, plain = module_pair(case)
    inputs = make_inputs(case)
    packed = pack(inputs.x, inputs.lengths, False)
    ours, theirs = fast(packed)[0], plain(packed)[0]
    assert isinstance(ours, PackedSequence)
    for name in ("batch_sizes", "sorted_indices", "unsorted_indices"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name))
