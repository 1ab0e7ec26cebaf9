"""Repeat Previous: cards are dealt from a shuffled deck, and the suit seen k cards ago is to be named, at every step.

The agent sees the suit of the newest card. From the k-th action on, one that names the suit of k cards before earns
1 / (cards - k), another loses as much; the episode ends with the deck. So perfect memory earns 1 and guessing -0.5.

Morad et al., "POPGym: Benchmarking Partially Observable Reinforcement Learning", ICLR 2023, arXiv 2303.01859, where k is 4, 32
and 64 with one, two and three decks.
"""

from collections.abc import Mapping

import numpy as np

from foretoken.core import splitmix
from foretoken.core.spec import Discrete, Spec
from foretoken.envs.diagnostic.world import World

_SUITS, _EACH = 4, 13
_EPISODE = 3  # a stream of random numbers of one seed, beside the world's own


class RepeatPrevious(World):
    """
    Args:
        rows: copies.
        id: registered name.
        back: k.
        decks: of 52 cards, shuffled together.

    Attributes:
        suits: (B, cards) int64, the order in which cards are dealt.
    """

    num_tasks = 1
    arrays = ("suits",)

    def __init__(self, rows: int, id: str, *, back: int, decks: int = 1) -> None:
        super().__init__(rows)
        self.back, self.cards = back, _SUITS * _EACH * decks
        self.delays = (back, back)
        self.spec = Spec(
            observation=Discrete(n=_SUITS), action=Discrete(n=_SUITS), environment=id, max_episode_steps=self.cards
        )
        self.suits = np.zeros((rows, self.cards), np.int64)

    def observe(self) -> np.ndarray:
        return self.suits[np.arange(self.rows), np.minimum(self.clock, self.cards - 1)]

    def expert(self) -> np.ndarray:
        return self.suits[np.arange(self.rows), np.clip(self.clock - self.back, 0, self.cards - 1)]

    def best_return(self, task: np.ndarray) -> np.ndarray:
        return np.ones(len(task))

    def _begin(self, rows: np.ndarray) -> None:
        order = splitmix.uniform(splitmix.split(self.seed[rows], _EPISODE), self.cards).argsort(axis=1)
        self.suits[rows] = order % _SUITS

    def _move(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]]:
        earned = np.where(action == self.expert(), 1.0, -1.0) / (self.cards - self.back)
        over = self.clock + 1 >= self.cards
        return np.where(self.clock >= self.back, earned, 0.0), over, {}


IDS = {
    "foretoken/RepeatPrevious-4-v0": {"back": 4},
    "foretoken/RepeatPrevious-32-v0": {"back": 32, "decks": 2},
    "foretoken/RepeatPrevious-64-v0": {"back": 64, "decks": 3},
}
"""Registered names and their settings."""

WORLD = RepeatPrevious
"""The class that they name."""
