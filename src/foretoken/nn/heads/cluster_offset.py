"""Continuous actions of several modes: a choice among clusters of actions, and for each cluster a correction of its centre.

    action = centre_c + offset_c,   c ~ softmax(logits)
    loss   = -(1 - p_c)^focus log p_c  +  offset_weight mean((action - centre_c - offset_c)^2),   c the cluster of the action

Only the true cluster's offset is trained at each place, as in object detection. With one cluster the first term is 0 and the
rest is cloning by squared error. Shafiullah et al., NeurIPS 2022, arXiv 2206.11251; focal loss: Lin et al., arXiv 1708.02002.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from foretoken.core import random
from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.core.spec import Box, Space
from foretoken.core.store import Statistics
from foretoken.nn.embed.normalise import ActionScale
from foretoken.nn.heads.base import HeadConfig, Prediction
from foretoken.nn.tokenizers.kmeans import KMeans, KMeansConfig


@dataclass(frozen=True, kw_only=True)
class ClusterOffsetConfig(HeadConfig):
    """
    Args:
        clusters: how actions, scaled to [-1, 1], are clustered.
        offsets: "own" corrects every cluster by itself; "shared" has one correction for all; "none" takes centres as they are.
        focus: exponent of the focal loss, gamma; 0 is the cross-entropy.
        offset_weight: of the squared error of scaled actions. It should grow as one over the variance left inside clusters.
    """

    clusters: KMeansConfig = KMeansConfig()
    offsets: Literal["own", "shared", "none"] = "own"
    focus: float = 2.0
    offset_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.focus < 0 or self.offset_weight < 0:
            came = f"focus={self.focus} and offset_weight={self.offset_weight}"
            raise ConfigError(f"focus and offset_weight must not be negative, got {came}")


@dataclass(frozen=True)
class Clusters(Prediction):
    """Logits (..., V) float32 of the clusters, and their offsets (..., V, A) or one for all (..., 1, A), in scaled units."""

    logits: Tensor
    offsets: Tensor | None
    codec: KMeans
    scale: ActionScale
    config: ClusterOffsetConfig

    def _flat(self, action: Tensor) -> Tensor:
        """(..., A) the actions in scaled units."""
        return self.scale(action).reshape(*self.logits.shape[:-1], -1)

    def _offset(self, token: Tensor) -> Tensor:
        """(..., A) the correction of each place's cluster (...)."""
        if self.offsets is None:
            return self.logits.new_zeros(())
        if self.config.offsets == "shared":
            return self.offsets.squeeze(-2)
        return self.offsets.take_along_dim(token[..., None, None], -2).squeeze(-2)

    def _action(self, token: Tensor) -> Tensor:
        scaled = (self.codec.decode(token.unsqueeze(-1)) + self._offset(token)).clamp(-1, 1)
        return self.scale.inverse(scaled.reshape(*token.shape, *self.scale.middle.shape))

    def mode(self) -> Tensor:
        """The likeliest cluster's action; the other modes are never taken."""
        return self._action(self.logits.argmax(-1))

    def sample(self, seed_B: Tensor) -> Tensor:
        return self._action(random.categorical(self.logits, seed_B))

    def loss(self, action: Tensor) -> Tensor:
        flat = self._flat(action)
        tokens = self.codec.encode(flat)
        log_p = self.logits.log_softmax(-1).take_along_dim(tokens, -1).squeeze(-1)
        focal = -((1 - log_p.exp()).clamp(min=1e-7) ** self.config.focus) * log_p
        if self.offsets is None:
            return focal
        error = flat - self.codec.decode(tokens) - self._offset(tokens.squeeze(-1))
        return focal + self.config.offset_weight * error.square().mean(-1)


@configures(ClusterOffsetConfig)
class ClusterOffset(nn.Module):
    """One linear layer for logits and offsets. `fit_actions` must see the data's actions before it means anything."""

    def __init__(self, config: ClusterOffsetConfig, space: Space, width: int) -> None:
        super().__init__()
        if not isinstance(space, Box) or space.is_image:
            raise ConfigError(f"the cluster head needs a Box of actions, got {type(space).__name__}")
        self.config, self.scale = config, ActionScale(space)
        self.codec = config.clusters.build(space)
        self.tables = {"own": config.clusters.clusters, "shared": 1, "none": 0}[config.offsets]
        self.linear = nn.Linear(width, config.clusters.clusters + self.tables * space.size)

    def fit(self, statistics: Mapping[str, Statistics]) -> None:
        self.scale.fit(statistics[""])

    def fit_actions(self, actions: Tensor) -> None:
        """Finds the clusters of actions (N, *shape), after `fit`."""
        self.codec.fit(self.scale(actions).reshape(len(actions), -1))

    def forward(self, features: Tensor) -> Clusters:
        y = self.linear(features).float()
        logits, offsets = y.split((self.codec.vocabulary, y.shape[-1] - self.codec.vocabulary), dim=-1)
        logits = logits.masked_fill(~self.codec.is_given, float("-inf"))
        table = offsets.unflatten(-1, (self.tables, -1)) if self.tables else None
        return Clusters(logits, table, self.codec, self.scale, self.config)
