"""Heads that say a number, one contract whatever the loss: squared error, Huber, or cross-entropy on a histogram.

    head = HLGaussConfig(bins=101, low=-10, high=10).build(width, outputs)      outputs: one, or as many as there are choices
    prediction = head(features)                   (..., width)
    prediction.value                              (..., outputs)
    prediction.select(choice).loss(target)        (...), target (...)

Which kind is a field of a config; nothing around it changes. Targets carry no gradient.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core.config import Config, configures
from foretoken.core.errors import ConfigError, DataError
from foretoken.nn.heads import histogram


class ValuePrediction(ABC):
    """Predicted numbers, one at each place of `value`'s shape."""

    @property
    @abstractmethod
    def value(self) -> Tensor:
        """The numbers, float32, of the features' leading shape and `outputs` (without it after `select`)."""

    def loss(self, target: Tensor) -> Tensor:
        """The loss at each place, for a target of `value`'s shape, which is held fixed."""
        if target.shape != (shape := self._shape):
            raise DataError(f"the target of a value needs the value's shape {tuple(shape)}, got {tuple(target.shape)}")
        return self._loss(target.detach().float())

    @property
    @abstractmethod
    def _shape(self) -> torch.Size: ...

    @abstractmethod
    def _loss(self, target: Tensor) -> Tensor: ...

    @abstractmethod
    def select(self, index: Tensor) -> "ValuePrediction":
        """The predictions of one output at each place, by int64 `index` (...)."""

    @abstractmethod
    def clipped(self, target: Tensor) -> Tensor:
        """1 where a target lies outside the range that can be said, 0 elsewhere, as floats: the mean is a fraction to log."""


class ValueHead(nn.Module, ABC):
    """Features (..., width) to a ValuePrediction; constructed as `Owner(config, width, outputs)`."""

    linear: nn.Linear

    @abstractmethod
    def forward(self, features: Tensor) -> ValuePrediction: ...

    def fit(self, low: float, high: float) -> None:
        """Takes the range of values from the data, if the config left it open. The first range stays: weights are trained for it."""

    @torch.no_grad()
    def _begin_at(self, bias: Tensor) -> None:
        """The same output whatever the features, until trained."""
        self.linear.weight.zero_()
        self.linear.bias.copy_(bias.repeat(len(self.linear.bias) // len(bias)))


@dataclass(frozen=True, kw_only=True)
class ValueHeadConfig(Config):
    """Base of value heads; `build(width, outputs=1)` makes the head.

    Args:
        low, high: the range of values; equal ones leave it open. A histogram then needs `fit`; a scalar is unbounded.
        start: the value before training, at all features, by last weights of zero. No nearer to an end of the range than a
            hundredth of it, and a tenth is learned from faster. None begins as a linear layer does: near 0, or near the
            middle of the range, which is far above the truth where returns are never negative and mostly small.
    """

    low: float = 0.0
    high: float = 0.0
    start: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.low <= self.high and math.isfinite(self.high - self.low)):
            raise ConfigError(f"low and high must be finite and in order, got low={self.low} and high={self.high}")
        if self.start is not None and self.is_ranged and not self.low <= self.start <= self.high:
            raise ConfigError(f"start must lie in [low, high], got {self.start} and [{self.low}, {self.high}]")

    @property
    def is_ranged(self) -> bool:
        return self.low < self.high


# -- one number


@dataclass(frozen=True, kw_only=True)
class ScalarValueConfig(ValueHeadConfig):
    """A number by a linear layer, inside [low, high] by a sigmoid where these are given.

    Args:
        huber: the error beyond which the loss is linear, in units of `scale`; None never is, so the loss is half the squared error.
        scale: the size of usual values, where there is no range: the layer's output is multiplied by it, and errors are divided
            by it. Adam moves a weight by about its learning rate in an update, whatever the error, so that values far above 1
            are reached late; and their errors outweigh what else trains a shared network.
    """

    huber: float | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.huber is not None and self.huber <= 0:
            raise ConfigError(f"huber must be above 0, or None for the squared error, got {self.huber}")
        if not 0 < self.scale < math.inf:
            raise ConfigError(f"scale must be positive and finite, got {self.scale}")
        if self.is_ranged and self.scale != 1:
            raise ConfigError(f"a value has a range or a scale, got [{self.low}, {self.high}] and scale={self.scale}")


@dataclass(frozen=True)
class Scalar(ValuePrediction):
    """A number and half its squared error, or its Huber loss, in units of the config's scale."""

    number: Tensor
    config: ScalarValueConfig

    @property
    def value(self) -> Tensor:
        return self.number

    @property
    def _shape(self) -> torch.Size:
        return self.number.shape

    def _loss(self, target: Tensor) -> Tensor:
        if self.config.huber is None:
            return 0.5 * ((self.number - target) / self.config.scale).square()
        scale = self.config.scale
        return F.huber_loss(self.number / scale, target / scale, reduction="none", delta=self.config.huber)

    def select(self, index: Tensor) -> "Scalar":
        return Scalar(self.number.take_along_dim(index.unsqueeze(-1), -1).squeeze(-1), self.config)

    def clipped(self, target: Tensor) -> Tensor:
        low, high = (self.config.low, self.config.high) if self.config.is_ranged else (-math.inf, math.inf)
        return histogram.clipped(target, low, high)


@configures(ScalarValueConfig)
class ScalarValue(ValueHead):
    """`scale (W x + b)`, or `low + (high - low) sigmoid(W x + b)`."""

    def __init__(self, config: ScalarValueConfig, width: int, outputs: int = 1) -> None:
        super().__init__()
        self.config, self.linear = config, nn.Linear(width, outputs)
        if config.start is not None:
            start = torch.tensor([config.start / config.scale])
            if config.is_ranged:
                start = ((start - config.low) / (config.high - config.low)).logit(eps=0.01)
            self._begin_at(start)

    def forward(self, features: Tensor) -> Scalar:
        y, config = self.linear(features).float(), self.config
        number = config.low + (config.high - config.low) * y.sigmoid() if config.is_ranged else config.scale * y
        return Scalar(number, config)


# -- a histogram


@dataclass(frozen=True, kw_only=True)
class HistogramConfig(ValueHeadConfig, ABC):
    """Base of value heads that are histograms, trained by cross-entropy.

    Args:
        bins: of the histogram.
    """

    bins: int = 101

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(bins=2)

    @abstractmethod
    def points(self, low: float, high: float) -> Tensor:
        """What the range [low, high] is divided by, the first being low and the last high."""

    @abstractmethod
    def places(self, points: Tensor) -> Tensor:
        """Where the mass of each bin lies, (bins,)."""

    @abstractmethod
    def target(self, y: Tensor, points: Tensor) -> Tensor:
        """Numbers (...) as histograms (..., bins)."""


@dataclass(frozen=True, kw_only=True)
class TwoHotConfig(HistogramConfig):
    """Mass at `bins` points, low and high being two of them; a target is split between its two neighbours."""

    def points(self, low: float, high: float) -> Tensor:
        return torch.linspace(low, high, self.bins)

    def places(self, points: Tensor) -> Tensor:
        return points

    def target(self, y: Tensor, points: Tensor) -> Tensor:
        return histogram.two_hot_target(y, points)


@dataclass(frozen=True, kw_only=True)
class HLGaussConfig(HistogramConfig):
    """Bins between low and high, their mass in the middle; a target is a Gaussian around it. Paper: arXiv 2403.03950.

    A target within 2 sigma of an end is drawn inwards, at the end itself by 0.7 bins (with a sigma of 0.75), and no value comes
    nearer to an end than half a bin: where the ends matter, let the range reach two bins beyond them.

    Args:
        sigma_ratio: standard deviation of the Gaussian in bins; with 0.75, six bins get mass that counts.
    """

    sigma_ratio: float = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma_ratio <= 0:
            raise ConfigError(
                f"sigma_ratio must be above 0, got {self.sigma_ratio}; TwoHotConfig has no smoothing of its own"
            )

    def points(self, low: float, high: float) -> Tensor:
        return torch.linspace(low, high, self.bins + 1)

    def places(self, points: Tensor) -> Tensor:
        return histogram.centres(points)

    def target(self, y: Tensor, points: Tensor) -> Tensor:
        return histogram.hl_gauss_target(y, points, self.sigma_ratio * (points[-1] - points[0]) / self.bins)


@dataclass(frozen=True)
class Histogram(ValuePrediction):
    """Histograms with `logits` (..., bins), float32; the number is the expectation, the loss a cross-entropy."""

    logits: Tensor
    points: Tensor
    config: HistogramConfig

    @property
    def value(self) -> Tensor:
        return histogram.expectation(self.logits, self.config.places(self.points))

    @property
    def _shape(self) -> torch.Size:
        return self.logits.shape[:-1]

    def _loss(self, target: Tensor) -> Tensor:
        return histogram.cross_entropy(self.logits, self.config.target(target, self.points))

    def select(self, index: Tensor) -> "Histogram":
        chosen = self.logits.take_along_dim(index[..., None, None], -2).squeeze(-2)
        return Histogram(chosen, self.points, self.config)

    def clipped(self, target: Tensor) -> Tensor:
        return histogram.clipped(target, self.points[0], self.points[-1])


@configures(TwoHotConfig)
@configures(HLGaussConfig)
class HistogramValue(ValueHead):
    """Linear logits of a histogram per output. Without a range, values are NaN until `fit`, so that none goes by unnoticed."""

    points: Tensor

    def __init__(self, config: HistogramConfig, width: int, outputs: int = 1) -> None:
        super().__init__()
        self.config, self.linear = config, nn.Linear(width, outputs * config.bins)
        self.register_buffer("points", torch.full_like(config.points(0, 1), torch.nan))
        if config.is_ranged:
            self._place(config.low, config.high)

    def fit(self, low: float, high: float) -> None:
        if not self.points.isnan().any():
            return
        if not (low < high and math.isfinite(high - low)):
            raise DataError(
                f"a histogram needs a finite range of values with low < high, got [{low}, {high}]: set the config's low and high"
            )
        self._place(low, high)

    def _place(self, low: float, high: float) -> None:
        self.points.copy_(self.config.points(low, high))
        if self.config.start is not None:
            places = self.config.places(self.points)
            first, last = float(places[0]), float(places[-1])
            middle = 2 * (self.config.start - first) / (last - first) - 1
            self._begin_at(histogram.starting_logits(self.config.bins, middle))

    def forward(self, features: Tensor) -> Histogram:
        logits = self.linear(features).float().unflatten(-1, (-1, self.config.bins))
        return Histogram(logits, self.points, self.config)
