"""Statistics of returns, all in float64, all seeded.

Intervals are percentile bootstraps by `scipy.stats.bootstrap`; strata (targets, or tasks x seeds) are resampled
separately. `rliable` gives the same aggregates; it is not used because it is distributed as source only and brings in
arch and seaborn.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from foretoken.core.errors import DataError

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A number with its interval. `low` and `high` equal `value` where the data do not vary; NaN where they do not suffice."""

    value: float
    low: float
    high: float
    confidence: float = 0.95

    def to_json(self) -> dict[str, Any]:
        return {name: value if math.isfinite(value) else None for name, value in asdict(self).items()}


def seed_means(results: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """Of a claim's figures by arm and seed, the means over seeds by arm and name."""
    return {
        arm: {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} for arm, rows in results.items()
    }


def mode_distance(mode: Sequence[int | None], counts: Sequence[bool] | np.ndarray, shares: Sequence[float]) -> float:
    """Total variation between the modes that N episodes chose and those that were shown.

    Args:
        mode: (N,) numbers below M; None or -1 is a mode that nobody showed.
        counts: (N,) episodes that do not count took a mode that nobody showed.
        shares: (M,) the parts of what was shown, with sum 1.
    """
    known = [one for one, count in zip(mode, counts, strict=True) if count and one is not None and one >= 0]
    chosen = np.bincount(np.array(known, np.int64), minlength=len(shares)) / len(mode)
    return float(np.abs(chosen - shares).sum() + 1 - chosen.sum()) / 2


def standard_error(*samples: Sequence[float] | np.ndarray) -> float:
    """Of a mean, or of the sum or difference of the means of independent samples; NaN where one has fewer than two values."""
    if min(map(len, samples)) < 2:
        return math.nan
    return math.sqrt(sum(float(np.var(one, ddof=1)) / len(one) for one in samples))


def iqm(values: Any, axis: int | None = None) -> Any:
    """The interquartile mean: the mean of the middle half (Agarwal et al. 2021), over all values or along an axis.

    As in `scipy.stats.trim_mean(values, 0.25)`, whole values are cut: floor(n / 4) at each end.
    """
    from scipy.stats import trim_mean

    return (
        trim_mean(np.asarray(values, np.float64), 0.25, axis=axis)
        if axis is not None
        else float(trim_mean(_flat(values), 0.25))
    )


def bootstrap(
    strata: Sequence[Any],
    statistic: Callable[..., Any] = iqm,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval:
    """A statistic of all values together, with a percentile interval from resampling inside each stratum.

    Args:
        strata: one (n_i,) array per stratum.
        statistic: `statistic(array, axis=-1)`, for example `iqm` or `numpy.mean`.

    A single value per stratum cannot be resampled: the interval is then NaN (unknown), not zero wide.
    """
    from scipy import stats

    samples = [_flat(stratum) for stratum in strata]
    value = float(statistic(np.concatenate(samples), axis=-1))
    if all(len(sample) < 2 for sample in samples):
        return Interval(value, math.nan, math.nan, confidence)
    if all((sample == sample[0]).all() for sample in samples):
        return Interval(value, value, value, confidence)
    # SciPy refuses samples of one value: such a stratum is doubled, and cut again below
    lengths = [len(sample) for sample in samples]
    doubled = tuple(np.repeat(sample, 2) if len(sample) == 1 else sample for sample in samples)

    def of_all(*resampled: np.ndarray, axis: int = -1) -> Any:
        return statistic(
            np.concatenate([s[..., :length] for s, length in zip(resampled, lengths, strict=True)], axis=-1), axis=-1
        )

    generator = np.random.default_rng(seed)
    found = stats.bootstrap(
        doubled,
        of_all,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        vectorized=True,
        rng=generator,
    )
    return Interval(value, float(found.confidence_interval.low), float(found.confidence_interval.high), confidence)


def wilson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """A success rate with Wilson's score interval, which stays inside [0, 1] and is honest at 0 of n and n of n."""
    from scipy.stats import norm

    if trials < 1 or not 0 <= successes <= trials:
        raise DataError(f"wilson needs 0 <= successes <= trials and trials >= 1, got {successes} of {trials}")
    z = float(norm.ppf(0.5 + confidence / 2))
    rate = successes / trials
    middle = (rate + z * z / (2 * trials)) / (1 + z * z / trials)
    half = z / (1 + z * z / trials) * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Interval(rate, min(low, rate), max(high, rate), confidence)


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences b - a.

    `interval` is a bootstrap over pairs (inside strata); `p` is two-sided, from flipping the signs of differences at
    random: how often chance alone makes a mean this far from 0.
    """

    interval: Interval
    p: float
    pairs: int
    a: float
    b: float


def paired_difference(
    a: Sequence[float],
    b: Sequence[float],
    *,
    strata: Sequence[Any] | None = None,
    seed: int = 0,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Difference:
    """The difference b - a of values paired by episode (same reset seed).

    Args:
        strata: one label per pair (for example the target); None takes all pairs as one stratum.
    """
    left, right = _flat(a), _flat(b)
    if len(left) != len(right):
        raise DataError(f"paired_difference needs as many values on both sides, got {len(left)} and {len(right)}")
    labels = list(strata) if strata is not None else [0] * len(left)
    gaps = right - left
    groups = [gaps[[i for i, label in enumerate(labels) if label == kind]] for kind in dict.fromkeys(labels)]
    return Difference(
        interval=bootstrap(groups, np.mean, seed=seed, resamples=resamples, confidence=confidence),
        p=_sign_flip(gaps, seed, resamples),
        pairs=len(gaps),
        a=float(left.mean()),
        b=float(right.mean()),
    )


def _sign_flip(gaps: np.ndarray, seed: int, resamples: int) -> float:
    """Exact where all 2^n sign patterns can be listed, else by `resamples` random ones."""
    count = len(gaps)
    seen = abs(gaps.mean())
    exact = count <= 12
    if exact:
        signs = 1.0 - 2.0 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
    else:
        signs = np.random.default_rng(seed).choice([-1.0, 1.0], size=(resamples, count))
    extreme = int((np.abs(signs @ gaps) / count >= seen * (1 - 1e-12)).sum())
    return extreme / len(signs) if exact else (extreme + 1) / (len(signs) + 1)


def spearman(asked: Sequence[float], achieved: Sequence[float]) -> float:
    """Rank correlation of what was asked for and what was achieved; NaN where either side has fewer than two values."""
    from scipy.stats import spearmanr

    left, right = _flat(asked), _flat(achieved)
    if len(left) < 2 or len(set(left)) < 2 or len(set(right)) < 2:
        return math.nan
    return float(spearmanr(left, right).statistic)


def calibration_gap(asked: Sequence[float], achieved: Sequence[float]) -> float:
    """The mean over targets of |mean achieved - asked|, each target weighing the same; in units of return."""
    left, right = _flat(asked), _flat(achieved)
    if len(left) != len(right):
        raise DataError(f"calibration_gap needs as many targets as returns, got {len(left)} and {len(right)}")
    return float(np.mean([abs(right[left == target].mean() - target) for target in np.unique(left)]))


def _flat(values: Any) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64).reshape(-1)
    bad = int((~np.isfinite(array)).sum())
    if bad or not array.size:
        raise DataError(
            f"statistics need at least one value, all of them finite, got {array.size} values of which {bad} are not finite"
        )
    return array
