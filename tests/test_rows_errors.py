"""Wrong lengths and resets: one sentence each, from the modules and from the ops; and batches of no rows."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn import _spec, functional

of_layers = pytest.mark.parametrize(
    "cls", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN], ids=lambda cls: cls.__name__
)


@of_layers
def test_wrong_lengths(cls: type[nn.RNNBase]) -> None:
    module, x, good = cls(4, 6), torch.randn(7, 3, 4), torch.tensor([1, 7, 3])
    sentence = r"^lengths must be an int64 tensor \[3\] of values from 1 to 7, got "
    for bad, got in [
        (good - 1, "values from 0 to 6$"),
        (good + 1, "values from 2 to 8$"),
        (good.int(), r"\[3\] of torch.int32 on cpu$"),
        (good[:2], r"\[2\] of torch.int64 on cpu$"),
        (good[None], r"\[1, 3\] of torch.int64 on cpu$"),
        ([1, 7, 3], "list$"),
    ]:
        with pytest.raises(ValueError, match=sentence + got):
            module(x, lengths=bad)
    with pytest.raises(ValueError, match=r"^lengths must be an int64 tensor \[\] of values from 1 to 7"):
        module(x[:, 0], lengths=good)
    packed = pack_padded_sequence(x, good, enforce_sorted=False)
    with pytest.raises(
        ValueError, match=r"^a PackedSequence has lengths of its own, so it does not go with lengths$"
    ):
        module(packed, lengths=good)


@of_layers
def test_wrong_resets(cls: type[nn.RNNBase]) -> None:
    module, x, good = cls(4, 6), torch.randn(7, 3, 4), torch.zeros(7, 3, dtype=torch.bool)
    sentence = r"^resets must be a bool tensor \[7, 3\] on cpu, got "
    for bad, got in [
        (good.T, r"\[3, 7\] of torch.bool on cpu$"),
        (good.float(), r"\[7, 3\] of torch.float32 on cpu$"),
        (good.to("meta"), r"\[7, 3\] of torch.bool on meta$"),
        (good.tolist(), "list$"),
    ]:
        with pytest.raises(ValueError, match=sentence + got):
            module(x, resets=bad)
    packed = pack_padded_sequence(x, torch.tensor([7, 3, 1]))
    with pytest.raises(ValueError, match=r"^resets must be a bool tensor \[11\] on cpu"):
        module(packed, resets=good)


def test_other_errors() -> None:
    x, lengths = torch.randn(7, 3, 4), torch.tensor([1, 7, 3])
    with pytest.raises(ValueError, match="return_cell_states needs an LSTM"):
        functional.rows_of_call(fastrnn.GRU(4, 6)._layer_spec(), x, None, None, None, True)
    for cls in (fastrnn.GRU, fastrnn.RNN):
        with pytest.raises(TypeError, match="return_cell_states"):
            cls(4, 6)(x, return_cell_states=True)
    with pytest.raises(RuntimeError, match=r"input.size\(-1\) must be equal to input_size"):
        fastrnn.LSTM(5, 6)(x, lengths=lengths)
    with pytest.raises(RuntimeError, match="Expected hidden"):
        fastrnn.GRU(4, 6)(x, torch.zeros(2, 3, 6), lengths=lengths)


def test_the_op_checks_its_rows() -> None:
    module, x, ops = fastrnn.LSTM(4, 6), torch.randn(7, 3, 4), torch.ops.fastrnn
    weights, spec = [w.detach() for w in module._weights()], module._layer_spec()
    good, marks = torch.tensor([0, 7, 3]), torch.zeros(7, 3, dtype=torch.bool)

    def call(bits: int, lengths: Tensor | None, operands: list[Tensor], x: Tensor = x) -> Any:
        return ops.layer_forward(x, [], weights, lengths, operands, spec | bits, False)

    assert call(_spec.RAGGED, good, [])[0].shape == (7, 3, 6)
    for lengths, message in [
        (good - 1, "a length must be from 0 to 7, got -1"),
        (good + 1, "a length must be from 0 to 7, got 8"),
        (good[:2], r"lengths must have shape \[3\]"),
        (good.int(), "lengths must be an int64 CPU tensor"),
        (None, "a ragged sequence has lengths"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call(_spec.RAGGED, lengths, [])
    for operands, message in [
        ([], "resets are the last operand"),
        ([marks.T], r"resets must have shape \[7, 3\]"),
        ([marks.byte()], "resets must be bool"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            call(_spec.RESETS, None, operands)
    gru = fastrnn.GRU(4, 6)
    spec, weights = gru._layer_spec(), [w.detach() for w in gru._weights()]
    with pytest.raises(RuntimeError, match="gru has no cell states"):
        call(_spec.CELL_STATES, None, [])
    with pytest.raises(RuntimeError, match="a single step has"):
        call(_spec.RAGGED | _spec.SINGLE_STEP, good, [], x[0])


@of_layers
def test_an_empty_batch(cls: type[nn.RNNBase]) -> None:
    module, x = cls(4, 6, bidirectional=True), torch.randn(7, 0, 4)
    none, marks = torch.empty(0, dtype=torch.int64), torch.empty(7, 0, dtype=torch.bool)
    y, _ = module(x, lengths=none, resets=marks)
    assert y.shape == (7, 0, 12)
