"""NoiseSchedule: how data become noise level by level, and how a sampler goes back.

Level 0 is clean data, `top` is (almost) pure noise. Levels belong to rows, `level` (B,) float32: rows of one batch may stand at
different ones. A level may also have more axes, (B, H), for samples (B, H, ...) whose entries are noised apart.

    learn   level = schedule.draw(seed);  x = schedule.corrupt(clean, noise, level);  predict(x, level) -> schedule.target(...)
    sample  x = noise;  for level, to in pairs of schedule.levels(n):  x = schedule.step(x, predict(x, level), level, to, noise)

Nothing here draws from a generator: noise is an argument, or follows from a seed per row, so rows never depend on each other.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from foretoken.core import random
from foretoken.core.config import Config


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig(Config):
    """Base of all schedule configs; `build()` makes the schedule."""


class NoiseSchedule(nn.Module, ABC):
    """Abstract. A module only so that its tables follow the device; it has no parameters and nothing that a checkpoint keeps.

    Law: with the exact prediction for Gaussian data, the sampler's result has the data's mean and standard deviation.
    """

    top: float
    """The level of pure noise."""

    stochastic: bool
    """Whether `step` reads its `noise`."""

    @abstractmethod
    def draw(self, seed_B: Tensor) -> Tensor:
        """(B,) float32: a level to train on for each row, a function of its seed alone."""

    @abstractmethod
    def corrupt(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """Data with noise up to a level; `noise` is standard normal of the data's shape."""

    @abstractmethod
    def target(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        """What a network that reads `corrupt(clean, noise, level)` learns to predict."""

    @abstractmethod
    def levels(self, n: int) -> Tensor:
        """(n + 1,) float32 from noise down to 0: the levels between which n steps go."""

    @abstractmethod
    def step(
        self, sample: Tensor, prediction: Tensor, level: Tensor, to: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """The sample at the lower level `to`, given the network's prediction at `level`."""


def like(level: Tensor, sample: Tensor) -> Tensor:
    """A level or a number per row, with axes of 1 up to those of the sample."""
    return level.reshape(*level.shape, *[1] * (sample.dim() - level.dim()))


def denoise(
    schedule: NoiseSchedule, predict: Callable[[Tensor, Tensor], Tensor], seed_B: Tensor, shape: tuple[int, ...], steps: int
) -> Tensor:  # fmt: skip
    """(B, *shape) float32 from pure noise in `steps` calls of `predict(sample, level_B)`; row b follows from `seed_B[b]` alone."""
    sample = random.normal(random.split(seed_B, 0), *shape)
    path = schedule.levels(steps).to(sample.device)
    for i in range(steps):
        level_B, to_B = path[i].expand(len(sample)), path[i + 1].expand(len(sample))
        noise = random.normal(random.split(seed_B, i + 1), *shape) if schedule.stochastic else None
        sample = schedule.step(sample, predict(sample, level_B), level_B, to_B, noise)
    return sample
