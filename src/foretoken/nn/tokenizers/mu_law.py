"""Bins of equal width after mu-law companding: fine around 0, coarse far away, and the same for all data.

    F(x) = sign(x) log(1 + mu |x|) / log(1 + mu M)        clipped to [-1, 1], cut into V bins

Nothing is learned, so that numbers mean the same in every environment. Reed et al. 2022 (Gato), arXiv 2205.06175: mu 100, M 256.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.core.spec import Box
from foretoken.nn.fitted import once
from foretoken.nn.tokenizers.base import Bins, BinsConfig


@dataclass(frozen=True, kw_only=True)
class MuLawConfig(BinsConfig):
    """
    Args:
        bins: per dimension, V.
        mu: how much finer bins are around 0.
        largest: M, the largest absolute value that is told apart.
    """

    bins: int = 1024
    mu: float = 100.0
    largest: float = 256.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mu <= 0 or self.largest <= 0:
            raise ConfigError(f"mu and largest must be positive, got {self.mu} and {self.largest}")


@configures(MuLawConfig)
class MuLaw(Bins):
    """A token decodes to what companding maps to the middle of its bin. `fit` measures the error only; bins stay as they are."""

    def __init__(self, config: MuLawConfig, box: Box) -> None:
        super().__init__(box.size, config.bins)
        log, step = (
            torch.log1p(torch.tensor(config.mu * config.largest, dtype=torch.float64)),
            torch.arange(config.bins),
        )

        def expand(y: Tensor) -> Tensor:
            return y.sign() * torch.expm1(y.abs() * log) / config.mu

        ends = expand(2 * torch.arange(config.bins + 1).double() / config.bins - 1)
        centres = expand(2 * (step + 0.5).double() / config.bins - 1)
        self.edges.copy_(ends[1:-1].expand(box.size, -1))
        self.centres.copy_(centres.expand(box.size, -1))
        self.bound.copy_(torch.maximum(centres - ends[:-1], ends[1:] - centres).max().expand(box.size))

    @once
    def fit(self, values_ND: Tensor) -> None:
        self._check_data(values_ND)
        values = values_ND.detach().to(self.centres)
        self.bound.copy_((self.decode(self.encode(values)) - values).abs().amax(0))
