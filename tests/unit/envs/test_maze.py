"""The mazes: one way from cell to cell, what counts as an exact path, and the stores of solved ones."""

from collections import deque

import numpy as np
import pytest

from foretoken.core.errors import ConfigError, DataError
from foretoken.core.grid import passages
from foretoken.envs.diagnostic import make_world
from foretoken.envs.diagnostic.maze import DOWN, LEFT, RIGHT, UP, Maze
from foretoken.envs.diagnostic.record import Expert, record
from foretoken.envs.recipes import maze_paths
from foretoken.envs.recipes.maze_paths import MazePaths, solved

BACK = {UP: DOWN, DOWN: UP, LEFT: RIGHT, RIGHT: LEFT}


def begun(size, rows, seed=0):
    world = make_world(f"foretoken/Maze{size}x{size}-v0", rows)
    seeds = seed + np.arange(rows)
    world.begin(np.arange(rows), world.drawn_tasks(seeds), seeds)
    return world


def graph(observation, size):
    """Neighbours by cell, own cell and target, read from the bits."""
    pairs, cells = passages(size), size * size
    joined = {cell: [] for cell in range(cells)}
    for bit, (one, other) in zip(observation, pairs.tolist(), strict=False):
        if bit:
            joined[one].append(other)
            joined[other].append(one)
    ends = observation[len(pairs) :].reshape(2, cells)
    assert (ends.sum(1) == 1).all()
    return joined, *ends.argmax(1).tolist()


def shortest(joined, start, target):
    """The cells of a shortest way, by breadth-first search."""
    before, queue = {start: start}, deque([start])
    while queue:
        cell = queue.popleft()
        for other in joined[cell]:
            if other not in before:
                before[other] = cell
                queue.append(other)
    way = [target]
    while way[-1] != start:
        way.append(before[way[-1]])
    return way[::-1], len(before)


@pytest.mark.parametrize("size", [4, 5, 10])
def test_mazes_are_perfect_and_the_player_goes_the_only_way(size):
    rows, cells = 60, size * size
    world = begun(size, rows)
    (played,) = record(world, Expert(), world.task.copy(), world.seed.copy())
    assert (played.total == 1).all() and played.info["success"][played.length - 1, np.arange(rows)].all()
    for row in range(rows):
        joined, start, target = graph(played.observation[0, row], size)
        way, reached = shortest(joined, start, target)
        assert reached == cells and sum(map(len, joined.values())) == 2 * (cells - 1) and start != target
        seen = [graph(played.observation[step, row], size)[1] for step in range(played.length[row] + 1)]
        assert seen == way and len(way) <= world.spec.max_episode_steps


def test_ways_fork_and_are_as_long_as_the_packages():
    """maze-dataset 1.4.2: 7.3 moves in the mean, a cell in six is a dead end (3,000 mazes)."""
    world = begun(5, 3000)
    (played,) = record(world, Expert(), world.task.copy(), world.seed.copy())
    assert played.length.mean() == pytest.approx(7.33, abs=0.3) and played.length.min() == 1
    degree = np.zeros((3000, 25))
    for number, pair in enumerate(passages(5)):
        degree[:, pair] += world.joined[:, [number]]
    shares = [(degree == count).mean() for count in (1, 2, 3)]
    assert shares == pytest.approx([0.169, 0.742, 0.089], abs=0.01)


def test_a_task_is_a_maze_and_a_seed_its_ends():
    world = make_world("foretoken/Maze6x6-v0", 40)
    world.begin(np.arange(40), np.repeat([3, 4], 20), np.arange(40) % 20)
    seen, count = world.observe(), len(passages(6))
    assert (seen[:20, :count] == seen[0, :count]).all() and (seen[20:, :count] == seen[20, :count]).all()
    assert not np.array_equal(seen[0, :count], seen[20, :count])
    assert np.array_equal(seen[:20, count:], seen[20:, count:]) and len(np.unique(seen[:20, count:], axis=0)) > 10


def test_walls_stop_and_only_the_exact_path_is_a_success():
    world = begun(5, 300)
    joined = [graph(seen, 5)[0] for seen in world.observe()]
    action = np.arange(300) % 4
    there = world.place + world.onward[action]
    free = np.array([there[row] in joined[row][world.place[row]] for row in range(300)])
    before = world.place.copy()
    outcome = world.step(action)
    assert np.array_equal(world.place, np.where(free, there, before)) and 0.3 < free.mean() < 0.7
    assert np.array_equal(outcome.terminated, world.place == world.target)
    world.step(np.array([BACK[one] for one in action.tolist()]))  # back, or at first into a wall and then anywhere
    over = outcome.terminated.copy()
    for _ in range(25):
        outcome = world.step(world.expert())
        assert not (outcome.info["success"] & ~over).any()
        arrived = outcome.reward > 0
        over |= arrived
    assert over.mean() > 0.95


@pytest.mark.parametrize("size", [5, 10])
def test_open_mazes_have_walls_for_cells_and_any_shortest_way_is_a_success(size):
    rows, cells = 60, size * size
    world = make_world(f"foretoken/OpenMaze{size}x{size}-v0", rows)
    world.begin(np.arange(rows), world.drawn_tasks(np.arange(rows)), np.arange(rows))
    (played,) = record(world, Expert(), world.task.copy(), world.seed.copy())
    assert played.info["success"][played.length - 1, np.arange(rows)].all()
    walled, several = [], 0
    for row in range(rows):
        joined, start, target = graph(played.observation[0, row], size)
        way, _ = shortest(joined, start, target)
        assert size <= len(way) - 1 == played.length[row]
        walled.append(sum(not others for others in joined.values()) / cells)
        free = {cell for cell, others in joined.items() if others}
        assert all({one, other} - free or other in joined[one] for one, other in passages(size).tolist())
        several += sum(len(shortest(joined, cell, target)[0]) == len(way) - 1 for cell in joined[start]) > 1
    assert 0.3 < np.mean(walled) < 0.5 and several > 10


def test_of_several_shortest_ways_each_is_a_success_and_a_detour_is_none():
    """The nearest neighbour that the player would not take, and a step aside and back."""
    rows = np.arange(400)
    world = make_world("foretoken/OpenMaze5x5-v0", 400)
    world.begin(rows, rows, rows)
    free = world.joined[rows[:, None], world.passage[world.place]] > 0
    steps = np.where(free, world.steps[rows[:, None], world.around[world.place]], 99)
    best = steps.min(1, keepdims=True)
    last = 3 - steps[:, ::-1].argmin(1)
    away = np.where(free & (steps > best), steps, -1).argmax(1)
    goes_away = rows % 2 == 1
    chosen, other = np.where(goes_away, away, last), last != world.expert()
    detour = goes_away & (free & (steps > best)).any(1)
    world.step(chosen)
    won, over = np.zeros(400, bool), world.place == world.target
    for _ in range(24):
        outcome = world.step(world.expert())
        won |= outcome.info["success"] & ~over
        over |= outcome.terminated
    assert over.all() and detour.sum() > 50 and (other & ~goes_away).sum() > 20
    assert won[~goes_away].all() and not won[detour].any()


def test_too_small():
    with pytest.raises(ConfigError, match="needs size >= 2, got 1"):
        Maze(1, "x", size=1)


def test_stores_of_solved_mazes(tmp_path, monkeypatch):
    monkeypatch.setenv("FORETOKEN_CACHE", str(tmp_path))
    monkeypatch.setattr(maze_paths, "_AT_ONCE", 7)
    store = MazePaths(world="foretoken/Maze4x4-v0", episodes=20).open()
    monkeypatch.setattr(maze_paths, "_AT_ONCE", 30)
    more = MazePaths(world="foretoken/Maze4x4-v0", episodes=30).open()
    other = MazePaths(world="foretoken/Maze4x4-v0", episodes=20, seed=1).open()
    assert store.num_episodes == 20 and store.spec.environment == "foretoken/Maze4x4-v0"
    for number in range(20):
        episode, same = store.episode(number), more.episode(number)
        assert episode.facts["success"] is True and episode.total_return == 1 and episode.terminated[-1]
        assert np.array_equal(episode.observation, same.observation)
        assert not np.array_equal(episode.observation[0], other.episode(number).observation[0])
    for wrong, says in (
        ({"world": "foretoken/Maze5x6-v0"}, "did you mean"),
        ({"episodes": 0}, "episodes must be at least 1"),
    ):
        with pytest.raises(ConfigError, match=says):
            MazePaths(**wrong)


def test_arrays_of_the_package_become_episodes():
    """0   1-2
    |   |     from 0 to 2
    3-4-5
      |
    6-7-8"""
    joined = np.zeros((2, 3, 3), bool)
    for row, column in ((0, 0), (0, 2), (1, 1)):
        joined[0, row, column] = True
    for row, column in ((0, 1), (1, 0), (1, 1), (2, 0), (2, 1)):
        joined[1, row, column] = True
    episode = solved(joined, np.array([[0, 0], [1, 0], [1, 1], [1, 2], [0, 2]]))
    edges, start, target = graph(episode.observation[0], 3)
    assert (start, target) == (0, 2) and sorted(edges[4]) == [3, 5, 7] and sorted(edges[0]) == [3] and edges[1] == [2]
    assert episode.action.tolist() == [DOWN, RIGHT, RIGHT, UP] and episode.reward.tolist() == [0, 0, 0, 1]
    assert [graph(seen, 3)[1] for seen in episode.observation] == [0, 3, 4, 5, 2]
    episode.validate(Maze(1, "x", size=3).spec)


@pytest.mark.extra("maze")
def test_the_package_gives_the_same_mazes_and_ways(tmp_path, monkeypatch):
    package = pytest.importorskip("maze_dataset", reason="maze-dataset is not installed (extra maze)")
    from maze_dataset.generation import LatticeMazeGenerators
    from maze_dataset.tokenization import MazeTokenizer, TokenizationMode

    monkeypatch.setenv("FORETOKEN_CACHE", str(tmp_path))
    store = MazePaths(world="foretoken/Maze6x6-v0", episodes=12, generator="maze-dataset", seed=5).open()
    config = package.MazeDatasetConfig(
        name="again", grid_n=6, n_mazes=12, seed=5, maze_ctor=LatticeMazeGenerators.gen_dfs,
        maze_ctor_kwargs={"do_forks": True},
    )  # fmt: skip
    mazes = package.MazeDataset.from_config(config, load_local=False, save_local=False)
    writer = MazeTokenizer(tokenization_mode=TokenizationMode.AOTP_UT_rasterized, max_grid_size=100)
    assert store.num_episodes == 12
    for number, maze in enumerate(mazes):
        words = [word for word in maze.as_tokens(writer) if word != "<-->"]
        cell = {f"({index // 6},{index % 6})": index for index in range(36)}
        edges = [word for word in words[1 : words.index("<ADJLIST_END>")] if word != ";"]
        told = {frozenset((cell[one], cell[other])) for one, other in zip(edges[::2], edges[1::2], strict=True)}
        episode = store.episode(number)
        joined, start, target = graph(episode.observation[0], 6)
        assert told == {frozenset((one, other)) for one, others in joined.items() for other in others}
        way = [cell[word] for word in words[words.index("<PATH_START>") + 1 : -1]]
        assert way == [graph(seen, 6)[1] for seen in episode.observation] == shortest(joined, start, target)[0]
        assert episode.total_return == 1


def test_what_is_missing_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(maze_paths, "find_spec", lambda name: None)
    recipe = MazePaths(generator="maze-dataset")
    assert "pip install 'foretoken[maze]'" in recipe.missing() and not MazePaths().missing()
    with pytest.raises(DataError, match="maze-dataset is not installed"):
        recipe.write(tmp_path / "store")
