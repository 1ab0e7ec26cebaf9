"""Comparisons pair what began alike, and refuse what did not."""

import json

import numpy as np
import pytest

from foretoken.core.errors import DataError
from foretoken.evaluation.compare import compare
from foretoken.evaluation.evaluate import Evaluated
from foretoken.evaluation.rollout import EpisodeResult

LUCK = np.random.default_rng(0).normal(0, 100, 50)


def evaluation(gain, *, targets=(None,), episodes=range(20), seed=0, environment="E-v0", noise=0.1):
    draw = np.random.default_rng(int(gain * 10))
    records = [
        EpisodeResult(
            target=t,
            episode=i,
            reset_seed=i + 1000 * seed,
            total=float(LUCK[i] + gain + noise * draw.normal()),
            length=3,
        )
        for t in targets
        for i in episodes
    ]
    return Evaluated(environment=environment, seed=seed, update=0, num_slots=1, records=tuple(records))


def test_luck_cancels():
    found = compare(evaluation(0), evaluation(1))
    assert (
        found.difference.interval.value == pytest.approx(1, abs=0.1)
        and found.difference.pairs == 20
        and found.unpaired == 0
    )
    assert found.verdict.startswith("b is better") and compare(evaluation(1), evaluation(0)).verdict.startswith(
        "a is better"
    )
    json.dumps(found.to_json(), allow_nan=False)


def test_equal_and_undecided():
    assert compare(evaluation(0), evaluation(0)).verdict.startswith("equal")
    assert compare(evaluation(0, noise=50), evaluation(0.1, noise=50)).verdict.startswith("no difference shown")
    assert compare(evaluation(0), evaluation(1, episodes=range(1))).verdict.startswith("undecided")


def test_targets_pair_with_themselves_and_none_with_all():
    both = compare(evaluation(0, targets=(10.0, 20.0)), evaluation(1, targets=(20.0, 30.0)))
    assert both.targets == (20.0,) and both.difference.pairs == 20 and both.unpaired == 40
    one = compare(evaluation(0), evaluation(1, targets=(20.0, 30.0)))
    assert one.targets == (20.0, 30.0) and one.difference.pairs == 40 and one.unpaired == 0


def test_what_cannot_be_paired_is_refused():
    with pytest.raises(DataError, match="one environment, got 'E-v0' and 'F-v0'"):
        compare(evaluation(0), evaluation(1, environment="F-v0"))
    with pytest.raises(DataError, match=r"begins differently .* got 0 and 1"):
        compare(evaluation(0), evaluation(1, seed=1))
    with pytest.raises(DataError, match=r"no episode is common: .* 0 to 19, .* 20 to 29"):
        compare(evaluation(0), evaluation(1, episodes=range(20, 30)))
    with pytest.raises(DataError, match="no episode is common"):
        compare(evaluation(0, targets=(1.0,)), evaluation(1, targets=(2.0,)))
