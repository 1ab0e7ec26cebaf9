"""Runs against slices, intervals against `searchsorted`."""

import numpy as np
import pytest

from foretoken.data.lookup import Intervals, Runs


@pytest.mark.parametrize("dtype", ["bool", "uint8", "float16", "float32", "int64"])
@pytest.mark.parametrize(("low", "high"), [(0, 3), (1, 3), (2, 3)])
def test_runs_are_slices(dtype, low, high):
    array = np.random.default_rng(0).integers(0, 100, (9, 3)).astype(dtype)[:, low:high]
    array.flags.writeable = False
    first = np.array([0, 5, 2, 5])
    got = Runs(array, 4)[first]
    np.testing.assert_array_equal(got, [array[i : i + 4] for i in first])
    got[:] = 0  # a copy, and its owner's to write
    assert Runs(array, 9)[np.zeros(1, int)].shape == (1, 9, high - low)
    assert Runs(array, 4)[first[:0]].shape == (0, 4, high - low)


LENGTHS = {
    "one": [5], "equal": [20] * 50, "single steps": [1] * 30, "empty ones": [0, 3, 0, 0, 4, 0],
    "one long": [1] * 200 + [100_000] + [2] * 300, "mixed": np.random.default_rng(0).integers(1, 1000, 500),
}  # fmt: skip


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_intervals_are_those_of_searchsorted(lengths):
    bounds = np.concatenate(([0], np.cumsum(lengths)))
    numbers = np.arange(bounds[-1]).reshape(1, -1)
    np.testing.assert_array_equal(Intervals(bounds)[numbers], bounds.searchsorted(numbers, side="right") - 1)


def test_no_intervals():
    assert Intervals(np.zeros(1, np.int64))[np.zeros(0, np.int64)].shape == (0,)
