"""The reward before: what an agent that learns in context must see. Nothing is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from foretoken.core.batch import Batch, Step
from foretoken.core.config import configures
from foretoken.core.method import Condition, Context
from foretoken.core.state import State
from foretoken.core.store import EpisodeStore
from foretoken.methods.conditions.base import ScaledConfig
from foretoken.nn.fitted import Fitted, once


@dataclass(frozen=True, kw_only=True)
class PreviousRewardConfig(ScaledConfig):
    """
    Args:
        scale: rewards are divided by it; 0 takes the largest |reward| of the data.
    """


@configures(PreviousRewardConfig)
class PreviousReward(Fitted, Condition):
    """`r_(t-1)` over a scale, zero where an episode begins (Laskin et al. 2023, arXiv 2210.14215: the stream s a r)."""

    width, looks_back = 1, True
    columns = ("reward",)
    scale: Tensor

    def __init__(self, config: PreviousRewardConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("scale", torch.tensor(config.scale or 1.0))

    def fit(self, stores: Mapping[str, EpisodeStore]) -> None:
        """Takes the scale from the data where the config leaves it open."""
        if self.config.scale == 0 and stores:
            self._fit_scale(stores)

    @once
    def _fit_scale(self, stores: Mapping[str, EpisodeStore]) -> None:
        found = [store.statistics("reward")[""] for store in stores.values()]
        self.scale.fill_(max(max(abs(float(part.low)), abs(float(part.high))) for part in found) or 1.0)

    def hindsight(self, batch: Batch) -> Tensor:
        before = torch.cat((torch.zeros_like(batch.reward[:, :1]), batch.reward[:, :-1]), dim=1)
        return (torch.where(batch.first, 0.0, before) / self.scale).unsqueeze(-1)

    def begin(self, rows: int, context: Context) -> State:
        return {}

    def carry(self, step: Step, state: State) -> tuple[Tensor, State]:
        return (step.previous_reward / self.scale).unsqueeze(-1), state
