"""Dropout from cheap bits: the rate, the mean, the gradient, the seed."""

import math

import pytest
import torch

from foretoken.nn.dropout import Dropout, dropout, keep_mask


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_rate(p: float) -> None:
    torch.manual_seed(0)
    size = 400_003  # not a multiple of four
    kept = keep_mask(torch.empty(size), p)
    assert kept.dtype == torch.float32 and kept.shape == (size,) and set(kept.unique().tolist()) == {0.0, 1.0}
    assert abs(float(kept.double().mean()) - (1 - p)) < 5 * math.sqrt(p * (1 - p) / size) + 2**-17


def test_entries_are_independent() -> None:
    torch.manual_seed(0)
    kept = keep_mask(torch.empty(400_000), 0.3).double() - 0.7
    for lag in (1, 2, 3, 4, 8):
        assert abs(float((kept[lag:] * kept[:-lag]).mean())) < 5 * 0.21 / math.sqrt(400_000)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_mean_and_gradient(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.full((20_000, 5), 2.0, dtype=dtype, requires_grad=True)
    y = dropout(x, 0.25, True)
    assert y.dtype == dtype and abs(float(y.detach().double().mean()) - 2) < 0.03
    weight = torch.randn(x.shape).to(dtype)
    (y * weight).sum().backward()
    mask = (y != 0).to(dtype)
    torch.testing.assert_close(x.grad, weight * mask / 0.75, rtol=2e-2 if dtype == torch.bfloat16 else 1e-6, atol=0)


def test_exact_gradient() -> None:
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)

    def seeded(x: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return dropout(x, 0.4, True)

    assert torch.autograd.gradcheck(seeded, x)


def test_nothing_happens_outside_training() -> None:
    x = torch.randn(5)
    module = Dropout(0.5)
    assert module.eval()(x) is x and dropout(x, 0.0, True) is x
    assert "p=0.5" in repr(module)


def test_the_seed_decides() -> None:
    results = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        results.append(dropout(torch.ones(1000), 0.5, True))
    assert torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])
