"""The human demonstrations of the Adroit door, from a small file of the same layout."""

import numpy as np
import pytest

from foretoken.core.errors import DataError
from foretoken.data.store import open_store
from foretoken.envs.recipes.adroit_door_human import HINGE, AdroitDoorHuman


def test_episodes_are_cut_clipped_and_judged(tmp_path):
    rng = np.random.default_rng(0)
    observation, action = rng.normal(size=(7, 39)), rng.normal(size=(7, 28)) * 2
    observation[:, HINGE] = 0, 0.5, 1, 0.2, 1.4, 0.3, 0
    file = tmp_path / "door.npz"
    lengths = np.array([3, 4])
    np.savez(file, observations=observation, actions=action, rewards=np.arange(7.0), episode_lengths=lengths)
    AdroitDoorHuman(file=str(file)).write(tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert store.spec.environment == "AdroitHandDoor-v1" and store.episodes["success"].tolist() == [False, True]
    second = store.episode(1)
    np.testing.assert_allclose(second.observation, observation[[3, 4, 5, 6, 6]], rtol=1e-6)
    np.testing.assert_allclose(second.action, action[3:].clip(-1, 1), rtol=1e-6)
    assert second.truncated.tolist() == [False, False, False, True] and not second.terminated.any()


def test_what_is_missing_is_told(tmp_path):
    recipe = AdroitDoorHuman(file=str(tmp_path / "none.npz"))
    assert recipe.missing() == f"there is no none.npz in {tmp_path}"
    with pytest.raises(DataError, match=r"none\.npz does not exist"):
        recipe.write(tmp_path / "store")
