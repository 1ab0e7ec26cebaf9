"""OpenMaze: a grid with walls instead of many of its cells, wholly in sight, through which several ways lead.

The agent sees and moves as in `maze`. Arriving ends the episode and earns 1, and is a *success* after no more moves than were
needed, by whichever shortest way. A task is the walls; an episode's seed draws where it begins and ends, at least `size` moves
apart. Episodes are cut after as many moves as cells.

30 to 50 % of the cells are walls, as where Searchformer follows A*: Lehnert et al. 2024, arXiv 2402.14083; without A*'s traces in
Nolte et al. 2024, arXiv 2412.05117.
"""

from collections.abc import Mapping

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from foretoken.core import splitmix
from foretoken.core.grid import passages
from foretoken.envs.diagnostic.maze import GridMaze

_WALLS, _ENDS = 7, 8  # streams of random numbers: a task's, an episode's
_DENSITY = (0.3, 0.5)
_ATTEMPTS = 16  # targets that are drawn before one at the end of a longest way is taken


class OpenMaze(GridMaze):
    """
    Args:
        rows: copies.
        id: registered name.
        size: cells a side.

    Attributes:
        steps: (B, cells) int64, fewest moves from each cell to the target, `cells` where there is no way; fewest: (B,) from the
            first place; end: (B,) int64, a cell from which some cell is at least `size` moves away.
    """

    arrays = ("joined", "place", "target", "steps", "fewest", "end")

    def __init__(self, rows: int, id: str, *, size: int) -> None:
        super().__init__(rows, id, size=size)
        self.steps, self.fewest, self.end = (np.zeros(shape, np.int64) for shape in ((rows, self.cells), rows, rows))

    def expert(self) -> np.ndarray:
        """The first of the moves that lead nearer."""
        rows = np.arange(self.rows)
        free = self.joined[rows[:, None], self.passage[self.place]] > 0
        return np.where(free, self.steps[rows[:, None], self.around[self.place]], self.cells).argmin(1)

    def _begin(self, rows: np.ndarray) -> None:
        self._wall(rows)
        u = splitmix.uniform(splitmix.split(self.seed[rows], _ENDS), _ATTEMPTS + 1)
        pending = np.arange(len(rows))
        for attempt in range(_ATTEMPTS + 1):
            at = rows[pending]
            drawn = np.floor(u[pending, attempt] * self.cells).astype(np.int64)
            self.target[at] = drawn if attempt < _ATTEMPTS else self.end[at]
            self.steps[at] = self._steps(self.joined[at], self.target[at])
            pending = pending[~self._far(self.steps[at]).any(1)]
            if not len(pending):
                break
        far = self._far(self.steps[rows])
        chosen = np.floor(u[:, -1] * far.sum(1)).astype(np.int64)
        self.place[rows] = (far.cumsum(1) > chosen[:, None]).argmax(1)
        self.fewest[rows] = self.steps[rows, self.place[rows]]

    def _wall(self, rows: np.ndarray) -> None:
        """Draws walls until two cells are far enough apart, of which `end` is one."""
        seed, attempt = splitmix.split(self.task[rows], _WALLS), 0
        pairs = passages(self.size)
        while len(rows):
            u = splitmix.uniform(splitmix.split(seed, attempt), self.cells + 2)
            low, high = _DENSITY
            free = u[:, : self.cells] >= (low + (high - low) * u[:, -1:])
            self.joined[rows, :-1] = free[:, pairs].all(2)
            cell = np.floor(u[:, -2] * self.cells).astype(np.int64)
            for _ in range(2):  # the farthest cell from the farthest cell ends a long way, if not the longest
                steps = self._steps(self.joined[rows], cell)
                cell = np.where(steps < self.cells, steps, -1).argmax(1)
            self.end[rows] = cell
            found = self._far(self._steps(self.joined[rows], cell)).any(1)
            rows, seed, attempt = rows[~found], seed[~found], attempt + 1

    def _far(self, steps: np.ndarray) -> np.ndarray:
        return (steps >= self.size) & (steps < self.cells)

    def _steps(self, joined: np.ndarray, target: np.ndarray) -> np.ndarray:
        """(K, cells) fewest moves to the targets (K,). All grids are one graph, searched from all targets at once."""
        count = len(target)
        offset, free = self.cells * np.arange(count), joined[:, self.passage] > 0
        to = (self.around + offset[:, None, None])[free]
        ends = np.append(0, np.cumsum(free.sum(2)))
        graph = csr_array((np.ones(len(to)), to, ends), shape=(count * self.cells,) * 2)
        steps = dijkstra(graph, indices=offset + target, unweighted=True, min_only=True)
        return np.minimum(steps, self.cells).astype(np.int64).reshape(count, self.cells)

    def _move(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]]:
        self._go(action)
        arrived = self.place == self.target
        return arrived.astype(np.float64), arrived, {"success": arrived & (self.clock + 1 == self.fewest)}


IDS = {f"foretoken/OpenMaze{size}x{size}-v0": {"size": size} for size in (5, 10, 20)}
"""Registered names and their settings."""

WORLD = OpenMaze
