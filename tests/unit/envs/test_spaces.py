"""Spaces translate both ways, and differences are named."""

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from foretoken.core.errors import EnvironmentMismatch
from foretoken.core.spec import Box, Spec, Tokens
from foretoken.envs.make import make
from foretoken.envs.spaces import build_tree, check_same, from_space, read_leaf, to_space, to_spec

ALL = [
    spaces.Box(-1.0, 1.0, (3,), np.float32),
    spaces.Box(np.array([-1.0, -2.0]), np.array([1.0, 3.0]), dtype=np.float64),
    spaces.Box(-np.inf, np.inf, (2, 2), np.float64),
    spaces.Box(0, 255, (8, 8, 3), np.uint8),
    spaces.Discrete(4),
    spaces.Discrete(3, start=-1),
    spaces.MultiDiscrete([2, 5]),
    spaces.MultiBinary(6),
    spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Dict({"c": spaces.Box(0, 1, (2,), np.float32)})}),
]


@pytest.mark.parametrize("space", ALL, ids=str)
def test_round_trip(space):
    ours = from_space(space)
    assert to_space(ours) == space
    assert type(ours).from_json(ours.to_json()) == ours


def test_tokens_become_independent_choices():
    assert to_space(Tokens(vocabulary=7, max_length=3)) == spaces.MultiDiscrete([7, 7, 7])


@pytest.mark.parametrize(
    ("space", "says"),
    [
        (spaces.Tuple([spaces.Discrete(2)]), "the thing is a Tuple .*Dict"),
        (spaces.Text(5), "the thing is a Text .*FilterObservation"),
        (spaces.Dict({"mission": spaces.Text(5)}), "part 'mission' is a Text"),
        (spaces.MultiDiscrete([[2, 3], [2, 2]]), "the thing must be Box"),
        (spaces.MultiDiscrete([2, 3], start=[1, 0]), "the thing must be Box"),
        (spaces.MultiBinary([2, 2]), "the thing must be Box"),
        (spaces.Sequence(spaces.Discrete(2)), "the thing must be Box"),
    ],
    ids=str,
)
def test_unknown_spaces_are_refused_by_name(space, says):
    with pytest.raises(EnvironmentMismatch, match=says):
        from_space(space, "the thing")


def test_spec_of_an_environment():
    spec = to_spec(make("HalfCheetah-v5"))
    assert (spec.environment, spec.max_episode_steps, spec.observation.shape, spec.action.shape) == (
        "HalfCheetah-v5",
        1000,
        (17,),
        (6,),
    )
    assert spec.action.low == (-1.0,)


class Toy(gymnasium.Env):
    def __init__(self, observation, action):
        self.observation_space, self.action_space = observation, action


def spec_of(observation, action=ALL[0]):
    return to_spec(Toy(observation, action))


def test_same_spaces_pass_and_float_width_does_not_matter():
    check_same(spec_of(spaces.Box(-np.inf, np.inf, (2,), np.float32)), Toy(spaces.Box(0, 1, (2,), np.float64), ALL[0]))


@pytest.mark.parametrize(
    ("stored", "here", "says"),
    [
        (ALL[0], spaces.Box(-1, 1, (17,), np.float32), r"observation shape \(3,\) in the store, \(17,\) in Toy"),
        (ALL[0], spaces.Box(0, 255, (3,), np.uint8), "observation dtype float in the store, uint8 in Toy"),
        (ALL[4], spaces.Discrete(5), "observation choices 4 in the store, 5 in Toy"),
        (ALL[4], spaces.Discrete(4, start=1), "observation first choice 0 in the store, 1 in Toy"),
        (ALL[4], ALL[0], "observation kind Discrete in the store, Box in Toy"),
        (ALL[8], ALL[0], r"observation parts \['a', 'b/c'\] in the store, \['one plain array'\] in Toy"),
        (
            ALL[8],
            spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Dict({"c": ALL[0]})}),
            r"observation/b/c shape \(2,\) in the store",
        ),
    ],
)
def test_differences_are_named(stored, here, says):
    with pytest.raises(EnvironmentMismatch, match=says):
        check_same(spec_of(stored), Toy(here, ALL[0]))


def test_action_bounds_must_agree_where_both_are_known():
    wide = Toy(ALL[0], spaces.Box(0, 512, (3,), np.float32))
    with pytest.raises(EnvironmentMismatch, match=r"action low \(-1.0,\) in the policy's spec, \(0.0,\) in Toy"):
        check_same(spec_of(ALL[0]), wide, made_for="the policy's spec")
    check_same(Spec(observation=from_space(ALL[0]), action=Box(shape=(3,))), wide)


def test_trees():
    tree = {"a": 1, "b": {"c": 2, "d": 3}}
    assert build_tree({"/a": 1, "/b/c": 2, "/b/d": 3}) == tree
    assert read_leaf(tree, "/b/d") == 3 and read_leaf(tree, "") is tree
