"""One continuous action, bounded by tanh."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.core.spec import Box, Space
from foretoken.core.store import Statistics
from foretoken.nn.embed.normalise import ActionScale
from foretoken.nn.heads.base import HeadConfig, Prediction


@dataclass(frozen=True, kw_only=True)
class DeterministicConfig(HeadConfig):
    """
    Args:
        tanh: bound the action by tanh; otherwise the linear layer's output is the action.
    """

    tanh: bool = True


@dataclass(frozen=True)
class Point(Prediction):
    """A point in the action space; `scaled` lies in [-1, 1] per entry. The loss is the mean squared error of scaled actions."""

    scaled: Tensor
    scale: ActionScale

    def mode(self) -> Tensor:
        return self.scale.inverse(self.scaled)

    def sample(self, seed_B: Tensor) -> Tensor:
        return self.mode()

    def loss(self, action: Tensor) -> Tensor:
        error, axes = (self.scaled - self.scale(action)).square(), self.scale.middle.dim()
        return error.flatten(-axes).mean(-1) if axes else error


@configures(DeterministicConfig)
class Deterministic(nn.Module):
    """`tanh(W x + b)`, stretched to the action space's bounds."""

    def __init__(self, config: DeterministicConfig, space: Space, width: int) -> None:
        super().__init__()
        if not isinstance(space, Box):
            raise ConfigError(f"the deterministic head needs a Box of actions, got {type(space).__name__}")
        self.tanh, self.shape, self.scale = config.tanh, space.shape, ActionScale(space)
        self.linear = nn.Linear(width, space.size)

    def fit(self, statistics: Mapping[str, Statistics]) -> None:
        self.scale.fit(statistics[""])

    def forward(self, features: Tensor) -> Point:
        y = self.linear(features).unflatten(-1, self.shape or (1,))
        y = y.squeeze(-1) if not self.shape else y
        return Point(torch.tanh(y) if self.tanh else y, self.scale)
