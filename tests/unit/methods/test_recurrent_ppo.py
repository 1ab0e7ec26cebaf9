"""What recurrent PPO promises beside the laws: masks, ends of memory, schedules, where it starts and what it refuses."""

import pytest
import torch

from foretoken.core.batch import Batch, Step
from foretoken.core.errors import ConfigError
from foretoken.core.spec import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Spec
from foretoken.methods.recurrent_ppo import RecurrentPPOConfig
from foretoken.nn.heads.deterministic import DeterministicConfig
from foretoken.nn.heads.value import HLGaussConfig, ScalarValueConfig
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.mixers.gru import GRUConfig
from foretoken.nn.stack import BlockConfig, StackConfig
from foretoken.testing.methods import LAWS, Trial
from foretoken.testing.stores import SPECS

GRU = BlockConfig(mixer=GRUConfig(), gate="gru")
SMALL = RecurrentPPOConfig(segment=6, backbone=StackConfig(width=8, num_layers=1, pattern=(GRU,), init_std=0.3))


def masked(action, flags):
    parts = {"seen": Box(shape=(2,)), "action_mask": MultiBinary(n=flags)}
    return Spec(observation=Dict(spaces=parts), action=action)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", SPECS)
def test_laws(name, law):
    LAWS[law](Trial(SMALL, SPECS[name], acting="streaming"))


@pytest.mark.parametrize(
    "config",
    [
        SMALL.replace(hidden=5, acting="sample", entropy=0.1, final_entropy=0.0, entropy_updates=9),
        SMALL.replace(value=HLGaussConfig(bins=11, low=-5.0, high=5.0), value_clip=None, previous_reward=False),
        SMALL.replace(previous_action=False, normalise=False),
    ],
)
def test_laws_of_variants(config):
    for law in LAWS.values():
        law(Trial(config, SPECS["discrete"], acting="streaming"))


def step(observation, rows):
    flags = {name: torch.zeros(rows, dtype=torch.bool) for name in ("first", "final")}
    zeros = torch.zeros(rows)
    return Step(
        observation, torch.zeros(rows, dtype=torch.int64), zeros, zeros, **flags, valid=torch.ones(rows, dtype=torch.bool),
        timestep=torch.ones(rows, dtype=torch.int64), seed=torch.arange(rows),
    )  # fmt: skip


@pytest.mark.parametrize("explore", [False, True])
def test_only_allowed_choices_are_made(explore):
    spec, rows = masked(MultiDiscrete(nvec=(3, 2)), 5), 300
    method = SMALL.replace(previous_action=False).build(spec).eval()
    mask = torch.tensor([0, 1, 1, 1, 0], dtype=torch.int8).repeat(rows, 1)
    mask[-1] = 0  # nothing allowed, as in padding: anything goes
    observation = {"seen": torch.randn(rows, 2), "action_mask": mask}
    with torch.no_grad():
        answer = method.policy.act(step(observation, rows), method.policy.begin(rows, {}), explore=explore)
    first, second = answer.action[:-1].T
    assert set(first.tolist()) <= {1, 2} and set(second.tolist()) == {0}
    if explore:
        assert set(first.tolist()) == {1, 2} and torch.allclose(
            answer.record["log_prob"][:-1], torch.tensor(0.5).log(), atol=0.05
        )


def test_a_mask_is_no_feature_and_masked_losses_have_finite_gradients():
    spec = masked(Discrete(n=3, start=1), 3)
    method = SMALL.build(spec)
    mask = torch.tensor([True, False, True]).repeat(2, 6, 1)
    batch = Batch(
        observation={"seen": torch.randn(2, 6, 2), "action_mask": mask}, action=torch.full((2, 6), 3), reward=torch.randn(2, 6),
        terminated=torch.zeros(2, 6, dtype=torch.bool), valid=torch.ones(2, 6, dtype=torch.bool),
        scored=torch.ones(2, 6, dtype=torch.bool), first=torch.zeros(2, 6, dtype=torch.bool),
        fresh=torch.zeros(2, 6, dtype=torch.bool),
    )  # fmt: skip
    with torch.no_grad():
        batch = method.annotate(batch)
        other = batch.replace(observation={**batch.observation, "action_mask": torch.ones_like(mask)})
        assert torch.equal(method.run(batch)[0], method.run(other)[0])
    assert torch.allclose(batch.log_prob, torch.tensor(0.5).log(), atol=0.05)
    assert not batch.scored[:, -1].any() and batch.scored[:, :-1].all()  # nothing follows the last step
    method.loss(batch).total.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in method.parameters())


def test_rewards_end_with_the_episode_and_memory_where_it_is_fresh():
    method = SMALL.build(SPECS["discrete"]).eval()
    columns = {
        "observation": torch.randn(1, 6, 5),
        "action": torch.full((1, 6), 3),
        "reward": torch.randn(1, 6),
        "terminated": torch.zeros(1, 6, dtype=torch.bool),
        "valid": torch.ones(1, 6, dtype=torch.bool),
    }
    here = torch.arange(6)[None] == 3
    none = torch.zeros_like(here)
    shifted = {
        **columns,
        "observation": columns["observation"].clone(),
        "reward": columns["reward"] + (torch.arange(6) < 3),
    }
    shifted["observation"][:, :3] += 1
    with torch.no_grad():
        for fresh, differs in ((here, False), (none, True)):
            one, two = (method.run(Batch(**part, first=here, fresh=fresh))[0][:, 3:] for part in (columns, shifted))
            assert torch.equal(one, two) is not differs


def test_it_starts_almost_even_and_expects_nothing():
    method = SMALL.build(SPECS["discrete"]).eval()
    batch = Trial(SMALL, SPECS["discrete"]).draw(method, method.objectives()[0])[0]
    prediction = method(batch)
    assert (prediction.logits.softmax(-1) - 0.25).abs().max() < 0.02


@pytest.mark.parametrize("value_clip", [None, 0.2])
def test_the_unit_of_rewards_does_not_matter_where_values_have_it_as_their_scale(value_clip):
    found = []
    for scale in (1.0, 64.0):
        torch.manual_seed(0)
        config = SMALL.replace(value=ScalarValueConfig(scale=scale), value_clip=value_clip, previous_reward=False)
        method = config.build(SPECS["discrete"])
        batch = Trial(config, SPECS["discrete"]).draw(method, method.objectives()[0])[0]
        with torch.no_grad():
            batch = method.annotate(batch.replace(reward=scale * batch.reward))
            method.value.linear.bias.add_(0.3)  # further than the clip allows
        method.loss(batch).total.backward()
        found.append({name: weight.grad for name, weight in method.named_parameters() if weight.grad is not None})
    one, other = found
    assert one["value.linear.weight"].abs().max() > 0
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], gradient)


def test_the_weight_of_entropy_falls_and_stays():
    method = SMALL.replace(entropy=0.5, final_entropy=0.1, entropy_updates=4).build(SPECS["discrete"])
    weights = []
    for _ in range(6):
        weights.append(float(method.entropy_weight()))
        method.after_update("loss", {})
    assert weights == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0.1])


def test_what_does_not_fit_is_told():
    for changes, says in (
        ({"segment": 1}, "segment must be at least 2, got 1"),
        ({"discount": 1.5}, "discount must lie in"),
        ({"clip": 0.0}, "clip must be above 0"),
        ({"entropy_updates": 5}, "final_entropy and entropy_updates go together"),
        ({"value": HLGaussConfig(low=0.0, high=1.0)}, "value_clip is for a scalar value"),
    ):
        with pytest.raises(ConfigError, match=says):
            SMALL.replace(**changes)
    with pytest.raises(ConfigError, match="action_mask must have a flag for each option"):
        SMALL.build(masked(Discrete(n=3), 4))
    with pytest.raises(ConfigError, match="has no likelihood, which"):
        SMALL.replace(head=DeterministicConfig()).build(SPECS["continuous"])
    whole = SMALL.backbone.replace(pattern=(BlockConfig(mixer=AttentionConfig(capacity=10)),))
    with pytest.raises(ConfigError, match="larger capacity"):
        SMALL.replace(backbone=whole).build(SPECS["discrete"].replace(max_episode_steps=10))
