"""Observations to sets of tokens: groups of a vector's entries, places of an image, choices, each part of a Dict its own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from foretoken.core.config import Config, configures
from foretoken.core.errors import ConfigError
from foretoken.core.spec import Box, Space, leaves
from foretoken.core.store import Statistics
from foretoken.nn.embed.images import ImageConfig
from foretoken.nn.embed.normalise import Standardise
from foretoken.nn.embed.observations import embed_leaf


@dataclass(frozen=True, kw_only=True)
class ObservationTokensConfig(Config):
    """
    Args:
        fields: of a plain vector: how many of its entries, in order, make each token; () makes one token of all.
        image: the convolutions whose last map is read, one token per place.
    """

    fields: tuple[int, ...] = ()
    image: ImageConfig = ImageConfig()


class _Fields(nn.Module):
    """One linear layer per group of entries, written as one layer over the entries that a token sees.

    What is added to all tokens of a group starts as large as they are: a post-norm network would else keep only the direction of
    a token, and of a single number its sign.
    """

    seen: Tensor  # (M, entries)

    def __init__(self, box: Box, width: int, fields: tuple[int, ...]) -> None:
        super().__init__()
        self.standardise, self.axes = Standardise(box.shape), len(box.shape)
        groups = torch.arange(len(fields)).repeat_interleave(torch.tensor(fields))
        self.register_buffer("seen", (groups == torch.arange(len(fields))[:, None]).float(), persistent=False)
        self.linear = nn.Linear(box.size, width, bias=False)
        self.kind = nn.Parameter(torch.randn(len(fields), width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.standardise(x)
        x = x.flatten(-self.axes) if self.axes else x.unsqueeze(-1)
        return self.linear(x.unsqueeze(-2) * self.seen) + self.kind


class _Places(nn.Module):
    """uint8 images (..., C, H, W) or (..., H, W, C) to a token per place of the last map, (..., M, width), row by row."""

    def __init__(self, config: ImageConfig, box: Box, width: int) -> None:
        super().__init__()
        whole = config.build(box, 1)
        self.convolutions, self.channels_last = whole.convolutions[:-1], whole.channels_last
        self.linear = nn.Linear(config.channels[-1], width)

    def forward(self, x: Tensor) -> Tensor:
        lead, x = x.shape[:-3], x.flatten(0, -4) if x.dim() > 4 else x
        x = x.movedim(-1, 1) if self.channels_last else x
        y = self.convolutions(x.to(self.linear.weight.dtype) / 255)
        return self.linear(y.flatten(2).transpose(1, 2)).unflatten(0, lead)


class _One(nn.Module):
    """A choice, or several, as one token."""

    def __init__(self, embed: nn.Module) -> None:
        super().__init__()
        self.embed = embed

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x).unsqueeze(-2)


@configures(ObservationTokensConfig)
class ObservationTokens(nn.Module):
    """Observations (B, K, *shape) to tokens (B, K * M, width), M per observation. Vectors are standardised by the data."""

    def __init__(self, config: ObservationTokensConfig, space: Space, width: int) -> None:
        super().__init__()
        whole = space.size if isinstance(space, Box) and len(space.shape) == 1 else 0
        if config.fields and (min(config.fields) < 1 or sum(config.fields) != whole):
            raise ConfigError(
                f"fields must be positive and add up to the entries of a vector observation, got {config.fields} for {space}"
            )
        self.paths, self.parts = list(leaves(space)), nn.ModuleList()
        for leaf in leaves(space).values():
            match leaf:
                case Box(is_image=True):
                    self.parts.append(_Places(config.image, leaf, width))
                case Box():
                    self.parts.append(_Fields(leaf, width, config.fields or (leaf.size,)))
                case _:
                    self.parts.append(_One(embed_leaf(leaf, width, standardise=False, image=config.image)))

    def fit(self, statistics: Mapping[str, Statistics]) -> None:
        """Takes over the statistics of the data, by leaf path."""
        for path, part in zip(self.paths, self.parts, strict=True):
            if isinstance(part, _Fields):
                part.standardise.fit(statistics[path])

    def forward(self, observation: Any) -> Tensor:
        found = []
        for path, part in zip(self.paths, self.parts, strict=True):
            leaf = observation
            for key in path.split("/")[1:]:
                leaf = leaf[key]
            found.append(part(leaf))
        return torch.cat(found, dim=2).flatten(1, 2)
