"""Traced: when it traces, and that what it answers is the policy's own."""

import pytest
import torch

from foretoken.core.batch import Decision, Step
from foretoken.envs.traced import Traced
from foretoken.methods.conditioned_cloning import ConditionedCloningConfig
from foretoken.nn.feed_forward import MixtureOfExpertsConfig
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.stack import BlockConfig, StackConfig
from foretoken.testing.stores import SPECS

BANDED = AttentionConfig(window=9, slack=2, positions="rotary")


def policy(reading="stream", **block):
    pattern = (BlockConfig(mixer=BANDED if reading == "stream" else AttentionConfig(), **block),)
    backbone = StackConfig(width=8, num_layers=2, pattern=pattern)
    config = ConditionedCloningConfig(context=3, reading=reading, backbone=backbone)
    return config.build(SPECS["continuous"]).eval().policy


def step(t, rows, *, first=False):
    spec = SPECS["continuous"]
    generator = torch.Generator().manual_seed(t)
    return Step(
        observation=torch.randn(rows, *spec.observation.shape, generator=generator),
        previous_action=torch.randn(rows, *spec.action.shape, generator=generator),
        previous_reward=torch.ones(rows), previous_cost=torch.zeros(rows),
        first=torch.full((rows,), first), final=torch.zeros(rows, dtype=torch.bool),
        valid=torch.ones(rows, dtype=torch.bool), timestep=torch.full((rows,), t), seed=torch.arange(rows) + 100 * t,
    )  # fmt: skip


@torch.no_grad()
def both(plain, traced, steps, rows=2):
    states = [one.begin(rows, {"target_return": 5.0}) for one in (plain, traced)]
    for told in steps:
        decisions = [one.act(told, state) for one, state in zip((plain, traced), states, strict=True)]
        assert torch.equal(decisions[0].action, decisions[1].action)
        states = [decision.state for decision in decisions]


@pytest.mark.parametrize("reading", ["stream", "window"])
def test_steady_steps_are_traced_once_and_answer_the_same(reading):
    traced = Traced(policy(reading), after=3)
    steps = [step(t, 2, first=t in (0, 11)) for t in range(20)]
    both(traced.policy, traced, steps)
    assert [graph is not None for graph in traced._graphs.values()] == [True]


def test_what_branches_on_data_is_not_traced():
    traced = Traced(policy(feed_forward=MixtureOfExpertsConfig(num_experts=2)), after=1)
    both(traced.policy, traced, [step(t, 2, first=t == 0) for t in range(6)])
    assert not traced._graphs


def test_another_number_of_rows_is_traced_by_itself():
    traced = Traced(policy(), after=2)
    for rows in (2, 3, 2):
        both(traced.policy, traced, [step(t, rows, first=t == 0) for t in range(6)], rows=rows)
    assert len(traced._graphs) == 2


def test_a_trace_that_answers_otherwise_is_not_used():
    class Moody:
        calls = 0

        def steady(self, step, state):
            return True

        def begin(self, rows, context):
            return {}

        def act(self, step, state, *, explore=False):
            self.calls += 1
            return Decision(step.observation + self.calls, state)

    traced = Traced(Moody(), after=1)
    answers = [traced.act(step(0, 1), {}).action - step(0, 1).observation for _ in range(3)]
    assert list(traced._graphs.values()) == [None] and torch.allclose(answers[2] - answers[1], torch.ones(()))


def test_after_a_change_of_weights_a_trace_follows_them_or_is_dropped():
    traced = Traced(policy(), after=2)
    method, steps = traced.policy.method, [step(t, 2, first=t == 0) for t in range(8)]
    for _ in range(3):
        both(traced.policy, traced, steps)
        with torch.no_grad():
            for weight in method.parameters():
                weight.add_(0.1 * torch.randn_like(weight))
        traced.renew()
    both(traced.policy, traced, steps)
    assert [graph is not None for graph in traced._graphs.values()] == [True]

    class Caching:
        weight = 1.0  # no tensor: a constant in the trace

        def steady(self, step, state):
            return True

        def act(self, step, state, *, explore=False):
            return Decision(step.observation * self.weight, state)

    caching = Caching()
    traced, told = Traced(caching, after=1), step(0, 1)
    assert torch.equal(traced.act(told, {}).action, told.observation) and None not in traced._graphs.values()
    caching.weight = 2.0
    traced.renew()
    assert torch.equal(traced.act(told, {}).action, 2 * told.observation) and None in traced._graphs.values()
