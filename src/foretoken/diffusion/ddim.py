"""DDIM: a way back in few steps, without further noise.

    x_j = sqrt(s_j) x_0 + sqrt(1 - s_j - w^2) e + w z        w = eta sqrt((1 - s_j) / (1 - s_k) (1 - s_k / s_j))

x_0 and e are the data and the noise that the network takes x_k for, z is new noise; eta = 0 has none, and eta = 1 is DDPM.
Song, Meng and Ermon 2021, arXiv 2010.02502.
"""

from dataclasses import dataclass

from torch import Tensor

from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.diffusion.base import like
from foretoken.diffusion.variance_preserving import VariancePreserving, VariancePreservingConfig


@dataclass(frozen=True, kw_only=True)
class DDIMConfig(VariancePreservingConfig):
    """
    Args:
        eta: how much new noise a step adds, in [0, 1]; see VariancePreservingConfig for the rest.
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ConfigError(f"eta must lie in [0, 1], got {self.eta}")


@configures(DDIMConfig)
class DDIM(VariancePreserving):
    """See the module."""

    def __init__(self, config: DDIMConfig) -> None:
        super().__init__(config)
        self.eta, self.stochastic = config.eta, config.eta > 0

    def step(
        self, sample: Tensor, prediction: Tensor, level: Tensor, to: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        clean, guessed = self.parts(sample, prediction, level)
        here, there = (like(self.signal[at.long()], sample) for at in (level, to))
        if noise is None or not self.eta:
            return there.sqrt() * clean + (1 - there).sqrt() * guessed
        variance = self.eta**2 * (1 - there) / (1 - here) * (1 - here / there)
        return there.sqrt() * clean + (1 - there - variance).clamp(min=0).sqrt() * guessed + variance.sqrt() * noise
