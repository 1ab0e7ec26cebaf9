"""Rollouts with every mixer as memory: what an end of an episode does to values, advantages and memory.

An episode that is truncated goes on from the value of its final observation, one that terminates takes nothing from it, and the
value there is what the network says with its memory as it was: of the episodes before in a trial, too.
"""

import itertools
from collections.abc import Iterator

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import registry

from foretoken.core.batch import Batch
from foretoken.experiment import Experiment, build
from foretoken.methods.recurrent_ppo import RecurrentPPOConfig
from foretoken.nn.mixers import shelf
from foretoken.nn.stack import BlockConfig, StackConfig
from foretoken.training.rollouts import Rollouts

pytestmark = pytest.mark.filterwarnings("ignore:DeltaNet without its short convolution")

ID, STEPS, SEGMENT, DISCOUNT, TRACE = "Coins-v0", 64, 16, 0.9, 0.8


class Coins(gymnasium.Env):
    """Random numbers to see and to earn; a coin says when it is over, a time limit of 4 when it is cut short, at times both."""

    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._seen(), {}

    def step(self, action):
        over = bool(self.np_random.random() < 0.2)
        return self._seen(), float(self.np_random.normal()), over, False, {}

    def _seen(self):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)


@pytest.fixture(autouse=True)
def coins():
    if ID not in registry:
        gymnasium.register(ID, entry_point=Coins, max_episode_steps=4)


def played(name: str):
    """A source whose episodes come in trials of two, and its method; every weight is large, so that memory matters."""
    block = BlockConfig(mixer=shelf()[name](), feed_forward=None)
    backbone = StackConfig(width=12, num_layers=1, pattern=(block,), init_std=0.5)
    system = RecurrentPPOConfig(
        segment=SEGMENT, backbone=backbone, discount=DISCOUNT, trace=TRACE, normalise=False, previous_reward=False
    )
    config = Rollouts(environment=ID, num_slots=4, steps=STEPS, epochs=1, trial=2)
    source = config.build(batch_size=4, seed=0)
    method = build(Experiment(system=system, source=config), source)
    source.connect(method)
    return source, method


def everything(source) -> Batch:
    return source._take(torch.arange(4 * STEPS // SEGMENT))


def pieces(whole: Batch) -> Iterator[tuple[int, slice, Batch]]:
    """What lies between two beginnings of memory in a row, read without any state; with its row and place."""
    for row, fresh in enumerate(whole.fresh):
        ends = [*torch.nonzero(fresh).flatten().tolist(), STEPS]
        for begin, end in itertools.pairwise(ends):
            place = slice(begin, end)
            yield row, place, whole.map(lambda leaf, row=row, place=place: leaf[row : row + 1, place])


@pytest.mark.parametrize("name", shelf())
def test_truncation_is_continued_from_its_final_observation_and_memory_termination_is_not(name):
    source, method = played(name)
    source.advance(0)
    segments = everything(source)
    columns = {key: segments[key] for key in segments if key != "memory"}
    whole = Batch(columns).map(lambda leaf: leaf.unflatten(0, (4, -1)).flatten(1, 2))
    assert whole.fresh[:, 0].all() and (whole.first & ~whole.fresh).any()

    value, alone = torch.full((4, STEPS), torch.nan), torch.full((4, STEPS), torch.nan)
    with torch.no_grad():
        for row, place, piece in pieces(whole):
            for answers, fresh in ((value, piece.fresh), (alone, torch.ones_like(piece.fresh))):
                y, _ = method.run(piece.replace(fresh=fresh))
                answers[row, place] = method.answer(y, piece.observation)[1].value[0]
    torch.testing.assert_close(whole.value, value, rtol=1e-4, atol=1e-4)

    def target(row: int, step: int) -> float:
        """The return from here by the definition of GAE's targets, step by step until the episode ends."""
        earned, after = float(whole.reward[row, step]), float(value[row, step + 1])
        if whole.terminated[row, step]:
            return earned
        later = after if whole.truncated[row, step] else target(row, step + 1)
        return earned + DISCOUNT * ((1 - TRACE) * after + TRACE * later)

    cut, over = whole.truncated & ~whole.terminated, whole.terminated
    ended = torch.nonzero((cut | over)[:, :-1])
    for row, last in ended.tolist():
        assert whole.final[row, last + 1] and not whole.scored[row, last + 1]
        first = last - int(whole.timestep[row, last])
        for step in range(max(first, 0), last + 1):
            assert float(whole.target[row, step]) == pytest.approx(target(row, step), abs=1e-3)
    assert cut.sum() > 5 and over.sum() > 5 and (over & whole.truncated).any()
    finals = whole.final & (whole.timestep > 0)
    assert (value - alone)[finals].abs().mean() > 1e-3  # it is memory that makes these values


@pytest.mark.parametrize("name", shelf())
def test_segments_are_read_as_they_were_acted_wherever_memory_began(name):
    source, method = played(name)
    for update in (0, 4):  # in the second, slots are in the middle of trials
        source.advance(update)
        segments = everything(source)
        with torch.no_grad():
            value = method.answer(method.run(segments)[0], segments.observation)[1].value
        torch.testing.assert_close(value, segments.value, rtol=1e-4, atol=1e-4)
    assert not segments.fresh[:, 0].all()
