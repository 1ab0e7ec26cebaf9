"""Schedules and samplers: with the exact prediction a Gaussian comes back, steps compose, rows are their own, errors."""

import pytest
import torch

from foretoken.core import random
from foretoken.core.errors import ConfigError
from foretoken.diffusion.base import NoiseSchedule, denoise
from foretoken.diffusion.ddim import DDIMConfig
from foretoken.diffusion.ddpm import DDPMConfig
from foretoken.diffusion.flow import FlowConfig
from foretoken.diffusion.variance_preserving import VariancePreserving

MEAN, STD = 0.4, 0.3
FREE = {"clip": 0.0}
EXACT = {
    "ddpm": (DDPMConfig(num_levels=500, **FREE), 500),  # its smaller variance is exact in the limit of many levels
    "ddpm linear": (DDPMConfig(num_levels=1000, betas="linear", **FREE), 1000),
    "ddpm, 400 of 1000": (DDPMConfig(num_levels=1000, predicts="sample", spacing="trailing", **FREE), 400),
    "ddim": (DDIMConfig(**FREE), 100),
    "ddim, sample": (DDIMConfig(num_levels=1000, predicts="sample", spacing="trailing", **FREE), 200),
    "ddim, v": (DDIMConfig(num_levels=1000, predicts="v", spacing="trailing", **FREE), 200),
    "ddim, eta": (DDIMConfig(num_levels=500, eta=1.0, **FREE), 500),
    "flow": (FlowConfig(), 200),
}


def exact(schedule: NoiseSchedule):
    """The mean of `target` given the sample, for data N(MEAN, STD^2): linear, so the target of the two posterior means."""

    def predict(x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        ones, zeros = torch.ones_like(x), torch.zeros_like(x)
        a, b = schedule.corrupt(ones, zeros, level), schedule.corrupt(zeros, ones, level)
        gain = (x - a * MEAN) / (a**2 * STD**2 + b**2)
        return schedule.target(MEAN + a * STD**2 * gain, b * gain, level)

    return predict


@pytest.mark.parametrize("name", EXACT)
def test_recovers_a_gaussian(name: str) -> None:
    config, steps = EXACT[name]
    schedule = config.build()
    drawn = denoise(schedule, exact(schedule), torch.arange(20_000), (1,), steps)
    assert abs(float(drawn.mean()) - MEAN) < 0.01
    assert abs(float(drawn.std()) / STD - 1) < 0.03


@pytest.mark.parametrize("name", EXACT)
def test_levels_fall_to_zero_and_training_meets_them(name: str) -> None:
    config, steps = EXACT[name]
    schedule = config.build()
    path, drawn = schedule.levels(steps), schedule.draw(torch.arange(20_000))
    assert path.shape == (steps + 1,) and path[-1] == 0 and (path.diff() < 0).all() and path[0] <= schedule.top
    assert (drawn >= 0).all() and (drawn <= schedule.top).all() and drawn.max() > 0.99 * schedule.top
    clean = torch.randn(3, 2)
    assert torch.equal(schedule.corrupt(clean, torch.randn(3, 2), torch.zeros(3)), clean)


@pytest.mark.parametrize("name", ["ddpm", "ddim, eta", "flow"])
def test_rows_depend_on_their_own_seed_and_level(name: str) -> None:
    config, steps = EXACT[name]
    schedule = config.build()
    seeds = torch.tensor([5, 3, 9])
    whole = denoise(schedule, exact(schedule), seeds, (4, 2), steps)
    for row in range(3):
        alone = denoise(schedule, exact(schedule), seeds[[row]], (4, 2), steps)
        torch.testing.assert_close(whole[[row]], alone)
    assert (whole[0] != whole[1]).any()
    clean, noise, level = torch.randn(3, 4, 2), torch.randn(3, 4, 2), schedule.draw(seeds)
    per_entry = level[:, None].expand(3, 4)
    for function in (schedule.corrupt, schedule.target):
        together = function(clean, noise, level)
        assert torch.equal(function(clean[[1]], noise[[1]], level[[1]]), together[[1]])
        assert torch.equal(function(clean, noise, per_entry), together)


@pytest.mark.parametrize("predicts", ["noise", "sample", "v"])
@pytest.mark.parametrize("kind", [DDPMConfig, DDIMConfig])
def test_true_predictions_give_the_true_data(kind: type, predicts: str) -> None:
    schedule = kind(predicts=predicts).build()
    clean, noise = random.uniform(torch.arange(6), 5) * 2 - 1, random.normal(torch.arange(6), 5)
    level = torch.tensor([1.0, 20, 40, 60, 80, 95])
    x = schedule.corrupt(clean, noise, level)
    assert isinstance(schedule, VariancePreserving)
    prediction = schedule.target(clean, noise, level)
    found = schedule.parts(x, prediction, level)
    torch.testing.assert_close(found, (clean, noise), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(schedule.step(x, prediction, level, torch.zeros(6)), clean, rtol=1e-3, atol=1e-4)


def test_clipping_keeps_the_guess_inside() -> None:
    schedule = DDIMConfig(clip=1.0).build()
    there = schedule.step(torch.full((1, 1), 9.0), torch.zeros(1, 1), torch.tensor([50.0]), torch.tensor([0.0]))
    assert there.item() == 1.0


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="between 1 and 100 steps, got 101"):
        DDIMConfig().build().levels(101)
    with pytest.raises(ConfigError, match="at least 1 step, got 0"):
        FlowConfig().build().levels(0)
    with pytest.raises(ConfigError, match=r"eta must lie in \[0, 1\], got 2"):
        DDIMConfig(eta=2.0)
    with pytest.raises(ConfigError, match="num_levels >= 1 and clip >= 0, got 0"):
        DDPMConfig(num_levels=0)
    with pytest.raises(ConfigError, match="power must be positive, got 0"):
        FlowConfig(power=0.0)
