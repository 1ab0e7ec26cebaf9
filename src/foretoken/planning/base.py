"""The Planner contract, and what sampling planners share.

A model answers (rewards, next states) for rows of states and actions. A planner sees nothing else: B rows times N candidate
sequences of T actions are B * N rows to it.

Laws: rows are independent, the same seeds give the same plan, and more iterations are no worse in the mean.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from foretoken.core import random
from foretoken.core.config import Config
from foretoken.core.errors import ConfigError
from foretoken.core.state import State, gather

Model: TypeAlias = Callable[[State, Tensor], tuple[Tensor, State]]
"""From states of R rows and their actions (R, A) to rewards (R,) and the states after. It may write into the states it is given."""


class Plan(NamedTuple):
    """What a planner answers: actions (B, T, A) in [-1, 1], and what the best candidate seen earns by the model, (B,)."""

    actions: Tensor
    value: Tensor


@dataclass(frozen=True, kw_only=True)
class PlannerConfig(Config):
    """
    Args:
        horizon: actions of a plan, T.
        candidates: sequences tried in each iteration, N, the present plan among them.
        iterations: how often candidates are drawn.
        std: standard deviation of candidates around the plan at first, for actions in [-1, 1].
        smoothing: correlation of a candidate's deviations from one action to the next, in [0, 1); forces that last reach farther.
        discount: of each reward beside the one before.
    """

    horizon: int = 15
    candidates: int = 64
    iterations: int = 3
    std: float = 0.5
    smoothing: float = 0.0
    discount: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(horizon=1, candidates=2, iterations=1)
        if self.std <= 0 or not 0 <= self.smoothing < 1 or not 0 < self.discount <= 1:
            raise ConfigError(
                f"std must be positive, smoothing in [0, 1), discount in (0, 1], got {self.std}, {self.smoothing}, {self.discount}"
            )

    def build(self, dims: int) -> "Planner":
        """A planner of actions with `dims` entries."""
        planner: Planner = super().build(dims)
        return planner


class Planner(ABC):
    """Abstract; constructed as `Owner(config, dims)`. Holds no state."""

    def __init__(self, config: PlannerConfig, dims: int) -> None:
        self.config, self.dims = config, dims

    def plan(self, model: Model, start: State, seed_B: Tensor, warm: Tensor | None = None) -> Plan:
        """The plan for every row of `start`.

        Args:
            seed_B: (B,) int64, the only randomness.
            warm: (B, T, A) where to begin, for example what is left of the last plan; None begins at 0.
        """
        if warm is None:
            warm = torch.zeros(len(seed_B), self.config.horizon, self.dims, device=seed_B.device)
        return self._search(lambda actions_BNTA: self._earned(model, start, actions_BNTA), warm, seed_B)

    @abstractmethod
    def _search(self, earned: Callable[[Tensor], Tensor], warm: Tensor, seed_B: Tensor) -> Plan:
        """Improves the plan `warm` (B, T, A), given what candidates (B, N, T, A) earn, (B, N)."""

    def _earned(self, model: Model, start: State, actions_BNTA: Tensor) -> Tensor:
        rows, count = actions_BNTA.shape[:2]
        state = start
        if tree_leaves(start):
            state = gather(start, torch.arange(rows, device=actions_BNTA.device).repeat_interleave(count))
        total = actions_BNTA.new_zeros(rows * count)
        for time, action_RA in enumerate(actions_BNTA.flatten(0, 1).unbind(1)):
            reward_R, state = model(state, action_RA)
            total = total + self.config.discount**time * reward_R
        return total.view(rows, count)

    def _candidates(self, mean_BTA: Tensor, std_BTA: Tensor | float, seed_B: Tensor) -> Tensor:
        """(B, N, T, A) in [-1, 1] around the plan, which is the first of them."""
        count, share = self.config.candidates, self.config.smoothing
        noise = random.normal(seed_B, count, *mean_BTA.shape[1:])
        for time in range(1, noise.shape[2] if share else 0):
            noise[:, :, time] = share * noise[:, :, time - 1] + (1 - share**2) ** 0.5 * noise[:, :, time]
        noise[:, 0] = 0
        spread = std_BTA if isinstance(std_BTA, float) else std_BTA[:, None]
        return (mean_BTA[:, None] + spread * noise).clamp(-1, 1)
