"""Model predictive path integral control: the mean of all candidates, weighted by the exponential of what they earn.

    plan <- sum_n w_n candidate_n,    w = softmax((R - max R) / (temperature * standard deviation of R))

Williams et al., ICRA 2017. Dividing by the spread makes the temperature free of the rewards' scale.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from foretoken.core import random
from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.planning.base import Plan, Planner, PlannerConfig


@dataclass(frozen=True, kw_only=True)
class MPPIConfig(PlannerConfig):
    """
    Args:
        temperature: how much worse candidates count, in standard deviations of what a row's candidates earn.
        decay: factor on the standard deviation of candidates from one iteration to the next, in (0, 1].
    """

    temperature: float = 0.3
    decay: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature <= 0 or not 0 < self.decay <= 1:
            raise ConfigError(
                f"temperature must be positive and decay in (0, 1], got {self.temperature} and {self.decay}"
            )


@configures(MPPIConfig)
class MPPI(Planner):
    """Answers the weighted mean, which is smoother than the best candidate."""

    config: MPPIConfig

    def _search(self, earned: Callable[[Tensor], Tensor], warm: Tensor, seed_B: Tensor) -> Plan:
        config, mean, value = self.config, warm, torch.full_like(warm[:, 0, 0], -torch.inf)
        for iteration in range(config.iterations):
            std = config.std * config.decay**iteration
            tried = self._candidates(mean, std, random.split(seed_B, iteration))
            value_BN = earned(tried)
            spread_B1 = value_BN.std(1, correction=0, keepdim=True).clamp(min=1e-9)
            weight_BN = (value_BN / (config.temperature * spread_B1)).softmax(1)
            mean = (weight_BN[:, :, None, None] * tried).sum(1)
            value = torch.maximum(value, value_BN.amax(1))
        return Plan(mean, value)
