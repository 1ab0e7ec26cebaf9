"""Actions to features, by space, and the scaling that brings continuous ones to [-1, 1]."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from foretoken.core.spec import Box, Space
from foretoken.core.store import Statistics
from foretoken.nn.embed.images import ImageConfig
from foretoken.nn.embed.normalise import ActionScale
from foretoken.nn.embed.observations import embed_leaf


class ActionEmbedding(nn.Module):
    """Actions (..., *shape) to (..., width); continuous ones are scaled to [-1, 1] first."""

    def __init__(self, space: Space, width: int, *, tanh: bool = False) -> None:
        super().__init__()
        self.scale = ActionScale(space) if isinstance(space, Box) else None
        self.embed, self.tanh = embed_leaf(space, width, standardise=False, image=ImageConfig()), tanh

    def fit(self, statistics: Mapping[str, Statistics]) -> None:
        if self.scale is not None:
            self.scale.fit(statistics[""])

    def forward(self, action: Tensor) -> Tensor:
        y = self.embed(self.scale(action) if self.scale is not None else action)
        return torch.tanh(y) if self.tanh else y
