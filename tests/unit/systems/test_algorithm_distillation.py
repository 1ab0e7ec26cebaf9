"""Algorithm Distillation: what the claim's figures are made of, and its verdict."""

from types import SimpleNamespace

import numpy as np
import pytest

from foretoken.core.spec import Box, Spec
from foretoken.data.episode import Episode
from foretoken.data.store import Store
from foretoken.envs.diagnostic import make_world
from foretoken.envs.recipes.learning_histories import training_tasks
from foretoken.evaluation.evaluate import Evaluated
from foretoken.evaluation.rollout import EpisodeResult
from foretoken.systems.incontext import algorithm_distillation as ad
from foretoken.training.sources import Offline


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
        "episode 4": 3.5,  # of 3 and 4
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


def test_a_window_is_as_long_as_the_four_episodes_of_a_figure() -> None:
    """The same length as in training, and a longer rollout: episode 4, and the last of 20."""
    run = ad.cpu()
    horizon = make_world(run.source.recipe.environment, 1).spec.max_episode_steps
    assert run.system.context == 4 * (horizon + 1) and run.evaluation.trial == 20


def test_the_normaliser_is_of_training_tasks_only(tmp_path) -> None:
    """Of continuous states: neither tasks that are held out nor those of the evaluation have a part in it."""
    spec = Spec(observation=Box(shape=(2,)), action=Box(shape=(1,), low=(-1.0,), high=(1.0,)))
    store, random = Store.create(tmp_path / "store", spec), np.random.default_rng(0)
    for history in range(24):
        for order in range(3):
            task = history // 2
            ends = np.arange(5) == 4
            store.append(
                Episode(
                    observation=random.normal(10.0 * task, 1.0, (6, 2)).astype(np.float32),
                    action=random.uniform(-1, 1, (5, 1)).astype(np.float32),
                    reward=np.zeros(5),
                    terminated=ends & False,
                    truncated=ends,
                    facts={"task": task, "history": history, "order": order},
                )
            )
    store.close()
    source = Offline(store=str(tmp_path / "store"), held_out=0.25).build(batch_size=2, seed=0)
    kept = set(source.stores["data"].episodes["task"].tolist())
    assert len(kept) == 9, "a quarter of twelve tasks is held out whole"
    method = ad.smoke().system.build(spec)
    method.fit(source.stores, "main")
    found = method.embed_observation.parts[0].standardise
    shown = [store.episode(number) for number in range(72) if store.episodes["task"][number] in kept]
    seen = np.concatenate([episode.observation for episode in shown])
    np.testing.assert_allclose(found.mean, seen.mean(0), rtol=1e-2)
    np.testing.assert_allclose(found.std, seen.std(0), rtol=1e-2)
    mean = 10.0 * np.mean(range(12))
    assert (abs(found.mean - mean) > 1).all(), "a test that could not fail"


def test_histories_are_of_tasks_that_no_trial_plays(tmp_path) -> None:
    for run in (ad.cpu(), ad.paper()):
        world, recipe = make_world(run.source.recipe.environment, 1), run.source.recipe
        played = {world.task_of(run.evaluation.tasks, number) for number in range(world.num_tasks)}
        assert played.isdisjoint(training_tasks(world, recipe.tasks).tolist())
