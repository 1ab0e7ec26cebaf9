"""T-Maze: a clue at the first step says which way to turn at the end of a corridor, and is never shown again.

The agent sees (clue, junction, noise): the clue is -1 or 1 at step 0 and 0 ever after, wherever the agent goes; junction is 1
at the corridor's end, else 0; noise is -1, 0 or 1. It does not see its place. It moves right, up, left or down, and walls
stop it. Up or down at the junction ends the episode, and earns 1 where it agrees with the clue. In TMaze-T the right way takes
exactly T steps, which are all there are: a wasted step loses.

Bakker 2001, as in the released code of Cherepanov et al., arXiv 2306.09459, which allows one step more than the right way
takes, and also shows the vertical place, 0 wherever the agent acts.
"""

from collections.abc import Mapping

import numpy as np

from foretoken.core import splitmix
from foretoken.core.spec import Box, Discrete, Spec
from foretoken.envs.diagnostic.world import World

RIGHT, UP, LEFT, DOWN = range(4)

_ALONG = np.array([1, 0, -1, 0])  # what each action adds to the place in the corridor
_EPISODE = 3  # a stream of random numbers of one seed, beside the world's own


class TMaze(World):
    """
    Args:
        rows: copies.
        id: registered name.
        horizon: T, steps of the longest corridor's right way, its last the turn; episodes are truncated then.
        shortest: steps of the shortest right way; each episode's is drawn from `shortest .. horizon`. None = `horizon`.

    Attributes:
        clue: (B,) int64, -1 (down) or 1 (up); corridor: (B,) int64, the junction's place; place: (B,) int64, 0 .. corridor.

    `info["delay"]` is the corridor's length: so many steps must the clue be kept.
    """

    num_tasks = 1
    arrays = ("clue", "corridor", "place")

    def __init__(self, rows: int, id: str, *, horizon: int, shortest: int | None = None) -> None:
        super().__init__(rows)
        self.spec = Spec(
            observation=Box(shape=(3,), low=(-1.0, 0.0, -1.0), high=(1.0, 1.0, 1.0)),
            action=Discrete(n=4),
            environment=id,
            max_episode_steps=horizon,
        )
        self.shortest = horizon if shortest is None else shortest
        self.delays = (self.shortest - 1, horizon - 1)
        self.clue, self.corridor, self.place = (np.zeros(rows, np.int64) for _ in range(3))

    def observe(self) -> np.ndarray:
        seen = np.empty((self.rows, 3), np.float32)
        seen[:, 0] = self.clue * (self.clock == 0)
        seen[:, 1] = self.place == self.corridor
        seen[:, 2] = np.floor(3 * self.uniform(1)[:, 0]) - 1
        return seen

    def expert(self) -> np.ndarray:
        return np.where(self.place < self.corridor, RIGHT, np.where(self.clue > 0, UP, DOWN))

    def best_return(self, task: np.ndarray) -> np.ndarray:
        return np.ones(len(task))

    def _begin(self, rows: np.ndarray) -> None:
        side, steps = splitmix.uniform(splitmix.split(self.seed[rows], _EPISODE), 2).T
        self.clue[rows] = np.where(side < 0.5, -1, 1)
        choices = self.spec.max_episode_steps - self.shortest + 1
        self.corridor[rows] = self.shortest - 1 + np.floor(choices * steps)
        self.place[rows] = 0

    def _move(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]]:
        turned = (self.place == self.corridor) & (action % 2 == 1)
        success = turned & ((action == UP) == (self.clue > 0))
        self.place = np.clip(self.place + _ALONG[action], 0, self.corridor)
        return success.astype(np.float64), turned, {"success": success, "delay": self.corridor.copy()}


IDS = {f"foretoken/TMaze-{horizon}-v0": {"horizon": horizon} for horizon in (30, 50, 90, 150, 300, 600)} | {
    f"foretoken/TMaze-Mixed-{horizon}-v0": {"horizon": horizon, "shortest": 2} for horizon in (12, 30, 150)
}
"""Registered names and their settings."""

WORLD = TMaze
