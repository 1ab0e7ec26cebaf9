"""Statistics of several stores together."""

import numpy as np

from foretoken.core.store import Statistics, pooled


def measured(x: np.ndarray) -> Statistics:
    return Statistics(len(x), x.mean(0), x.std(0), x.min(0), x.max(0))


def test_pooled_statistics_are_those_of_the_whole():
    rng = np.random.default_rng(0)
    sets = [rng.normal(shift, 1 + shift, (size, 3)) for shift, size in ((0, 10), (5, 1), (100, 33))]
    found, whole = pooled([measured(x) for x in sets]), measured(np.concatenate(sets))
    assert found.count == whole.count
    for name in ("mean", "std", "low", "high"):
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-12)
