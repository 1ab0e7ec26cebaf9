"""Observations to features, by space: vectors, images, choices, and mappings of these."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from foretoken.core.config import Config, configures
from foretoken.core.errors import ConfigError
from foretoken.core.spec import Box, Discrete, MultiBinary, MultiDiscrete, Space, leaves
from foretoken.core.store import Statistics
from foretoken.nn.embed.images import ImageConfig
from foretoken.nn.embed.normalise import Standardise


@dataclass(frozen=True, kw_only=True)
class ObservationConfig(Config):
    """
    Args:
        standardise: vectors are centred and scaled by the data's statistics.
        image: how images are read.
        activation: after the embedding of vectors and choices.
    """

    standardise: bool = True
    image: ImageConfig = ImageConfig()
    activation: Literal["none", "tanh"] = "none"


class _Vector(nn.Module):
    def __init__(self, box: Box, width: int, standardise: bool) -> None:
        super().__init__()
        self.standardise = Standardise(box.shape) if standardise else None
        self.dims, self.linear = len(box.shape), nn.Linear(box.size, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.standardise(x) if self.standardise is not None else x.to(self.linear.weight.dtype)
        return self.linear(x.flatten(-self.dims) if self.dims > 1 else x.unsqueeze(-1) if self.dims == 0 else x)


class _Choices(nn.Module):
    """The sum of one embedding per choice. Zeros stand for a missing choice (padding), also where `start` is above 0."""

    def __init__(self, counts: tuple[int, ...], width: int, start: int = 0, single: bool = False) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(count, width) for count in counts)
        self.start, self.single = start, single

    def forward(self, x: Tensor) -> Tensor:
        choices = (x.long() - self.start).clamp(min=0).unsqueeze(-1) if self.single else x.long()
        return torch.stack([table(choices[..., i]) for i, table in enumerate(self.tables)]).sum(0)


def embed_leaf(space: Space, width: int, *, standardise: bool, image: ImageConfig) -> nn.Module:
    """The embedding of one plain space into `width` features."""
    match space:
        case Box(is_image=True):
            return image.build(space, width)
        case Box():
            return _Vector(space, width, standardise)
        case Discrete():
            return _Choices((space.n,), width, space.start, single=True)
        case MultiDiscrete():
            return _Choices(space.nvec, width)
        case MultiBinary():
            return _Vector(Box(shape=space.shape), width, standardise=False)
        case _:
            raise ConfigError(
                f"no embedding is known for {type(space).__name__}; Box, Discrete, MultiDiscrete, MultiBinary and Dict have one"
            )


@configures(ObservationConfig)
class ObservationEmbedding(nn.Module):
    """Observations (..., *shape) to (..., width). The parts of a Dict space are embedded separately and added."""

    def __init__(self, config: ObservationConfig, space: Space, width: int) -> None:
        super().__init__()
        self.paths = list(leaves(space))
        self.parts = nn.ModuleList(
            embed_leaf(leaf, width, standardise=config.standardise, image=config.image)
            for leaf in leaves(space).values()
        )
        self.tanh = config.activation == "tanh"

    def fit(self, statistics: Mapping[str, Statistics]) -> None:
        """Takes over the statistics of the data, by leaf path."""
        for path, part in zip(self.paths, self.parts, strict=True):
            if isinstance(part, _Vector) and part.standardise is not None:
                part.standardise.fit(statistics[path])

    def forward(self, observation: Any) -> Tensor:
        features = [part(_leaf(observation, path)) for path, part in zip(self.paths, self.parts, strict=True)]
        y = features[0] if len(features) == 1 else torch.stack(features).sum(0)
        return torch.tanh(y) if self.tanh else y


def _leaf(observation: Any, path: str) -> Tensor:
    for key in path.split("/")[1:]:
        observation = observation[key]
    return observation
