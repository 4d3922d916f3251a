"""Statistics of zoneout's masks, read off the states: a unit that is kept has the very bits of the step before."""

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn._masks import draw_ones
from helpers import BF16, F32, F64
from optioncases import make, zoned

ZONEOUT = {"LSTM": (0.3, 0.2), "GRU": 0.3, "RNN": 0.3}
families = pytest.mark.parametrize("family", ZONEOUT)


def probabilities(family: str) -> list[float]:
    """Of h, and of an LSTM's c."""
    p = ZONEOUT[family]
    return list(p) if isinstance(p, tuple) else [p]


def module_of(family: str, *sizes: int, **options: bool) -> nn.RNNBase:
    torch.manual_seed(0)
    module: nn.RNNBase = getattr(fastrnn, family)(*sizes, zoneout=ZONEOUT[family], dtype=F64, **options)
    return module


def assert_rate(mask: Tensor, p: float) -> None:
    """Within five standard deviations of a binomial's mean."""
    assert abs(float(mask.mean()) - p) <= 5 * (p * (1 - p) / mask.numel()) ** 0.5


def assert_uncorrelated(masks: Tensor) -> None:
    """[K, N], K variables and N draws of each."""
    found = torch.corrcoef(masks) - torch.eye(len(masks), dtype=masks.dtype)
    assert float(found.abs().max()) < 6 / masks.shape[1] ** 0.5


def assert_alike(mask: Tensor, p: float) -> None:
    """Of a mask [B, H]: the rate, and that neither rows nor units are kept as a whole, nor go together."""
    assert_rate(mask, p)
    for axis in (0, 1):
        assert abs(float(mask.mean(axis).std()) / (p * (1 - p) / mask.shape[axis]) ** 0.5 - 1) < 0.35
    assert_uncorrelated(mask)
    assert_uncorrelated(mask.T)


@pytest.mark.parametrize("dtype", [F32, F64, BF16], ids=["f32", "f64", "bf16"])
@pytest.mark.parametrize("p", [0.0, 1e-7, 2**-16, 0.3, 0.5, 1 - 2**-16, 1.0])
def test_draw_ones(p: float, dtype: torch.dtype) -> None:
    mask = draw_ones((2, 1 << 18), p, torch.empty(0, dtype=dtype))
    assert mask.dtype == dtype and set(mask.unique().tolist()) <= {0.0, 1.0}
    assert_rate(mask.double(), round(p * 2**16) / 2**16)


@pytest.mark.parametrize("dtype", [F32, F64], ids=["f32", "f64"])
def test_a_mask_of_any_size_and_nothing_beside_it(dtype: torch.dtype) -> None:
    seed, all_of_them = torch.tensor([-5]), torch.empty(100, dtype=dtype)
    torch.ops.fastrnn.draw_mask_(all_of_them, seed, 1 << 15, 3.0)
    assert set(all_of_them.tolist()) == {0.0, 3.0} and not all_of_them.signbit().any()
    for size in range(70):
        room = torch.full((100,), 7.0, dtype=dtype)
        torch.ops.fastrnn.draw_mask_(room[8 : 8 + size], seed, 1 << 15, 3.0)
        assert torch.equal(room[8 : 8 + size], all_of_them[:size])
        assert (room[:8] == 7).all() and (room[8 + size :] == 7).all()
    torch.ops.fastrnn.draw_mask_(all_of_them, seed + 1, 1 << 15, 3.0)
    assert not torch.equal(room[8:77], all_of_them[:69])


def test_bits_of_a_mask() -> None:
    """xoshiro128++ from splitmix64, as their authors publish them, 16 bits an element."""

    def splitmix(state: int) -> tuple[int, int]:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        return state, z ^ z >> 31

    def rotate(x: int, by: int) -> int:
        return (x << by | x >> 32 - by) % 2**32

    streams, state = [], 42
    for _ in range(4):
        words = []
        for _ in range(2):
            state, word = splitmix(state)
            words += [word % 2**32, word >> 32]
        streams.append(words)
    draws: list[int] = []
    for _ in range(3):
        results = []
        for s in streams:
            results.append((rotate((s[0] + s[3]) % 2**32, 7) + s[0]) % 2**32)
            shifted = s[1] << 9 & 0xFFFFFFFF
            s[2] ^= s[0]
            s[3] ^= s[1]
            s[1] ^= s[2]
            s[0] ^= s[3]
            s[2] ^= shifted
            s[3] = rotate(s[3], 11)
        draws += [r % 2**16 for r in results] + [r >> 16 for r in results]
    for ones in (0, 1, 9000, 40000, 1 << 16):
        mask = torch.empty(len(draws))
        torch.ops.fastrnn.draw_mask_(mask, torch.tensor([42]), ones, 1.0)
        assert mask.tolist() == [float(d < ones) for d in draws]


@pytest.mark.parametrize(
    ("mask", "seed", "ones"),
    [
        (torch.empty(3, dtype=BF16), torch.tensor([1]), 5),
        (torch.empty(3, 3).T[:2], torch.tensor([1]), 5),
        (torch.empty(3), torch.tensor([1, 2]), 5),
        (torch.empty(3), torch.tensor([1.0]), 5),
        (torch.empty(3), torch.tensor([1]), -1),
        (torch.empty(3), torch.tensor([1]), (1 << 16) + 1),
    ],
    ids=["dtype", "strides", "seeds", "seed", "too-few", "too-many"],
)
def test_what_a_mask_is_not(mask: Tensor, seed: Tensor, ones: int) -> None:
    with pytest.raises(RuntimeError, match=r"mask|seed|ones"):
        torch.ops.fastrnn.draw_mask_(mask, seed, ones, 1.0)


@families
def test_layers_directions_rows_and_units(family: str) -> None:
    """After one step, a state that is h0 has been kept; the same of c."""
    batch, hidden = 150, 100
    module = module_of(family, 8, hidden, 2, bidirectional=True)
    h0 = torch.randn(4, batch, hidden, dtype=F64)
    both, x = family == "LSTM", torch.randn(1, batch, 8, dtype=F64)
    with torch.no_grad():
        finals = [module(x, (h0, 2 * h0) if both else h0)[1] for _ in range(2)]  # of two calls
    kept = [
        (state == start).double()
        for final in finals
        for state, start in zip(final if both else [final], (h0, 2 * h0), strict=False)
    ]
    for masks, p in zip(kept, probabilities(family) * 2, strict=True):
        for mask in masks:
            assert_alike(mask, p)
    assert_uncorrelated(torch.cat([masks.flatten(1) for masks in kept]))


@families
def test_steps(family: str) -> None:
    """Every step has a draw of its own, in both directions and for c."""
    time, batch, hidden = 40, 30, 50
    module = module_of(family, 8, hidden, bidirectional=True)
    x, options = (
        torch.randn(time, batch, 8, dtype=F64),
        {"return_cell_states": True} if family == "LSTM" else {},
    )
    with torch.no_grad():
        y, _, *cells = module(x, **options)
    for states, p in zip([y, *cells], probabilities(family), strict=True):
        forward, backward = states.chunk(2, 2)
        for steps in (forward, backward.flip(0)):
            kept = (steps[1:] == steps[:-1]).double()
            assert_rate(kept, p)
            assert_uncorrelated(kept.flatten(1))
            assert abs(float((kept[1:] * kept[:-1]).mean()) - p * p) < 0.01  # not for all steps at once


def test_a_mask_of_its_own_beside_recurrent_dropout() -> None:
    """With x zero and weight_hh the identity, one step from ones leaves a one where it is kept, zero where h was
    dropped and not kept, and else what dropout makes of a one."""
    zone, drop, hidden = 0.3, 0.4, 200
    module = fastrnn.RNN(1, hidden, nonlinearity="identity", bias=False, zoneout=zone, recurrent_dropout=drop)
    nn.init.eye_(module.weight_hh_l0)
    with torch.no_grad():
        h = module(torch.zeros(1, hidden, 1), torch.ones(1, hidden, hidden))[0][0].double()
    assert_rate((h == 1).double(), zone)
    assert_rate((h == 0).double(), (1 - zone) * drop)
    assert_rate((h > 1.5).double(), (1 - zone) * (1 - drop))


@zoned
def test_what_is_drawn(option: str) -> None:
    """Nothing at evaluation; in training as much for one thread as for two, whether a gradient is asked for or not."""
    module, x = make(option, 5, 33, 2), torch.randn(7, 3, 5)

    def state_after(threads: int, training: bool, gradients: bool) -> Tensor:
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        with torch.set_grad_enabled(gradients):
            module.train(training)(x)
        return torch.get_rng_state()

    torch.manual_seed(1)
    untouched = torch.get_rng_state()
    assert torch.equal(state_after(1, False, True), untouched)
    drawn = state_after(1, True, True)
    assert not torch.equal(drawn, untouched)
    for threads, gradients in ((2, True), (1, False), (2, False)):
        assert torch.equal(state_after(threads, True, gradients), drawn)


@zoned
def test_a_seed_says_it_all(option: str) -> None:
    module, x = make(option, 5, 33, 2), torch.randn(7, 3, 5)

    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        y: Tensor = module(x)[0]
        return y

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
