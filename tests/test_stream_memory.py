"""fastrnn.Stream reads and writes its own memory alone, whatever becomes of its outputs and of the module's weights."""

import copy
import gc
import multiprocessing.reduction

import pytest
import torch
import torch.multiprocessing
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.nn.utils import parameters_to_vector, parametrizations, prune, vector_to_parameters

import fastrnn

BATCH, INPUT, HIDDEN = 8, 64, 256
MARK = 7.0

CHANGES_OF_AN_OUTPUT = {
    "share_memory_": lambda y: y.share_memory_(),
    "share-a-view": lambda y: y[:1].share_memory_(),
    "pickled-for-a-queue": multiprocessing.reduction.ForkingPickler.dumps,
    "set_": lambda y: y.set_(torch.zeros(3)),
    "data": lambda y: setattr(y, "data", torch.zeros(BATCH, HIDDEN)),
    "unsqueeze_": lambda y: y.unsqueeze_(0),
    "t_": lambda y: y.t_(),
    "requires_grad_": lambda y: y.requires_grad_(),
    "recorded": lambda y: y.mul_(nn.Parameter(torch.ones(HIDDEN))),
}


def blocks(count, *shape):
    """Tensors that take what memory of that size was freed."""
    return [torch.full(shape, MARK) for _ in range(count)]


def make(layers=1):
    torch.manual_seed(0)
    return fastrnn.GRU(INPUT, HIDDEN, layers)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("change", CHANGES_OF_AN_OUTPUT)
def test_an_output_may_be_changed(change, layers):
    module = make(layers)
    stream, expected = fastrnn.Stream(module, BATCH), fastrnn.Stream(module, BATCH)
    for _ in range(6):
        x = torch.randn(BATCH, INPUT)
        y, want = stream.step(x), expected.step(x)
        assert y.shape == want.shape and not y.requires_grad
        assert torch.equal(y, want)
        CHANGES_OF_AN_OUTPUT[change](y)
        others = blocks(64, BATCH, HIDDEN)
        stream.step(x), expected.step(x)
        assert all(bool((block == MARK).all()) for block in others)


def test_an_output_of_equal_sides_may_be_transposed():
    """Its shape and address stay."""
    module = fastrnn.GRU(INPUT, BATCH)
    stream, expected = fastrnn.Stream(module, BATCH), fastrnn.Stream(module, BATCH)
    for _ in range(6):
        x = torch.randn(BATCH, INPUT)
        y, want = stream.step(x), expected.step(x)
        assert y.is_contiguous() and torch.equal(y, want)
        y.t_()


def test_an_output_in_shared_memory_stays_what_it_was():
    stream = fastrnn.Stream(make(), BATCH)
    kept = stream.step(torch.randn(BATCH, INPUT)).share_memory_()
    values = kept.clone()
    for _ in range(4):
        stream.step(torch.randn(BATCH, INPUT))
    assert torch.equal(kept, values)


def test_an_output_cannot_lose_its_memory():
    y = fastrnn.Stream(make(), BATCH).step(torch.randn(BATCH, INPUT))
    with pytest.raises(RuntimeError, match="not resizable"):
        y.untyped_storage().resize_(0)
    gc.collect()  # the stream is gone, the output is not
    assert bool(y.isfinite().all())


def replaced(module):
    return copy.deepcopy(module.weight_hh_l0.detach()) * 0.5


def vector(module):
    vector_to_parameters(parameters_to_vector(module.parameters()) * 0.5, module.parameters())


CHANGES_OF_WEIGHTS = {
    "share_memory": lambda m: m.share_memory(),
    "share-one": lambda m: m.weight_hh_l0.share_memory_(),
    "share-a-bias": lambda m: m.bias_hh_l0.share_memory_(),
    "assign": lambda m: m.load_state_dict(
        {name: value * 0.5 for name, value in m.state_dict().items()}, assign=True
    ),
    "setattr": lambda m: setattr(m, "weight_hh_l0", nn.Parameter(replaced(m))),
    "data": lambda m: setattr(m.weight_hh_l0, "data", replaced(m)),
    "set_": lambda m: m.weight_hh_l0.data.set_(replaced(m)),
    "vector_to_parameters": vector,
    "to-and-back": lambda m: m.double().float(),
    "made-again": lambda m: m.__init__(INPUT, HIDDEN),
}


@pytest.mark.parametrize("change", CHANGES_OF_WEIGHTS)
@pytest.mark.parametrize("library", [fastrnn, nn])
def test_weights_that_moved_are_followed(change, library):
    module = library.GRU(INPUT, HIDDEN)
    stream = fastrnn.Stream(module, BATCH)
    stream.step(torch.randn(BATCH, INPUT))
    CHANGES_OF_WEIGHTS[change](module)
    others = blocks(8, 3 * HIDDEN, HIDDEN)
    hx, x = stream.state, torch.randn(BATCH, INPUT)
    with torch.no_grad():
        want = module(x[None], hx)[0][0]
    torch.testing.assert_close(stream.step(x), want, rtol=0, atol=2e-6)
    assert all(bool((block == MARK).all()) for block in others)


def test_weights_lent_by_functional_call_are_read():
    class Step(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = make()
            self.stream = fastrnn.Stream(self.rnn, BATCH)

        def forward(self, x):
            self.stream.reset()
            return self.stream.step(x).clone()

    model, x = Step(), torch.randn(BATCH, INPUT)
    own = model(x)
    lent = {name: value.detach() * 0.5 for name, value in model.named_parameters()}
    borrowed = functional_call(model, lent, (x,))
    torch.testing.assert_close(
        borrowed, functional_call(model.rnn, {k[4:]: v for k, v in lent.items()}, (x[None],))[0][0]
    )
    assert not torch.equal(own, borrowed)
    assert torch.equal(model(x), own)


def shrink_to_the_same_address(module):
    """Its storage gets smaller twice; the second time it may lie where it was first."""
    storage = module.weight_hh_l0.untyped_storage()
    storage.resize_(len(storage) // 2)
    storage.resize_(len(storage) // 2)


UNREADABLE = {
    "freed": lambda m: m.weight_hh_l0.untyped_storage().resize_(0),
    "shrunk": shrink_to_the_same_address,
    "double": lambda m: m.double(),
    "bfloat16": lambda m: m.bfloat16(),
    "meta": lambda m: m.to("meta"),
    "one-double": lambda m: setattr(m.bias_hh_l0, "data", m.bias_hh_l0.double().data),
    "shape": lambda m: setattr(m, "weight_hh_l0", nn.Parameter(torch.zeros(3 * HIDDEN, 8))),
    "strides": lambda m: setattr(m, "weight_hh_l0", nn.Parameter(torch.zeros(HIDDEN, 3 * HIDDEN).t())),
    "sparse": lambda m: setattr(m, "weight_hh_l0", nn.Parameter(m.weight_hh_l0.detach().to_sparse())),
    "deleted": lambda m: delattr(m, "weight_hh_l0"),
    "none": lambda m: setattr(m, "weight_hh_l0", None),
    "parametrized": lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
    "pruned": lambda m: prune.l1_unstructured(m, "weight_hh_l0", 0.5),
    "larger": lambda m: m.__init__(INPUT, 2 * HIDDEN),
}


@pytest.mark.parametrize("change", UNREADABLE)
def test_weights_that_cannot_be_read_are_refused(change):
    module = make()
    stream = fastrnn.Stream(module, BATCH)
    x = torch.randn(BATCH, INPUT)
    first = stream.step(x).clone()
    good = [parameter.data.clone() for parameter in module.parameters()]
    UNREADABLE[change](module)
    for _ in range(2):
        with pytest.raises((RuntimeError, ValueError, TypeError), match=r"^Stream: "):
            stream.step(x)
    if change in ("freed", "double", "one-double"):
        for parameter, value in zip(module.parameters(), good, strict=True):
            parameter.data = value
        stream.reset()
        assert torch.equal(stream.step(x), first)


def test_an_output_that_was_changed_does_not_let_other_sizes_in():
    module = make()
    stream = fastrnn.Stream(module, BATCH)
    y = stream.step(torch.randn(BATCH, INPUT))
    kept = dict(module._parameters)
    module.__init__(INPUT, 2 * HIDDEN)
    module._parameters.update(kept)
    y.share_memory_()
    stream.step(torch.randn(BATCH, INPUT))
    with pytest.raises(RuntimeError, match="make a new Stream"):
        stream.step(torch.randn(BATCH, INPUT))


def test_weights_without_memory_are_refused_at_once():
    module = make()
    module.weight_hh_l0.untyped_storage().resize_(16)
    with pytest.raises(ValueError, match="weight_hh_l0 must be contiguous and have memory"):
        fastrnn.Stream(module)
    with FakeTensorMode():
        fake = make()
    with pytest.raises(ValueError, match="have memory of the CPU"):
        fastrnn.Stream(fake)
