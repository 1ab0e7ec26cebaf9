"""The best part of the data by episode return (the %BC baseline of Chen et al. 2021, arXiv 2106.01345)."""

import numpy as np

from foretoken.core.errors import DataError
from foretoken.core.store import EpisodeStore


def top_fraction(store: EpisodeStore, fraction: float) -> np.ndarray:
    """Numbers of the best episodes, in the store's order, for `store.subset`.

    Episodes are taken from the highest return down while they hold at most `fraction` of all actions (so many short
    failures do not count for much), at least one; equal returns in the store's order.

    Raises:
        DataError: the fraction is not in (0, 1], or the store has no episodes.
    """
    if not 0 < fraction <= 1:
        raise DataError(f"the fraction of best data must lie in (0, 1], got {fraction}")
    if store.num_episodes == 0:
        raise DataError("the best part of a store without episodes was asked for; add episodes first")
    length = store.episodes["length"]
    order = np.argsort(-store.episodes["return"], kind="stable")
    within = np.cumsum(length[order]) <= fraction * length.sum() * (1 + 1e-12)
    return np.sort(order[: max(1, int(within.sum()))])
