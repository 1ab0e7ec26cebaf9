"""The maze and the circle of a pushed point: physics, players, and what is paid."""

import numpy as np
import pytest

from foretoken.core.errors import ConfigError
from foretoken.envs.diagnostic import make_world
from foretoken.envs.diagnostic.point_circle import LIMIT, R
from foretoken.envs.diagnostic.point_maze import MEDIUM, STEP, UMAZE, PointMaze, Waypoints, routes
from foretoken.envs.diagnostic.record import Expert, record

MAZES = ("foretoken/PointMaze-Medium-v0", "foretoken/PointMaze-UMaze-v0")


def play(world, player, rows=64):
    (played,) = record(world, player, np.zeros(rows, np.int64), np.arange(rows))
    return played


@pytest.mark.parametrize("maze", [MEDIUM, UMAZE])
def test_routes_are_shortest_ways(maze):
    moves, onward = routes(maze)
    text, width = "".join(maze), len(maze[0])
    free = [cell for cell, sign in enumerate(text) if sign != "#"]
    for goal in free:
        reached, edge = {goal: 0}, [goal]  # breadth first, written out
        for cell in edge:
            for near in (cell + 1, cell - 1, cell + width, cell - width):
                if near in free and near not in reached:
                    reached[near] = reached[cell] + 1
                    edge.append(near)
        assert {cell: int(moves[goal, cell]) for cell in free} == reached
        assert all(reached[int(onward[goal, cell])] == reached[cell] - 1 for cell in free if cell != goal)
        assert onward[goal, goal] == goal


@pytest.mark.parametrize(("id", "shortest", "longest"), [(MAZES[0], 55, 100), (MAZES[1], 30, 45)])
def test_the_scripted_player_arrives_well_within_the_horizon(id, shortest, longest):
    played = play(make_world(id, 64), Expert())
    assert played.terminated.all() and played.info["success"][played.length - 1, np.arange(64)].all()
    assert shortest <= played.length.min() and played.length.max() <= longest
    assert len(np.unique(played.observation[0], axis=0)) == 64  # starts differ by seed


@pytest.mark.parametrize("id", MAZES)
def test_nobody_enters_or_crosses_a_wall(id):
    world = make_world(id, 256)
    world.begin(np.arange(256), np.zeros(256, int), np.arange(256))
    cells = np.flatnonzero(world.open)
    world.put(cells[np.arange(256) % len(cells)])
    rng = np.random.default_rng(0)
    action = rng.uniform(-1, 1, (256, 2)).astype(np.float32)
    for _ in range(300):
        renewed = rng.random(256) < 0.1
        action[renewed] = rng.choice([-1, 1, 0.3], (renewed.sum(), 2))
        before = world.place.copy()
        world.step(action)
        assert world.open[world.cell(world.place)].all()
        assert np.abs(world.place - before).max() <= STEP + 1e-12
        crossed = world.moves[world.cell(world.place), world.cell(before)]
        assert crossed.max() <= 2  # around a corner at most


def test_a_blocked_axis_stops_and_the_other_goes_on():
    world = make_world(MAZES[1], 1)
    world.put(np.array([world.home]))
    for _ in range(8):
        world.step(np.array([[0.5, 1.0]]))  # to the right, and down into the wall
    assert world.place[0, 1] < 4 and world.place[0, 0] > 1.8
    place = world.place[0, 1]
    world.velocity[0, 1] = 1.0
    world.place[0, 1] = 3.95
    world.step(np.array([[0.5, 1.0]]))
    assert world.velocity[0, 1] == 0 and world.place[0, 1] == 3.95 and place < 4


def test_players_go_where_each_row_wants_to_and_put_moves_the_start():
    world = make_world(MAZES[0], 100)
    cells = np.flatnonzero(world.open)
    start, goal = cells[np.arange(100) % len(cells)], cells[np.arange(100) * 7 % len(cells)]
    world.put(start)
    assert (world.observe()[:, :2] == world.centre(start)).all() and not world.observe()[:, 2:].any()
    played = play(world, Waypoints(goal, noise=0.3), rows=100)
    assert (world.cell(played.observation[0, :, :2]) == start).all()
    arrived = world.near(played.observation[..., :2], goal)
    assert (arrived.any(0) | played.terminated).all()  # ways that lead over the goal end there


def test_strayers_arrive_seldom():
    rows = 64
    share = [
        play(world := make_world(MAZES[1], rows), Waypoints(np.full(rows, world.goal), 0.2, stray)).terminated.mean()
        for stray in (0.0, 0.5, 1.0)
    ]
    assert share[0] == 1 and share[0] > share[1] > share[2] and share[2] < 0.3


@pytest.mark.parametrize("maze", [("####", "#SG#", "###"), ("####", "#SG.", "####"), ("####", "#S.#", "####")])
def test_broken_mazes_are_refused(maze):
    with pytest.raises(ConfigError, match="a maze needs equal lines"):
        PointMaze(1, "Broken-v0", maze=maze, horizon=5)


class Around:
    """Runs with one overshoot per row."""

    def __init__(self, overshoot):
        self.overshoot = overshoot

    def act(self, world):
        return world.around(self.overshoot)

    def learn(self, experience):
        pass


def test_reward_and_cost_of_the_circle_by_hand():
    world = make_world("foretoken/PointCircle-v0", 3)
    world.place[:] = [[R, 0], [0, 1.5], [0, 0]]
    world.velocity[:] = [[0, 1], [-1, 0], [0, 0]]
    for _ in range(2):  # acting as they move keeps the speed at 1
        outcome = world.step(np.array([[0, 1], [-1, 0], [0, 0]]))
    x, y, vx, vy = world.observe().astype(float).T
    r = np.hypot(x, y)
    expected = [(x[i] * vy[i] - y[i] * vx[i]) / r[i] / (1 + abs(r[i] - R)) for i in (0, 1)]
    assert outcome.reward[:2] == pytest.approx(expected, rel=1e-6) and outcome.reward[2] == 0
    assert outcome.info["cost"].tolist() == [1, 0, 0] and not outcome.terminated.any()


def test_force_and_speed_are_at_most_one():
    world = make_world("foretoken/PointCircle-v0", 1)
    for _ in range(60):
        world.step(np.array([[1.0, 1.0]]))
    assert np.linalg.norm(world.velocity) == pytest.approx(1) and world.spec.observation.high[0] == world.place[0, 0]


def test_who_pays_more_earns_more_and_the_scripted_player_pays_nothing():
    world = make_world("foretoken/PointCircle-v0", 64)
    safe = play(world, Expert())
    assert not safe.info["cost"].any()
    assert safe.total == pytest.approx(world.best_return(np.zeros(64)), rel=0.03)
    graded = play(world, Around(np.repeat([-0.1, 0.02, 0.2, R - LIMIT], 16)))
    cost, earned = (values.reshape(4, 16).mean(1) for values in (graded.info["cost"].sum(0), graded.total))
    assert (np.diff(cost) > 5).all() and cost[0] == 0 and 70 < cost[3] < 90
    assert (np.diff(earned) > 2).all() and earned[3] > 1.15 * safe.total.mean()
