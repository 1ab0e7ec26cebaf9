"""Windows of particular layouts, drawing, parts, blocks and mixtures; the general laws are in tests/laws/test_data_laws.py."""

import numpy as np
import pytest
import torch

from foretoken.core.errors import ConfigError, DataError
from foretoken.core.spec import Box, Discrete, Spec, Window
from foretoken.data import Episode, Mixture, Store, WindowSampler
from foretoken.data.windows import MASKS, random_bits

SPEC = Spec(observation=Box(shape=(1,)), action=Discrete(n=9))


def store_of(*lengths, tasks=None, spec=SPEC):
    """Observations count through the store from 0, so that they equal addresses."""
    store, count = Store.create(None, spec), 0
    for number, n in enumerate(lengths):
        ends = np.arange(n) == n - 1
        observation = np.arange(count, count + n + 1, dtype=np.float32)[:, None]
        facts = {"task": tasks[number]} if tasks else {}
        store.append(Episode(observation, np.full(n, 1), np.ones(n), ends, ends & False, facts=facts))
        count += n + 1
    return store


def lines(batch, row=0):
    return {name: batch[name][row].int().tolist() for name in ("at", "scored", "fresh", "final")}


def windows(store, anchors, **window):
    return WindowSampler(store, Window(columns=("observation",), **window)).windows(anchors)


def test_start_windows_end_with_the_episode():
    got = lines(windows(store_of(5, 5), [3], length=4))
    assert got == {"at": [-1, -1, 3, 4], "scored": [0, 0, 1, 1], "fresh": [0, 0, 1, 0], "final": [0, 0, 0, 0]}
    got = lines(windows(store_of(5, 5), [3], length=4, final=True, pad="right"))
    assert got == {"at": [3, 4, 5, -1], "scored": [1, 1, 0, 0], "fresh": [1, 0, 0, 0], "final": [0, 0, 1, 0]}


def test_back_is_given_but_not_scored():
    got = lines(windows(store_of(9), [4], length=5, back=2))
    assert got == {"at": [2, 3, 4, 5, 6], "scored": [0, 0, 1, 1, 1], "fresh": [1, 0, 0, 0, 0], "final": [0] * 5}
    assert lines(windows(store_of(9), [1], length=5, back=2))["scored"] == [0, 0, 1, 1, 1]
    assert lines(windows(store_of(9), [6], length=5, back=2, anchor="end"))["scored"] == [0, 0, 1, 1, 1]
    assert lines(windows(store_of(9), [1], length=5, back=2, anchor="end"))["scored"] == [0, 0, 0, 1, 1]


def test_full_windows_are_real_where_the_episode_is_long_enough():
    store = store_of(9, 2)
    assert lines(windows(store, [1], length=4, anchor="full"))["at"] == [0, 1, 2, 3]
    assert lines(windows(store, [8], length=4, anchor="full"))["at"] == [5, 6, 7, 8]
    assert lines(windows(store, [8], length=4, anchor="full", final=True))["at"] == [6, 7, 8, 9]
    assert lines(windows(store, [10], length=4, anchor="full"))["at"] == [-1, -1, 10, 11]


def test_across_runs_through_equal_values_only():
    store = store_of(2, 2, 2, 2, tasks=["a", "a", "b", "a"])
    got = windows(store, [1], length=8, across="task", final=True)
    assert lines(got) == {
        "at": [-1, -1, -1, 1, 2, 3, 4, 5], "scored": [0, 0, 0, 1, 0, 1, 1, 0],
        "fresh": [0, 0, 0, 1, 0, 0, 0, 0], "final": [0, 0, 0, 0, 1, 0, 0, 1],
    }  # fmt: skip
    assert got.first[0].int().tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    assert lines(windows(store, [4], length=4, across="task", anchor="end"))["at"] == [0, 1, 3, 4]
    assert lines(windows(store, [9], length=4, across="task", anchor="end"))["at"] == [-1, -1, -1, 9]


def test_whole_episodes():
    store = store_of(2, 3, 3, tasks=["a", "b", "b"])
    sampler = WindowSampler(store, Window(length=4, anchor="episode", final=True))
    assert sampler.num_anchors == 3
    assert lines(sampler.windows(sampler.anchors()), 1) == {
        "at": [3, 4, 5, 6],
        "scored": [1, 1, 1, 0],
        "fresh": [1, 0, 0, 0],
        "final": [0, 0, 0, 1],
    }
    trials = WindowSampler(store, Window(length=6, anchor="episode", across="task"))
    assert trials.windows(trials.anchors()).at.tolist() == [[-1, -1, -1, -1, 0, 1], [3, 4, 5, 7, 8, 9]]
    with pytest.raises(DataError, match="length is 3, one has 4"):
        WindowSampler(store, Window(length=3, anchor="episode", final=True)).draw(50, 0)
    with pytest.raises(ConfigError, match="back must be 0, got 1"):
        WindowSampler(store, Window(length=3, anchor="episode", back=1))


def test_flags_and_masks_come_with_their_types():
    batch = WindowSampler(
        store_of(3), Window(length=3, columns=("observation", "action", "reward", "terminated", "truncated"))
    ).windows([0])
    assert set(batch) == {"observation", "action", "reward", "terminated", "truncated", *MASKS}
    assert batch.terminated.tolist() == [[False, False, True]]
    assert not batch.truncated.any()
    for name in ("timestep", "at", "action"):
        assert batch[name].dtype == torch.int64
    for name in ("valid", "scored", "first", "final", "fresh", "terminated"):
        assert batch[name].dtype == torch.bool
    assert batch.reward.dtype == torch.float32


def test_anchors_must_carry_an_action():
    store = store_of(3, 3, 3)
    sampler = WindowSampler(store, Window(length=2), episodes=[2, 0])
    assert sampler.anchors().tolist() == [8, 9, 10, 0, 1, 2]
    assert sampler.windows([8, 0]).at[:, 0].tolist() == [8, 0]
    for bad in (3, 4, 11, -1, 99):
        with pytest.raises(DataError, match=f"{bad}.* are not"):
            sampler.windows([0, bad])
    with pytest.raises(DataError, match="anchors"):
        WindowSampler(Store.create(None, SPEC), Window(length=2)).windows([0])


def test_across_an_unknown_fact():
    with pytest.raises(DataError, match=r"'tasks'.*did you mean 'task'"):
        WindowSampler(store_of(3, tasks=["a"]), Window(length=2, across="tasks")).draw(2, 0)


def test_follows_a_growing_store():
    store = Store.create(None, SPEC)
    sampler = WindowSampler(store, Window(length=2, columns=("return_to_go",)))
    store.append(store_of(3).episode(0))
    assert sampler.draw(50, 0).at.max() == 2
    store.append(store.episode(0))
    batch = sampler.draw(200, 0)
    assert batch.at.max() == 6
    assert sampler.num_anchors == 6
    held = batch.at == 4
    assert (batch.return_to_go[held] == 3).all()


@pytest.mark.parametrize("seed", [0, -1, 2**63, 12345678901234567890123])
def test_any_integer_is_a_seed(seed):
    sampler = WindowSampler(store_of(30), Window(length=3))
    torch.testing.assert_close(sampler.draw(5, seed).at, sampler.draw(5, seed).at)


def test_empty_parts():
    batch = WindowSampler(store_of(30), Window(length=3)).draw(2, 0, part=(0, 4))
    assert batch.observation.shape == (0, 3, 1)


def test_random_bits_are_even_and_independent():
    bits = random_bits(range(64), np.arange(4096), 1)
    counts = np.bincount((bits >> np.uint64(56)).astype(int), minlength=256)
    expected = len(bits) / 256
    assert ((counts - expected) ** 2 / expected).sum() < 350  # 255 degrees of freedom: about 5 sigma
    other = random_bits(range(64), np.arange(4096), 2)
    both = np.corrcoef(bits.astype(float), other.astype(float))[0, 1]
    assert abs(both) < 5 / np.sqrt(len(bits))
    assert len(np.unique(bits)) == len(bits)


def test_mixture_draws_stores_by_weight():
    stores = [store_of(50), store_of(3, 3), store_of(7)]
    mixture = Mixture(stores, [1, 3, 0], Window(length=4, columns=("observation", "return_to_go")))
    batch = mixture.draw(4000, 0)
    assert abs((batch.store == 1).float().mean() - 0.75) < 0.035
    assert not (batch.store == 2).any()
    for number in (0, 1):
        chosen = batch.store == number
        valid = batch.valid[chosen]
        torch.testing.assert_close(batch.observation[chosen].squeeze(-1)[valid], batch.at[chosen][valid].float())
    parts = [mixture.draw(4000, 0, part=(rank, 3)) for rank in range(3)]
    for name in batch:
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), batch[name])
    torch.testing.assert_close(mixture.draw_block(8, [3, 4])[1].at, mixture.draw(8, 4).at)


def test_mixture_refuses():
    other = store_of(3, spec=Spec(observation=Box(shape=(1,)), action=Discrete(n=4)))
    with pytest.raises(DataError, match="store 1 differs"):
        Mixture([store_of(3), other], [1, 1], Window(length=2))
    for weights in ([1], [1, -1], [0, 0], [1, float("nan")]):
        with pytest.raises(DataError, match="mixture of 2 stores"):
            Mixture([store_of(3), store_of(4)], weights, Window(length=2))
