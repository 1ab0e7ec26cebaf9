"""Solved star graphs: the scripted player's way from the hub along the target's arm, one episode a graph."""

from dataclasses import dataclass
from pathlib import Path

from foretoken.core.errors import ConfigError
from foretoken.core.names import nearest
from foretoken.data.store import Store
from foretoken.envs.diagnostic import make_world
from foretoken.envs.diagnostic.star_graph import IDS
from foretoken.envs.recipes.base import RecipeConfig
from foretoken.envs.recipes.maze_paths import ways


@dataclass(frozen=True, kw_only=True)
class StarPaths(RecipeConfig):
    """
    Args:
        world: id of a star graph.
        episodes: how many; episode i is a function of (seed, i) alone, and its labels one of the tasks for training.
        seed: another one makes other graphs.
    """

    world: str = "foretoken/StarGraph-2x4-16-v0"
    episodes: int = 20_000
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.world not in IDS:
            raise ConfigError(f"world must be one of {sorted(IDS)}, got {self.world!r}{nearest(self.world, IDS)}")
        self.at_least(episodes=1, seed=0)

    def write(self, out: Path) -> None:
        spec = make_world(self.world, 1).spec
        Store.create(out, spec, about={"recipe": "star-paths", "version": self.version}).extend(
            ways(self.world, self.episodes, self.seed)
        )


RECIPE = StarPaths
