"""Standardising inputs by statistics of the data, kept as buffers so that a checkpoint is a whole policy."""

import torch
from torch import Tensor

from foretoken.core.spec import Box
from foretoken.core.store import Statistics
from foretoken.nn.fitted import Fitted, once


class Standardise(Fitted):
    """`(x - mean) / (std + 1e-6)`, entry by entry; the identity until `fit` was called. Constant entries pass centred."""

    mean: Tensor
    std: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))

    @once
    def fit(self, statistics: Statistics) -> None:
        std = torch.as_tensor(statistics.std)
        self.mean.copy_(torch.as_tensor(statistics.mean))
        self.std.copy_(torch.where(std < 1e-6, 1.0, std + 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        return (x.to(self.mean.dtype) - self.mean) / self.std


class ActionScale(Fitted):
    """Maps a Box of actions onto [-1, 1] and back: by its bounds, or by the data's range where a bound is infinite."""

    middle: Tensor
    radius: Tensor

    def __init__(self, box: Box) -> None:
        super().__init__()
        self.box = box
        self.register_buffer("middle", torch.zeros(box.shape))
        self.register_buffer("radius", torch.ones(box.shape))
        low, high = self._bounds()
        known = low.isfinite() & high.isfinite()
        self._set(torch.where(known, low, -1.0), torch.where(known, high, 1.0))

    def _bounds(self) -> tuple[Tensor, Tensor]:
        bounds = (torch.tensor(bound, dtype=torch.float64) for bound in (self.box.low, self.box.high))
        low, high = (bound.expand(self.box.size).reshape(self.box.shape) for bound in bounds)
        return low, high

    def _set(self, low: Tensor, high: Tensor) -> None:
        self.middle.copy_((low + high) / 2)
        self.radius.copy_(((high - low) / 2).clamp(min=1e-6))

    @once
    def fit(self, statistics: Statistics) -> None:
        """Takes the data's range where a bound is infinite; finite bounds stay."""
        (low, high), data = self._bounds(), (torch.as_tensor(statistics.low), torch.as_tensor(statistics.high))
        self._set(
            torch.where(low.isfinite(), low, data[0].double()), torch.where(high.isfinite(), high, data[1].double())
        )

    def forward(self, action: Tensor) -> Tensor:
        return (action.to(self.middle.dtype) - self.middle) / self.radius

    def inverse(self, scaled: Tensor) -> Tensor:
        return scaled * self.radius + self.middle
