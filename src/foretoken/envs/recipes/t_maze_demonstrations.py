"""Winning runs of the T-Maze's scripted player: what RATE learns from (Cherepanov et al., arXiv 2306.09459: 2000 runs)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foretoken.core import splitmix
from foretoken.core.errors import ConfigError
from foretoken.core.names import nearest
from foretoken.data.store import Store
from foretoken.envs.diagnostic import make_world
from foretoken.envs.diagnostic.record import Expert, record
from foretoken.envs.diagnostic.t_maze import IDS
from foretoken.envs.recipes.base import RecipeConfig


@dataclass(frozen=True, kw_only=True)
class TMazeDemonstrations(RecipeConfig):
    """
    Args:
        world: id of a T-Maze; the default's corridors differ in length, so that when to turn cannot be counted.
        episodes: how many; episode i is a function of (seed, i) alone.
        seed: another one makes other clues, corridors and noise.
    """

    world: str = "foretoken/TMaze-Mixed-150-v0"
    episodes: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.world not in IDS:
            raise ConfigError(f"world must be one of {sorted(IDS)}, got {self.world!r}{nearest(self.world, IDS)}")
        self.at_least(episodes=1, seed=0)

    def write(self, out: Path) -> None:
        world = make_world(self.world, self.episodes)
        store = Store.create(out, world.spec, about={"recipe": "t-maze-demonstrations", "version": self.version})
        task = np.zeros(self.episodes, np.int64)
        (played,) = record(world, Expert(), task, splitmix.split(task + self.seed, np.arange(self.episodes)))
        store.extend(played.episode(row) for row in range(self.episodes))


RECIPE = TMazeDemonstrations
