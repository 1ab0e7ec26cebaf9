"""AD^eps: the demonstrator that the claim measures against, its figures and its verdict."""

from types import SimpleNamespace

import numpy as np
import pytest

from foretoken.envs.learners import Noisy, QLearning
from foretoken.evaluation.evaluate import Evaluated
from foretoken.evaluation.rollout import EpisodeResult
from foretoken.systems.incontext import noise_distillation as eps


def test_figures_are_set_against_the_demonstrator_with_its_least_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def reference_returns(environment, player, *, trials, episodes, seed):
        asked.append((environment, player, trials, episodes, seed))
        return np.full((trials, episodes), 8.0 if player is None else 2.0)

    monkeypatch.setattr(eps, "reference_returns", reference_returns)
    records = [
        EpisodeResult(target=None, episode=i, reset_seed=i, total=float(index + 2 * i), length=1, index=index)
        for i in range(2)
        for index in range(10)
    ]
    last = Evaluated(environment="a room", seed=0, update=1, num_slots=1, records=tuple(records))
    run = SimpleNamespace(evaluations=lambda: [None, last], experiment=eps.cpu().replace(seed=3))
    assert eps.figures(run) == {
        "first two episodes": 1.5,  # of 0, 1 and 2, 3
        "last five episodes": 8.0,  # of 5 .. 9 and 7 .. 11
        "gain": 6.5,
        "demonstrator at its best": 2.0,
        "times the demonstrator": 4.0,
        "best possible": 8.0,
    }
    least = Noisy(episodes=1, floor=0.6, schedule="constant")
    assert asked == [("a room", least, 2, 100, 3), ("a room", None, 2, 1, 3)]


def test_arms_differ_in_their_histories_alone() -> None:
    arms = dict(eps.claim().arms)
    for arm in arms.values():
        assert arm.replace(source=arms["falling"].source) == arms["falling"]
    learned, noise = arms.pop("q-learning").source.recipe, arms["falling"].source.recipe
    assert [arm.source.recipe.schedule for arm in arms.values()] == ["linear", "constant", "reversed"]
    assert {arm.source.recipe.replace(schedule="linear") for arm in arms.values()} == {noise}
    for name in ("environment", "tasks", "streams", "episodes", "keep_every", "seed"):
        assert getattr(learned, name) == getattr(noise, name)
    assert learned.players() == (QLearning(episodes=noise.episodes),)


@pytest.mark.parametrize(
    ("falling", "constant", "fails"),
    [
        ({}, {}, []),
        ({"last five episodes": 5.9}, {}, ["late >= 1.5 times"]),
        ({}, {"gain": 1.1}, ["gains >= 3 times"]),
        ({"gain": -0.1}, {"gain": -1.0}, ["gains >= 3 times"]),
        ({"gain": 0.0}, {"gain": 0.0}, ["gains >= 3 times"]),
        ({"gain": 0.1}, {"gain": -1.0}, []),
        ({}, {"last five episodes": 3.1}, ["constant noise: late"]),
    ],
)
def test_verdict(falling, constant, fails) -> None:
    fine = {"last five episodes": 6.1, "demonstrator at its best": 4.0, "gain": 3.2}
    still = {"first two episodes": 2.0, "last five episodes": 2.9, "gain": 1.0} | constant
    noisy = [{name: value + noise for name, value in still.items()} for noise in (-0.5, 0, 0.5)]
    results = {"falling": [fine | falling] * 3, "constant": noisy}
    broken = [name for name, held in eps.verdict(results).items() if not held]
    assert len(broken) == len(fails) and all(name.startswith(start) for name, start in zip(broken, fails, strict=True))


def test_windows_stay_in_their_history() -> None:
    assert {preset().system.across for preset in (eps.paper, eps.cpu)} == {"history"}
