"""A cell that the tests' own build adds (tests/csrc/toy), through the op and autograd, with operands of every kind.

`make test-emulated` runs it on that build.
"""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from fastrnn import _spec
from fastrnn._autograd import layer
from fastrnn._ops import Call
from fastrnn.reference import ACTIVATIONS

MASKS = {"shared": 1, "by row": 2, "by step and row": 3}


def masked_indrnn_layer(
    x: Tensor,
    h0: Tensor | None,
    weights: Sequence[Tensor],
    batch_sizes: Tensor | None,
    operands: Sequence[Tensor],
    *rest: object,
) -> tuple[Tensor, Tensor]:
    """h = act(W x + b + u (m h)) (Li et al. 2018); operands u [H] and m [H], [B, H] or [T, B, H] of each direction."""
    has_biases, batch_first, bidirectional, activation, *_ = rest
    directions = 2 if bidirectional else 1
    per_direction = len(weights) // directions
    if batch_sizes is None:
        steps = list(x.unbind(1 if batch_first else 0))
    else:
        steps = list(x.split(batch_sizes.tolist()))
    outputs, finals = [], []
    for d in range(directions):
        w, *bias = weights[d * per_direction : (d + 1) * per_direction]
        u, m = operands[2 * d : 2 * d + 2]
        masks = m.expand(len(steps), len(steps[0]), w.shape[0])
        h = x.new_zeros(len(steps[0]), w.shape[0]) if h0 is None else h0[d]
        rows = [h] * len(steps)
        for t in range(len(steps))[:: -1 if d else 1]:
            count = len(steps[t])
            before = torch.nn.functional.linear(steps[t], w, bias[0] if has_biases else None)
            rows[t] = ACTIVATIONS[activation](before + u * masks[t, :count] * h[:count])
            h = torch.cat([rows[t], h[count:]])
        outputs.append(rows)
        finals.append(h)
    y = [torch.cat(parts, -1) for parts in zip(*outputs, strict=True)]
    joined = torch.cat(y) if batch_sizes is not None else torch.stack(y, 1 if batch_first else 0)
    return joined, torch.stack(finals)


@pytest.fixture(scope="module", autouse=True)
def family() -> None:
    option = _spec.Option("activation", "tanh", _spec.ACTIVATIONS)
    found = _spec._family(
        "masked_indrnn",
        (option,),
        lambda activation, _: ("masked_indrnn", activation, "sigmoid"),
        masked_indrnn_layer,
    )
    _spec.FAMILIES["masked_indrnn"] = found
    _spec._BY_KIND.update({kind: (found, choice) for choice, kind in found.kinds.items()})


def make(
    mask: str,
    *,
    bidirectional: bool = False,
    batch_first: bool = False,
    packed: bool = False,
    biases: bool = True,
    activation: str = "tanh",
    dtype: torch.dtype = torch.float64,
) -> Call:
    torch.manual_seed(0)
    time, batch, inputs, hidden = 5, 3, 4, 19
    directions = 2 if bidirectional else 1
    batch_sizes = torch.tensor([3, 3, 2, 1, 1]) if packed else None
    shape = (10, inputs) if packed else (batch, time, inputs) if batch_first else (time, batch, inputs)
    weights, operands = [], []
    for _ in range(directions):
        weights += [torch.randn(hidden, inputs), torch.randn(hidden)][: 1 + biases]
        operands += [torch.rand(hidden), torch.rand((time, batch, hidden)[-MASKS[mask] :])]
    spec = _spec.FAMILIES["masked_indrnn"].spec((activation,), biases, batch_first, bidirectional)

    def leaf(tensor: Tensor) -> Tensor:
        return tensor.to(dtype).requires_grad_()

    return Call(
        spec,
        leaf(torch.randn(shape)),
        [leaf(torch.randn(directions, batch, hidden))],
        [leaf(w) for w in weights],
        batch_sizes,
        [leaf(o) if index % 2 == 0 else o.to(dtype) for index, o in enumerate(operands)],
    )


def leaves(call: Call) -> list[Tensor]:
    return [call.x, *call.states, *call.weights, *call.operands[::2]]


CASES = [
    {},
    {"bidirectional": True},
    {"batch_first": True, "biases": False},
    {"packed": True},
    {"packed": True, "bidirectional": True, "activation": "softsign"},
]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("options", CASES, ids=lambda options: "-".join(options) or "plain")
def test_outputs_and_gradients_are_the_references(mask: str, options: dict[str, bool]) -> None:
    call = make(mask, **options)
    family, choice = _spec.family_of(call.spec)
    flags = (bool(call.spec & bit) for bit in (_spec.HAS_BIASES, _spec.BATCH_FIRST, _spec.BIDIRECTIONAL))
    expected = family.reference(
        call.x, *call.states, call.weights, call.batch_sizes, call.operands, *flags, *choice
    )
    found = layer(*call)
    seeds = [torch.randn_like(y) for y in expected]
    for got, want in zip(found, expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    for got, want in zip(
        torch.autograd.grad(found, leaves(call), seeds),
        torch.autograd.grad(expected, leaves(call), seeds),
        strict=True,
    ):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("packed", [False, True])
def test_gradcheck_twice(packed: bool) -> None:
    call = make("by row", packed=packed)

    def run(x: Tensor, h0: Tensor, w: Tensor, b: Tensor, u: Tensor) -> tuple[Tensor, ...]:
        return tuple(layer(*call._replace(x=x, states=[h0], weights=[w, b], operands=[u, call.operands[1]])))

    assert gradcheck(run, leaves(call))
    assert gradgradcheck(run, leaves(call))


def test_half_precision_is_rounded_once() -> None:
    call = make("shared", dtype=torch.bfloat16)
    exact = call._replace(
        x=call.x.float(),
        states=[s.float() for s in call.states],
        weights=[w.float() for w in call.weights],
        operands=[o.float() for o in call.operands],
    )
    for got, want in zip(layer(*call), layer(*exact), strict=True):
        assert torch.equal(got, want.bfloat16())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda call: call._replace(operands=call.operands[:1]), "expected 2 operands"),
        (lambda call: call._replace(operands=[call.operands[0], torch.rand(4, 19).double()]), "an operand"),
        (lambda call: call._replace(operands=[call.operands[0], call.operands[1].float()]), "same dtype"),
        (lambda call: call._replace(weights=call.weights[:1]), "weights each"),
    ],
)
def test_what_does_not_fit_is_refused(change: Callable[[Call], Call], message: str) -> None:
    call = make("by row")
    with torch.no_grad(), pytest.raises(RuntimeError, match=message):
        layer(*change(call))
