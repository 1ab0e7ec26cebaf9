"""The cross-entropy method: draw sequences, keep the best, fit a Gaussian to them, draw again.

With one iteration it is random shooting. Rubinstein 1999; as a planner in learned models, Chua et al., NeurIPS 2018,
arXiv 1805.12114; noise that lasts, Pinneri et al., CoRL 2020, arXiv 2008.06389.
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
class CEMConfig(PlannerConfig):
    """
    Args:
        elites: the best candidates, to which the Gaussian is fitted.
        momentum: share of the last mean and standard deviation that stays.
        least_std: the standard deviation never falls below it.
    """

    elites: int = 8
    momentum: float = 0.1
    least_std: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.elites <= self.candidates:
            raise ConfigError(f"elites must lie in [1, candidates], got {self.elites} of {self.candidates}")


@configures(CEMConfig)
class CEM(Planner):
    """Answers the best sequence it has seen, so that iterations never make a plan worse by the model."""

    config: CEMConfig

    def _search(self, earned: Callable[[Tensor], Tensor], warm: Tensor, seed_B: Tensor) -> Plan:
        config, mean, std = self.config, warm, torch.full_like(warm, self.config.std)
        best, value = warm, torch.full_like(warm[:, 0, 0], -torch.inf)
        rows = torch.arange(len(warm), device=warm.device)
        for iteration in range(config.iterations):
            tried = self._candidates(mean, std, random.split(seed_B, iteration))
            value_BN = earned(tried)
            top_BE = value_BN.topk(config.elites, dim=1)
            elites = tried[rows[:, None], top_BE.indices]
            better = top_BE.values[:, 0] > value
            best = torch.where(better[:, None, None], elites[:, 0], best)
            value = torch.where(better, top_BE.values[:, 0], value)
            mean = torch.lerp(elites.mean(1), mean, config.momentum)
            std = torch.lerp(elites.std(1, correction=0), std, config.momentum).clamp(min=config.least_std)
        return Plan(best, value)
