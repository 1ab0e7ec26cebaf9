"""Real recordings: import, and what the doctor says about them. They lie beside the project and may be absent."""

import os
from pathlib import Path

import numpy as np
import pytest

from foretoken.data.doctor import examine
from foretoken.data.imports import import_dataset

SHARED = Path(os.environ.get("FORETOKEN_SHARED", Path(__file__).parents[3].parent / "shared")) / "data"


def real(name):
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"the real data {name} are not on this machine (set FORETOKEN_SHARED to their folder)")
    return path


def take(tmp_path, name, **settings):
    store, findings = import_dataset(real(name), tmp_path / "store", **settings)
    found = examine(store)
    assert [one for one in found if one.severity == "error"] == []
    return store, {one.code for one in findings}, {one.code: one for one in found}


def test_adroit_door_by_hand(tmp_path):
    store, findings, found = take(tmp_path, "adroit-door-human/door-human.npz", action_bounds=(-1.0, 1.0))
    assert store.num_episodes == 25 and store.num_actions == 6729 and store.columns["observation"].shape == (39,)
    np.testing.assert_allclose(store.episodes["return"].mean(), 794, atol=1)
    assert {"ends-unknown", "final-repeated", "left-out"} <= findings
    assert found["actions-outside"].detail["high"] == pytest.approx(1.37, abs=0.01)
    assert not {"observation-jumps", "unmarked-resets", "duplicate-episodes"} & found.keys()


def test_joined_hand_demonstrations_are_noticed(tmp_path):
    arrays = dict(np.load(real("adroit-door-human/door-human.npz")))
    lengths = arrays["episode_lengths"]
    arrays["episode_lengths"] = np.array([*lengths[:20], lengths[20] + lengths[21], *lengths[22:]])
    np.savez(
        tmp_path / "joined.npz",
        **{name: arrays[name] for name in ("observations", "actions", "rewards", "episode_lengths")},
    )
    store, _ = import_dataset(tmp_path / "joined.npz", tmp_path / "store")
    found = {one.code: one for one in examine(store)}
    assert [20] in [
        found[code].detail["episodes"] for code in ("observation-jumps", "unmarked-resets") if code in found
    ]


@pytest.mark.parametrize(("name", "episodes", "actions"), [("cartpole", 100, 49_527), ("pendulum", 100, 20_000)])
def test_classic_experts(tmp_path, name, episodes, actions):
    limit = {"cartpole": 500, "pendulum": 200}[name]
    store, findings, found = take(tmp_path, f"classic-expert/expert_{name}.npz", max_episode_steps=limit)
    assert (store.num_episodes, store.num_actions) == (episodes, actions)
    ended = np.asarray(store.episodes["terminated"])
    assert ended.sum() == (1 if name == "cartpole" else 0) and "returns-differ" not in findings
    assert "timeouts-as-terminals" not in found and "observation-jumps" not in found


@pytest.mark.parametrize(
    ("name", "episodes", "actions"), [("door-human-11ep", 11, 1_700), ("kitchen-complete-human-4ep", 4, 755)]
)
def test_pieces_of_human_demonstrations(tmp_path, name, episodes, actions):
    store, _, found = take(tmp_path, f"d4rl-fragments-ibc/{name}.npz")
    assert (store.num_episodes, store.num_actions) == (episodes, actions)
    assert not {"observation-jumps", "unmarked-resets", "actions-outside"} & found.keys()
    assert ("constant-dimensions" in found) == name.startswith("kitchen")


def test_hopper_medium_by_policy(tmp_path):
    store, findings, found = take(tmp_path, "locomotion/foretoken/hopper/medium-v0")
    assert (store.num_episodes, store.num_actions) == (204, 100_317) and findings == {"summary"}
    assert (store.spec.environment, store.spec.max_episode_steps) == ("Hopper-v5", 1000)
    returns = np.asarray(store.episodes["return"])
    np.testing.assert_allclose(
        [returns.mean(), returns.std(), returns.min(), returns.max()], [1601, 266, 415, 2515], atol=1
    )
    assert found.keys() <= {"return-scale", "unscaled-dimensions", "short-episodes"}
    assert found["return-scale"].detail["scale"] == 1000


def test_hopper_replay_has_short_episodes_and_no_false_alarm(tmp_path):
    store, _, found = take(tmp_path, "locomotion/foretoken/hopper/medium-replay-v0")
    assert (store.num_episodes, store.num_actions) == (1150, 179_999)
    assert (
        "short-episodes" in found
        and not {"observation-jumps", "unmarked-resets", "timeouts-as-terminals", "duplicate-episodes"} & found.keys()
    )
