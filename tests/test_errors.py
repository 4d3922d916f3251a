"""Every bad argument and input fails as torch.nn fails; what is expected comes from torch.nn at test time."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import fastrnn

LAYERS = ("RNN", "GRU", "LSTM")
STEPS = ("RNNCell", "GRUCell", "LSTMCell")
Build = Callable[[Any], Any]


def _outcome(action: Build, library: Any) -> tuple[type, str, list[tuple[type, str]]]:
    """(exception type, message, warnings) of an action that must fail."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            action(library)
        except Exception as error:
            said = [(w.category, str(w.message)) for w in caught if "oneDNN" not in str(w.message)]
            return type(error), str(error), said
    pytest.fail(f"{library.__name__} accepts it")


def _assert_fails_alike(action: Build) -> None:
    torch.manual_seed(0)
    expected = _outcome(action, nn)
    torch.manual_seed(0)
    found = _outcome(action, fastrnn)
    if "Unknown nonlinearity" in expected[1]:  # of which there are more
        expected, found = ((kind, text.split(" Select")[0], said) for kind, text, said in (expected, found))
    assert found == expected


CONSTRUCTORS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "nothing": ((), {}),
    "one-argument": ((3,), {}),
    "unknown-keyword": ((3, 4), {"hidden": 4}),
    "argument-given-twice": ((3, 4), {"input_size": 3}),
    "too-many": ((3, 4, 1, True, False, 0.0, False, 0, None, None, 1, 2, 3), {}),
    "input-size-zero": ((0, 4), {}),
    "input-size-negative": ((-1, 4), {}),
    "input-size-float": ((3.0, 4), {}),
    "input-size-str": (("3", 4), {}),
    "input-size-none": ((None, 4), {}),
    "hidden-size-zero": ((3, 0), {}),
    "hidden-size-negative": ((3, -4), {}),
    "hidden-size-float": ((3, 4.0), {}),
    "hidden-size-str": ((3, "4"), {}),
    "layers-zero": ((3, 4, 0), {}),
    "layers-negative": ((3, 4), {"num_layers": -1}),
    "layers-float": ((3, 4), {"num_layers": 1.5}),
    "layers-str": ((3, 4), {"num_layers": "1"}),
    "bias-int": ((3, 4), {"bias": 1}),
    "bias-str": ((3, 4), {"bias": "True"}),
    "bias-none": ((3, 4), {"bias": None}),
    "batch-first-int": ((3, 4), {"batch_first": 0}),
    "batch-first-str": ((3, 4), {"batch_first": "False"}),
    "dropout-above": ((3, 4, 2), {"dropout": 1.5}),
    "dropout-below": ((3, 4, 2), {"dropout": -0.1}),
    "dropout-bool": ((3, 4, 2), {"dropout": True}),
    "dropout-str": ((3, 4, 2), {"dropout": "half"}),
    "dropout-numeric-str": ((3, 4, 2), {"dropout": "0.5"}),
    "dropout-none": ((3, 4, 2), {"dropout": None}),
    "dropout-nan": ((3, 4, 2), {"dropout": float("nan")}),
    "dropout-of-one-layer-and-bad-bias": ((3, 4), {"dropout": 0.5, "bias": 1}),
    "proj-size-negative": ((3, 4), {"proj_size": -1}),
    "proj-size-equal": ((3, 4), {"proj_size": 4}),
    "proj-size-above": ((3, 4), {"proj_size": 5}),
    "proj-size-float": ((3, 4), {"proj_size": 2.5}),
    "dtype-int": ((3, 4), {"dtype": torch.int64}),
    "dtype-str": ((3, 4), {"dtype": "float32"}),
    "device-unknown": ((3, 4), {"device": "nowhere"}),
}


@pytest.mark.parametrize("bad", CONSTRUCTORS)
@pytest.mark.parametrize("name", LAYERS)
def test_layer_constructor(name: str, bad: str) -> None:
    arguments, options = CONSTRUCTORS[bad]
    _assert_fails_alike(lambda lib: getattr(lib, name)(*arguments, **options))


@pytest.mark.parametrize("name", ["RNN", "GRU"])
def test_projection_of_another_layer(name: str) -> None:
    _assert_fails_alike(lambda lib: getattr(lib, name)(3, 4, proj_size=2))
    _assert_fails_alike(lambda lib: getattr(lib, name)(3, 4, proj_size=0))


@pytest.mark.parametrize("value", ["swish", "TANH", "", None, 1])
def test_nonlinearity(value: Any) -> None:
    _assert_fails_alike(lambda lib: lib.RNN(3, 4, nonlinearity=value))
    _assert_fails_alike(lambda lib: lib.RNN(3, 4, 1, value))
    _assert_fails_alike(lambda lib: lib.RNNCell(3, 4, nonlinearity=value)(torch.zeros(2, 3)))


LAYERS_ONLY = ("layers", "bias", "batch-first", "dropout", "proj", "input-size-zero", "hidden-size-zero")
STEP_CONSTRUCTORS = {
    bad: arguments for bad, arguments in CONSTRUCTORS.items() if not bad.startswith(LAYERS_ONLY)
}


@pytest.mark.parametrize("bad", STEP_CONSTRUCTORS)
@pytest.mark.parametrize("name", STEPS)
def test_cell_constructor(name: str, bad: str) -> None:
    arguments, options = STEP_CONSTRUCTORS[bad]
    _assert_fails_alike(lambda lib: getattr(lib, name)(*arguments, **options))


@pytest.mark.parametrize("name", LAYERS)
def test_dropout_of_one_layer_warns(name: str) -> None:
    said = []
    for library in (nn, fastrnn):
        with pytest.warns(UserWarning, match="num_layers greater than 1") as caught:
            getattr(library, name)(3, 4, dropout=0.5)
        said.append([(w.category, str(w.message)) for w in caught])
    assert said[0] == said[1]


def _state(name: str, *shape: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    h = torch.zeros(shape, dtype=dtype, device=device)
    return (h, h.clone()) if name.startswith("LSTM") else h


def _pack(lengths: tuple[int, ...] = (4, 2), size: int = 3) -> PackedSequence:
    return pack_sequence([torch.zeros(n, size) for n in lengths])


# each gets the class name and gives the forward arguments for a module of (3, 4, num_layers=2)
FORWARDS: dict[str, Callable[[str], tuple[Any, ...]]] = {
    "no-input": lambda n: (),
    "input-none": lambda n: (None,),
    "input-list": lambda n: ([[1.0]],),
    "input-0d": lambda n: (torch.tensor(1.0),),
    "input-1d": lambda n: (torch.zeros(3),),
    "input-4d": lambda n: (torch.zeros(5, 2, 3, 1),),
    "features": lambda n: (torch.zeros(5, 2, 7),),
    "features-unbatched": lambda n: (torch.zeros(5, 7),),
    "features-packed": lambda n: (_pack(size=5),),
    "no-features": lambda n: (torch.zeros(5, 2, 0),),
    "time-zero": lambda n: (torch.zeros(0, 2, 3),),
    "time-zero-unbatched": lambda n: (torch.zeros(0, 3),),
    "time-zero-batch-zero": lambda n: (torch.zeros(0, 0, 3),),
    "float64": lambda n: (torch.zeros(5, 2, 3, dtype=torch.float64),),
    "float16": lambda n: (torch.zeros(5, 2, 3, dtype=torch.float16),),
    "int64": lambda n: (torch.zeros(5, 2, 3, dtype=torch.int64),),
    "complex": lambda n: (torch.zeros(5, 2, 3, dtype=torch.complex64),),
    "packed-float64": lambda n: (_pack().to(torch.float64),),
    "state-2d": lambda n: (torch.zeros(5, 2, 3), _state(n, 2, 4)),
    "state-4d": lambda n: (torch.zeros(5, 2, 3), _state(n, 2, 2, 4, 1)),
    "state-3d-unbatched": lambda n: (torch.zeros(5, 3), _state(n, 2, 1, 4)),
    "state-1d-unbatched": lambda n: (torch.zeros(5, 3), _state(n, 4)),
    "state-layers": lambda n: (torch.zeros(5, 2, 3), _state(n, 1, 2, 4)),
    "state-batch": lambda n: (torch.zeros(5, 2, 3), _state(n, 2, 3, 4)),
    "state-hidden": lambda n: (torch.zeros(5, 2, 3), _state(n, 2, 2, 5)),
    "state-hidden-unbatched": lambda n: (torch.zeros(5, 3), _state(n, 2, 5)),
    "state-float64": lambda n: (torch.zeros(5, 2, 3), _state(n, 2, 2, 4, dtype=torch.float64)),
    "state-int64": lambda n: (torch.zeros(5, 2, 3), _state(n, 2, 2, 4, dtype=torch.int64)),
    "state-bfloat16": lambda n: (torch.zeros(5, 2, 3), _state(n, 2, 2, 4, dtype=torch.bfloat16)),
    "state-packed-batch": lambda n: (_pack(), _state(n, 2, 3, 4)),
    "state-packed-hidden": lambda n: (_pack(), _state(n, 2, 2, 5)),
    "state-packed-2d": lambda n: (_pack(), _state(n, 2, 4)),
    "state-packed-float64": lambda n: (_pack(), _state(n, 2, 2, 4, dtype=torch.float64)),
    "too-many": lambda n: (torch.zeros(5, 2, 3), None, None),
    "state-str": lambda n: (torch.zeros(5, 2, 3), "zeros"),
    "packed-rows-missing": lambda n: (PackedSequence(torch.zeros(5, 3), torch.tensor([3, 3])),),
    "packed-rising": lambda n: (PackedSequence(torch.zeros(5, 3), torch.tensor([2, 3])),),
    "packed-int32": lambda n: (PackedSequence(torch.zeros(5, 3), torch.tensor([3, 2], dtype=torch.int32)),),
    "packed-empty": lambda n: (PackedSequence(torch.zeros(0, 3), torch.tensor([], dtype=torch.int64)),),
    "input-meta": lambda n: (torch.zeros(5, 2, 3, device="meta"),),
    "state-meta": lambda n: (torch.zeros(5, 2, 3), _state(n, 2, 2, 4, device="meta")),
    "packed-of-3d": lambda n: (PackedSequence(torch.zeros(6, 2, 3), torch.tensor([2, 2, 1, 1])),),
}
LSTM_FORWARDS: dict[str, Callable[[str], tuple[Any, ...]]] = {
    "cell-hidden": lambda n: (torch.zeros(5, 2, 3), (torch.zeros(2, 2, 4), torch.zeros(2, 2, 5))),
    "cell-batch": lambda n: (torch.zeros(5, 2, 3), (torch.zeros(2, 2, 4), torch.zeros(2, 1, 4))),
    "cell-2d": lambda n: (torch.zeros(5, 2, 3), (torch.zeros(2, 2, 4), torch.zeros(2, 4))),
    "cell-float64": lambda n: (
        torch.zeros(5, 2, 3),
        (torch.zeros(2, 2, 4), torch.zeros(2, 2, 4, dtype=torch.float64)),
    ),
    "state-of-one": lambda n: (torch.zeros(5, 2, 3), (torch.zeros(2, 2, 4),)),
    "state-of-one-unbatched": lambda n: (torch.zeros(5, 3), (torch.zeros(2, 4),)),
    "state-of-one-packed": lambda n: (_pack(), (torch.zeros(2, 2, 4),)),
    "state-is-tensor": lambda n: (torch.zeros(5, 2, 3), torch.zeros(2, 2, 4)),
    "state-of-none": lambda n: (torch.zeros(5, 2, 3), (torch.zeros(2, 2, 4), None)),
}


def _forward_cases() -> list[object]:
    found = [pytest.param(n, FORWARDS[bad], id=f"{n}-{bad}") for n in LAYERS for bad in FORWARDS]
    return found + [pytest.param("LSTM", make, id=f"LSTM-{bad}") for bad, make in LSTM_FORWARDS.items()]


@pytest.mark.parametrize(("name", "make"), _forward_cases())
def test_layer_forward(name: str, make: Callable[[str], tuple[Any, ...]]) -> None:
    _assert_fails_alike(lambda lib: getattr(lib, name)(3, 4, 2)(*make(name)))


BATCH_FIRST = ["time-zero-unbatched", "features", "state-layers", "state-batch", "state-hidden", "state-2d"]


@pytest.mark.parametrize("bad", BATCH_FIRST)
@pytest.mark.parametrize("name", LAYERS)
def test_layer_forward_batch_first_and_bidirectional(name: str, bad: str) -> None:
    make = FORWARDS[bad]
    _assert_fails_alike(
        lambda lib: getattr(lib, name)(3, 4, 2, batch_first=True, bidirectional=True)(*make(name))
    )


@pytest.mark.parametrize("name", LAYERS)
def test_layer_forward_batch_first_time_zero(name: str) -> None:
    _assert_fails_alike(lambda lib: getattr(lib, name)(3, 4, batch_first=True)(torch.zeros(2, 0, 3)))


def test_projected_state() -> None:
    x = torch.zeros(5, 2, 3)
    for h, c in (((2, 2, 4), (2, 2, 4)), ((2, 2, 2), (2, 2, 2)), ((2, 2, 3), (2, 2, 4))):
        _assert_fails_alike(
            lambda lib, h=h, c=c: lib.LSTM(3, 4, 2, proj_size=2)(x, (torch.zeros(h), torch.zeros(c)))
        )


STEP_FORWARDS: dict[str, Callable[[str], tuple[Any, ...]]] = {
    "no-input": lambda n: (),
    "input-none": lambda n: (None,),
    "input-0d": lambda n: (torch.tensor(1.0),),
    "input-3d": lambda n: (torch.zeros(5, 2, 3),),
    "features": lambda n: (torch.zeros(2, 7),),
    "features-unbatched": lambda n: (torch.zeros(7),),
    "features-with-state": lambda n: (torch.zeros(2, 7), _state(n, 2, 4)),
    "float64": lambda n: (torch.zeros(2, 3, dtype=torch.float64),),
    "int64": lambda n: (torch.zeros(2, 3, dtype=torch.int64),),
    "float16": lambda n: (torch.zeros(2, 3, dtype=torch.float16),),
    "state-batch": lambda n: (torch.zeros(2, 3), _state(n, 5, 4)),
    "state-hidden": lambda n: (torch.zeros(2, 3), _state(n, 2, 5)),
    "state-hidden-unbatched": lambda n: (torch.zeros(3), _state(n, 5)),
    "state-3d": lambda n: (torch.zeros(2, 3), _state(n, 1, 2, 4)),
    "state-4d": lambda n: (torch.zeros(2, 3), _state(n, 1, 1, 2, 4)),
    "state-0d": lambda n: (torch.zeros(3), _state(n)),
    "state-1d-batched": lambda n: (torch.zeros(2, 3), _state(n, 4)),
    "state-2d-unbatched": lambda n: (torch.zeros(3), _state(n, 1, 4)),
    "state-float64": lambda n: (torch.zeros(2, 3), _state(n, 2, 4, dtype=torch.float64)),
    "state-str": lambda n: (torch.zeros(2, 3), "zeros"),
    "too-many": lambda n: (torch.zeros(2, 3), None, None),
}
LSTM_STEP_FORWARDS: dict[str, Callable[[str], tuple[Any, ...]]] = {
    "cell-hidden": lambda n: (torch.zeros(2, 3), (torch.zeros(2, 4), torch.zeros(2, 5))),
    "cell-batch": lambda n: (torch.zeros(2, 3), (torch.zeros(2, 4), torch.zeros(3, 4))),
    "cell-3d": lambda n: (torch.zeros(2, 3), (torch.zeros(2, 4), torch.zeros(1, 2, 4))),
    "cell-float64": lambda n: (
        torch.zeros(2, 3),
        (torch.zeros(2, 4), torch.zeros(2, 4, dtype=torch.float64)),
    ),
    "state-of-one": lambda n: (torch.zeros(2, 3), (torch.zeros(2, 4),)),
    "state-of-three": lambda n: (torch.zeros(2, 3), (torch.zeros(2, 4),) * 3),
    "state-is-tensor": lambda n: (torch.zeros(2, 3), torch.zeros(2, 4)),
}


def _step_cases() -> list[object]:
    found = [pytest.param(n, STEP_FORWARDS[bad], id=f"{n}-{bad}") for n in STEPS for bad in STEP_FORWARDS]
    return found + [
        pytest.param("LSTMCell", make, id=f"LSTMCell-{b}") for b, make in LSTM_STEP_FORWARDS.items()
    ]


@pytest.mark.parametrize(("name", "make"), _step_cases())
def test_cell_forward(name: str, make: Callable[[str], tuple[Any, ...]]) -> None:
    def action(lib: Any) -> Any:
        return getattr(lib, name)(3, 4)(*make(name))

    if _accepts(action):
        action(fastrnn)
    else:
        _assert_fails_alike(action)


def _accepts(action: Build) -> bool:
    """torch.nn lets a few odd states broadcast; what it takes must be taken."""
    try:
        action(nn)
    except Exception:
        return False
    return True


@pytest.mark.parametrize("name", LAYERS)
def test_state_dict_mismatch(name: str) -> None:
    def load(lib: Any, change: Callable[[dict[str, Any]], None]) -> None:
        module = getattr(lib, name)(3, 4)
        state = module.state_dict()
        change(state)
        module.load_state_dict(state, strict=True)

    _assert_fails_alike(lambda lib: load(lib, lambda s: s.pop("weight_hh_l0")))
    _assert_fails_alike(lambda lib: load(lib, lambda s: s.update(extra=torch.zeros(1))))
    _assert_fails_alike(lambda lib: load(lib, lambda s: s.update(weight_hh_l0=torch.zeros(2, 2))))


CHANGES: dict[str, Callable[[Tensor], Tensor]] = {
    "shape": lambda w: w.new_zeros(2, 2),
    "row-missing": lambda w: w[1:],
    "dtype": lambda w: w.double(),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("weight", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
@pytest.mark.parametrize("name", LAYERS)
def test_weights_that_do_not_fit(name: str, weight: str, change: str) -> None:
    """Always an error, also where torch.nn.LSTM reads beyond them."""
    module = getattr(fastrnn, name)(3, 4)
    value = getattr(module, weight).detach()
    setattr(module, weight, nn.Parameter(CHANGES[change](value)))
    with pytest.raises((RuntimeError, ValueError)):
        module(torch.zeros(5, 2, 3))


@pytest.mark.parametrize("weight", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"])
@pytest.mark.parametrize("name", LAYERS)
def test_weights_on_another_device(name: str, weight: str) -> None:
    def call(lib: Any) -> None:
        module = getattr(lib, name)(3, 4)
        setattr(module, weight, nn.Parameter(getattr(module, weight).detach().to("meta")))
        module(torch.zeros(5, 2, 3))

    _assert_fails_alike(call)


@pytest.mark.parametrize("name", LAYERS)
def test_weights_of_another_type(name: str) -> None:
    def call(lib: Any, value: Any) -> None:
        module = getattr(lib, name)(3, 4)
        module.weight_hh_l0 = value
        module(torch.zeros(5, 2, 3))

    for value in (torch.zeros(16, 4), "weights", 1.0):
        _assert_fails_alike(lambda lib, value=value: call(lib, value))


def test_bad_gradient_shape() -> None:
    for library in (nn, fastrnn):
        y, _ = library.GRU(3, 4)(torch.zeros(5, 2, 3))
        with pytest.raises(RuntimeError, match="shape"):
            y.backward(torch.zeros(5, 2, 3))


def test_the_table_knows_both_libraries() -> None:
    """An action that fails in one library only must not pass."""

    def only_torch_fails(lib: ModuleType) -> None:
        if lib is nn:
            raise ValueError("torch only")

    with pytest.raises(pytest.fail.Exception):
        _assert_fails_alike(only_torch_fails)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for its address space")
def test_too_little_memory_is_torchs_error() -> None:
    code = (
        "import resource, torch, fastrnn\n"
        "module, x = fastrnn.LSTM(1, 4096), torch.zeros(60000, 1, 1)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 30),) * 2)\n"
        "try:\n    module(x)\nexcept RuntimeError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "fastrnn: can't allocate memory" in done.stdout
