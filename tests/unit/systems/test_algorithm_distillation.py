"""Algorithm Distillation: what the claim's figures are made of, and its verdict."""

from types import SimpleNamespace

import numpy as np
import pytest

from foretoken.evaluation.evaluate import Evaluated
from foretoken.evaluation.rollout import EpisodeResult
from foretoken.systems.incontext import algorithm_distillation as ad


def trials(returns_NE):
    """An evaluation of N trials of E episodes that earned this."""
    records = [
        EpisodeResult(target=None, episode=i, reset_seed=i, total=float(total), length=1, index=index)
        for i, row in enumerate(returns_NE)
        for index, total in enumerate(row)
    ]
    return Evaluated(environment="a room", seed=0, update=1, num_slots=1, records=tuple(records))


def test_figures_are_early_and_late_beside_the_source(monkeypatch: pytest.MonkeyPatch) -> None:
    run = ad.cpu().replace(seed=3)
    learner, asked = run.source.recipe.learner, []

    def reference_returns(environment, player, *, trials, episodes, seed):
        asked.append((environment, player, trials, episodes, seed))
        learned = np.arange(episodes, dtype=float)
        return np.full((trials, episodes), 9.0) if player is None else np.stack([learned, learned + 2])

    monkeypatch.setattr(ad, "reference_returns", reference_returns)
    worse, last = np.zeros((2, 8)), np.stack([np.arange(8.0), np.arange(8.0) + 1])
    found = ad.figures(SimpleNamespace(evaluations=lambda: [trials(worse), trials(last)], experiment=run))
    assert found == {
        "first two episodes": 1.0,  # of 0, 1 and 1, 2
        "last five episodes": 5.5,  # of 3 .. 7 and 4 .. 8
        "source's last ten episodes": 145.5,  # of 140 .. 149 and 142 .. 151
        "source's first two episodes": 1.5,
        "best possible": 9.0,
    }
    assert asked == [("a room", learner, 2, 150, 3), ("a room", None, 2, 1, 3)]


FINE = {"first two episodes": 2.0, "last five episodes": 8.0, "source's last ten episodes": 10.0}
SHORT = {"first two episodes": 2.0, "last five episodes": 2.9}


@pytest.mark.parametrize(
    ("long", "short", "fails"),
    [
        ({}, {}, None),
        ({"source's last ten episodes": 10.8}, {}, "late >= 75 %"),
        ({"first two episodes": 2.7}, {}, "late >= 3 times"),
        ({}, {"last five episodes": 3.1}, "one episode of memory"),
    ],
)
def test_verdict(long, short, fails) -> None:
    results = {"four episodes": [FINE | long] * 3, "one episode": [SHORT | short] * 3, "forgetful": [FINE] * 3}
    broken = [name for name, held in ad.verdict(results).items() if not held]
    assert len(broken) == (fails is not None) and all(name.startswith(fails) for name in broken)


def test_verdict_is_on_means_over_seeds() -> None:
    rows = [FINE | {"last five episodes": late} for late in (6.0, 8.0, 10.0)]
    assert all(ad.verdict({"four episodes": rows, "one episode": [SHORT] * 3}).values())


def test_windows_stay_in_their_history_and_arms_differ_in_them_alone() -> None:
    assert {preset().system.across for preset in (ad.paper, ad.cpu)} == {"history"}
    whole, *others = ad.claim().arms.values()
    for arm in others:
        assert arm.replace(system=arm.system.replace(context=whole.system.context, across="history")) == whole
