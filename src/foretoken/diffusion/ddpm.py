"""DDPM: the random way back through the noise levels, by the posterior of each lower level.

    q(x_j | x_k, x_0) = N( sqrt(s_j) (1 - r) / (1 - s_k) x_0 + sqrt(r) (1 - s_j) / (1 - s_k) x_k,  (1 - s_j) / (1 - s_k) (1 - r) )

with r = s_k / s_j and j any level below k. Ho, Jain and Abbeel 2020, arXiv 2006.11239; the smaller of its two variances.
"""

from dataclasses import dataclass

from torch import Tensor

from foretoken.core.config import configures
from foretoken.diffusion.base import like
from foretoken.diffusion.variance_preserving import VariancePreserving, VariancePreservingConfig


@dataclass(frozen=True, kw_only=True)
class DDPMConfig(VariancePreservingConfig):
    """See VariancePreservingConfig."""


@configures(DDPMConfig)
class DDPM(VariancePreserving):
    """See the module."""

    stochastic = True

    def step(
        self, sample: Tensor, prediction: Tensor, level: Tensor, to: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        clean, _ = self.parts(sample, prediction, level)
        here, there = (like(self.signal[at.long()], sample) for at in (level, to))
        kept = here / there
        mean = (there.sqrt() * (1 - kept) * clean + kept.sqrt() * (1 - there) * sample) / (1 - here)
        return mean if noise is None else mean + ((1 - there) / (1 - here) * (1 - kept)).sqrt() * noise
