"""Laws of all worlds, found by discovery; then what single worlds and their recipes promise."""

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from foretoken.core import splitmix
from foretoken.core.errors import ConfigError, UnknownName
from foretoken.core.spec import Discrete
from foretoken.envs.diagnostic import make_world, world_ids
from foretoken.envs.diagnostic.record import Expert, record
from foretoken.envs.diagnostic.t_maze import DOWN, LEFT, RIGHT, UP
from foretoken.envs.make import make
from foretoken.envs.recipes.t_maze_demonstrations import TMazeDemonstrations
from foretoken.envs.spaces import check_same

every_world = pytest.mark.parametrize("id", world_ids())


class Wavering(Expert):
    """The expert's action at about half of the steps, a uniform one at the others; by each row's seed and clock alone."""

    def act(self, world):
        seed = splitmix.split(splitmix.split(world.seed, 99), world.clock)
        expert, space = world.expert(), world.spec.action
        u = splitmix.uniform(seed, 1 + expert[0].size)
        if isinstance(space, Discrete):
            other = (u[:, 1] * space.n).astype(np.int64)
        else:
            low, high = np.asarray(space.low), np.asarray(space.high)
            other = (low + u[:, 1:] * (high - low)).reshape(expert.shape).astype(expert.dtype)
        return np.where(u[:, :1].reshape(-1, *[1] * (expert.ndim - 1)) < 0.5, expert, other)


def tasks_of(world, count):
    """Up to `count` tasks of each part."""
    parts = ("train", "held-out") if world.num_tasks != 1 else ("train",)
    return np.unique([world.task_of(part, number) for part in parts for number in range(count)])


def mixed(world):
    """A task and a seed for each row, few of a kind."""
    tasks = tasks_of(world, 3)
    return tasks[np.arange(world.rows) % len(tasks)], 10 + np.arange(world.rows)


def arrays_of(recorded):
    return [*recorded[:5], *recorded.columns.values(), *recorded.info.values()]


def assert_same(one, other, rows=slice(None)):
    """Recorded `other`'s rows are `one`, bit for bit, as far as their episodes go."""
    assert np.array_equal(one.length, other.length[rows])
    for left, right in zip(arrays_of(one), arrays_of(other), strict=True):
        if left.ndim == 1:
            assert np.array_equal(left, right[rows])
            continue
        for row, length in enumerate(one.length):
            steps = slice(length + (len(left) > len(one.reward)))
            assert np.array_equal(left[steps, row], right[:, rows][steps, row])


@every_world
def test_gymnasiums_checker_and_the_spec(id):
    environment = make(id)
    check_env(environment.unwrapped, skip_render_check=True)
    world = make_world(id, 2)
    assert world.spec.environment == id
    check_same(world.spec, environment)
    task, seed = mixed(world)
    (played,) = record(world, Wavering(), task, seed)
    for row in range(2):
        played.episode(row).validate(world.spec)
        assert played.episode(row).observation.dtype == world.spec.observation.dtype


@every_world
def test_the_scripted_player_earns_best_return(id):
    repeats = 32
    task = np.repeat(tasks_of(make_world(id, 1), 12), repeats)
    world = make_world(id, len(task))
    (played,) = record(world, Expert(), task, np.arange(len(task)))
    total = played.total.reshape(-1, repeats)
    best = world.best_return(task[::repeats])
    assert best.shape == total.shape[:1] and best.dtype == np.float64
    error, spread = total.mean(1) - best, total.std(1, ddof=1)
    exact = np.ptp(total, axis=1) < 1e-9
    assert np.abs(error[exact]).max(initial=0.0) < 1e-9
    assert (np.abs(error) <= 4 * spread / repeats**0.5)[~exact].all()


@every_world
def test_rows_do_not_know_each_other(id):
    world = make_world(id, 7)
    task, seed = mixed(world)
    (together,) = record(world, Wavering(), task, seed)
    order = np.array([4, 0, 6, 1, 5, 3, 2])
    (permuted,) = record(make_world(id, 7), Wavering(), task[order], seed[order])
    assert_same(permuted, together, order)
    for row in (0, 5):
        (alone,) = record(make_world(id, 1), Wavering(), task[[row]], seed[[row]])
        assert_same(alone, together, [row])


@every_world
def test_same_seed_same_episode(id):
    task, seed = mixed(make_world(id, 5))
    first, second = record(make_world(id, 5), Wavering(), task, seed, episodes=2)
    again, _ = record(make_world(id, 5), Wavering(), task, seed, episodes=2)
    assert_same(first, again)
    assert not np.array_equal(first.action, second.action)


@every_world
def test_noise_is_by_seed_and_step(id):
    world = make_world(id, 3)
    task = np.repeat(tasks_of(world, 1)[:1], 3)
    world.begin(np.arange(3), task, np.array([5, 6, 5]))
    noise = world.normal(4)
    assert np.array_equal(noise, world.normal(4)) and np.array_equal(noise[0], noise[2])
    assert not np.isin(noise[1], noise[0]).any()
    world.step(world.expert())
    assert not np.isin(world.normal(4), noise).any()


@every_world
def test_saved_loaded_and_kept_rows_go_on_alike(id):
    world, other = make_world(id, 5), make_world(id, 3)
    world.begin(np.arange(5), *mixed(world))
    chosen = np.array([3, 0, 4])
    for count in (1, 4):
        for _ in range(count):
            world.step(Wavering().act(world))
        saved = [world.save(row) for row in chosen]
        expected = [[values.copy() for values in row.values()] for row in saved]
        world.keep(chosen)
        for row in range(3):
            other.load(row, saved[row])
        for _ in range(3):
            assert np.array_equal(world.observe(), other.observe())
            ours, theirs = world.step(Wavering().act(world)), other.step(Wavering().act(other))
            for left, right in zip(ours[:3], theirs[:3], strict=True):
                assert np.array_equal(left, right)
            assert all(np.array_equal(ours.info[name], theirs.info[name]) for name in ours.info)
        for row, values in zip(saved, expected, strict=True):
            assert all(map(np.array_equal, row.values(), values))
        chosen = np.array([1, 0, 2])


@every_world
def test_rows_that_are_over_may_be_stepped_on(id):
    world = make_world(id, 3)
    world.begin(np.arange(3), np.array([world.task_of("train", row) for row in range(3)]), np.arange(3))
    for _ in range(world.spec.max_episode_steps + 70):
        world.step(world.expert())
        world.observe()


@every_world
def test_begun_again_rows_leave_the_others_alone(id):
    world = make_world(id, 4)
    task, seed = mixed(world)
    world.begin(np.arange(4), task, seed)
    world.step(Wavering().act(world))
    before, there = world.save(0), world.save(2)
    world.begin(np.array([1, 2]), task[[1, 2]], seed[[1, 2]])
    assert all(map(np.array_equal, world.save(0).values(), before.values()))
    fresh = make_world(id, 4)
    fresh.begin(np.arange(4), task, seed)
    assert all(map(np.array_equal, world.save(2).values(), fresh.save(2).values()))
    world.load(2, there)
    assert all(map(np.array_equal, world.save(2).values(), there.values()))


@every_world
def test_tasks_for_training_are_not_held_out(id):
    world = make_world(id, 1)
    count = min(world.num_tasks or 1000, 7000)
    train = {world.task_of("train", number) for number in range(0, count, max(1, count // 200))}
    assert world.drawn_task(3) == world.drawn_task(3)
    if world.num_tasks == 1:
        with pytest.raises(ConfigError, match="none of them held out"):
            world.task_of("held-out", 0)
        return
    held_out = {world.task_of("held-out", number) for number in range(0, count, max(1, count // 200))}
    assert train and held_out and not train & held_out
    assert not {world.drawn_task(seed) for seed in range(50)} & held_out


@every_world
def test_wrong_tasks_are_refused(id):
    world = make_world(id, 2)
    if not world.num_tasks:
        world.begin(np.arange(2), np.array([0, 1 << 50]), np.array([0, 1]))
        return
    for wrong in (-1, world.num_tasks):
        with pytest.raises(ConfigError, match=rf"lie in 0 \.\. {world.num_tasks - 1}, got .*{wrong}"):
            world.begin(np.arange(2), np.array([0, wrong]), np.array([0, 1]))


def test_unknown_worlds_are_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="did you mean 'foretoken/DarkRoom-v0'"):
        make_world("foretoken/DarkRom-v0", 1)


# -- bandits


def begun(id, rows, task=None, seed=None):
    world = make_world(id, rows)
    world.begin(
        np.arange(rows),
        np.zeros(rows, np.int64) if task is None else task,
        np.arange(rows) if seed is None else seed,
    )
    return world


@pytest.mark.parametrize("id", [id for id in world_ids() if "Bandit" in id])
def test_pulls_pay_the_arms_means(id):
    rows, pulls = 4000, 25
    world = begun(id, rows, task=np.full(rows, 7))
    arm = np.arange(rows) % world.means.shape[1]
    outcomes = [world.step(arm) for _ in range(pulls)]
    reward = np.stack([outcome.reward for outcome in outcomes])
    noise = 0.3 if id != "foretoken/BernoulliBandit-v0" else 0.5
    for pulled, mean in enumerate(world.means[0]):
        paid = reward[:, arm == pulled]
        assert abs(paid.mean() - mean) <= 4 * noise / paid.size**0.5
        assert outcomes[0].info["regret"][pulled] == world.means[0].max() - mean
    if noise == 0.3:
        assert np.std(reward - world.means[0, arm]) == pytest.approx(0.3, rel=0.02)
    else:
        assert set(np.unique(reward)) == {0.0, 1.0}


def test_means_are_of_the_task_and_as_the_paper_draws_them():
    world, short = begun("foretoken/Bandit-v0", 4000, task=np.arange(4000)), begun("foretoken/Bandit-200-v0", 3)
    assert np.array_equal(short.means, world.means[[0, 0, 0]])
    assert world.means.mean() == pytest.approx(0.5, abs=0.01) and world.means.var() == pytest.approx(1 / 12, rel=0.03)
    linear = begun("foretoken/LinearBandit-v0", 4000, task=np.arange(4000))
    theta = np.linalg.lstsq(linear.features, linear.means.T, rcond=None)[0]
    assert linear.features.shape == (10, 2) and np.allclose(linear.features @ theta, linear.means.T)
    assert np.cov(theta) == pytest.approx(np.eye(2) / 2, abs=0.03)
    with pytest.raises(ConfigError, match="noise must be a number"):
        world_ids()["foretoken/LinearBandit-v0"][0](1, "x", noise=None, dimension=2)


# -- key to door


@pytest.mark.parametrize("id", ["foretoken/KeyToDoor-v0", "foretoken/KeyToDoor-5x5-v0"])
def test_every_pair_of_key_and_door_is_reached(id):
    rows = make_world(id, 1).num_tasks
    (played,) = record(make_world(id, rows), Expert(), np.arange(rows), np.zeros(rows, np.int64))
    assert (played.total == 2).all() and played.terminated.all()


def test_the_door_is_shut_without_the_key():
    world = begun("foretoken/KeyToDoor-5x5-v0", 1, task=np.array([14 * 25 + 13]))  # the start is cell 12
    left, right, stay = 2, 3, 4
    rewards = []
    for action in (right, right, right, stay, left):  # over the door to the key, into the wall, and back
        outcome = world.step(np.array([action]))
        rewards.append(outcome.reward[0])
        assert outcome.terminated[0] == outcome.info["success"][0] == (action == left)
    assert rewards == [0, 1, 0, 0, 1] and world.observe()[0].tolist() == [2, 3]


# -- T-maze


def test_the_clue_is_shown_once_wherever_the_agent_goes():
    world = begun("foretoken/TMaze-30-v0", 200)
    clue = world.observe()[:, 0]
    assert set(clue) == {-1.0, 1.0} and 70 < (clue > 0).sum() < 130
    for action in (LEFT, RIGHT, LEFT, UP, DOWN):
        assert not world.step(np.full(200, action)).terminated.any()
        assert not world.observe()[:, :2].any()
    assert not world.place.any()
    assert set(world.observe()[:, 2]) == {-1.0, 0.0, 1.0}


@pytest.mark.parametrize("steps", [30, 50, 90, 150, 300, 600])
def test_the_right_way_takes_all_steps(steps):
    world = begun(f"foretoken/TMaze-{steps}-v0", 16)
    clue = world.observe()[:, 0]
    for _ in range(steps - 1):
        assert not world.observe()[:, 1].any()
        world.step(np.full(16, RIGHT))
    assert world.observe()[:, 1].all()
    outcome = world.step(np.full(16, UP))
    assert np.array_equal(outcome.reward, clue > 0) and np.array_equal(outcome.info["success"], clue > 0)
    assert outcome.terminated.all() and not outcome.truncated.any()


def test_mixed_corridors_reach_all_lengths():
    world = begun("foretoken/TMaze-Mixed-150-v0", 5000)
    assert set(world.corridor) == set(range(1, 150))


def test_demonstrations_win_and_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("FORETOKEN_CACHE", str(tmp_path))
    recipe = TMazeDemonstrations(episodes=20)
    store = recipe.open()
    assert store.spec.environment == "foretoken/TMaze-Mixed-150-v0" and store.num_episodes == 20
    more = TMazeDemonstrations(episodes=30).open()
    other = TMazeDemonstrations(episodes=20, seed=1).open()
    for number in range(20):
        episode, same = store.episode(number), more.episode(number)
        assert episode.facts["success"] is True and episode.total_return == 1 and episode.terminated[-1]
        assert np.array_equal(episode.observation, same.observation) and np.array_equal(episode.action, same.action)
    assert any(store.episode(number).length != other.episode(number).length for number in range(20))
    for wrong, says in (
        ({"world": "foretoken/TMaze-31-v0"}, "did you mean"),
        ({"episodes": 0}, "episodes must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=says):
            TMazeDemonstrations(**wrong)
