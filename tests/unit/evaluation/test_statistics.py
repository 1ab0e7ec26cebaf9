"""Statistics against slow references, and where there is too little data to say anything."""

import math
from itertools import product

import numpy as np
import pytest

from foretoken.core.errors import DataError
from foretoken.evaluation.statistics import (
    bootstrap,
    calibration_gap,
    iqm,
    paired_difference,
    seed_means,
    spearman,
    standard_error,
    wilson,
)

DRAW = np.random.default_rng(0)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 10, 101])
def test_iqm_is_the_mean_of_the_middle_half(count):
    values = DRAW.normal(size=count)
    cut = count // 4
    assert iqm(values) == pytest.approx(np.sort(values)[cut : count - cut].mean())


def slow_bootstrap(strata, statistic, resamples, seed):
    draw = np.random.default_rng(seed)
    found = [statistic(np.concatenate([draw.choice(s, len(s)) for s in strata])) for _ in range(resamples)]
    return np.quantile(found, [0.025, 0.975])


def test_stratified_bootstrap_agrees_with_a_slow_loop():
    strata = [DRAW.normal(0, 1, 30), DRAW.normal(100, 5, 12), [3.0]]
    for statistic in (iqm, np.mean):
        found = bootstrap(strata, statistic, seed=1, resamples=4000)
        low, high = slow_bootstrap(strata, statistic, 4000, 2)
        spread = high - low
        assert found.value == pytest.approx(statistic(np.concatenate(strata)))
        assert abs(found.low - low) < 0.1 * spread and abs(found.high - high) < 0.1 * spread


def test_strata_are_resampled_separately():
    apart = bootstrap([[0.0, 0.1] * 10, [100.0, 100.1] * 10], np.mean)
    together = bootstrap([[0.0, 0.1, 100.0, 100.1] * 10], np.mean)
    assert apart.high - apart.low < 0.05 < together.high - together.low


def test_bootstrap_covers_as_often_as_it_says():
    hits = 0
    for trial in range(200):
        sample = np.random.default_rng(trial).normal(size=40)
        found = bootstrap([sample], np.mean, seed=trial, resamples=400)
        hits += found.low <= 0 <= found.high
    assert 0.88 <= hits / 200 <= 0.98


def test_same_seed_same_interval():
    assert bootstrap([DRAW.normal(size=9)] * 1, seed=4).low is not None
    values = [DRAW.normal(size=9)]
    assert bootstrap(values, seed=4) == bootstrap(values, seed=4)


def test_degenerate_bootstraps():
    one = bootstrap([[5.0]])
    assert (
        one.value == 5
        and math.isnan(one.low)
        and one.to_json() == {"value": 5.0, "low": None, "high": None, "confidence": 0.95}
    )
    equal = bootstrap([[5.0, 5.0], [7.0]], np.mean)
    assert (equal.low, equal.high) == (equal.value, equal.value)
    for bad in ([[]], [[1.0, math.nan]]):
        with pytest.raises(DataError, match="at least one value, all of them finite"):
            bootstrap(bad)


def test_wilson_solves_its_equation():
    for successes, trials in ((0, 10), (3, 10), (10, 10), (1, 1), (500, 1000)):
        found = wilson(successes, trials)
        rate = successes / trials
        for bound in (found.low, found.high):
            if 0 < bound < 1:
                assert abs(bound - rate) == pytest.approx(
                    1.959963985 * math.sqrt(bound * (1 - bound) / trials), rel=1e-6
                )
    assert wilson(0, 10).low == 0 and wilson(0, 10).high > 0.2 and wilson(10, 10).high == 1
    for bad in ((1, 0), (3, 2), (-1, 5)):
        with pytest.raises(DataError, match=f"got {bad[0]} of {bad[1]}"):
            wilson(*bad)


def test_sign_flips_are_exact_for_few_pairs():
    gaps = DRAW.normal(0.5, 1, 8)
    p = np.mean([abs(np.mean(gaps * signs)) >= abs(gaps.mean()) - 1e-15 for signs in product([1, -1], repeat=8)])
    assert paired_difference(np.zeros(8), gaps).p == pytest.approx(p)


def test_sign_flips_are_sampled_for_many():
    gaps = DRAW.normal(0.2, 1, 60)
    from scipy.stats import ttest_1samp

    assert paired_difference(np.zeros(60), gaps, resamples=20000).p == pytest.approx(
        ttest_1samp(gaps, 0).pvalue, abs=0.02
    )


def test_pairs_cancel_what_they_share():
    luck = DRAW.normal(0, 1000, 20)
    found = paired_difference(luck, luck + 1 + 0.01 * DRAW.normal(size=20))
    assert found.interval.low > 0.9 and found.interval.high < 1.1 and found.p < 0.01 and found.pairs == 20


def test_degenerate_differences():
    same = paired_difference([1.0, 2.0], [1.0, 2.0])
    assert (same.interval.value, same.interval.low, same.interval.high, same.p) == (0, 0, 0, 1)
    one = paired_difference([1.0], [3.0])
    assert one.interval.value == 2 and math.isnan(one.interval.low) and one.p == 1
    with pytest.raises(DataError, match="got 1 and 2"):
        paired_difference([1.0], [1.0, 2.0])


def test_spearman_and_gap():
    assert spearman([1, 2, 3, 4], [10, 20, 30, 35]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
    assert (
        math.isnan(spearman([1, 1], [1, 2])) and math.isnan(spearman([1], [1])) and math.isnan(spearman([1, 2], [3, 3]))
    )
    assert calibration_gap([10, 10, 20], [8, 16, 25]) == pytest.approx((2 + 5) / 2)


def test_standard_error_of_a_difference():
    a, b = [1.0, 2.0, 4.0], [0.0, 3.0]
    assert standard_error(a) == pytest.approx(np.std(a, ddof=1) / np.sqrt(3))
    assert standard_error(a, b) == pytest.approx(np.hypot(standard_error(a), standard_error(b)))
    assert np.isnan(standard_error(a, [1.0]))


def test_seed_means_are_by_arm_and_name():
    rows = [{"return": 1.0, "cost": 0.0}, {"return": 4.0, "cost": 2.0}]
    assert seed_means({"one": rows, "two": rows[:1]}) == {"one": {"return": 2.5, "cost": 1.0}, "two": rows[0]}
