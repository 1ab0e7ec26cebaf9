"""Companded bins: known numbers, centres that survive, resolution around 0."""

import math

import pytest
import torch

from foretoken.core.errors import ConfigError
from foretoken.core.spec import Box
from foretoken.nn.tokenizers.mu_law import MuLawConfig
from foretoken.testing import check_tokenizer


def test_equals_the_formula_and_needs_no_fit() -> None:
    tokenizer = MuLawConfig().build(Box(shape=(1,)))
    for x in (-300.0, -3.3, -0.01, 0.004, 1.0, 100.0, 256.0):
        y = math.copysign(math.log1p(100 * abs(x)) / math.log1p(100 * 256), x)
        token = min(max(int((y + 1) / 2 * 1024), 0), 1023)
        assert tokenizer.encode(torch.tensor([x])).item() == token
    every = torch.arange(1024)[:, None]
    assert torch.equal(tokenizer.encode(tokenizer.decode(every)), every)
    middle = (2 * (every.double() + 0.5) / 1024 - 1) * math.log1p(100 * 256)  # centres, not edges
    torch.testing.assert_close(tokenizer.decode(every).double(), middle.sign() * middle.abs().expm1() / 100)
    width = tokenizer.edges[0].diff()
    assert width[511] < 0.003 and width[-1] > 4


@pytest.mark.parametrize("config", [MuLawConfig(), MuLawConfig(bins=256, mu=5.0, largest=40.0), MuLawConfig(bins=3)])
def test_laws(config: MuLawConfig) -> None:
    values = torch.randn(300, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.1, 3.0, 90.0])
    fitted = config.build(Box(shape=(3,)))
    fitted.fit(values)
    check_tokenizer(config.build(Box(shape=(3,))), values, bound=fitted.bound)


def test_data_leave_the_bins_as_they_were() -> None:
    """Numbers mean the same whatever a body's data look like; only the error is measured."""
    fresh, fitted = (MuLawConfig(bins=16).build(Box(shape=(2,))) for _ in range(2))
    fitted.fit(torch.tensor([[500.0, 0.01], [-3.0, 0.02]]))
    assert torch.equal(fitted.edges, fresh.edges) and torch.equal(fitted.centres, fresh.centres)
    assert not torch.equal(fitted.bound, fresh.bound)
    x = torch.linspace(-300, 300, 101)[:, None].expand(-1, 2)
    assert torch.equal(fitted.encode(x), fresh.encode(x))


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="mu and largest must be positive"):
        MuLawConfig(mu=0.0)
