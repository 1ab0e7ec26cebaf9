"""Embeddings by space, standardising, scaling of actions, time."""

import numpy as np
import pytest
import torch

from foretoken.core.errors import ConfigError
from foretoken.core.spec import Box, Dict, Discrete, MultiDiscrete, Tokens
from foretoken.core.store import Statistics
from foretoken.nn.embed.actions import ActionEmbedding
from foretoken.nn.embed.images import ImageConfig
from foretoken.nn.embed.normalise import ActionScale, Standardise
from foretoken.nn.embed.observations import ObservationConfig
from foretoken.nn.embed.time import EpisodeTimeConfig, WindowTimeConfig
from foretoken.testing.stores import SPECS, random_store


@pytest.mark.parametrize("name", SPECS)
def test_every_space_has_features(name: str) -> None:
    spec, store = SPECS[name], random_store(SPECS[name])
    batch = store.gather(np.arange(6).reshape(2, 3), ("observation", "action"))
    observation = ObservationConfig().build(spec.observation, 7)
    observation.fit(store.statistics("observation"))
    action = ActionEmbedding(spec.action, 7)
    action.fit(store.statistics("action"))
    for y in (observation(batch.observation), action(batch.action)):
        assert y.shape == (2, 3, 7) and y.dtype == torch.float32 and bool(y.isfinite().all())


def test_parts_of_a_dict_are_added() -> None:
    space = Dict(spaces={"a": Box(shape=(2,)), "b": Discrete(n=3)})
    whole = ObservationConfig(standardise=False).build(space, 4)
    a, b = torch.randn(5, 2), torch.tensor([0, 1, 2, 0, 1])
    torch.testing.assert_close(whole({"a": a, "b": b}), whole.parts[0](a) + whole.parts[1](b))
    torch.testing.assert_close(
        ObservationConfig(activation="tanh").build(Box(shape=(2,)), 4)(1e4 * a).abs(),
        torch.ones(5, 4),
        atol=1e-2,
        rtol=0,
    )


def test_choices_count_from_their_start() -> None:
    one = ActionEmbedding(Discrete(n=3, start=5), 4)
    table = one.embed.tables[0].weight
    torch.testing.assert_close(one(torch.tensor([5, 6, 7])), table)
    assert bool(one(torch.zeros(2, dtype=torch.int64)).isfinite().all())  # padding and missing actions are zeros
    several = ActionEmbedding(MultiDiscrete(nvec=(2, 3)), 4)
    got = several(torch.tensor([1, 2]))
    torch.testing.assert_close(got, several.embed.tables[0].weight[1] + several.embed.tables[1].weight[2])


def test_standardise() -> None:
    layer = Standardise((2,))
    x = torch.tensor([[3.0, 7.0]])
    torch.testing.assert_close(layer(x), x)
    layer.fit(Statistics(9, np.array([1.0, 7.0]), np.array([2.0, 0.0]), np.zeros(2), np.ones(2)))
    torch.testing.assert_close(layer(x), torch.tensor([[1.0, 0.0]]))
    assert set(layer.state_dict()) == {"mean", "std", "fitted"}


def test_actions_are_scaled_by_bounds_or_by_data() -> None:
    data = {"": Statistics(9, np.zeros(3), np.ones(3), np.array([-4.0, -4.0, 2.0]), np.array([4.0, 4.0, 6.0]))}
    scale = ActionScale(Box(shape=(3,), low=(0.0, 0.0, float("-inf")), high=(2.0, float("inf"), float("inf"))))
    torch.testing.assert_close(scale(torch.tensor([2.0, 0.5, 0.5])), torch.tensor([1.0, 0.5, 0.5]))
    scale.fit(data[""])
    torch.testing.assert_close(scale(torch.tensor([0.0, 0.0, 2.0])), -torch.ones(3))
    torch.testing.assert_close(scale(torch.tensor([2.0, 4.0, 6.0])), torch.ones(3))
    x = torch.randn(10, 3)
    torch.testing.assert_close(scale.inverse(scale(x)), x)


def test_images_in_both_orders() -> None:
    config = ImageConfig(channels=(4, 4), kernels=(3, 3), strides=(2, 1))
    first, last = (config.build(Box(shape=shape, dtype="uint8"), 5) for shape in ((3, 12, 10), (12, 10, 3)))
    last.load_state_dict(first.state_dict())
    x = torch.randint(0, 256, (2, 4, 3, 12, 10), dtype=torch.uint8)
    torch.testing.assert_close(last(x.movedim(-3, -1)), first(x))
    assert first(x).shape == (2, 4, 5)


def test_bad_images_and_spaces_are_named() -> None:
    with pytest.raises(ConfigError, match="images of 12 x 10 are too small"):
        ImageConfig().build(Box(shape=(3, 12, 10), dtype="uint8"), 5)
    with pytest.raises(ConfigError, match="one entry per layer"):
        ImageConfig(channels=(4,))
    with pytest.raises(ConfigError, match="no embedding is known for Tokens"):
        ObservationConfig().build(Tokens(vocabulary=3, max_length=2), 4)


def test_episode_time_is_the_step() -> None:
    layer = EpisodeTimeConfig(max_steps=10).build(4, 3)
    timestep = torch.tensor([[0, 9, 50, -1]])
    torch.testing.assert_close(layer(timestep, timestep >= 0)[0], layer.table.weight[[0, 9, 9, 0]])


def test_window_time_counts_real_steps_and_knows_the_start() -> None:
    layer = WindowTimeConfig(max_steps=100).build(4, 5)
    timestep = torch.tensor([[0, 0, 7, 8, 9], [3, 4, 5, 6, 7]])
    valid = torch.tensor([[False, False, True, True, True], [True] * 5])
    y = layer(timestep, valid)
    torch.testing.assert_close(y[0, 2:], layer.place.weight[:3] + layer.start.weight[7])
    torch.testing.assert_close(y[1], layer.place.weight + layer.start.weight[3])
    torch.testing.assert_close(layer(timestep[:1, 2:], valid[:1, 2:]), y[:1, 2:])
