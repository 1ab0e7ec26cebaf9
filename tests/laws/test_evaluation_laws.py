"""The laws of evaluation: exactly n episodes, and nothing depends on how many are played at once."""

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from foretoken.core.batch import Decision
from foretoken.core.random import normal
from foretoken.envs.slots import Job
from foretoken.evaluation.rollout import rollout


class Drift(gymnasium.Env):
    """A float64 point whose episodes end after 2 to 30 steps, with noise of its own; the first observation names the start."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    made, starts = 0, {}

    def __init__(self):
        type(self).made += 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.left = self.np_random.normal(size=2), int(self.np_random.integers(2, 31))
        self.starts.setdefault(seed, self.x.copy())
        np.testing.assert_array_equal(self.starts[seed], self.x)
        return self.x.copy(), {}

    def step(self, action):
        self.x = self.x + np.float64(action) + 0.1 * self.np_random.normal(size=2)
        self.left -= 1
        return self.x.copy(), float(self.x.sum()), self.left == 0, False, {}


class Memory(nn.Module):
    """A policy with a running sum per row, a learned table filled while acting, and noise from the step's seed."""

    def __init__(self, discrete=False):
        super().__init__()
        self.discrete = discrete
        self.most = 0

    def begin(self, rows, context):
        self.most = max(self.most, rows)
        return {"sum": context.get("target_return", torch.zeros(rows)).double()[:, None].expand(rows, 2).clone()}

    def act(self, step, state, *, explore=False):
        new = (
            state["sum"]
            + step.observation[:, :2].double()
            + step.previous_action.double().reshape(len(step.timestep), -1)
        )
        noise = normal(step.seed, 2).double()
        action = (0.1 * new).sin() + 0.3 * noise
        chosen = (action[:, 0] > 0).long() if self.discrete else action.clamp(-1, 1)
        return Decision(chosen, {"sum": new})


JOBS = [Job(episode, target) for target in (0.0, 5.0) for episode in range(13)]


def comparable(results):
    return [(r.target, r.episode, r.reset_seed, r.total, r.length, r.terminated, r.fingerprint) for r in results]


@pytest.mark.parametrize(("environment", "discrete"), [(Drift, False), ("CartPole-v1", True)])
def test_the_number_of_slots_changes_nothing(environment, discrete):
    def play(num_slots):
        return comparable(rollout(Memory(discrete), environment, JOBS, seed=7, num_slots=num_slots, keep_actions=True))

    alone = play(1)
    for number in (3, 8, 64):
        assert play(number) == alone


def test_bipedal_walker_too_although_its_instances_remember():
    pytest.importorskip("Box2D", reason="needs the extra 'box2d'")

    class Zero:
        def begin(self, rows, context):
            return {}

        def act(self, step, state, *, explore=False):
            return Decision(normal(step.seed, 4).clamp(-1, 1), state)

    def play(num_slots):
        return comparable(
            rollout(Zero(), "BipedalWalker-v3", [Job(i) for i in range(6)], seed=1, num_slots=num_slots, max_steps=60)
        )

    assert play(1) == play(4)


def test_exactly_the_jobs_in_their_order_and_no_more():
    results = rollout(Memory(), Drift, JOBS, seed=0, num_slots=5)
    assert [(r.target, r.episode) for r in results] == [(job.target, job.episode) for job in JOBS]


def test_short_episodes_are_not_favoured():
    lengths = [r.length for r in rollout(Memory(), Drift, [Job(i) for i in range(60)], seed=0, num_slots=20)]
    single = [rollout(Memory(), Drift, [Job(i)], seed=0)[0].length for i in range(60)]
    assert lengths == single and min(lengths) >= 2 and max(lengths) <= 30


def test_targets_share_initial_states_and_noise():
    results = rollout(Memory(), Drift, JOBS, seed=3, num_slots=4)
    by_target = {target: [r for r in results if r.target == target] for target in (0.0, 5.0)}
    for one, other in zip(*by_target.values(), strict=True):
        assert (one.reset_seed, one.length) == (other.reset_seed, other.length) and one.total != other.total


def test_seeds_matter():
    assert comparable(rollout(Memory(), Drift, JOBS, seed=0)) != comparable(rollout(Memory(), Drift, JOBS, seed=1))


def test_no_more_environments_than_jobs_and_slots():
    Drift.made = 0
    rollout(Memory(), Drift, JOBS[:3], seed=0, num_slots=32)
    assert Drift.made == 3


def test_the_result_is_the_stepping_loop_written_out():
    for result in rollout(Memory(), Drift, JOBS[:4], seed=2, num_slots=3, keep_actions=True):
        env = Drift()
        env.reset(seed=result.reset_seed)
        total = sum(env.step(action)[1] for action in result.actions)
        assert (total, len(result.actions)) == (result.total, result.length)


def test_what_a_network_caches_while_acting_stays_usable_in_training():
    class Caches(Memory):
        def act(self, step, state, *, explore=False):
            self.table = torch.arange(3.0)
            return super().act(step, state)

    policy = Caches()
    rollout(policy, Drift, JOBS[:1], seed=0)
    weight = torch.ones(3, requires_grad=True)
    (weight * policy.table).sum().backward()
    assert weight.grad is not None
