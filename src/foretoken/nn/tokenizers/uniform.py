"""Bins of equal width. A token decodes to the middle of its bin, so the error is half a bin at most."""

import torch
from torch import Tensor

from foretoken.core.config import configures
from foretoken.core.spec import Box
from foretoken.nn.fitted import once
from foretoken.nn.tokenizers.base import Bins, BinsConfig


class UniformConfig(BinsConfig):
    """Bins of equal width; see `BinsConfig`."""


@configures(UniformConfig)
class Uniform(Bins):
    """Even bins over the bounds of the box, or over the data's range where a bound is infinite.

    With finite bounds there is nothing to fit. A dimension whose bins would be as narrow as the rounding of float32 (a constant
    one has bins of width 0) has one bin.
    """

    def __init__(self, config: UniformConfig, box: Box) -> None:
        super().__init__(box.size, config.bins)
        bounds = (torch.tensor(bound, dtype=torch.float64).expand(box.size) for bound in (box.low, box.high))
        self._low, self._high = bounds
        if bool((self._low.isfinite() & self._high.isfinite()).all()):
            self._place(self._low, self._high)

    @once
    def fit(self, values_ND: Tensor) -> None:
        """Takes the data's range where a bound is infinite; finite bounds stay. The data's lowest and highest rows suffice."""
        self._check_data(values_ND)
        values_ND = values_ND.detach().double().cpu()
        self._place(
            torch.where(self._low.isfinite(), self._low, values_ND.amin(0)),
            torch.where(self._high.isfinite(), self._high, values_ND.amax(0)),
        )

    def _place(self, low: Tensor, high: Tensor) -> None:
        width = (high - low) / self.vocabulary
        rounding = 2 * torch.finfo(torch.float32).eps * torch.maximum(low.abs(), high.abs())
        narrow, step = width <= 2 * rounding, torch.arange(self.vocabulary)
        edges, centres = (low[:, None] + width[:, None] * part for part in (step[1:], step + 0.5))
        self.edges.copy_(torch.where(narrow[:, None], torch.inf, edges))
        self.centres.copy_(torch.where(narrow[:, None], (low + high)[:, None] / 2, centres))
        self.bound.copy_(torch.where(narrow, high - low, width) / 2 + rounding)
