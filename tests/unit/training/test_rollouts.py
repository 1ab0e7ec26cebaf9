"""Rollouts: what stands in a segment, memory that reproduces what acted, ends of episodes, order, and resuming."""

import json

import pytest
import torch
from torch.utils._pytree import tree_leaves

from foretoken.core.errors import ConfigError
from foretoken.core.spec import Window
from foretoken.experiment import Experiment, build
from foretoken.methods.recurrent_ppo import RecurrentPPOConfig
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.mixers.gru import GRUConfig
from foretoken.nn.mixers.transformer_xl import TransformerXLConfig
from foretoken.nn.recurrent_memory import RecurrentMemoryConfig
from foretoken.nn.stack import BlockConfig, StackConfig
from foretoken.training.checkpoint import pack, unpack
from foretoken.training.loop import Training, train
from foretoken.training.rollouts import Rollouts

GRU = GRUConfig()


def system(mixer=GRU, segment=8, **changes):
    if isinstance(mixer, RecurrentMemoryConfig):
        return RecurrentPPOConfig(segment=segment, backbone=mixer, **changes)
    backbone = StackConfig(width=8, num_layers=2, pattern=(BlockConfig(mixer=mixer),), init_std=0.3)
    return RecurrentPPOConfig(segment=segment, backbone=backbone, **changes)


SMALL = system()
MIXERS = {
    "gru": GRU,
    "transformer-xl": TransformerXLConfig(memory=5),
    "a ring written in place": AttentionConfig(window=6, positions="rotary"),
    "memory tokens": RecurrentMemoryConfig(backbone=StackConfig(width=8, num_layers=1), memory_tokens=2, segment=6),
}


def made(environment="foretoken/TMaze-Mixed-30-v0", method=SMALL, batch_size=4, seed=0, **source):
    config = Rollouts(environment=environment, **{"num_slots": 4, "steps": 32, "epochs": 2} | source)
    built = config.build(batch_size=batch_size, seed=seed)
    owner = build(Experiment(system=method, source=config, seed=seed), built)
    built.connect(owner)
    return built, owner


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(tree_leaves(a), tree_leaves(b), strict=True))


@pytest.mark.parametrize("environment", ["foretoken/TMaze-Mixed-30-v0", "CartPole-v1"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_from_its_memory_a_segment_is_read_as_it_was_acted(mixer, environment):
    source, method = made(environment, system(MIXERS[mixer]), steps=64)
    for update in (0, 16):  # in the second, slots are in the middle of episodes
        source.advance(update)
        whole = source._segments
        assert not whole.first[:, 0].all() and whole.fresh.any() and whole.final.any()
        prediction, value = method.answer(method.run(whole)[0], whole.observation)
        log_prob = prediction.log_prob(whole.action)
        assert torch.allclose(value.value, whole.value, atol=1e-5)
        assert torch.allclose(log_prob[whole.scored], whole.log_prob[whole.scored], atol=1e-5)


def test_columns_follow_the_convention_of_time():
    source, _ = made("CartPole-v1", max_steps=9, steps=64)
    source.advance(0)
    whole = source._segments.map(lambda leaf: leaf.unflatten(0, (4, -1)).flatten(1, 2) if leaf.dim() > 1 else leaf)
    assert torch.equal(whole.scored, ~whole.final) and torch.equal(whole.first, whole.timestep == 0)
    ends = whole.terminated | whole.truncated
    assert torch.equal(whole.final[:, 1:], ends[:, :-1]) and torch.equal(whole.first[:, 1:], whole.final[:, :-1])
    assert whole.truncated.any() and not (whole.timestep > 9).any()
    going = ~whole.final[:, :-1]
    assert (whole.reward[:, :-1][going] == 1).all() and not whole.reward[whole.final].any()
    assert torch.equal(whole.previous_action[:, 1:][going], whole.action[:, :-1][going])
    assert torch.equal(whole.previous_reward[:, 1:][going], whole.reward[:, :-1][going])
    assert not whole.previous_action[whole.first].any() and not whole.previous_reward[whole.first].any()


def test_a_truncated_episode_goes_on_from_the_value_of_its_final_observation():
    source, _ = made("CartPole-v1", system(trace=0.0, discount=0.5, normalise=False), max_steps=5, steps=64)
    source.advance(0)
    whole = source._segments.map(lambda leaf: leaf.unflatten(0, (4, -1)).flatten(1, 2) if leaf.dim() > 1 else leaf)
    here = torch.nonzero(whole.truncated[:, :-1])
    assert len(here)
    for row, step in here.tolist():
        assert whole.final[row, step + 1]
        assert torch.isclose(whole.target[row, step], 1 + 0.5 * whole.value[row, step + 1])


def test_a_rollout_is_continued_by_the_value_of_the_observation_after_it():
    source, _ = made("CartPole-v1", system(trace=0.0, discount=0.5, normalise=False), num_slots=4, steps=8, epochs=1)
    source.advance(0)
    first = source._segments
    source.advance(1)  # with the same weights: the next rollout begins with the observation that was looked at
    second = source._segments
    going = first.scored[:, -1] & ~first.terminated[:, -1]
    assert going.any() and len(first.value) == 4
    target = first.reward[:, -1] + 0.5 * second.value[:, 0]
    assert torch.equal(first.target[going, -1], target[going])


@pytest.mark.parametrize("mixer", ["gru", "transformer-xl", "a ring written in place"])
def test_traced_decisions_are_the_policys_own_bit_for_bit(mixer, monkeypatch):
    def played(after):
        monkeypatch.setattr("foretoken.training.rollouts.TRACE_AFTER", after)
        source, method = made(method=system(MIXERS[mixer]), steps=32, epochs=1)
        found = []
        for update in range(12):
            source.advance(update)
            found.append(source._segments)
            with torch.no_grad():
                for weight in method.parameters():
                    weight.mul_(1.01)
        return found, [graph for graph in source._policy._graphs.values() if graph is not None]

    (plain, none), (traced, graphs) = played(10**9), played(3)
    assert graphs and not none
    assert all(same(dict(a), dict(b)) for a, b in zip(plain, traced, strict=True))


def test_memory_is_data_and_kept_once(monkeypatch):
    source, method = made(method=system(MIXERS["transformer-xl"]))
    source.advance(0)
    drawn = source.draw("data", Window(length=8), 0)
    kept, one = tree_leaves(source._segments.memory), tree_leaves(method.backbone.initial_state(1))
    assert [leaf.shape for leaf in kept] == [(16, *leaf.shape[1:]) for leaf in one]
    assert all(leaf.untyped_storage().nbytes() == leaf.nbytes for leaf in kept)
    assert not any(leaf.requires_grad for leaf in tree_leaves(dict(drawn)))


def test_memory_outlives_episodes_inside_a_trial():
    source, _ = made("foretoken/Bandit-v0", steps=32, trial=2, num_slots=2, max_steps=3, batch_size=1)
    source.advance(0)
    whole = source._segments
    assert whole.first.sum() > whole.fresh.sum() > 0 and not (whole.fresh & ~whole.first).any()


def test_an_epoch_goes_once_through_all_segments_in_its_own_order():
    source, _ = made(batch_size=4)  # 16 segments: 4 minibatches, 2 epochs
    source.advance(0)
    number = torch.arange(16)
    source._segments = source._segments.replace(number=number)
    drawn = [source.draw("data", Window(length=8), update).number for update in range(8)]
    assert sorted(torch.cat(drawn[:4]).tolist()) == sorted(torch.cat(drawn[4:]).tolist()) == list(range(16))
    assert torch.cat(drawn[:4]).tolist() != torch.cat(drawn[4:]).tolist()
    assert source.advance(3) == {} and same(
        source.draw("data", Window(length=8), 3), source.draw("data", Window(length=8), 3)
    )
    before = source._segments
    source.advance(8)
    assert source._segments is not before


def test_the_same_seed_plays_the_same_and_another_otherwise():
    (one, _), (two, _), (other, _) = made(), made(), made(seed=1)
    for source in (one, two, other):
        source.advance(0)
    assert same(one._segments, two._segments)
    assert not torch.equal(one._segments.observation, other._segments.observation)


@pytest.mark.parametrize(
    ("environment", "settings"),
    [
        ("foretoken/TMaze-Mixed-30-v0", {}),
        ("CartPole-v1", {}),
        ("foretoken/Bandit-v0", {"trial": 2, "max_steps": 5}),
        ("CartPole-v1", {"trial": 2, "method": system(MIXERS["a ring written in place"])}),
        ("foretoken/TMaze-Mixed-30-v0", {"method": system(MIXERS["a ring written in place"])}),
    ],
)
@pytest.mark.parametrize("at", [3, 8])
def test_a_saved_source_goes_on_bit_for_bit(at, environment, settings):
    whole, method = made(environment, **settings)
    for update in range(at):
        whole.advance(update)
    tensors = {}
    plain = json.loads(json.dumps(pack(whole.state_dict(), tensors)))
    resumed, other = made(environment, **settings)
    other.load_state_dict(method.state_dict())
    resumed.load_state_dict(unpack(plain, {name: tensor.clone() for name, tensor in tensors.items()}))
    for update in range(at, 18):
        assert whole.advance(update) == resumed.advance(update)
        drawn = [source.draw("data", Window(length=8), update) for source in (whole, resumed)]
        assert list(drawn[0]) == list(drawn[1]) and same(*[dict(one) for one in drawn])
    assert resumed.resumes[0]["notes"] == []


def test_a_stopped_run_ends_with_the_same_weights(tmp_path):
    training = Training(
        updates=20, batch_size=4, accelerator="cpu", checkpoint_every=5, keep_last=9, log_every=10, threads=1
    )

    def weights(folder, updates, resume=False):
        source, method = made()
        train(method, source, training.replace(updates=updates), folder, seed=0, resume=resume, progress=False)
        return method.state_dict()

    whole = weights(tmp_path / "whole", 20)
    weights(tmp_path / "cut", 11)
    assert same(whole, weights(tmp_path / "cut", 20, resume=True))


def test_what_does_not_fit_is_told():
    with pytest.raises(ConfigError, match="steps must be a multiple of the method's window 8, got 30"):
        made(steps=30)
    with pytest.raises(ConfigError, match="16 segments of 8 steps, which batch_size must divide, got 3"):
        made(batch_size=3)
    short = system(AttentionConfig(capacity=40, positions="rotary"))
    made(method=short)
    with pytest.raises(ConfigError, match="memories of up to 62; a mixer streams by 1 and keeps 40"):
        made(method=short, trial=2)
    with pytest.raises(ConfigError, match="epochs must be at least 1, got 0"):
        Rollouts(environment="CartPole-v1", epochs=0)
    source, _ = made()
    with pytest.raises(ConfigError, match="call advance"):
        source.draw("data", Window(length=8), 0)
    source.advance(0)
    with pytest.raises(ConfigError, match="accumulate=1"):
        source.draw("data", Window(length=8), 0, 1)
