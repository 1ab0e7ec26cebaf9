import numpy as np
import pytest

from foretoken.core.errors import DataError
from foretoken.envs.learners import QLearning
from foretoken.envs.recipes.learning_histories import LearningHistories
from foretoken.envs.recipes.noise_curriculum import NoiseCurriculum
from foretoken.evaluation.evaluate import Evaluated
from foretoken.evaluation.in_context import (
    early_and_late,
    reference_curves,
    reference_returns,
    regrets,
    returns_by_episode,
    source_curves,
    spread,
    steps,
)
from foretoken.evaluation.in_context_page import BEGIN, END, Curves, fill, write_csv
from foretoken.evaluation.rollout import EpisodeResult


def evaluated(environment, records):
    return Evaluated(environment=environment, seed=0, update=0, num_slots=1, records=tuple(records))


def trials(number, length):
    records = [
        EpisodeResult(target=None, episode=n, index=k, task=n, reset_seed=0, total=10 * n + k, length=15)
        for n in range(number)
        for k in range(length)
    ]
    return evaluated("foretoken/DarkRoom-7x7-v0", records)


def test_curves_of_trials_go_by_episode():
    assert returns_by_episode(trials(3, 4)).tolist() == [[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]
    assert early_and_late(np.array([[0.0, 2, 4], [2, 4, 6]]), 1) == (1.0, 5.0)
    with pytest.raises(DataError, match="holds no trials"):
        returns_by_episode(trials(3, 1))


def test_regret_that_no_environment_tells_is_missed():
    with pytest.raises(DataError, match="tells no regret"):
        regrets(trials(2, 2))


def test_references_play_the_held_out_tasks_of_an_evaluation():
    curves = reference_curves(trials(4, 3))
    assert {name: values.shape for name, values in curves.items()} == {"best possible": (4, 3), "random": (4, 3)}
    assert (curves["best possible"] > curves["random"]).all()
    assert reference_curves(evaluated("CartPole-v1", trials(2, 2).records)) == {}


def test_a_learner_gets_better_on_the_tasks_that_were_held_out():
    returns = reference_returns("foretoken/DarkRoom-7x7-v0", QLearning(episodes=60), trials=6, episodes=60, seed=0)
    early, late = early_and_late(returns, 10)
    assert returns.shape == (6, 60) and late > 3 * early


def test_the_source_plays_the_same_tasks_as_it_learns_and_as_its_histories_keep_it():
    found, learner = trials(6, 5), QLearning(episodes=60)
    recipe = LearningHistories(learner=learner, episodes=60, keep_every=12, tasks=3, seed=9)
    curves = source_curves(found, recipe, "source of it")
    whole = reference_returns(found.environment, learner, trials=6, episodes=49, seed=0)
    assert list(curves) == ["source of it", "source of it, one episode in 12"]
    np.testing.assert_array_equal(curves["source of it"], whole[:, :5])
    np.testing.assert_array_equal(curves["source of it, one episode in 12"], whole[:, ::12])
    assert curves["source of it, one episode in 12"][:, -1].mean() > 3 * curves["source of it"][:, -1].mean()
    assert list(source_curves(found, recipe.replace(keep_every=1))) == ["source"]
    assert source_curves(evaluated("CartPole-v1", found.records), recipe) == {}


def test_who_made_noise_goes_on_where_its_history_ends():
    """A trial of 12 episodes, whose histories hold 8."""
    recipe = NoiseCurriculum(episodes=40, keep_every=5, floor=0.0, tasks=3)
    kept = source_curves(trials(10, 12), recipe)["source, one episode in 5"]
    best = reference_curves(trials(10, 12))["best possible"]
    assert kept.shape == (10, 12) and kept[:, 0].mean() < 3
    np.testing.assert_array_equal(kept[:, 8:], best[:, 8:])


def test_intervals_are_students():
    mean, low, high = spread(np.array([[1.0, 5.0], [3.0, 5.0]]))
    assert (
        mean.tolist() == [2, 5]
        and np.allclose(high - mean, [12.7062, 0], atol=1e-3)
        and np.allclose(mean - low, high - mean)
    )
    assert steps(np.zeros((1, 4)), 200).tolist() == [50, 100, 150, 200]


def test_the_page_holds_every_curve_between_its_marks(tmp_path):
    values = {"ad: four episodes": np.array([[0.0, 1, 2], [2, 3, 4]]), "random": np.zeros((2, 3))}
    curves = Curves("foretoken/DarkRoom-7x7-v0", "return", np.array([1, 2, 3]), values)
    lines = write_csv(curves, tmp_path / "csv").read_text().splitlines()
    assert lines[0] == "player,episode,mean,low,high,trials" and len(lines) == 7
    assert lines[1].startswith("ad: four episodes,1,1,") and lines[1].endswith(",2")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    fill(page, [curves])
    text = page.read_text()
    assert "old" not in text and text.startswith("before\n") and text.endswith("after\n")
    assert "| random | 0 [0, 0] | 0 [0, 0] | 0 [0, 0] | 2 |" in text
    fill(page, [curves])
    assert page.read_text() == text
    page.write_text("no marks")
    with pytest.raises(DataError, match="must hold the lines"):
        fill(page, [curves])
