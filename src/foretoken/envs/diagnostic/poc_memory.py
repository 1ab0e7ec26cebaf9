"""Proof-of-concept memory task: two goals stand at the ends of a line, and only at first is it shown which one is good.

The agent sees (left goal, place, right goal). In the first two steps a goal shows as 1 where it is good and -1 where it is bad,
and the agent cannot move yet; afterwards both show 0. It starts up to two moves from the middle, five moves from either end.
The good end earns 1, the bad one -1, every other step costs 0.1.

After the small environment of the released baseline of Pleines et al., JMLR 2025, arXiv 2309.17207, which shows the goals once
more, pays 1.6 at the ends, charges nothing for the steps in which the agent cannot move, and lets it move then unless told so.
"""

from collections.abc import Mapping

import numpy as np

from foretoken.core import splitmix
from foretoken.core.spec import Box, Discrete, Spec
from foretoken.envs.diagnostic.world import World

_SHOWN, _END, _SPREAD, _COST = 2, 5, 2, 0.1
_EPISODE = 3  # a stream of random numbers of one seed, beside the world's own


class PocMemory(World):
    """
    Args:
        rows: copies.
        id: registered name.
        horizon: steps, after which an episode is truncated.

    Attributes:
        good: (B,) int64, -1 where the left goal is good, 1 where the right one is; place: (B,) int64, in moves from the middle.
    """

    num_tasks = 1
    arrays = ("good", "place")

    def __init__(self, rows: int, id: str, *, horizon: int = 32) -> None:
        super().__init__(rows)
        self.spec = Spec(
            observation=Box(shape=(3,), low=(-1.0,), high=(1.0,)),
            action=Discrete(n=2),
            environment=id,
            max_episode_steps=horizon,
        )
        self.good, self.place = (np.zeros(rows, np.int64) for _ in range(2))

    def observe(self) -> np.ndarray:
        goal = self.good * (self.clock < _SHOWN)
        return np.stack((-goal, self.place / _END, goal), axis=1).astype(np.float32)

    def expert(self) -> np.ndarray:
        return (self.good > 0).astype(np.int64)

    def best_return(self, task: np.ndarray) -> np.ndarray:
        return np.full(len(task), 1 - _COST * (_SHOWN + _END - 1))

    def _begin(self, rows: np.ndarray) -> None:
        side, start = splitmix.uniform(splitmix.split(self.seed[rows], _EPISODE), 2).T
        self.good[rows] = np.where(side < 0.5, -1, 1)
        self.place[rows] = np.floor((2 * _SPREAD + 1) * start) - _SPREAD

    def _move(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]]:
        free = self.clock >= _SHOWN
        self.place = np.clip(self.place + free * (2 * action - 1), -_END, _END)
        over = np.abs(self.place) == _END
        success = over & (np.sign(self.place) == self.good)
        return np.where(over, np.where(success, 1.0, -1.0), -_COST), over, {"success": success}


IDS: Mapping[str, Mapping[str, int]] = {"foretoken/PocMemory-v0": {}}
"""Registered names and their settings."""

WORLD = PocMemory
"""The class that they name."""
