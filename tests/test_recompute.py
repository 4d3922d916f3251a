"""recompute=True: the same results and gradients as without, and less memory."""

import gc

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn import _spec
from fastrnn._ops import Call
from fastrnn._recompute import chunks_of

LAYERS = {
    "lstm": (fastrnn.LSTM, {}),
    "lstm-proj": (fastrnn.LSTM, {"proj_size": 3}),
    "gru": (fastrnn.GRU, {}),
    "gru-reset-before": (fastrnn.GRU, {"reset_after": False}),
    "rnn": (fastrnn.RNN, {"bias": False}),
}
cells = pytest.mark.parametrize("cell", LAYERS)
TIME, BATCH = 70, 4


def pair(cell, **options):
    """Two layers with equal weights; the first one recomputes."""
    cls, own = LAYERS[cell]
    first = cls(5, 7, dtype=torch.float64, recompute=True, **own, **options)
    second = cls(5, 7, dtype=torch.float64, **own, **options)
    second.load_state_dict(first.state_dict())
    return first, second


def states(module, batch=BATCH):
    rows = module.num_layers * (2 if module.bidirectional else 1)
    h = torch.randn(rows, batch, module.proj_size or module.hidden_size, dtype=torch.float64)
    if module.mode != "LSTM":
        return (h,)
    return h, torch.randn(rows, batch, module.hidden_size, dtype=torch.float64)


def run(module, x, hx, lengths=None, used=("y", "h", "c")):
    """Outputs, and the gradients of a sum of those named in used."""
    x, *hx = (t.clone().requires_grad_() for t in (x, *hx))
    given = x if lengths is None else pack_padded_sequence(x, lengths, enforce_sorted=False)
    y, h = module(given, tuple(hx) if len(hx) == 2 else hx[0])
    y = y.data if isinstance(y, PackedSequence) else y
    outputs = dict(zip(("y", "h", "c"), (y, *(h if isinstance(h, tuple) else (h,))), strict=False))
    loss = sum(
        (out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum()
        for k, out in outputs.items()
        if k in used
    )
    gradients = torch.autograd.grad(loss, [x, *hx, *module.parameters()], allow_unused=True)
    return *(out.detach() for out in outputs.values()), *gradients


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", ["plain", "batch-first", "layers", "bidirectional", "packed", "short"])
@pytest.mark.parametrize(
    ("cell", "used"),
    [(cell, used) for cell in LAYERS for used in ("yhc", "y", "h", "c") if used != "c" or "lstm" in cell],
)
def test_results_and_gradients(cell, form, used):
    options = {
        "batch-first": {"batch_first": True},
        "layers": {"num_layers": 3},
        "bidirectional": {"bidirectional": True, "num_layers": 2},
    }.get(form, {})
    recomputed, plain = pair(cell, **options)
    time = 3 if form == "short" else TIME
    shape = (BATCH, time, 5) if form == "batch-first" else (time, BATCH, 5)
    x, hx = torch.randn(shape, dtype=torch.float64), states(plain)
    lengths = torch.tensor([40, 70, 1, 33]) if form == "packed" else None
    assert_same(run(recomputed, x, hx, lengths, used), run(plain, x, hx, lengths, used))


def test_chunks_cover_the_sequence():
    x = torch.randn(TIME, BATCH, 5)
    spec = fastrnn.LSTM(1, 1)._layer_spec()
    chunks = chunks_of(Call(spec, x, (), ()))
    assert len(chunks) == 4
    assert torch.equal(torch.cat([chunk.of(x) for chunk in chunks]), x)
    packed = pack_padded_sequence(x, torch.tensor([70, 40, 33, 1]))
    chunks = chunks_of(Call(spec, packed.data, (), (), packed.batch_sizes))
    assert len(chunks) == 4 and [chunk.batch for chunk in chunks] == [4, 3, 2, 1]
    assert torch.equal(torch.cat([chunk.of(packed.data) for chunk in chunks]), packed.data)
    assert len(chunks_of(Call(spec | _spec.BIDIRECTIONAL, x, (), ()))) == 1


@cells
def test_only_what_is_wanted(cell):
    recomputed, plain = pair(cell)
    x, hx = torch.randn(TIME, BATCH, 5, dtype=torch.float64), states(plain)
    for module in (recomputed, plain):
        for name, parameter in module.named_parameters():
            parameter.requires_grad_("weight_hh" not in name)
    found, expected = (m(x, hx if len(hx) == 2 else hx[0])[0].sum() for m in (recomputed, plain))
    found.backward()
    expected.backward()
    assert recomputed.weight_hh_l0.grad is None
    torch.testing.assert_close(recomputed.weight_ih_l0.grad, plain.weight_ih_l0.grad, rtol=1e-10, atol=1e-10)


@cells
def test_second_derivatives(cell):
    recomputed, plain = pair(cell)
    x, hx = torch.randn(18, 2, 5, dtype=torch.float64), states(plain, 2)

    def penalty(module):
        given = x.clone().requires_grad_()
        y, _ = module(given, hx if len(hx) == 2 else hx[0])
        (d_x,) = torch.autograd.grad(y.square().sum(), given, create_graph=True)
        return torch.autograd.grad(d_x.square().sum(), list(module.parameters()))

    assert_same(penalty(recomputed), penalty(plain))


@cells
def test_batched_gradients(cell):
    recomputed, plain = pair(cell)
    x = torch.randn(20, 2, 5, dtype=torch.float64)
    found = []
    for module in (recomputed, plain):
        given = x.clone().requires_grad_()
        y = module(given)[0][-1].flatten()
        found.append(torch.autograd.grad(y, given, torch.eye(len(y), dtype=y.dtype), is_grads_batched=True))
    assert_same(*found)


@cells
def test_compiles(cell):
    recomputed, plain = pair(cell)
    x = torch.randn(20, 2, 5, dtype=torch.float64, requires_grad=True)
    compiled = torch.compile(recomputed, fullgraph=True, backend="aot_eager")
    (found,) = torch.autograd.grad(compiled(x)[0].sum(), x)
    (expected,) = torch.autograd.grad(plain(x)[0].sum(), x)
    assert_same([found], [expected])


HALVES = {
    "lstm": lambda **options: fastrnn.LSTM(24, 48, **options),
    "lstm-proj": lambda **options: fastrnn.LSTM(24, 48, proj_size=16, **options),
    "gru": lambda **options: fastrnn.GRU(24, 48, **options),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "f16"])
@pytest.mark.parametrize("cell", HALVES)
def test_states_between_chunks_are_not_rounded(cell, dtype):
    """32 chunks in half precision: the outputs are those of one pass over the sequence in float32, rounded once."""
    torch.manual_seed(0)
    module = HALVES[cell](recompute=True).to(dtype)
    x = torch.randn(1024, 3, 24).to(dtype)
    y, last = module(x)
    with torch.no_grad():
        one_pass, last_of_one = module(x)
    for got, want in zip((y, *flat(last)), (one_pass, *flat(last_of_one)), strict=True):
        assert got.dtype == dtype
        # sums are made in another order where a chunk is packed in another way, which moves a few to the next number
        assert (got != want).double().mean() < 1e-3
        torch.testing.assert_close(got, want, rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("cell", HALVES)
def test_gradients_of_chunks_are_added_in_float32(cell):
    """bfloat16's gradients of the weights are as near to exact ones with chunks as without."""
    torch.manual_seed(0)
    recomputed = HALVES[cell](recompute=True).bfloat16()
    plain, exact = HALVES[cell]().bfloat16(), HALVES[cell]().double()
    for other in (plain, exact):
        other.load_state_dict(recomputed.state_dict())
    x = torch.randn(1024, 3, 24).bfloat16()

    def gradients(module):
        given = x.to(module.weight_ih_l0.dtype).requires_grad_()
        y, last = module(given)
        loss = y.double().square().mean() + sum(s.double().sum() for s in flat(last))
        return torch.autograd.grad(loss, [given, *module.parameters()])

    def errors(module):
        found = zip(gradients(module), gradients(exact), strict=True)
        return [float((f.double() - e).norm() / e.norm()) for f, e in found]

    for chunked, whole in zip(errors(recomputed), errors(plain), strict=True):
        assert chunked < 1.05 * whole + 1e-4


def flat(last):
    return last if isinstance(last, tuple) else (last,)


def saved_bytes(module, x):
    """What autograd keeps of a call besides the input and the weights."""
    known = {x.data_ptr(), *(p.data_ptr() for p in module.parameters())}
    seen = {}

    def pack(tensor):
        if tensor.data_ptr() not in known:
            seen[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y, _ = module(x)
    del y
    gc.collect()
    return sum(seen.values())


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_little_is_kept(cell):
    recomputed, plain = pair(cell)
    x = torch.randn(400, BATCH, 5, dtype=torch.float64, requires_grad=True)
    assert saved_bytes(recomputed, x) < saved_bytes(plain, x) / 10


def test_conversions_and_repr():
    module = fastrnn.GRU(3, 4, recompute=True)
    assert repr(module) == "GRU(3, 4, recompute=True)"
    assert type(fastrnn.restore_modules(module)) is nn.GRU
    assert fastrnn.replace_modules(nn.GRU(3, 4)).recompute is False
