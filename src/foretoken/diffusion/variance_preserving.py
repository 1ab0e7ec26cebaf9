"""What DDPM and DDIM share: a chain of T noise levels that keeps the variance of data with variance 1.

    x_k = sqrt(s_k) x_0 + sqrt(1 - s_k) e        s_k the share of signal after k of T steps, s_0 = 1

    cosine   s_k / s_(k-1) >= 0.001, s ~ cos^2((k/T + 0.008) / 1.008 * pi / 2)     Nichol and Dhariwal 2021, arXiv 2102.09672
    linear   s_k = prod (1 - b_i), b from 1e-4 to 0.02, meant for T = 1000         Ho et al. 2020, arXiv 2006.11239

A network predicts the noise e, the data x_0 ("sample"), or v = sqrt(s) e - sqrt(1 - s) x_0 (Salimans and Ho 2022, arXiv
2202.00512).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from foretoken.core import random
from foretoken.core.errors import ConfigError
from foretoken.diffusion.base import NoiseSchedule, ScheduleConfig, like


@dataclass(frozen=True, kw_only=True)
class VariancePreservingConfig(ScheduleConfig):
    """
    Args:
        num_levels: T.
        betas: how fast noise grows.
        predicts: what the network predicts.
        clip: bound of the absolute entries of the data, by which the data guessed at each step are clipped; 0 = none.
        spacing: "leading" takes every (T // n)-th level counted from the first, so with n < T sampling starts below T;
            "trailing" spreads n + 1 levels evenly from T to 0. At level T nearly no signal is left, and to guess the data from
            predicted noise is to divide by it: "trailing" is for predictions of v or the data.
    """

    num_levels: int = 100
    betas: Literal["cosine", "linear"] = "cosine"
    predicts: Literal["noise", "sample", "v"] = "noise"
    clip: float = 1.0
    spacing: Literal["leading", "trailing"] = "leading"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_levels < 1 or self.clip < 0:
            raise ConfigError(f"a schedule needs num_levels >= 1 and clip >= 0, got {self.num_levels} and {self.clip}")


class VariancePreserving(NoiseSchedule):
    """Abstract: `step` is left to the samplers."""

    signal: Tensor  # (T + 1,) float32, s_k

    def __init__(self, config: VariancePreservingConfig) -> None:
        super().__init__()
        self.config, self.top = config, float(config.num_levels)
        if config.betas == "cosine":
            at_T = torch.arange(config.num_levels + 1, dtype=torch.float64) / config.num_levels
            wave_T = ((at_T + 0.008) / 1.008 * math.pi / 2).cos().square()
            kept_T = (wave_T[1:] / wave_T[:-1]).clamp(min=0.001)
        else:
            kept_T = 1 - torch.linspace(1e-4, 0.02, config.num_levels, dtype=torch.float64)
        signal = torch.cat((torch.ones(1, dtype=torch.float64), kept_T.cumprod(0)))
        self.register_buffer("signal", signal.float(), persistent=False)

    def draw(self, seed_B: Tensor) -> Tensor:
        return (random.uniform(seed_B) * self.config.num_levels).floor() + 1

    def shares(self, level: Tensor, sample: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(s) and sqrt(1 - s), to be multiplied with samples."""
        signal = like(self.signal[level.long()], sample)
        return signal.sqrt(), (1 - signal).sqrt()

    def corrupt(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        a, b = self.shares(level, clean)
        return a * clean + b * noise

    def target(self, clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
        match self.config.predicts:
            case "noise":
                return noise
            case "sample":
                return clean
            case _:
                a, b = self.shares(level, clean)
                return a * noise - b * clean

    def parts(self, sample: Tensor, prediction: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """The data, clipped, and the noise that a prediction takes the sample for."""
        a, b = self.shares(level, sample)
        match self.config.predicts:
            case "noise":
                clean, noise = (sample - b * prediction) / a, prediction
            case "sample":
                clean, noise = prediction, (sample - a * prediction) / b
            case _:
                clean, noise = a * sample - b * prediction, a * prediction + b * sample
        return clean.clamp(-self.config.clip, self.config.clip) if self.config.clip else clean, noise

    def levels(self, n: int) -> Tensor:
        if not 1 <= n <= self.config.num_levels:
            raise ConfigError(f"sampling takes between 1 and {self.config.num_levels} steps, got {n}")
        if self.config.spacing == "trailing":
            return torch.linspace(self.top, 0, n + 1, dtype=torch.float64).round().float()
        stride = self.config.num_levels // n
        return torch.cat((torch.arange(n - 1, -1, -1) * stride + 1, torch.zeros(1))).float()
