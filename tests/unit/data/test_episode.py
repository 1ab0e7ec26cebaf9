"""What an Episode is, and what it refuses."""

import numpy as np
import pytest

from foretoken.core.errors import DataError
from foretoken.core.spec import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Spec
from foretoken.data import Episode

SPEC = Spec(observation=Box(shape=(2,)), action=Discrete(n=3))


def episode(n=4, **changes):
    ends = np.zeros(n, bool)
    if n:
        ends[-1] = True
    parts = {
        "observation": np.ones((n + 1, 2), np.float32),
        "action": np.arange(n) % 3,
        "reward": np.ones(n, np.float32),
        "terminated": ends,
        "truncated": np.zeros(n, bool),
    }
    return Episode(**{**parts, **changes})


def test_knows_its_length_and_return():
    made = episode(5, reward=[1, 2, 3, 4, 5])
    made.validate(SPEC)
    assert (made.length, made.total_return) == (5, 15.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"n": 0}, ["at least one action"]),
        ({"observation": np.ones((4, 2))}, ["observation", "5 entries", "(4, 2)"]),
        ({"observation": np.ones((5, 3))}, ["observation", "(2,)", "(3,)"]),
        ({"observation": {"a": np.ones((5, 2))}}, ["observation", "mapping"]),
        ({"observation": np.array([[0, 1], [0, np.nan], [0, 0], [0, 0], [0, 0]])}, ["observation", "NaN", "step 1"]),
        ({"observation": np.full((5, 2), "x", object)}, ["observation", "object"]),
        ({"action": np.array([0, 1, 2, 3])}, ["action", "0 .. 2", "0 .. 3"]),
        ({"action": np.zeros(4)}, ["action", "int64", "float64"]),
        ({"reward": np.ones(3)}, ["reward", "4 entries", "(3,)"]),
        ({"reward": [1, np.inf, 1, 1]}, ["reward", "infinity", "step 1"]),
        ({"terminated": np.zeros(4)}, ["terminated", "bool", "float64"]),
        ({"truncated": np.array([False, True, False, True])}, ["truncated", "action 1 of 4"]),
        ({"columns": {"cost": np.ones(7)}}, ["cost", "4 entries", "(7,)"]),
        ({"columns": {"cost": np.array([1, np.nan, 1, 1])}}, ["cost", "NaN"]),
        ({"facts": {"task": [1, 2]}}, ["task", "[1, 2]"]),
        ({"facts": {"score": float("nan")}}, ["score", "nan"]),
    ],
)
def test_refuses(changes, words):
    with pytest.raises(DataError) as caught:
        episode(**changes).validate(SPEC)
    for word in words:
        assert word in str(caught.value)


def test_refuses_ragged_lists():
    with pytest.raises(DataError, match="observation"):
        episode(observation=[[1, 2], [3]])


def test_names_the_nearest_part():
    spec = Spec(observation=Dict(spaces={"goal": Box(shape=(2,))}), action=Discrete(n=3))
    with pytest.raises(DataError, match="observation/gaol"):
        episode(observation={"gaol": np.ones((5, 2))}).validate(spec)
    with pytest.raises(DataError, match="observation/hand"):
        episode(observation={"goal": np.ones((5, 2)), "hand": np.ones((5, 2))}).validate(spec)


@pytest.mark.parametrize(
    ("space", "good", "bad"),
    [
        (Box(shape=(2,)), np.ones((4, 2)), np.ones((4, 3))),
        (Box(shape=(1,), dtype="uint8"), np.full((4, 1), 255, np.int64), np.full((4, 1), 256)),
        (Discrete(n=2, start=5), np.array([5, 6, 5, 6], np.int32), np.array([0, 1, 0, 1])),
        (MultiDiscrete(nvec=(2, 4)), np.tile([1, 3], (4, 1)), np.tile([3, 1], (4, 1))),
        (MultiBinary(n=3), np.ones((4, 3), bool), np.full((4, 3), 2)),
    ],
)
def test_kinds_of_action(space, good, bad):
    spec = Spec(observation=Box(shape=(2,)), action=space)
    episode(action=good).validate(spec)
    with pytest.raises(DataError, match="action"):
        episode(action=bad).validate(spec)
