"""Bins of equal mass: as many of the data in each. A token decodes to the mean of the data in its bin.

The error is the distance from that mean to the farther end of the bin, which is wide where data are rare.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foretoken.core.config import configures
from foretoken.core.spec import Box
from foretoken.nn.fitted import once
from foretoken.nn.tokenizers.base import Bins, BinsConfig


@dataclass(frozen=True, kw_only=True)
class QuantileConfig(BinsConfig):
    """Bins of equal mass; see `BinsConfig`."""

    bins: int = 100


@configures(QuantileConfig)
class Quantile(Bins):
    """Equal mass, as far as ties allow: equal values are never parted, and each bin takes an even share of what those below it left.

    So a value that is most of the data (a reward of 0) leaves the other bins to the rest; where there are no more different
    values than bins, each has its own and nothing is lost; a constant dimension has one bin. Tokens without a bin are never
    given. The bounds of the box are not used.
    """

    def __init__(self, config: QuantileConfig, box: Box) -> None:
        super().__init__(box.size, config.bins)

    @once
    def fit(self, values_ND: Tensor) -> None:
        self._check_data(values_ND)
        columns = values_ND.detach().to(self.edges.dtype).cpu().numpy().T
        for dim, column in enumerate(columns):
            found, counts = np.unique(column, return_counts=True)
            first = np.array(_first_of_bins(counts, self.vocabulary))
            last = np.append(first[1:], len(found)) - 1
            mass = np.add.reduceat(counts, first)
            mean = np.add.reduceat(found.astype(np.float64) * counts, first) / mass
            mean = np.clip(mean, found[first], found[last])
            self.edges[dim] = torch.inf
            self.edges[dim, : len(first) - 1] = torch.from_numpy(found[first[1:]])
            self.centres[dim] = float(mean[-1])
            self.centres[dim, : len(first)] = torch.from_numpy(mean)
            self.bound[dim] = float(np.maximum(mean - found[first], found[last] - mean).max())


def _first_of_bins(counts: np.ndarray, bins: int) -> list[int]:
    """Which of the different values, in order, begins each bin, given how often each occurs."""
    first, so_far, number = [0], np.cumsum(counts), len(counts)
    for room in range(bins, 1, -1):  # how many bins are left, with the one that begins at first[-1]
        begin = first[-1]
        if number - begin <= room:
            return first + list(range(begin + 1, number))
        before = so_far[begin] - counts[begin]
        share = before + (so_far[-1] - before) / room
        end = min(max(int(np.searchsorted(so_far, share)), begin), number - 2)
        if end > begin and share - so_far[end - 1] < so_far[end] - share:
            end -= 1
        first.append(end + 1)
    return first
