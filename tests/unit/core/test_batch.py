"""Batch: an immutable mapping that torch treats as a tree; masked means."""

import copy
import pickle

import pytest
import torch
from torch.utils import _pytree as pytree

from foretoken.core.batch import Batch, masked_mean
from foretoken.core.errors import DataError


def example() -> Batch:
    observation = {"goal": torch.arange(6).reshape(2, 3), "hand": {"touch": torch.ones(2, 3, 4)}}
    return Batch(
        {"observation": observation}, reward=torch.zeros(2, 3), prompt=Batch(reward=torch.ones(2, 5)), spec="arm"
    )


def test_is_a_mapping_with_attributes() -> None:
    batch = example()
    assert list(batch) == ["observation", "reward", "prompt"] and len(batch) == 3 and "reward" in batch
    assert batch.reward is batch["reward"] and batch.prompt.reward.shape == (2, 5)
    assert batch.spec == "arm" and "touch" in repr(batch)


def test_missing_columns_are_named() -> None:
    with pytest.raises(DataError, match=r"no column 'rewards' \(did you mean 'reward'\?\)"):
        example()["rewards"]
    with pytest.raises(AttributeError, match="no column 'rewards'"):
        example().rewards  # noqa: B018
    assert not hasattr(example(), "actions")


def test_is_immutable() -> None:
    with pytest.raises(AttributeError, match=r"use batch.replace\(reward=...\)"):
        example().reward = torch.ones(2, 3)
    batch = example()
    other = batch.replace(reward=torch.ones(2, 3))
    assert float(batch.reward.sum()) == 0 and float(other.reward.sum()) == 6 and other.spec == "arm"


def test_is_a_pytree() -> None:
    batch = example()
    leaves, layout = pytree.tree_flatten(batch)
    assert len(leaves) == 4
    back = pytree.tree_unflatten(leaves, layout)
    assert isinstance(back, Batch) and isinstance(back.prompt, Batch) and back.spec == "arm"
    doubled = batch.map(lambda leaf: 2 * leaf)
    assert float(doubled.prompt.reward.sum()) == 20
    assert int(doubled.observation["goal"].sum()) == 30
    both = pytree.tree_map(lambda a, b: a + b, batch, doubled)
    assert float(both.prompt.reward.sum()) == 30


def test_moves_and_converts() -> None:
    moved = example().to(torch.float64)
    assert all(leaf.dtype == torch.float64 for leaf in pytree.tree_leaves(moved)) and moved.spec == "arm"


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda batch: pickle.loads(pickle.dumps(batch))])
def test_copies_and_pickles(again) -> None:
    back = again(example())
    assert isinstance(back, Batch) and back.spec == "arm" and torch.equal(back.prompt.reward, torch.ones(2, 5))


def test_masked_mean() -> None:
    values = torch.tensor([[1.0, float("nan"), 3.0]], requires_grad=True)
    mean, count = masked_mean(values, torch.tensor([[True, False, True]]))
    assert float(mean.detach()) == 2 and float(count) == 2
    mean.backward()
    assert values.grad.tolist() == [[0.5, 0.0, 0.5]]
    mean, count = masked_mean(torch.ones(2, 2), torch.zeros(2, 2, dtype=torch.bool))
    assert float(mean) == 0 and float(count) == 0
    with pytest.raises(DataError, match=r"one shape, got \(2, 3\) and \(2,\)"):
        masked_mean(torch.ones(2, 3), torch.ones(2, dtype=torch.bool))
