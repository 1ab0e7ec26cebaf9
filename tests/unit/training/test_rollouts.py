"""Rollouts: what stands in a segment, memory that reproduces what acted, ends of episodes, order, and resuming."""

import json

import numpy as np
import pytest
import torch
from torch.utils._pytree import tree_leaves

from foretoken.core.errors import ConfigError
from foretoken.core.spec import Window
from foretoken.experiment import Experiment, build
from foretoken.methods.recurrent_ppo import RecurrentPolicy, RecurrentPPOConfig
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
    "transformer-xl, longer than segments": TransformerXLConfig(num_heads=2, memory=20),
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


def everything(source):
    """All segments, each with the state before it."""
    return source._take(torch.arange(len(source._segments.first)))


def rows(source):
    """The rollout's columns, a row of each slot."""
    return source._segments.map(lambda leaf: leaf.unflatten(0, (source.config.num_slots, -1)).flatten(1, 2))


@pytest.mark.parametrize("environment", ["foretoken/TMaze-Mixed-30-v0", "CartPole-v1"])
@pytest.mark.parametrize("mixer", MIXERS)
def test_from_its_memory_a_segment_is_read_as_it_was_acted(mixer, environment):
    source, method = made(environment, system(MIXERS[mixer]), steps=64)
    for update in (0, 16):  # in the second, slots are in the middle of episodes
        source.advance(update)
        whole = everything(source)
        assert not whole.first[:, 0].all() and whole.fresh.any() and whole.final.any()
        prediction, value = method.answer(method.run(whole)[0], whole.observation)
        log_prob = prediction.log_prob(whole.action)
        assert torch.allclose(value.value, whole.value, atol=1e-5)
        assert torch.allclose(log_prob[whole.scored], whole.log_prob[whole.scored], atol=1e-5)


def test_columns_follow_the_convention_of_time():
    source, _ = made("CartPole-v1", max_steps=9, steps=64)
    source.advance(0)
    whole = rows(source)
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
    whole = rows(source)
    here = torch.nonzero(whole.truncated[:, :-1])
    assert len(here)
    for row, step in here.tolist():
        assert whole.final[row, step + 1]
        assert torch.isclose(whole.target[row, step], 1 + 0.5 * whole.value[row, step + 1])


@pytest.mark.parametrize(
    ("environment", "settings"),
    [
        ("foretoken/TMaze-Mixed-12-v0", {}),
        ("foretoken/TMaze-Mixed-12-v0", {"max_steps": 4, "trial": 3}),
        ("foretoken/PocMemory-v0", {"steps": 8}),
        ("CartPole-v1", {"max_steps": 9}),
    ],
)
def test_what_is_told_of_episodes_is_what_the_segments_hold(environment, settings):
    source, _ = made(environment, epochs=1, **settings)
    (earned, length), every = np.zeros((2, 4)), 0
    for rollout in range(12):
        told, ended = source.advance(rollout * source._minibatches), []
        whole = rows(source)
        for row, step in np.ndindex(*whole.first.shape):
            if whole.first[row, step]:
                earned[row] = length[row] = 0
            if whole.final[row, step]:
                continue
            earned[row] += float(whole.reward[row, step])
            length[row] += 1
            if whole.terminated[row, step] or whole.truncated[row, step]:
                ended.append((earned[row], length[row], whole.reward[row, step] > 0))
        if ended:
            names = ("episode_return", "episode_length", "episode_success")
            want = dict(zip(names, np.mean(ended, axis=0), strict=True))
            if environment == "CartPole-v1":  # which tells of no success; elsewhere the last reward is positive with it
                del want["episode_success"]
            assert told == pytest.approx(want)
        else:
            assert told == {}
        every += len(ended)
    assert every > 10


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_rollout_is_continued_by_the_value_of_the_observation_after_it(mixer):
    method = system(MIXERS[mixer], trace=0.0, discount=0.5, normalise=False)
    source, _ = made("CartPole-v1", method, num_slots=4, steps=8, epochs=1)
    source.advance(0)
    first = source._segments
    source.advance(1)  # with the same weights: the next rollout begins with the observation that was looked at
    second = source._segments
    going = first.scored[:, -1] & ~first.terminated[:, -1]
    assert going.any() and len(first.value) == 4
    target = first.reward[:, -1] + 0.5 * second.value[:, 0]
    torch.testing.assert_close(first.target[going, -1], target[going])


@pytest.mark.parametrize(
    "mixer", ["gru", "transformer-xl", "transformer-xl, longer than segments", "a ring written in place"]
)
def test_traced_decisions_are_the_policys_own_bit_for_bit(mixer, monkeypatch):
    def played(after):
        monkeypatch.setattr("foretoken.training.rollouts.TRACE_AFTER", after)
        source, method = made(method=system(MIXERS[mixer]), steps=32, epochs=1)
        found = []
        for update in range(12):
            source.advance(update)
            found.append(everything(source))
            with torch.no_grad():
                for weight in method.parameters():
                    weight.mul_(1.01)
        return found, [graph for graph in source._policy._graphs.values() if graph is not None]

    (plain, none), (traced, graphs) = played(10**9), played(3)
    assert graphs and not none
    assert all(same(dict(a), dict(b)) for a, b in zip(plain, traced, strict=True))


@pytest.mark.parametrize("reach", [5, 20])
def test_memory_is_data_and_kept_once(reach):
    source, method = made(method=system(TransformerXLConfig(memory=reach)))
    source.advance(0)
    drawn = source.draw("data", Window(length=8), 0)
    kept, one = source._memories.rooms, method.backbone.initial_state(1)
    for layer in "01":  # a line of steps per slot: the first window, and what each of the three later segments adds
        assert kept[layer]["inputs"].shape == (4, reach + 3 * min(reach, 8), 8) and kept[layer]["held"].shape == (4, 4)
        assert drawn.memory[layer]["inputs"].shape == (4, *one[layer]["inputs"].shape[1:])
    assert all(leaf.untyped_storage().nbytes() == leaf.nbytes for leaf in tree_leaves(kept))
    assert not any(leaf.requires_grad for leaf in tree_leaves(dict(drawn)))


@pytest.mark.parametrize("reach", [5, 12, 20, 100])
def test_what_segments_share_is_learned_from_as_from_copies_bit_for_bit(reach, monkeypatch):
    (source, method), found = made(method=system(TransformerXLConfig(num_heads=2, memory=reach)), steps=64), []
    (other, _) = made(method=system(TransformerXLConfig(num_heads=2, memory=reach)), steps=64)
    for update in (0, 16):
        source.advance(update)
        with monkeypatch.context() as patch:
            patch.setattr(RecurrentPolicy, "sliding", ())
            other.advance(update)
        shared, copies = everything(source), everything(other)
        assert shared.fresh[:, 1:].any() and same(source._segments, other._segments)
        if reach > 8:
            assert not same(shared.memory, copies.memory)  # before a memory begins
        for batch in (shared, copies):
            method.zero_grad()
            loss = method.loss(batch)
            loss.total.backward()
            found.append({"loss": loss.total.detach(), **{n: p.grad.clone() for n, p in method.named_parameters()}})
        assert same(*found[-2:])


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
        ("foretoken/TMaze-Mixed-30-v0", {"method": system(MIXERS["transformer-xl, longer than segments"])}),
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
