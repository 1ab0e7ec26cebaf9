"""Flow matching: data and noise are joined by straight lines, and a sampler follows the mean direction from noise to data.

    x_u = (1 - u) x_0 + u e        target e - x_0        step x_w = x_u + (w - u) v(x_u, u)        0 <= w < u <= 1

Liu, Gong and Liu 2023 (rectified flow), arXiv 2209.03003; Lipman et al. 2023, arXiv 2210.02747. Steps are Euler's.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from foretoken.core import random
from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.diffusion.base import NoiseSchedule, ScheduleConfig, like


@dataclass(frozen=True, kw_only=True)
class FlowConfig(ScheduleConfig):
    """
    Args:
        power: levels to train on are u^(1 / power) with u even in [0, 1): above 1 noisy ones come more often.
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.power <= 0:
            raise ConfigError(f"power must be positive, got {self.power}")


@configures(FlowConfig)
class Flow(NoiseSchedule):
    """See the module."""

    top, stochastic = 1.0, False

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        self.power = config.power

    def draw(self, seed_B: Tensor) -> Tensor:
        return random.uniform(seed_B) ** (1 / self.power)

    def corrupt(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        return clean + like(level, clean) * (noise - clean)

    def target(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        return noise - clean

    def levels(self, n: int) -> Tensor:
        if n < 1:
            raise ConfigError(f"sampling takes at least 1 step, got {n}")
        return torch.linspace(1, 0, n + 1)

    def step(
        self, sample: Tensor, prediction: Tensor, level: Tensor, to: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        return sample + like(to - level, sample) * prediction
