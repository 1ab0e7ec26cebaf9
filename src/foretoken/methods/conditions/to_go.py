"""ToGo: what an episode still has to earn or to spend, asked for at its start and counted down."""

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from foretoken.core.batch import Batch, Step
from foretoken.core.errors import ConfigError
from foretoken.core.method import Condition, Context
from foretoken.core.state import State
from foretoken.core.store import EpisodeStore
from foretoken.nn.fitted import Fitted, once


class ToGo(Fitted, Condition):
    """`G_t = sum of x_t .. x_T`, undiscounted, over a scale. Abstract: what x is, the subclass says.

    Args:
        scale: sums are divided by it; 0 takes the largest |sum| over an episode of the data.
        constant: what is asked for is not counted down.
    """

    name: ClassVar[str]
    """What is summed, as errors call it."""

    width = 1
    scale: Tensor

    def __init__(self, scale: float, constant: bool = False) -> None:
        super().__init__()
        self.constant, self.fits = constant, scale == 0
        self.register_buffer("scale", torch.tensor(scale or 1.0))

    def fit(self, stores: Mapping[str, EpisodeStore]) -> None:
        """Takes the scale from the data where the config leaves it open."""
        if self.fits and stores:
            self._fit_scale(stores)

    @once
    def _fit_scale(self, stores: Mapping[str, EpisodeStore]) -> None:
        self.scale.fill_(max(self._largest(store) for store in stores.values()) or 1.0)

    def _largest(self, store: EpisodeStore) -> float:
        """The largest |sum| over an episode."""
        raise NotImplementedError

    @staticmethod
    def _spent(step: Step) -> Tensor:
        """(B,) what the last action brought."""
        raise NotImplementedError

    def hindsight(self, batch: Batch) -> Tensor:
        return (batch[self.columns[0]] / self.scale).unsqueeze(-1)

    def begin(self, rows: int, context: Context) -> State:
        (key,) = self.asks
        if key not in context:
            raise ConfigError(
                f"this policy is asked for a {self.name}: begin its episodes with a {key}, one number per row"
            )
        asked = torch.as_tensor(context[key], dtype=torch.float32, device=self.scale.device)
        return {"asked": asked.expand(rows).clone(), "left": asked.expand(rows).clone()}

    def carry(self, step: Step, state: State) -> tuple[Tensor, State]:
        """What is still asked for: `G_t = G_(t-1) - x_(t-1)`, anew at the first step of every episode."""
        left = (
            state["asked"]
            if self.constant
            else torch.where(step.first, state["asked"], state["left"] - self._spent(step))
        )
        return (left / self.scale).unsqueeze(-1), {"asked": state["asked"], "left": left}
