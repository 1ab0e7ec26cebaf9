"""Point Maze: a point that is pushed through a maze to a place it is not shown; paid once, on arrival.

Each step an action in [-1, 1] per axis changes the velocity, v <- DRAG v + (1 - DRAG) a, and the velocity the place, by STEP v;
so the top speed is 1 and STEP is the longest way of a step, in cells. An axis whose move would end in a wall stands still and
loses its speed. The agent sees (x, y, vx, vy), x along the text's lines and y down them; arrival ends the episode.

Fu et al. 2020, arXiv 2004.07219, whose two smaller mazes these are, with our own physics.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np

from foretoken.core import splitmix
from foretoken.core.errors import ConfigError
from foretoken.core.spec import Box, Spec
from foretoken.envs.diagnostic.record import Experience
from foretoken.envs.diagnostic.world import World

DRAG, STEP = 0.8, 0.17
RADIUS = 0.45  # how near the goal's centre is arrival, in cells
JITTER = 0.25  # how far from its cell's centre an episode may begin, per axis
GAIN, BRAKE = 4.0, 1.0  # of the scripted player
HOLD, STROLL = 12, 0.3  # steps for which who strays keeps to a place, and with what part of its force
_NOISE, _STRAY = 11, 12  # a player's streams of random numbers

UMAZE = (
    "#####",
    "#G..#",
    "###.#",
    "#S..#",
    "#####",
)
MEDIUM = (
    "########",
    "#S.##..#",
    "#..#...#",
    "##...###",
    "#..#...#",
    "#.#..#.#",
    "#...#.G#",
    "########",
)


@cache
def routes(maze: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """(goal, cell) int64 each: moves to a goal, and the next cell on a shortest way there (the goal itself stays).

    Cells are numbered line by line, walls included; what cannot be reached is as many moves away as there are cells.
    """
    is_open = np.array([sign != "#" for line in maze for sign in line])
    cells = np.arange(len(is_open))
    neighbour = (cells[:, None] + [len(maze[0]), 1, -1, -len(maze[0])]) % len(cells)  # the border is wall
    moves = np.where(np.eye(len(cells), dtype=bool) & is_open, 0, len(cells))
    for _ in cells:
        moves = np.where(is_open, np.minimum(moves, 1 + moves[:, neighbour].min(2)), len(cells))
    onward = neighbour[cells, moves[:, neighbour].argmin(2)]
    return moves, np.where(np.eye(len(cells), dtype=bool), cells, onward)


class PointMaze(World):
    """
    Args:
        rows: copies.
        id: registered name.
        maze: lines of equal length: # wall, . free, S where episodes begin (nearly), G the goal; walls all around.
        horizon: steps of an episode.

    Attributes:
        home, goal: numbers of the cells S and G.
        open: (C,) bool, the cells that are not wall.
        moves: (C, C) moves from a cell (second) to a goal (first), see `routes`.
        start: (B,) cells in which the rows' episodes begin.
        place, velocity: (B, 2) float64 (x, y).
    """

    num_tasks = 1
    arrays = ("place", "velocity", "start")

    def __init__(self, rows: int, id: str, *, maze: tuple[str, ...], horizon: int) -> None:
        super().__init__(rows)
        text, self.width = "".join(maze), len(maze[0])
        border = maze[0] + maze[-1] + "".join(line[0] + line[-1] for line in maze)
        if len({*map(len, maze)}) > 1 or {*border} != {"#"} or text.count("S") != 1 or text.count("G") != 1:
            raise ConfigError(f"a maze needs equal lines, walls all around, one S and one G, got {maze}")
        self.spec = Spec(
            observation=Box(shape=(4,), low=(1, 1, -1, -1), high=(self.width - 1, len(maze) - 1, 1, 1)),
            action=Box(shape=(2,), low=(-1,), high=(1,)),
            environment=id,
            max_episode_steps=horizon,
        )
        self.home, self.goal = text.index("S"), text.index("G")
        self.open = np.array([sign != "#" for sign in text])
        self.moves, self._onward = routes(maze)
        self.start = np.full(rows, self.home)
        self.place, self.velocity = self.centre(self.start), np.zeros((rows, 2))

    def centre(self, cell: np.ndarray) -> np.ndarray:
        """(..., 2) the middle (x, y) of cells (...)."""
        return np.stack([cell % self.width, cell // self.width], axis=-1) + 0.5

    def cell(self, place: np.ndarray) -> np.ndarray:
        """(...) int64 the cells of places (..., 2)."""
        at = place.astype(np.int64)
        return at[..., 1] * self.width + at[..., 0]

    def near(self, place: np.ndarray, cell: int | np.ndarray) -> np.ndarray:
        """(...) bool: whether places (..., 2) count as arrived at cells."""
        gap = place - self.centre(np.asarray(cell))
        return gap[..., 0] ** 2 + gap[..., 1] ** 2 <= RADIUS**2

    def put(self, cell: np.ndarray) -> None:
        """Lets each row stand still in the middle of a cell (B,), and begin its next episodes there."""
        self.start = np.array(cell)
        self.place, self.velocity = self.centre(self.start), np.zeros((self.rows, 2))

    def towards(self, cell: np.ndarray) -> np.ndarray:
        """(B, 2) float32 the action of a player on its shortest way to a cell (B,)."""
        aim = self.centre(self._onward[cell, self.cell(self.place)])
        return np.clip(GAIN * (aim - self.place) - BRAKE * self.velocity, -1, 1).astype(np.float32)

    def observe(self) -> np.ndarray:
        return np.concatenate([self.place, self.velocity], axis=1, dtype=np.float32)

    def expert(self) -> np.ndarray:
        return self.towards(np.full(self.rows, self.goal))

    def best_return(self, task: np.ndarray) -> np.ndarray:
        return np.ones(len(task))

    def _begin(self, rows: np.ndarray) -> None:
        self.place[rows] = self.centre(self.start[rows]) + JITTER * (2 * self.uniform(2)[rows] - 1)
        self.velocity[rows] = 0

    def _move(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]]:
        self.velocity = DRAG * self.velocity + (1 - DRAG) * np.clip(action, -1, 1, dtype=np.float64)
        for axis in (0, 1):
            there = self.place.copy()
            there[:, axis] += STEP * self.velocity[:, axis]
            free = self.open[self.cell(there)]
            self.place = np.where(free[:, None], there, self.place)
            self.velocity[:, axis] *= free
        arrived = self.near(self.place, self.goal)
        return arrived.astype(np.float64), arrived, {"success": arrived}


class Waypoints:
    """A player on its way to a cell, with unsteady hands and, if asked for, strayings.

    Slow strayings rule the data: the likeliest action of a mixture of players is then not the one that arrives.

    Args:
        goal: (B,) cells.
        noise: standard deviation of the noise on actions.
        stray: (B,) or a number: how likely it is, anew every HOLD steps, that the player strolls to some other cell for so long.
    """

    def __init__(self, goal: np.ndarray, noise: float, stray: float | np.ndarray = 0.0) -> None:
        self.goal, self.noise, self.stray = goal, noise, stray

    def act(self, world: World) -> np.ndarray:
        assert isinstance(world, PointMaze)
        chance = splitmix.uniform(splitmix.split(splitmix.split(world.seed, _STRAY), world.clock // HOLD), 2)
        cells = np.flatnonzero(world.open)
        other = cells[(chance[:, 1] * len(cells)).astype(np.int64)]
        strays = chance[:, 0] < self.stray
        action = world.towards(np.where(strays, other, self.goal)) * np.where(strays, STROLL, 1.0)[:, None]
        noise = splitmix.normal(splitmix.split(splitmix.split(world.seed, _NOISE), world.clock), 2)
        return np.clip(action + self.noise * noise, -1, 1).astype(np.float32)

    def learn(self, experience: Experience) -> None:
        pass


IDS = {
    "foretoken/PointMaze-Medium-v0": {"maze": MEDIUM, "horizon": 150},
    "foretoken/PointMaze-UMaze-v0": {"maze": UMAZE, "horizon": 100},
}
"""Registered names and their settings."""

WORLD = PointMaze
