"""Return-to-go: the sum of rewards from now to the end of the episode, asked for at the start and counted down."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from foretoken.core.batch import Batch, Step
from foretoken.core.config import Config, configures
from foretoken.core.errors import ConfigError
from foretoken.core.method import Condition, Context
from foretoken.core.state import State
from foretoken.core.store import EpisodeStore


@dataclass(frozen=True, kw_only=True)
class ConditionConfig(Config):
    """Base of all condition configs; `build()` makes the condition."""


@dataclass(frozen=True, kw_only=True)
class ReturnToGoConfig(ConditionConfig):
    """
    Args:
        scale: returns are divided by it; 0 takes the largest |return| of the data, so that what is asked for lies in [-1, 1].
        delayed: rewards come only at the end, so what is asked for stays constant while acting.
    """

    scale: float = 0.0
    delayed: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale < 0:
            raise ConfigError(f"scale must be positive, or 0 to take it from the data, got {self.scale}")


@configures(ReturnToGoConfig)
class ReturnToGo(Condition):
    """`R_t = sum of r_t .. r_T`, undiscounted, over a scale (Chen et al. 2021, arXiv 2106.01345)."""

    width = 1
    columns = ("return_to_go",)
    asks = ("target_return",)
    scale: Tensor

    def __init__(self, config: ReturnToGoConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("scale", torch.tensor(config.scale or 1.0))

    def fit(self, stores: Mapping[str, EpisodeStore]) -> None:
        """Takes the scale from the data where the config leaves it open."""
        if self.config.scale == 0 and stores:
            largest = max(float(abs(store.episodes["return"]).max()) for store in stores.values())
            self.scale.fill_(largest or 1.0)

    def hindsight(self, batch: Batch) -> Tensor:
        return (batch.return_to_go / self.scale).unsqueeze(-1)

    def begin(self, rows: int, context: Context) -> State:
        if "target_return" not in context:
            raise ConfigError(
                "this policy is asked for a return: begin its episodes with a target_return, one number per row"
            )
        asked = torch.as_tensor(context["target_return"], dtype=torch.float32, device=self.scale.device)
        return {"asked": asked.expand(rows).clone()}

    def carry(self, step: Step, state: State) -> tuple[Tensor, State]:
        """What is still asked for: `R_t = R_(t-1) - r_(t-1)`; the first step of an episode has no reward before it."""
        asked = state["asked"] if self.config.delayed else state["asked"] - step.previous_reward
        return (asked / self.scale).unsqueeze(-1), {"asked": asked}
