"""Schedules of visibility: who is hidden, and what each token is predicted from."""

import pytest
import torch

from foretoken.objectives.visibility import ranks

ROWS, LONGEST = 4000, 12


@pytest.fixture
def valid():
    length = 1 + torch.arange(ROWS) % LONGEST
    return torch.arange(LONGEST) < length[:, None]


def drawn(schedule, valid, **more):
    rank = ranks(schedule, valid, torch.arange(len(valid)), **more)
    assert rank.dtype == torch.int64 and not rank[~valid].any()
    return rank


def test_uniform_draws_a_rate_for_every_sample(valid):
    """With a rate u of its own, the number of hidden tokens of n is even over 0 .. n; with one rate for all it would be binomial."""
    hidden = drawn("uniform", valid) > 0
    full = valid.all(1)
    counts = torch.bincount(hidden[full].sum(1), minlength=LONGEST + 1) / full.sum()
    assert counts.tolist() == pytest.approx([1 / (LONGEST + 1)] * (LONGEST + 1), abs=0.05)
    assert hidden[valid].float().mean() == pytest.approx(0.5, abs=0.02)


def test_fixed_hides_its_rate(valid):
    hidden = drawn("fixed", valid, rate=0.15)[valid.all(1)] > 0
    assert hidden.float().mean() == pytest.approx(0.15, abs=0.02)
    assert hidden.float().mean(1).std() < 0.13  # binomial: 0.103; with rates of their own 0.3


def test_multi_forward_hides_all_from_a_place_on(valid):
    hidden = drawn("multi-forward", valid) > 0
    length = valid.sum(1)
    assert hidden.any(1).all() and hidden[torch.arange(ROWS), length - 1].all()
    steps = hidden[:, 1:].int() - hidden[:, :-1].int()
    assert ((steps == -1) <= ~valid[:, 1:]).all()
    assert (hidden.sum(1)[length == LONGEST].unique() == torch.arange(1, LONGEST + 1)).all()


def test_all_but_last(valid):
    rank = drawn("all-but-last", valid)
    assert (rank.sum(1) == 1).all() and (rank.argmax(1) == valid.sum(1) - 1).all()


def test_orders(valid):
    place, length = torch.arange(LONGEST).expand(valid.shape), valid.sum(1, keepdim=True)
    forwards, backwards = place + 1, length - place
    assert torch.equal(drawn("next-token", valid), torch.where(valid, forwards, 0))
    both = drawn("front-back", valid)
    is_forward = (both == torch.where(valid, forwards, 0)).all(1)
    assert (is_forward | (both == torch.where(valid, backwards, 0)).all(1)).all()
    assert is_forward[length[:, 0] > 1].float().mean() == pytest.approx(0.5, abs=0.05)
    mixed = drawn("permutations", valid)
    assert (torch.where(valid, mixed, forwards).sort(1).values == forwards).all()
    assert mixed[valid.all(1)].float().mean(0).tolist() == pytest.approx([(LONGEST + 1) / 2] * LONGEST, abs=0.8)


@pytest.mark.parametrize(
    "schedule", ["uniform", "fixed", "multi-forward", "all-but-last", "next-token", "front-back", "permutations"]
)
def test_rows_and_padding_change_nothing(schedule, valid):
    rank = drawn(schedule, valid)
    order = torch.tensor([5, 3, 100])
    wider = torch.nn.functional.pad(valid[order], (0, 4))
    assert torch.equal(ranks(schedule, wider, order)[:, :LONGEST], rank[order])
