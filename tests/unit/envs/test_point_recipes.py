"""Datasets of the pushed point: what their systems rely on."""

import numpy as np
import pytest

from foretoken.core.errors import ConfigError
from foretoken.data.store import open_store
from foretoken.envs.diagnostic import make_world
from foretoken.envs.recipes.circle_controllers import CircleControllers
from foretoken.envs.recipes.maze_segments import MazeSegments
from foretoken.envs.recipes.noisy_maze import NoisyMaze


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Stores by recipe, each written once."""
    made = {}

    def write(recipe):
        key = str(recipe)
        if key not in made:
            out = tmp_path_factory.mktemp("recipe") / "store"
            recipe.write(out)
            made[key] = open_store(out)
        return made[key]

    return write


@pytest.mark.parametrize("id", ["foretoken/PointMaze-Medium-v0", "foretoken/PointMaze-UMaze-v0"])
def test_no_segment_covers_more_than_half_of_the_way(written, id):
    store, world = written(MazeSegments(world=id)), make_world(id, 1)
    facts, left = store.episodes, world.moves[world.goal]
    assert store.num_episodes == 400
    for number in range(400):
        cells = world.cell(store.episode(number).observation[:, :2])
        assert cells[0] == facts["start_cell"][number]
        assert left[cells].max() - left[cells].min() <= left[world.home] // 2
    assert (facts["start_cell"] == world.home).sum() >= 25 and (facts["goal_cell"] == world.goal).sum() >= 25
    assert not (facts["success"] & (facts["start_cell"] == world.home)).any()


def test_segments_meet_in_the_middle_and_pay_at_the_goal_only(written):
    store, world = written(MazeSegments()), make_world("foretoken/PointMaze-Medium-v0", 1)
    facts = store.episodes
    middle = world.cell(np.array([4.5, 3.5]))  # as far from the start as from the goal
    assert world.moves[world.goal, middle] == world.moves[middle, world.home] == 5
    through = np.array([(world.cell(store.episode(n).observation[:, :2]) == middle).any() for n in range(400)])
    assert through.sum() >= 150
    assert (through & (facts["start_cell"] == world.home)).sum() >= 4
    assert (through & facts["success"]).sum() >= 4
    assert (facts["return"] == facts["success"]).all() and (facts["terminated"] == facts["success"]).all()
    assert (facts["success"] ^ facts["truncated"]).all()
    ends = np.array([world.near(store.episode(n).observation[-1, :2], facts["goal_cell"][n]) for n in range(400)])
    assert ends.mean() > 0.95 and facts["length"].max() < 60


@pytest.mark.parametrize(("episodes", "success"), [(500, 0.3), (20, 0.0), (20, 1.0), (10, 0.5)])
def test_noisy_walks_succeed_as_often_as_asked(written, episodes, success):
    facts = written(NoisyMaze(episodes=episodes, success=success)).episodes
    assert len(facts["success"]) == episodes and facts["success"].sum() == round(success * episodes)
    assert (facts["length"][~facts["success"]] == 100).all() and (facts["return"] == facts["success"]).all()
    if episodes == 500:
        assert facts["stray"][~facts["success"]].mean() > facts["stray"][facts["success"]].mean() + 0.2


def test_controllers_of_the_circle_are_graded(written):
    store = written(CircleControllers())
    cost, earned = store.episodes["cost"], store.episodes["return"]
    share = np.histogram(cost, [0, 1, 10, 20, 30, 40, 50, 60, 70, 91])[0] / 500
    assert (share > 0.05).all() and share.sum() == 1
    assert (store.episodes["length"] == 200).all()
    best = [np.quantile(earned[(cost >= low) & (cost <= low + 20)], 0.95) for low in (0, 20, 40, 60)]
    assert (np.diff(best) > 2).all()
    episode = store.episode(7)
    assert episode.columns["cost"][:200].sum() == cost[7] and set(episode.columns["cost"].tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize("kind", [MazeSegments, NoisyMaze, CircleControllers])
def test_the_same_settings_write_the_same_data(written, tmp_path, kind):
    recipe = kind(episodes=12)
    recipe.write(tmp_path / "again")
    first, again = written(recipe), open_store(tmp_path / "again")
    other = written(kind(episodes=12, seed=1))
    for number in range(12):
        one, two = first.episode(number), again.episode(number)
        assert (one.action == two.action).all() and (one.observation == two.observation).all()
    assert first.episode(0).action.tolist() != other.episode(0).action.tolist()
    assert max(np.abs(first.episode(n).action).max() for n in range(12)) == 1


@pytest.mark.parametrize("kind", [MazeSegments, CircleControllers])
def test_more_episodes_begin_with_the_same_ones(written, kind):
    few, many = written(kind(episodes=12)), written(kind())
    for number in range(12):
        assert (few.episode(number).action == many.episode(number).action).all()


def test_impossible_settings_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="success must be a share"):
        NoisyMaze(success=1.2)
    with pytest.raises(ConfigError, match="too far from success=1"):
        NoisyMaze(success=1.0, noise=30.0).write(tmp_path / "noise")
    for kind in (MazeSegments, NoisyMaze):
        with pytest.raises(ConfigError, match="PointMaze"):
            kind(world="foretoken/DarkRoom-v0").write(tmp_path / "world")
