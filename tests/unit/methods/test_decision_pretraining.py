from itertools import pairwise

import numpy as np
import pytest
import torch

from foretoken.core.batch import Step
from foretoken.core.errors import ConfigError
from foretoken.data.store import open_store
from foretoken.envs.learners import QLearning, Thompson, UniformRandom
from foretoken.envs.recipes.roll_ins import RollIns
from foretoken.methods.decision_pretraining import ContextPolicy, DecisionPretrainingConfig, follow_each_other
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.stack import uniform_stack
from foretoken.testing.agreement import perturb, require_equal
from foretoken.testing.stores import SPECS, random_store
from foretoken.training.sources import Offline

ROOM = "foretoken/DarkRoom-7x7-v0"
SMALL = DecisionPretrainingConfig(context=5, backbone=uniform_stack(AttentionConfig(), 8, 2), acting="mode")


def build(**changes):
    torch.manual_seed(0)
    method = SMALL.replace(**changes).build(SPECS["discrete"])
    perturb(method, 0, scale=0.3)
    return method.eval()


def steps(count, ends=(), rows=2, constant=False):
    """What rows are told in episodes that end after the steps in `ends`, the final steps among them."""
    generator, begins = torch.Generator().manual_seed(1), [0, *(end + 1 for end in ends)]
    for t in range(count):
        seen = torch.ones(rows, 5) if constant else torch.randn(rows, 5, generator=generator)
        first, final = t in begins, t in ends
        reward = torch.zeros(rows) if first else torch.randn(rows, generator=generator)
        action = torch.full((rows,), 2) if first else torch.randint(2, 6, (rows,), generator=generator)
        flags = (torch.full((rows,), flag) for flag in (first, final, True))
        yield Step(seen, action, reward, torch.zeros(rows), *flags, torch.full((rows,), t), torch.arange(rows) + t)


def expected(method, told, upto, now):
    """The action on transitions `upto` of the told steps with the present state as the query."""
    pairs = [(a, b) for a, b in pairwise(told) if not b.first[0]][:upto][-method.config.context :]
    if pairs:
        parts = zip(
            *[(a.observation, b.previous_action, b.previous_reward, b.observation) for a, b in pairs], strict=True
        )
        context = method.transition(*(torch.stack(list(part), dim=1) for part in parts))
    else:
        context = torch.zeros(2, 0, 8)
    valid = torch.ones(context.shape[:2], dtype=torch.bool)
    return method.predict(now.observation, context, valid, last=True).mode()[:, 0]


@torch.no_grad()
def test_within_an_episode_the_context_stands_still():
    method, told = build(memory="episode"), list(steps(12, ends=(3, 7)))
    policy = ContextPolicy(method)
    state = policy.begin(2, {})
    for t, step in enumerate(told):
        decision = policy.act(step, state)
        state, ended = (
            decision.state,
            0 if t <= 3 else 3 if t <= 7 else 6,
        )  # transitions of the episodes before this one
        assert torch.equal(decision.action, expected(method, told, ended, step)), t


@torch.no_grad()
def test_in_bandits_every_transition_counts_at_once_and_a_carried_state_decides_the_same():
    window, stream = (build(memory="step", reading=reading) for reading in ("window", "stream"))
    told = list(steps(6, constant=True))
    states = [method.policy.begin(2, {}) for method in (window, stream)]
    for t, step in enumerate(told):
        decisions = [m.policy.act(step, state) for m, state in zip((window, stream), states, strict=True)]
        states = [decision.state for decision in decisions]
        want = expected(window, told[: t + 1], t, step)
        assert torch.equal(decisions[0].action, want) and torch.equal(decisions[1].action, want), t


@torch.no_grad()
def test_a_given_dataset_is_read_and_never_changes():
    method, told = build(memory="never"), list(steps(4))
    given = {"observation": torch.randn(2, 3, 5), "action": torch.full((2, 3), 4), "reward": torch.randn(2, 3)}
    given |= {"next_observation": torch.randn(2, 3, 5)}
    state = method.policy.begin(2, {f"prompt_{name}": values for name, values in given.items()})
    context = method.transition(*(given[name] for name in ("observation", "action", "reward", "next_observation")))
    for step in told:
        decision = method.policy.act(step, state)
        want = method.predict(step.observation, context, torch.ones(2, 3, dtype=torch.bool), last=True).mode()[:, 0]
        assert torch.equal(decision.action, want)
        state = decision.state


def test_every_length_of_context_is_trained_at_the_query():
    method = build(shuffle=False)
    store = random_store(SPECS["discrete"], lengths=(9,), rich=True)
    from foretoken.data.windows import WindowSampler

    batch = WindowSampler(store, method.window).draw(4, 0)
    loss = method.loss(batch)
    assert float(loss.weight) == 4 * 6  # the empty context and those of 1 to 5 transitions
    label = batch.optimal_action[:, 0]
    context = method.transition(batch.observation, batch.action, batch.reward, batch.next_observation)[:, 1:]
    each = [
        method.predict(batch.observation[:, 0], context[:, :n], torch.ones(4, n, dtype=torch.bool), last=True)
        .loss(label[:, None])
        .mean()
        for n in range(6)
    ]
    require_equal(loss.total, torch.stack(each).mean(), "prefixes", "", tolerance=1e-5)
    without = build(shuffle=False, empty=False).loss(batch)
    require_equal(without.total, torch.stack(each[1:]).mean(), "prefixes without the empty one", "", tolerance=1e-5)


def test_shuffling_moves_contexts_in_training_only():
    store = random_store(SPECS["discrete"], lengths=(9,), rich=True)
    from foretoken.data.windows import WindowSampler

    method = build()
    batch = WindowSampler(store, method.window).draw(4, 0)
    assert float(method.loss(batch).total.detach()) == float(method.loss(batch).total.detach())
    method.train()
    torch.manual_seed(0)
    assert len({round(float(method.loss(batch).total.detach()), 6) for _ in range(4)}) > 1


def test_what_does_not_fit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("FORETOKEN_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match='reading="stream" needs memory="step"'):
        SMALL.replace(reading="stream")
    recipe = RollIns(environment="foretoken/Bandit-200-v0", kind="learner", learner=Thompson(), tasks=3, horizon=6)
    source = Offline(recipe=recipe, held_out=0.0).build(batch_size=2, seed=0)
    with pytest.raises(ConfigError, match="shuffle must be False"):
        SMALL.build(source.spec).fit(source.stores, "main")
    SMALL.replace(shuffle=False).build(source.spec).fit(source.stores, "main")


def test_regret_curves_follow_the_tasks():
    from foretoken.evaluation.in_context import reference_regrets

    curves = reference_regrets("foretoken/Bandit-200-v0", Thompson(), trials=20, seed=0)
    assert curves.shape == (20, 200) and (np.diff(curves, axis=1) >= -1e-12).all()


@pytest.mark.parametrize(
    ("roll_ins", "warns"),
    [
        ({"environment": ROOM, "kind": "learner", "learner": UniformRandom()}, True),
        ({"environment": ROOM, "kind": "learner", "learner": QLearning(episodes=5)}, True),
        ({"environment": ROOM, "kind": "uniform"}, False),
        ({"environment": "foretoken/Bandit-200-v0", "kind": "mixed"}, False),
        ({"environment": "foretoken/Bandit-200-v0", "kind": "learner", "learner": Thompson()}, False),
        ({"environment": "foretoken/LinearBandit-v0", "kind": "learner", "learner": Thompson()}, False),
    ],
)
def test_queries_that_say_where_their_context_begins_are_warned_of(roll_ins, warns, tmp_path, caplog):
    """Where one state follows from the other the query is a part of the context's trajectory; bandits have but one state."""
    RollIns(tasks=5, horizon=40, **roll_ins).write(tmp_path / "store")
    store = open_store(tmp_path / "store")
    method = SMALL.replace(shuffle=False).build(store.spec)
    method.fit({"data": store}, "main")
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == warns and all("'data'" in text and "uniform" in text for text in told)


def test_stores_too_short_to_say_are_not_warned_of():
    store = random_store(SPECS["discrete"], lengths=(1, 1), rich=True)
    assert not follow_each_other(store)
    assert follow_each_other(random_store(SPECS["discrete"], lengths=(1, 3), rich=True))
