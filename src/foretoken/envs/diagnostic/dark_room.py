"""Dark Room: a goal that cannot be seen, in an empty room; what is learned in one episode must help in the next.

The agent sees the row and the column it stands in (published code gives them, or the cell's number). It moves up, down, left,
right or stays, walls stop it, and each step that ends on the goal's cell earns 1. A task is the goal's cell, which every
episode of a trial shares.

Laskin et al., ICLR 2023, arXiv 2210.14215; sizes and horizons of Zisman et al., ICML 2024, arXiv 2312.12275 (9 x 9, centre
start, 20 steps) and Lee et al., NeurIPS 2023, arXiv 2306.14892 (10 x 10, corner start, 100 steps).
"""

from collections.abc import Mapping

import numpy as np

from foretoken.core.spec import Discrete, MultiDiscrete, Spec
from foretoken.envs.diagnostic.world import World

MOVES = np.array([[-1, 0], [1, 0], [0, -1], [0, 1], [0, 0]])  # up, down, left, right, stay


def towards(place_B2: np.ndarray, goal_B2: np.ndarray) -> np.ndarray:
    """(B,) int64 the move that brings each place nearer to its goal, rows first; stays on it."""
    gap = goal_B2 - place_B2
    along = np.where(gap[:, 1] != 0, np.where(gap[:, 1] < 0, 2, 3), 4)
    return np.where(gap[:, 0] != 0, np.where(gap[:, 0] < 0, 0, 1), along)


class DarkRoom(World):
    """
    Args:
        rows: copies.
        id: registered name.
        size: cells a side; there are size * size tasks.
        horizon: steps of an episode.
        corner: begins in the corner instead of the centre.
    """

    arrays = ("place", "goal")

    def __init__(self, rows: int, id: str, *, size: int = 9, horizon: int = 20, corner: bool = False) -> None:
        super().__init__(rows)
        cells, seen = size * size, MultiDiscrete(nvec=(size, size))
        self.spec = Spec(observation=seen, action=Discrete(n=5), environment=id, max_episode_steps=horizon)
        self.size, self.cells, self.num_tasks, self.start = size, cells, cells, 0 if corner else size // 2
        self.place, self.goal = np.zeros((rows, 2), np.int64), np.zeros((rows, 2), np.int64)

    def observe(self) -> np.ndarray:
        return self.place

    def put(self, cell: np.ndarray) -> None:
        """Moves each row to a cell (B,), for data that are no trajectories."""
        self.place = np.stack(np.divmod(cell, self.size), axis=1)

    def expert(self) -> np.ndarray:
        return towards(self.place, self.goal)

    def best_return(self, task: np.ndarray) -> np.ndarray:
        goal = np.stack(np.divmod(task, self.size), axis=-1)
        away = np.abs(goal - self.start).sum(-1)
        return (self.spec.max_episode_steps - np.maximum(away - 1, 0)).astype(np.float64)

    def _begin(self, rows: np.ndarray) -> None:
        self.place[rows] = self.start
        self.goal[rows] = np.stack(np.divmod(self.task[rows], self.size), axis=1)

    def _move(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]]:
        self.place = np.clip(self.place + MOVES[action], 0, self.size - 1)
        reached = (self.place == self.goal).all(1)
        return reached.astype(np.float64), np.zeros(self.rows, bool), {}


IDS = {
    "foretoken/DarkRoom-v0": {},
    "foretoken/DarkRoom-7x7-v0": {"size": 7, "horizon": 15},
    "foretoken/DarkRoom-7x7-Corner-v0": {"size": 7, "horizon": 49, "corner": True},
    "foretoken/DarkRoom-10x10-v0": {"size": 10, "horizon": 100, "corner": True},
}
"""Registered names and their settings."""

WORLD = DarkRoom
