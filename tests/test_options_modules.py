"""Modules with options: parameters, cells, copies, conversions, and what refuses them."""

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import fastrnn
from helpers import F64
from optioncases import OPTIONS, each, flat, gradients, make, zoned

EXACT = {"rtol": 1e-10, "atol": 1e-10}
as_cell = pytest.mark.parametrize("cell", [False, True], ids=["layer", "cell"])
# what the options but the functions come under in messages
NAMES = {
    option: [name for name, value in options.items() if value != getattr(fastrnn, kind)._options.get(name)]
    for option, (kind, options) in OPTIONS.items()
}


def run_seeded(module: nn.Module, *given: Any) -> list[torch.Tensor]:
    torch.manual_seed(3)
    return flat(module(*given))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@each
def test_a_cell_is_a_layer_of_one_step(option: str, training: bool) -> None:
    cell, layer = make(option, 5, 9, cell=True, dtype=F64).train(training), make(option, 5, 9, dtype=F64)
    layer.train(training).load_state_dict({f"{key}_l0": value for key, value in cell.state_dict().items()})
    x, h = torch.randn(3, 5, dtype=F64), torch.randn(3, 9, dtype=F64)
    both = OPTIONS[option][0] == "LSTM"
    found = gradients(cell, x, (h, 2 * h) if both else h, module=cell)

    def steps(x: torch.Tensor) -> list[torch.Tensor]:
        _, final = layer(x[None], (h[None], 2 * h[None]) if both else h[None])
        return [state[0] for state in flat(final)]

    torch.testing.assert_close(found, gradients(steps, x, module=layer), **EXACT)
    alone = [state[0] for state in run_seeded(cell, x[:1])]
    torch.testing.assert_close(run_seeded(cell, x[0]), alone, **EXACT)


@each
def test_resets_of_a_cell(option: str) -> None:
    cell = make(option, 5, 9, cell=True, dtype=F64).eval()
    x, h, cut = torch.randn(3, 5, dtype=F64), torch.randn(3, 9, dtype=F64), torch.tensor([True, False, True])
    state = (h, 2 * h) if OPTIONS[option][0] == "LSTM" else h
    kept, fresh = flat(cell(x, state)), flat(cell(x))
    for got, old, new in zip(flat(cell(x, state, resets=cut)), kept, fresh, strict=True):
        torch.testing.assert_close(got, torch.where(cut[:, None], new, old), **EXACT)


@as_cell
@each
def test_copies_and_pickles(option: str, cell: bool) -> None:
    module, x = make(option, 5, 7, cell=cell), torch.randn(4, 5)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    kind, options = OPTIONS[option]
    fresh = getattr(fastrnn, kind + "Cell" * cell)(5, 7, **options)
    fresh.load_state_dict(module.state_dict(), strict=True)
    expected = run_seeded(module, x)
    for other in (copy.deepcopy(module), torch.load(buffer, weights_only=False), fresh):
        assert repr(other) == repr(module)
        torch.testing.assert_close(run_seeded(other, x), expected, rtol=0, atol=0)


@as_cell
@each
def test_no_conversion_forgets_it(option: str, cell: bool) -> None:
    """torch.nn has none of them, and the model stays as it is."""
    kind, _ = OPTIONS[option]
    model = nn.ModuleList([make(option, 5, 7, cell=cell), getattr(fastrnn, kind)(5, 7)])
    before = [type(module) for module in model]
    with pytest.raises(ValueError, match=rf"torch\.nn has no .*{NAMES[option][-1]}=.* which module '0' has"):
        fastrnn.restore_modules(model)
    assert [type(module) for module in model] == before
    assert fastrnn.replace_modules(model)[0] is model[0]
    back = fastrnn.replace_modules(getattr(nn, kind + "Cell" * cell)(5, 7))
    assert not back._changed_options() and type(fastrnn.restore_modules(back)).__module__.startswith("torch")


@pytest.mark.parametrize("weights", ["int8", "bfloat16"])
@each
def test_quantize_takes_functions_alone(option: str, weights: str) -> None:
    module = make(option, 5, 32)
    unfit = [name for name in NAMES[option] if name in fastrnn._options.WITH_OPERANDS]
    if unfit:
        with pytest.raises(ValueError, match=rf"quantize does not take layers with ({'|'.join(unfit)})="):
            fastrnn.quantize(nn.Sequential(module), weights)
        return
    for parameter in module.parameters():
        parameter.data *= 0.3
    quantized, x = fastrnn.quantize(module, weights), torch.randn(6, 3, 5)
    expected = quantized.dequantize()
    assert expected._changed_options() == module._changed_options() == quantized._changed_options()
    torch.testing.assert_close(quantized(x)[0], expected(x)[0], rtol=4e-4, atol=4e-4)
    torch.testing.assert_close(quantized(x)[0], module(x)[0], rtol=0, atol=0.02)


@each
def test_a_stream_takes_functions_alone(option: str) -> None:
    module = make(option, 5, 9).eval()
    unfit = [name for name in NAMES[option] if name in fastrnn._options.WITH_OPERANDS]
    if unfit:
        with pytest.raises(ValueError, match=rf"Stream does not take a layer with ({'|'.join(unfit)})="):
            fastrnn.Stream(module)
        return
    stream, x = fastrnn.Stream(module, 3), torch.randn(6, 3, 5)
    with torch.no_grad():
        found = torch.stack([stream.step(row).clone() for row in x])
        torch.testing.assert_close(found, module(x)[0], rtol=1e-5, atol=1e-6)


@each
def test_functional(option: str) -> None:
    kind, options = OPTIONS[option]
    module, x = make(option, 5, 7, 2, bidirectional=True), torch.randn(4, 3, 5)
    weights, operands = module._weights(), module._parameters_of_operands()
    torch.manual_seed(3)
    found = getattr(fastrnn.functional, kind.lower())(
        x, None, weights, num_layers=2, bidirectional=True, training=True, operands=operands, **options
    )
    torch.testing.assert_close(list(found), run_seeded(module, x), rtol=0, atol=0)


@pytest.mark.parametrize("coupled", [False, True])
def test_parameters_of_an_lstm(coupled: bool) -> None:
    module = fastrnn.LSTM(5, 7, 2, bidirectional=True, peephole=True, coupled_gates=coupled)
    rows = (3 if coupled else 4) * 7
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters()}
    for suffix in ("_l0", "_l0_reverse", "_l1", "_l1_reverse"):
        assert shapes[f"weight_peephole{suffix}"] == ((2 if coupled else 3) * 7,)
        assert shapes[f"weight_ih{suffix}"] == (rows, 5 if "l0" in suffix else 14)
        assert shapes[f"weight_hh{suffix}"] == (rows, 7)
        assert shapes[f"bias_ih{suffix}"] == shapes[f"bias_hh{suffix}"] == (rows,)
    assert len(shapes) == 20
    for parameter in module.parameters():
        nn.init.constant_(parameter, 3.0)
    module.reset_parameters()
    for name, parameter in module.named_parameters():
        assert 0 < parameter.abs().max() <= 7**-0.5, name
    assert "peephole=True" in repr(module) and ("coupled_gates=True" in repr(module)) == coupled


@pytest.mark.parametrize(
    "options",
    [{"zoneout": 0.3}, {"zoneout": (0.1, 0.2)}, {"cell_clip": 3.0}, {"recurrent_activation": "silu"}],
)
def test_options_without_parameters_keep_torchs_state_dict(options: dict[str, Any]) -> None:
    assert list(fastrnn.LSTM(5, 7, 2, **options).state_dict()) == list(nn.LSTM(5, 7, 2).state_dict())


def test_a_module_of_an_older_pickle() -> None:
    own = ("zoneout", "peephole", "cell_clip", "recurrent_activation", "coupled_gates")
    for cls in (fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN):
        module, x = cls(5, 7), torch.randn(4, 3, 5)
        old = cls.__new__(cls)
        old.__setstate__({k: v for k, v in module.__dict__.items() if k not in own})
        assert torch.equal(old(x)[0], module(x)[0]) and repr(old) == repr(module)


def test_a_parametrized_peephole() -> None:
    class Doubled(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return 2 * weight

    module, plain = (fastrnn.LSTM(5, 7, peephole=True) for _ in range(2))
    plain.load_state_dict(module.state_dict())
    plain.weight_peephole_l0.data *= 2
    parametrize.register_parametrization(module, "weight_peephole_l0", Doubled())
    x = torch.randn(4, 3, 5)
    torch.testing.assert_close(module(x), plain(x), rtol=0, atol=0)


@zoned
def test_zoneout_of_nothing_is_none(option: str) -> None:
    kind, options = OPTIONS[option]
    nothing = {"zoneout": (0.0, 0.0) if kind == "LSTM" else 0.0}
    module, x = getattr(fastrnn, kind)(5, 32, **options | nothing), torch.randn(4, 3, 5)
    assert "zoneout" not in module._changed_options()
    state = torch.get_rng_state()
    torch.testing.assert_close(module(x), copy.deepcopy(module).eval()(x), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_values_that_are_none() -> None:
    for cls in (fastrnn.LSTM, fastrnn.LSTMCell, fastrnn.GRU, fastrnn.GRUCell, fastrnn.RNN, fastrnn.RNNCell):
        for bad in (-0.1, 1.1, float("nan"), "0.5", True, None, (0.1, 0.2, 0.3)):
            with pytest.raises(ValueError, match="zoneout should be"):
                cls(3, 4, zoneout=bad)
    for cls in (fastrnn.LSTM, fastrnn.LSTMCell):
        for bad in (0, -1.0, float("nan"), True, "1"):
            with pytest.raises(ValueError, match="cell_clip should be a positive number or None"):
                cls(3, 4, cell_clip=bad)
        with pytest.raises(ValueError, match="Unknown recurrent_activation 'swish'"):
            cls(3, 4, recurrent_activation="swish")
        with pytest.raises(ValueError, match="which coupled_gates has none of"):
            cls(3, 4, coupled_gates=True, forget_bias=1.0)
    with pytest.raises(ValueError, match=r"that of h; of an LSTM also"):
        fastrnn.GRU(3, 4, zoneout=(0.1, 0.2))


def test_a_cells_own_nonlinearity_where_the_kernels_do_not_run() -> None:
    """Under autocast, and on a device that has no kernels."""
    cell, x = fastrnn.RNNCell(5, 7, nonlinearity="silu"), torch.randn(3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(cell(x).float(), cell.float()(x), rtol=2e-2, atol=2e-2)
    assert cell.to("meta")(x.to("meta")).shape == (3, 7)
    assert repr(fastrnn.RNNCell(5, 7, nonlinearity="silu")) == "RNNCell(5, 7, nonlinearity=silu)"
    assert (
        repr(fastrnn.RNN(5, 7, nonlinearity="silu", zoneout=0.5))
        == "RNN(5, 7, zoneout=0.5, nonlinearity=silu)"
    )
