"""Choices: one, several independent ones, or bits."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foretoken.core import random
from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.core.spec import Discrete, MultiBinary, MultiDiscrete, Space
from foretoken.core.store import Statistics
from foretoken.nn.heads.base import HeadConfig, Prediction


@dataclass(frozen=True, kw_only=True)
class CategoricalConfig(HeadConfig):
    """
    Args:
        temperature: logits are divided by it when sampling; 0 takes the mode.
    """

    temperature: float = 1.0


@dataclass(frozen=True)
class Choices(Prediction):
    """Independent choices; `logits` are (..., choices, options) float32, impossible options at -inf."""

    logits: Tensor
    temperature: float
    single: bool
    start: int

    def _out(self, choice: Tensor) -> Tensor:
        return choice.squeeze(-1) + self.start if self.single else choice

    def mode(self) -> Tensor:
        return self._out(self.logits.argmax(-1))

    def sample(self, seed_B: Tensor) -> Tensor:
        if self.temperature == 0:
            return self.mode()
        return self._out(random.categorical(self.logits / self.temperature, seed_B))

    def log_prob(self, action: Tensor) -> Tensor:
        # padding holds zeros, which may lie below `start`
        chosen = (action.long() - self.start).clamp(min=0).unsqueeze(-1) if self.single else action.long()
        return self.logits.log_softmax(-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1).sum(-1)

    def loss(self, action: Tensor) -> Tensor:
        return -self.log_prob(action)

    def entropy(self) -> Tensor:
        log_p = self.logits.log_softmax(-1)
        # masked before the product: an infinite factor makes the gradient NaN even where it is not taken
        return -(log_p.exp() * log_p.masked_fill(log_p.isinf(), 0.0)).sum((-1, -2))


@configures(CategoricalConfig)
class Categorical(nn.Module):
    """Linear logits for Discrete, MultiDiscrete (choices of unequal size are padded with -inf) and MultiBinary actions."""

    absent: Tensor

    def __init__(self, config: CategoricalConfig, space: Space, width: int) -> None:
        super().__init__()
        match space:
            case Discrete():
                counts: tuple[int, ...] = (space.n,)
            case MultiDiscrete():
                counts = space.nvec
            case MultiBinary():
                counts = (2,) * space.n
            case _:
                raise ConfigError(
                    f"the categorical head needs Discrete, MultiDiscrete or MultiBinary actions, got {type(space).__name__}"
                )
        self.single, self.start = isinstance(space, Discrete), space.start if isinstance(space, Discrete) else 0
        self.temperature, self.options = config.temperature, max(counts)
        self.linear = nn.Linear(width, len(counts) * self.options)
        absent = torch.arange(self.options)[None] >= torch.tensor(counts)[:, None]
        self.register_buffer("absent", absent, persistent=False)

    def fit(self, statistics: Mapping[str, Statistics]) -> None:
        """Nothing is learned from statistics."""

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Choices:
        """`mask` (..., choices, options) bool allows options; all are allowed without it."""
        logits = self.linear(features).float().unflatten(-1, (-1, self.options))
        forbidden = self.absent if mask is None else self.absent | ~mask
        return Choices(logits.masked_fill(forbidden, float("-inf")), self.temperature, self.single, self.start)
