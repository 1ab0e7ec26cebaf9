"""Excerpts are the beginnings of the episodes they come from."""

import numpy as np
import pytest

from foretoken.core.errors import ConfigError
from foretoken.data.embedded import open_embedded
from foretoken.data.store import open_store
from foretoken.envs.recipes.excerpts import Excerpts


def test_excerpts_are_beginnings(tmp_path):
    Excerpts(steps=7).write(tmp_path / "store")
    cut, whole = open_store(tmp_path / "store"), open_embedded("halfcheetah-expert-10")
    assert cut.num_episodes == whole.num_episodes == 10 and cut.spec == whole.spec
    assert cut.episodes["length"].tolist() == [7] * 10
    for number in (0, 9):
        short, long = cut.episode(number), whole.episode(number)
        np.testing.assert_array_equal(short.observation, long.observation[:8])
        np.testing.assert_array_equal(short.action, long.action[:7])
        np.testing.assert_array_equal(short.reward, long.reward[:7])
        assert short.truncated.tolist() == [False] * 6 + [True] and not short.terminated.any()


def test_short_episodes_stay(tmp_path):
    Excerpts(steps=5_000).write(tmp_path / "store")
    assert open_store(tmp_path / "store").episodes["length"].tolist() == [1000] * 10
    with pytest.raises(ConfigError, match="steps must be at least 1, got 0"):
        Excerpts(steps=0)
