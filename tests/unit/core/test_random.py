"""Hash noise: as good as a generator's, and each row's own."""

import math

import pytest
import torch
from scipy import stats

from foretoken.core import random

SEEDS = torch.arange(4096)


def test_uniform_is_uniform() -> None:
    u = random.uniform(SEEDS, 16)
    assert u.dtype == torch.float32 and u.shape == (4096, 16)
    assert float(u.min()) >= 0 and float(u.max()) < 1
    counts = torch.histc(u, 64, 0, 1)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4


@pytest.mark.parametrize("stride", [1, -1, 2**32, random._GOLDEN])
def test_regular_seeds_are_uncorrelated(stride: int) -> None:
    """Between neighbouring seeds and between neighbouring entries, 5 standard errors."""
    u = random.uniform(SEEDS * stride, 8).double() - 0.5
    for a, b in ((u[:-1], u[1:]), (u[:, :-1], u[:, 1:]), (u[:-1, 1:], u[1:, :-1])):
        assert abs(float((a * b).mean())) * 12 < 5 / math.sqrt(a.numel())


def test_every_bit_depends_on_every_bit() -> None:
    base = random.scramble(SEEDS)
    for bit in range(64):
        flipped = base ^ random.scramble(SEEDS ^ (1 << bit if bit < 63 else -(2**63)))
        changed = torch.stack([(flipped >> k) & 1 for k in range(64)]).double().mean(1)
        assert float((changed - 0.5).abs().max()) < 0.06


def test_scramble_is_splitmix64() -> None:
    """The first outputs of the published generator for the seed 0."""
    counters = torch.arange(1, 3) * random._GOLDEN
    got = [number % 2**64 for number in random.scramble(counters).tolist()]
    assert got == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]


def test_scramble_loses_nothing() -> None:
    assert len(random.scramble(torch.arange(-50_000, 50_000)).unique()) == 100_000


def test_normal_is_normal() -> None:
    z = random.normal(SEEDS, 8)
    assert z.dtype == torch.float32 and bool(z.isfinite().all())
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-4
    assert abs(float((z[:-1] * z[1:]).mean())) < 5 / math.sqrt(z[1:].numel())


def test_categorical_follows_the_softmax() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, float("-inf")])
    drawn = random.categorical(logits.expand(20_000, 4), torch.arange(20_000))
    share = torch.bincount(drawn, minlength=4).double() / 20_000
    p = logits.softmax(-1)
    assert float(share[3]) == 0
    assert bool(((share - p).abs() <= 5 * (p * (1 - p) / 20_000).sqrt()).all())


def test_categorical_draws_each_place_separately() -> None:
    drawn = random.categorical(torch.zeros(2000, 2, 3), torch.arange(2000))
    assert drawn.shape == (2000, 2)
    agree = float((drawn[:, 0] == drawn[:, 1]).double().mean())
    assert abs(agree - 1 / 3) < 0.05


@pytest.mark.parametrize(
    "draw",
    [
        lambda s: random.uniform(s, 3),
        lambda s: random.normal(s, 2, 2),
        lambda s: random.categorical(torch.zeros(len(s), 5), s),
    ],
)
def test_rows_depend_on_their_seed_alone(draw) -> None:
    seeds = torch.tensor([7, -1, 2**62, 7])
    together = draw(seeds)
    assert torch.equal(together[0], together[3])
    for row in range(4):
        assert torch.equal(draw(seeds[row : row + 1])[0], together[row])
    order = torch.tensor([3, 1, 0, 2])
    assert torch.equal(draw(seeds[order]), together[order])


def test_split_gives_new_seeds() -> None:
    seeds = torch.arange(300)
    grid = torch.stack([random.split(seeds, purpose, step) for purpose in range(10) for step in range(20)])
    assert len(grid.unique()) == grid.numel() and not bool((grid == seeds).any())
    swapped = random.split(seeds, 3, 5), random.split(seeds, 5, 3)
    assert not bool((swapped[0] == swapped[1]).any())
    keys = torch.arange(300) % 7
    each = torch.stack([random.split(seeds[i : i + 1], int(keys[i]))[0] for i in range(300)])
    assert torch.equal(random.split(seeds, keys), each)
