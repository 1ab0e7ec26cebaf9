"""Collected episodes: complete, in order, the same whatever the number of slots."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from foretoken.core.batch import Decision
from foretoken.core.errors import ConfigError
from foretoken.data.store import open_store
from foretoken.envs.collect import collect
from foretoken.envs.make import make


class Reach(gymnasium.Env):
    """Dict observations, success when far enough, a cost per step; ends after 3 to 9 steps."""

    observation_space = spaces.Dict(
        {"x": spaces.Box(-np.inf, np.inf, (2,), np.float64), "image": spaces.Box(0, 255, (4, 4, 1), np.uint8)}
    )
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.left = self.np_random.normal(size=2), int(self.np_random.integers(3, 10))
        return self._look(), {}

    def _look(self):
        return {"x": self.x.copy(), "image": np.full((4, 4, 1), self.left, np.uint8)}

    def step(self, action):
        self.x += action
        self.left -= 1
        return (
            self._look(),
            float(self.x.sum()),
            self.left == 0,
            False,
            {"is_success": bool(self.x[0] > 1), "cost": 0.5},
        )


class TowardsContext:
    def begin(self, rows, context):
        return {"goal": context["goal"]}

    def act(self, step, state, *, explore=False):
        return Decision(state["goal"].clamp(-1, 1), state)


def same(a, b):
    assert a.num_episodes == b.num_episodes
    for number in range(a.num_episodes):
        left, right = a.episode(number), b.episode(number)
        for name in left.observation:
            np.testing.assert_array_equal(left.observation[name], right.observation[name])
        for name in ("action", "reward", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(left, name), getattr(right, name))
        assert dict(left.facts) == dict(right.facts)


def test_slots_do_not_show(tmp_path):
    alone = collect(Reach, "random", episodes=70, seed=3, num_slots=1)
    same(alone, collect(Reach, "random", episodes=70, seed=3, num_slots=8, out=tmp_path / "store"))
    same(alone, open_store(tmp_path / "store"))
    assert alone.episodes["episode"].tolist() == list(range(70))


def test_what_is_stored_is_what_happened():
    store = collect(Reach, "random", episodes=4, seed=0, floats="keep")
    for number in range(4):
        episode, env = store.episode(number), Reach()
        observation, _ = env.reset(seed=int(store.episodes["seed"][number]))
        success, cost = False, 0.0
        for t, action in enumerate(episode.action):
            np.testing.assert_array_equal(episode.observation["x"][t], observation["x"])
            np.testing.assert_array_equal(episode.observation["image"][t], observation["image"])
            observation, reward, terminated, _, info = env.step(action)
            success, cost = success or info["is_success"], cost + info["cost"]
            assert episode.reward[t] == reward and episode.terminated[t] == terminated
        np.testing.assert_array_equal(episode.observation["x"][-1], observation["x"])
        assert (store.episodes["success"][number], store.episodes["cost"][number]) == (success, cost)


def test_a_later_start_continues_the_numbering():
    whole = collect(Reach, "random", episodes=6, seed=1)
    tail = collect(Reach, "random", episodes=2, seed=1, first_episode=4)
    np.testing.assert_array_equal(whole.episode(5).action, tail.episode(1).action)


def test_a_policy_gets_its_context():
    store = collect(Reach, TowardsContext(), episodes=2, seed=0, context={"goal": np.array([0.5, -0.25], np.float32)})
    assert (store.episode(0).action == np.array([0.5, -0.25], np.float32)).all()


def test_registered_environments_keep_their_id():
    store = collect("CartPole-v1", "random", episodes=3, seed=0)
    assert (
        store.spec.environment == "CartPole-v1"
        and store.spec.max_episode_steps == make("CartPole-v1").spec.max_episode_steps
    )
    assert store.about["collected_by"] == "random"


def test_an_interrupted_collection_keeps_what_is_complete(tmp_path):
    class Breaks:
        calls = 0

        def begin(self, rows, context):
            return {}

        def act(self, step, state, *, explore=False):
            self.calls += 1
            if self.calls == 25:
                raise KeyboardInterrupt
            return Decision(torch.zeros(len(step.timestep), 2), state)

    with pytest.raises(KeyboardInterrupt):
        collect(Reach, Breaks(), episodes=50, seed=0, num_slots=3, out=tmp_path / "store")
    store = open_store(tmp_path / "store")
    assert store.episodes["episode"].tolist() == list(range(store.num_episodes)) and store.num_episodes > 3


def test_bad_input_is_named():
    with pytest.raises(ConfigError, match="episodes must be at least 1, got 0"):
        collect(Reach, "random", episodes=0, seed=0)
    with pytest.raises(ConfigError, match="policy must be a policy or 'random', got 'expert'"):
        collect(Reach, "expert", episodes=1, seed=0)
