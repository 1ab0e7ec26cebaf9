"""The Denoiser contract: a network that reads a noisy chunk beside what is known, and says what the noise schedule asks."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from foretoken.core.config import Config
from foretoken.core.state import State
from foretoken.core.store import Statistics


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig(Config):
    """Base of denoiser configs; `build(space, context, horizon, dims)` makes the network."""


class Denoiser(nn.Module, ABC):
    """Abstract; constructed as `Owner(config, space, context, horizon, dims)`: it reads the last `context` (K) observations of a
    space and chunks of `horizon` (H) vectors of `dims` (A) entries.
    """

    @abstractmethod
    def fit(self, statistics: Mapping[str, Statistics]) -> None:
        """Takes over the statistics of observations, by leaf path."""

    @abstractmethod
    def encode(self, observation: Any) -> State:
        """What is kept of observations (B, K, ...): tensors, row first. Called once, however many steps the sampler takes."""

    @abstractmethod
    def forward(self, sample_BHA: Tensor, level_B: Tensor, known: State) -> Tensor:
        """The prediction (B, H, A) for samples at noise levels in [0, 1], as shares of the highest."""
