"""Solved mazes: the scripted player's way through each, one episode a maze. What MLM-U and its peers learn from.

Made by our own generator, or by the package maze-dataset (extra `maze`; Ivanitskiy et al. 2023, arXiv 2309.10498), as Nolte et al.
2024, arXiv 2412.05117, have theirs: depth-first mazes with forks, and two different cells at random.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from foretoken.core import splitmix
from foretoken.core.errors import ConfigError, DataError
from foretoken.core.grid import passages
from foretoken.core.names import nearest
from foretoken.data.episode import Episode
from foretoken.data.store import Store
from foretoken.envs.diagnostic import make_world, maze, open_maze
from foretoken.envs.diagnostic.record import Expert, record
from foretoken.envs.recipes.base import RecipeConfig

_AT_ONCE = 2048  # episodes that are played together


@dataclass(frozen=True, kw_only=True)
class MazePaths(RecipeConfig):
    """
    Args:
        world: id of a maze, or of an open maze, for which the way is one of the shortest.
        episodes: how many; of our own, episode i is a function of (seed, i) alone, and its maze one of the tasks for training.
        generator: "own", or "maze-dataset", whose mazes are no tasks of the world's.
        seed: another one makes other mazes.
    """

    world: str = "foretoken/Maze5x5-v0"
    episodes: int = 20_000
    generator: Literal["own", "maze-dataset"] = "own"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        known = maze.IDS if self.generator == "maze-dataset" else maze.IDS | open_maze.IDS
        if self.world not in known:
            raise ConfigError(f"world must be one of {sorted(known)}, got {self.world!r}{nearest(self.world, known)}")
        self.at_least(episodes=1, seed=0)

    def missing(self) -> str:
        """What is not installed to make it; "" where all is."""
        needs = self.generator == "maze-dataset" and find_spec("maze_dataset") is None
        return "maze-dataset is not installed; pip install 'foretoken[maze]'" if needs else ""

    def write(self, out: Path) -> None:
        if self.missing():
            raise DataError(f"{type(self).__name__} cannot be made: {self.missing()}")
        spec = make_world(self.world, 1).spec
        store = Store.create(out, spec, about={"recipe": "maze-paths", "version": self.version})
        own = self.generator == "own"
        store.extend(ways(self.world, self.episodes, self.seed) if own else self._of_package())

    def _of_package(self) -> Iterator[Episode]:
        from maze_dataset import MazeDataset, MazeDatasetConfig
        from maze_dataset.generation import LatticeMazeGenerators

        config = MazeDatasetConfig(
            name="foretoken", grid_n=maze.IDS[self.world]["size"], n_mazes=self.episodes, seed=self.seed,
            maze_ctor=LatticeMazeGenerators.gen_dfs, maze_ctor_kwargs={"do_forks": True},
        )  # fmt: skip
        for made in MazeDataset.from_config(config, load_local=False, save_local=False, verbose=False):
            yield solved(np.asarray(made.connection_list), np.asarray(made.solution))


def ways(world: str, episodes: int, seed: int) -> Iterator[Episode]:
    """The scripted player's episodes of the training tasks that (seed, number) draw, one each."""
    for start in range(0, episodes, _AT_ONCE):
        number = np.arange(start, min(start + _AT_ONCE, episodes))
        rows = make_world(world, len(number))
        own = splitmix.split(np.full(len(number), seed), number)
        (played,) = record(rows, Expert(), rows.drawn_tasks(own), own)
        yield from (played.episode(row) for row in range(len(number)))


def solved(joined: np.ndarray, way: np.ndarray) -> Episode:
    """One episode of maze-dataset's arrays.

    Args:
        joined: (2, S, S) bool: each cell is joined to the one below it, and to the one on its right.
        way: (n + 1, 2) rows and columns from origin to target, n >= 1.
    """
    size, count = joined.shape[1], len(passages(joined.shape[1]))
    cell = way @ np.array([size, 1])
    seen = np.zeros((len(way), count + 2 * size * size), np.int8)
    seen[:, :count] = np.concatenate((joined[0, :-1].ravel(), joined[1, :, :-1].ravel()))
    seen[np.arange(len(way)), count + cell] = seen[:, count + size * size + cell[-1]] = 1
    ends = np.arange(len(way) - 1) == len(way) - 2
    down, right = np.diff(way, axis=0).T
    return Episode(
        observation=seen,
        action=np.where(down != 0, (down + 1) // 2, 2 + (right + 1) // 2),
        reward=ends.astype(np.float64),
        terminated=ends,
        truncated=np.zeros_like(ends),
        facts={"success": True},
    )


RECIPE = MazePaths
