"""torch.fx takes fastrnn's modules for leaves, as it takes torch.nn's."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, symbolic_trace
from torch.fx.passes.shape_prop import ShapeProp
from torch.fx.proxy import TraceError

import fastrnn


class Model(nn.Module):
    """Layers and cells at several depths, with and without states."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, 2, bidirectional=True)
        self.inner = nn.ModuleDict(
            {"gru": nn.GRU(8, 4), "deep": nn.Sequential(nn.Linear(4, 4), nn.GRUCell(4, 4))}
        )
        self.rnn = nn.RNN(8, 4, batch_first=True)
        self.projected = nn.LSTM(4, 6, proj_size=4)
        self.steps = nn.ModuleList([nn.LSTMCell(4, 5), nn.RNNCell(5, 5)])

    def forward(self, x: torch.Tensor, hx: Any) -> tuple[torch.Tensor, ...]:
        y, (h, c) = self.lstm(x, hx)
        z, last = self.inner["gru"](y, h[:1])
        w, _ = self.rnn(y.transpose(0, 1), last)
        v = self.projected(z)[0]
        state = self.steps[0](w[:, -1])
        state = self.steps[0](v[-1], state)
        return self.inner["deep"](v[0]), self.steps[1](state[0], state[1]), c


def arguments() -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    torch.manual_seed(1)
    return torch.randn(7, 2, 3), (torch.randn(4, 2, 4), torch.randn(4, 2, 4))


def leaves(traced: GraphModule) -> list[str]:
    return [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]


def make() -> nn.Module:
    torch.manual_seed(0)
    return fastrnn.replace_modules(Model())


@pytest.mark.parametrize("wrap", [False, True])
def test_a_traced_model_computes_the_same(wrap: bool) -> None:
    model = make()
    expected = model(*arguments())
    traced = symbolic_trace(nn.Sequential(model)[0] if wrap else model)
    for found in (traced, copy.deepcopy(traced), pickle.loads(pickle.dumps(traced))):
        for a, b in zip(found(*arguments()), expected, strict=True):
            assert torch.equal(a, b)


def test_the_graph_is_that_of_torch() -> None:
    ours, theirs = symbolic_trace(make()), symbolic_trace(Model())
    assert leaves(ours) == leaves(theirs)
    assert str(ours.graph) == str(theirs.graph)
    assert ours.code == theirs.code


def test_passes_work_on_the_graph() -> None:
    model = make()
    traced = symbolic_trace(model)
    node = next(node for node in traced.graph.nodes if node.target == "rnn")
    with traced.graph.inserting_after(node):
        traced.graph.call_function(torch.neg, (node.args[0],))
    traced.graph.eliminate_dead_code()
    traced.graph.lint()
    traced.recompile()
    ShapeProp(traced).propagate(*arguments())
    assert node.meta["tensor_meta"][0].shape == (2, 7, 4)
    for a, b in zip(traced(*arguments()), model(*arguments()), strict=True):
        assert torch.equal(a, b)
    traced.delete_all_unused_submodules()
    assert type(traced.get_submodule("inner.gru")) is fastrnn.GRU


def test_a_traced_model_trains() -> None:
    model, other = make(), make()
    traced = symbolic_trace(model)
    for module in (traced, other):
        sum(y.sum() for y in module(*arguments())).backward()
    for (name, p), q in zip(traced.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name


def test_options_and_quantized_layers() -> None:
    layers = [
        fastrnn.GRU(3, 4, reset_after=False),
        fastrnn.LSTM(3, 4, recompute=True),
        fastrnn.quantize(nn.RNN(3, 4)),
    ]
    for layer in layers:
        model = nn.Sequential(layer)
        x = torch.randn(5, 2, 3)
        assert torch.equal(symbolic_trace(model)(x)[0], model(x)[0])


def test_a_state_given_by_name() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = fastrnn.GRUCell(3, 4)

        def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
            return self.cell(input=x, hx=h)

    model, x, h = Named(), torch.randn(2, 3), torch.randn(2, 4)
    assert torch.equal(symbolic_trace(model)(x, h), model(x, h))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_the_model_itself_is_no_leaf(name: str) -> None:
    """torch.nn's module as the root is traced through, which ends at its first branch."""
    for library in (nn, fastrnn):
        with pytest.raises(TraceError):
            symbolic_trace(getattr(library, name)(3, 4))
