"""Exact statistics of a column of a store, some rows at a time."""

from collections.abc import Iterator

import numpy as np

from foretoken.core.store import Statistics
from foretoken.data.steps import CHUNK_BYTES, Steps


def measure(steps: Steps, leaf: str, start: np.ndarray, length: np.ndarray) -> Statistics:
    """Of a leaf column, over the steps that carry an action in the episodes with these first addresses and lengths."""
    count, mean, spread, low, high = 0, np.float64(0), np.float64(0), np.float64(np.inf), np.float64(-np.inf)
    for values in _action_chunks(steps, leaf, start, length):
        part = values.astype(np.float64)
        part_mean = part.mean(0)
        # Chan, Golub and LeVeque 1983: means and squared deviations of two parts joined without cancellation.
        total, shift = count + len(part), part_mean - mean
        spread = spread + ((part - part_mean) ** 2).sum(0) + shift**2 * (count * len(part) / total)
        mean = mean + shift * (len(part) / total)
        low, high, count = np.minimum(low, part.min(0)), np.maximum(high, part.max(0)), total
    return Statistics(count, *(np.asarray(value) for value in (mean, np.sqrt(spread / count), low, high)))


def _action_chunks(steps: Steps, leaf: str, start: np.ndarray, length: np.ndarray) -> Iterator[np.ndarray]:
    size = steps.slice(leaf, 0, 1).size
    limit = max(1, CHUNK_BYTES // (8 * size))
    ends = start + length
    broken = np.flatnonzero(start[1:] != ends[:-1] + 1) + 1  # where the next episode is not the next in the files
    for run in np.split(np.arange(len(start)), broken):
        for low in range(int(start[run[0]]), int(ends[run[-1]]), limit):
            high = min(low + limit, int(ends[run[-1]]))
            keep = np.ones(high - low, bool)
            finals = ends[run[0] : run[-1] + 1]
            keep[finals[(finals >= low) & (finals < high)] - low] = False
            if keep.any():
                yield steps.slice(leaf, low, high)[keep]
