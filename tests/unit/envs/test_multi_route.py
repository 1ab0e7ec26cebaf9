"""Four gates in a wall: what is hit, what is passed, and who demonstrates it."""

import numpy as np
import pytest

from foretoken.core.errors import ConfigError
from foretoken.data.store import open_store
from foretoken.envs.diagnostic import make_world
from foretoken.envs.diagnostic.multi_route import GATES, HALF_GATE, STEP, Walker
from foretoken.envs.diagnostic.record import Expert, record
from foretoken.envs.recipes.multi_route_demonstrations import MultiRouteDemonstrations


def moved(place, way):
    """A world in which one went from `place`, `way` in units of 0.05."""
    world = make_world("foretoken/MultiRoute-v0", 1)
    world.begin(np.array([0]), np.array([0]), np.array([0]))
    world.place = np.array([place], float)
    return world, world.step(np.array([way]) * 0.05 / STEP)


@pytest.mark.parametrize(
    ("place", "way", "hit", "route"),
    [
        ((0.44, 0.5), (1, 0), True, -1),  # against the wall
        ((0.44, 0.25), (1, 0), False, 1),  # into a gate
        ((0.44, 0.25), (-1, 0), False, -1),
        ((0.50, 0.1), (0, 0.9), False, 0),  # inside, nearly to its edge
        ((0.50, 0.12), (0, 1), True, -1),
        ((0.50, 0.12), (0.6, -0.8), False, 0),
        ((0.56, 0.75), (-1, 0), False, 2),  # back
        ((0.449, 0.83), (0.5, 0.87), True, -1),  # enters beside the gate, ends in it
        ((0.5, 0.175), (0, 0), True, -1),
        ((0.3, 0.5), (1, 1), False, -1),
    ],
)
def test_what_the_wall_lets_through(place, way, hit, route):
    world, outcome = moved(place, way)
    assert bool(outcome.terminated[0]) == hit and not outcome.reward[0]
    assert outcome.info["route"][0] == world.route[0] == route


def test_arrival_and_the_longest_step():
    world, outcome = moved((0.85, 0.36), (20, 20))
    assert np.linalg.norm(world.place - [0.85, 0.36]) == pytest.approx(STEP)
    assert outcome.terminated[0] and outcome.reward[0] == 1 and outcome.info["success"][0]


def test_players_take_the_gate_they_are_told():
    world, route = make_world("foretoken/MultiRoute-v0", 40), np.arange(40) % 4
    (walked,) = record(world, Walker(route, np.full(40, 0.6), 0.05), np.zeros(40, np.int64), np.arange(40))
    last = walked.length - 1, np.arange(40)
    assert walked.info["success"][last].all() and (walked.info["route"][last] == route).all()
    (played,) = record(world, Expert(), np.zeros(40, np.int64), np.arange(40))
    assert set(played.info["route"][played.length - 1, np.arange(40)]) == {0, 1, 2, 3}


def test_gates_leave_wall_between_them():
    assert min(np.diff(GATES)) > 2 * HALF_GATE


def test_demonstrations_have_the_shares_that_are_asked_for(tmp_path):
    recipe = MultiRouteDemonstrations(episodes=100, shares=(0.4, 0.3, 0.2, 0.1))
    recipe.write(tmp_path / "store")
    facts = open_store(tmp_path / "store").episodes
    assert np.bincount(facts["route"]).tolist() == [40, 30, 20, 10]
    assert facts["success"].mean() >= 0.97 and 8 < facts["length"].mean() < 15
    for wrong in ({"shares": (0.5, 0.5)}, {"slowest": 0.9}, {"episodes": 0}):
        with pytest.raises(ConfigError):
            MultiRouteDemonstrations(**wrong)


def test_what_leaves_the_wall_in_a_gate_has_passed_it_wherever_it_ends() -> None:
    _, outcome = moved((0.5499, 0.2005), (0.6, -0.8))  # near the gate's lower corner
    assert not outcome.terminated[0] and outcome.info["route"][0] == 1
