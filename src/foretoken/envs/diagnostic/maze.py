"""Maze: a perfect maze, wholly in sight, with one way from where the agent stands to the target.

The agent sees three groups of bits: which neighbouring cells are joined (downwards, then to the right, each row by row), its own
cell, and the target's. It moves up, down, left or right; a wall stops it. Arriving ends the episode and earns 1, and is a
*success* only on the exact path: no move went into a wall or back, for in a maze without circles who never turns back goes the
only way. A task is the maze; an episode's seed draws where it begins and ends. Episodes are cut after as many moves as cells.

The mazes are those of a depth-first walk from a random cell that takes its turns at random ("dfs" with forks of the package
maze-dataset, Ivanitskiy et al. 2023, arXiv 2309.10498), as in Nolte et al. 2024, arXiv 2412.05117.
"""

from collections.abc import Mapping
from itertools import permutations

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import depth_first_order

from foretoken.core import splitmix
from foretoken.core.errors import ConfigError
from foretoken.core.grid import passages
from foretoken.core.spec import Discrete, MultiBinary, Spec
from foretoken.envs.diagnostic.world import World

UP, DOWN, LEFT, RIGHT = range(4)

_NONE = 4  # no move before
_BACK = np.array([DOWN, UP, RIGHT, LEFT, _NONE])
_ORDERS = np.array(list(permutations(range(4))))  # (24, 4)
_WALLS, _ENDS = 7, 8  # streams of random numbers: a task's, an episode's


class GridMaze(World):
    """Abstract: cells of a grid, passages between some neighbours, a target.

    Args:
        rows: copies.
        id: registered name.
        size: cells a side.

    Attributes:
        joined: (B, P + 1) int8, which passages there are; the last, over the border, never is.
        place, target: (B,) int64 cells, row by row.
        passage, around: (cells, 4) int64, by cell and move the passage, P over the border, and the cell there, -1 beyond it.
    """

    def __init__(self, rows: int, id: str, *, size: int) -> None:
        super().__init__(rows)
        if size < 2:
            raise ConfigError(f"a maze needs size >= 2, got {size}")
        self.size, self.cells, pairs = size, size * size, passages(size)
        self.spec = Spec(
            observation=MultiBinary(n=len(pairs) + 2 * self.cells),
            action=Discrete(n=4),
            environment=id,
            max_episode_steps=self.cells,
        )
        self.onward = np.array([-size, size, -1, 1])  # what each move adds to the place
        self.passage = np.full((self.cells, 4), len(pairs))  # by cell and move
        for number, (one, other) in enumerate(pairs):
            move = DOWN if other - one == size else RIGHT
            self.passage[one, move] = self.passage[other, _BACK[move]] = number
        self.around = np.where(self.passage < len(pairs), np.arange(self.cells)[:, None] + self.onward, -1)
        self.joined = np.zeros((rows, len(pairs) + 1), np.int8)
        self.place, self.target = (np.zeros(rows, np.int64) for _ in range(2))

    def observe(self) -> np.ndarray:
        count = self.joined.shape[1] - 1
        seen = np.zeros((self.rows, count + 2 * self.cells), np.int8)
        seen[:, :count] = self.joined[:, :-1]
        rows = np.arange(self.rows)
        seen[rows, count + self.place] = seen[rows, count + self.cells + self.target] = 1
        return seen

    def best_return(self, task: np.ndarray) -> np.ndarray:
        return np.ones(len(task))

    def _go(self, action: np.ndarray) -> np.ndarray:
        """Moves all rows; (B,) bool whether there was no wall."""
        free = self.joined[np.arange(self.rows), self.passage[self.place, action]] > 0
        self.place = self.place + np.where(free, self.onward[action], 0)
        return np.asarray(free)


class Maze(GridMaze):
    """
    Args:
        rows: copies.
        id: registered name.
        size: cells a side.

    Attributes:
        last: (B,) int64, the move before, 4 at first; exact: (B,) bool, no move went into a wall or back so far.
        rank, above: (B, cells) int64, of each cell, and by rank the parent's, in the order of the walk that made the maze.
    """

    arrays = ("joined", "place", "target", "last", "exact", "rank", "above")

    def __init__(self, rows: int, id: str, *, size: int) -> None:
        super().__init__(rows, id, size=size)
        self.last, self.exact = np.zeros(rows, np.int64), np.ones(rows, bool)
        self.rank, self.above = (np.zeros((rows, self.cells), np.int64) for _ in range(2))

    def expert(self) -> np.ndarray:
        """The next move of the only way: up the tree of the walk, unless the target lies below the place."""
        rows, order = np.arange(self.rows), np.arange(self.cells)
        here, there = self.rank[rows, self.place], self.rank[rows, self.target]
        left = (order > here[:, None]) & (order <= there[:, None]) & (self.above < here[:, None])
        below = (here < there) & ~left.any(1)
        nearby = np.where(
            self.joined[rows[:, None], self.passage[self.place]], self.rank[rows[:, None], self.around[self.place]], -1
        )
        # Of the cells below, which come after the place, the target is under the last that is not after the target.
        down = np.where(nearby <= there[:, None], nearby, -1).argmax(1)
        up = np.where(nearby < 0, self.cells, nearby).argmin(1)
        return np.where(below, down, up)

    def _begin(self, rows: np.ndarray) -> None:
        order, parent = self._walk(splitmix.split(self.task[rows], _WALLS))
        at = np.arange(len(rows))[:, None]
        rank = np.empty_like(order)
        rank[at, order] = np.arange(self.cells)
        self.rank[rows] = rank
        self.above[rows] = rank[at, parent]
        passage = self._between(order[:, 1:], parent[:, 1:])
        joined = np.zeros((len(rows), self.joined.shape[1]), np.int8)
        joined[at, passage] = 1
        self.joined[rows] = joined
        u = splitmix.uniform(splitmix.split(self.seed[rows], _ENDS), 2)
        self.place[rows] = place = np.floor(u[:, 0] * self.cells).astype(np.int64)
        self.target[rows] = (place + 1 + np.floor(u[:, 1] * (self.cells - 1)).astype(np.int64)) % self.cells
        self.last[rows], self.exact[rows] = _NONE, True

    def _walk(self, seed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Cells in the order of a depth-first walk, and each one's parent (the first's is itself), both (K, cells).

        All walks are one in a graph of K mazes and a root; each cell has its neighbours in a random order.
        """
        count, cells = len(seed), self.cells
        u = splitmix.uniform(seed, cells + 1)
        chosen = _ORDERS[np.floor(u[:, :-1] * len(_ORDERS)).astype(np.int64)]  # (K, cells, 4)
        around = self.around[np.arange(cells)[:, None], chosen]
        offset = cells * np.arange(count)
        begin = offset + np.floor(u[:, -1] * cells).astype(np.int64)
        to = np.append((around + offset[:, None, None])[around >= 0], begin)
        degree = np.append(np.tile((self.around >= 0).sum(1), count), count)
        graph = csr_array((np.ones(len(to)), to, np.append(0, np.cumsum(degree))), shape=(len(degree),) * 2)
        order, parent = depth_first_order(graph, cells * count)
        order = order[1:].astype(np.int64)
        parent = np.where(parent[order] == cells * count, order, parent[order])
        return order.reshape(count, cells) - offset[:, None], parent.reshape(count, cells) - offset[:, None]

    def _between(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """The passages between neighbouring cells."""
        away = other - one
        move = np.where(away == -self.size, UP, np.where(away == self.size, DOWN, np.where(away < 0, LEFT, RIGHT)))
        return self.passage[one, move]

    def _move(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]]:
        self.exact = self._go(action) & self.exact & (action != _BACK[self.last])
        self.last = np.asarray(action, np.int64)
        arrived = self.place == self.target
        return arrived.astype(np.float64), arrived, {"success": arrived & self.exact}


IDS = {f"foretoken/Maze{size}x{size}-v0": {"size": size} for size in (4, 5, 6, 8, 10, 20)}
"""Registered names and their settings."""

WORLD = Maze
