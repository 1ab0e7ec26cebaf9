"""A diagonal Gaussian over continuous actions, squashed by tanh or not."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core import random
from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.core.spec import Box, Space
from foretoken.core.store import Statistics
from foretoken.nn.embed.normalise import ActionScale
from foretoken.nn.heads.base import HeadConfig, Prediction


@dataclass(frozen=True, kw_only=True)
class GaussianConfig(HeadConfig):
    """
    Args:
        squash: pass the Gaussian through tanh, so that actions lie within the bounds.
        min_log_std, max_log_std: bounds of the predicted log standard deviation (of scaled actions).
    """

    squash: bool = True
    min_log_std: float = -5.0
    max_log_std: float = 2.0


@dataclass(frozen=True)
class Normal(Prediction):
    """Gaussian with `mean` and `log_std` in scaled units (before tanh when squashed), over vectors (..., size)."""

    mean: Tensor
    log_std: Tensor
    squash: bool
    scale: ActionScale
    shape: tuple[int, ...]

    def _out(self, raw: Tensor) -> Tensor:
        scaled = torch.tanh(raw) if self.squash else raw
        return self.scale.inverse(scaled.unflatten(-1, self.shape) if self.shape else scaled.squeeze(-1))

    def mode(self) -> Tensor:
        return self._out(self.mean)

    def sample(self, seed_B: Tensor) -> Tensor:
        noise = random.normal(seed_B, *self.mean.shape[1:]).to(self.mean.dtype)
        return self._out(self.mean + self.log_std.exp() * noise)

    def log_prob(self, action: Tensor) -> Tensor:
        scaled = self.scale(action)
        scaled = (
            scaled.flatten(-len(self.shape)) if len(self.shape) > 1 else scaled if self.shape else scaled.unsqueeze(-1)
        )
        radius = self.scale.radius.log().sum()
        raw = torch.atanh(scaled.clamp(-1 + 1e-6, 1 - 1e-6)) if self.squash else scaled
        z = (raw - self.mean) * (-self.log_std).exp()
        density = -0.5 * z.square() - self.log_std - 0.5 * math.log(2 * math.pi)
        if self.squash:  # log of d tanh(u) / du, in the form that stays finite for large u
            density = density - 2 * (math.log(2) - raw - F.softplus(-2 * raw))
        return density.sum(-1) - radius

    def loss(self, action: Tensor) -> Tensor:
        return -self.log_prob(action)

    def entropy(self) -> Tensor:
        """Of the Gaussian itself, in scaled units; a squashed one has no closed form, so this is its upper part only."""
        return (self.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


@configures(GaussianConfig)
class Gaussian(nn.Module):
    """Linear mean and bounded linear log standard deviation."""

    def __init__(self, config: GaussianConfig, space: Space, width: int) -> None:
        super().__init__()
        if not isinstance(space, Box):
            raise ConfigError(f"the Gaussian head needs a Box of actions, got {type(space).__name__}")
        self.config, self.shape, self.scale = config, space.shape, ActionScale(space)
        self.linear = nn.Linear(width, 2 * space.size)

    def fit(self, statistics: Mapping[str, Statistics]) -> None:
        self.scale.fit(statistics[""])

    def forward(self, features: Tensor) -> Normal:
        mean, spread = self.linear(features).float().chunk(2, dim=-1)
        low, high = self.config.min_log_std, self.config.max_log_std
        log_std = low + (high - low) * torch.sigmoid(spread)
        return Normal(mean, log_std, self.config.squash, self.scale, self.shape)
