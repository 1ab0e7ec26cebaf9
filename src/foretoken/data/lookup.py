"""Two look-ups that numpy has, made several times faster for windows drawn at random: runs of rows, and intervals."""

import numpy as np


class Runs:
    """All runs of `length` consecutive rows of a (rows, entries) array: `runs[first_B]` copies those that begin at these rows.

    Where rows lie without gaps a run is one opaque item, which numpy copies whole; entries it would copy in a loop per run.
    """

    def __init__(self, array: np.ndarray, length: int) -> None:
        count, stride = len(array) - length + 1, array.strides[0]
        self._dtype, self._shape = array.dtype, (length, array.shape[1])
        self._heads = array[:, 0]
        if array.flags.c_contiguous:
            self._items: np.ndarray = np.ndarray(count, f"V{length * stride}", array, 0, (stride,))
        else:
            self._items = np.moveaxis(np.lib.stride_tricks.sliding_window_view(array, length, axis=0), -1, 1)

    def __getitem__(self, first_B: np.ndarray) -> np.ndarray:
        """(B, length, entries), not shared with the array."""
        _ = self._heads[first_B]  # begins to fetch all runs from memory at once: a tenth less time for a thousand
        return self._items[first_B].view(self._dtype).reshape(len(first_B), *self._shape)


class Intervals:
    """Which of adjoining intervals numbers lie in: what `searchsorted` says, without branches that nobody can predict.

    A guide tells the interval of every 2^k-th number, k such that few intervals begin between two of them; those are
    searched in halving jumps.

    Args:
        bounds: (N + 1,) int64, rising from 0; interval i is bounds[i] .. bounds[i + 1].
    """

    def __init__(self, bounds: np.ndarray) -> None:
        count, total = len(bounds) - 1, int(bounds[-1])
        self._shift = max(0, (total // max(1, 4 * count)).bit_length() - 1)
        guided = -(-bounds >> self._shift)  # the first guided number from each bound on
        self._guide = np.repeat(np.arange(count), np.diff(guided))
        most = int(np.diff(self._guide, append=count - 1).max(initial=0))
        self._jumps = [1 << power for power in reversed(range(most.bit_length()))]
        self._bounds = np.append(bounds, np.full(most, total))

    def __getitem__(self, numbers: np.ndarray) -> np.ndarray:
        """The interval of each number (int64, at least 0, below the last bound), of the same shape."""
        found = self._guide[numbers >> self._shift]
        for jump in self._jumps:
            found += jump * (self._bounds[found + jump] <= numbers)
        return found
