"""The Dynamics contract: what a learned model of an environment offers to those who plan or imagine in it."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from foretoken.core.batch import Batch, Loss
from foretoken.core.config import Config
from foretoken.core.errors import ConfigError
from foretoken.core.spec import Box, Spec
from foretoken.core.state import State
from foretoken.core.store import EpisodeStore
from foretoken.nn.embed.normalise import ActionScale


class Dynamics(nn.Module, ABC):
    """Abstract; constructed as `Owner(config, spec, steps)`. Observations are (..., O) vectors, actions (..., A) in [-1, 1].

    `steps` is how many steps, known and imagined together, it is ever asked for.
    """

    def fit(self, stores: Mapping[str, EpisodeStore]) -> None:
        """Statistics and bins, before the first gradient."""

    @abstractmethod
    def loss(self, batch: Batch, observation_BTO: Tensor, action_BTA: Tensor) -> Loss:
        """Of windows whose observations and actions come as vectors; masks and rewards are the batch's."""

    @abstractmethod
    def begin(
        self, observation_BTO: Tensor, action_BTA: Tensor, valid_BT: Tensor, seed_B: Tensor | None = None
    ) -> State:
        """The state after reading a left-padded history, whose last action is still to be chosen.

        With seeds (B,) int64 the observations of `step` are drawn, each row's by its own; otherwise they are the likeliest. A
        model that knows a single outcome answers that.
        """

    @abstractmethod
    def step(self, state: State, action_RA: Tensor) -> tuple[Tensor, State]:
        """Rewards (R,) that actions earn, and the states after them. A `planning.Model`; without gradients it may write in place."""

    @abstractmethod
    def observation(self, state: State) -> Tensor:
        """(R, O): what a state shows."""


class DynamicsConfig(Config):
    """Base of configs of dynamics; `build(spec, steps)` makes the model."""


class Vectors(nn.Module):
    """Observations and actions of any shape as vectors (B, T, O) and (B, T, A), actions scaled to [-1, 1]."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.shape = box(spec, "action").shape
        box(spec, "observation")
        self.scale = ActionScale(box(spec, "action"))

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        scaled = self.scale(action).reshape(*action.shape[:2], -1).clamp(-1, 1)
        return observation.reshape(*scaled.shape[:2], -1).to(scaled.dtype), scaled

    def action(self, vector_BA: Tensor) -> Tensor:
        """Actions (B, *shape) of vectors (B, A)."""
        return self.scale.inverse(vector_BA.reshape(-1, *self.shape))


def box(spec: Spec, name: str) -> Box:
    """The space of observations or actions, where it is a Box of numbers."""
    space = getattr(spec, name)
    if not isinstance(space, Box) or space.is_image:
        raise ConfigError(f"dynamics need a Box of numbers as {name}, got {space}")
    return space
