"""Demonstrations on foretoken/MultiRoute-v0: unsteady walks through every gate. Which one is a fact, `route`, and not observed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foretoken.core import splitmix
from foretoken.core.errors import ConfigError
from foretoken.data.store import Store
from foretoken.envs.diagnostic import make_world
from foretoken.envs.diagnostic.multi_route import GATES, Walker
from foretoken.envs.diagnostic.record import record
from foretoken.envs.recipes.base import RecipeConfig


@dataclass(frozen=True, kw_only=True)
class MultiRouteDemonstrations(RecipeConfig):
    """
    Args:
        episodes: how many.
        shares: the part of the episodes that takes each gate, from below; exact but for rounding.
        slowest, fastest: each episode draws its pace between them, the length of its actions before noise.
        noise: standard deviation of the noise on actions in [-1, 1].
        seed: draws the rest.
    """

    version = 2  # steps of the world became longer

    episodes: int = 500
    shares: tuple[float, ...] = (0.25, 0.25, 0.25, 0.25)
    slowest: float = 0.5
    fastest: float = 0.8
    noise: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.shares) != len(GATES) or min(self.shares) < 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise ConfigError(f"shares must be {len(GATES)} parts that add up to 1, got {self.shares}")
        if self.episodes < 1 or not 0 < self.slowest <= self.fastest <= 1:
            came = f"episodes={self.episodes}, slowest={self.slowest} and fastest={self.fastest}"
            raise ConfigError(f"episodes must be >= 1 and 0 < slowest <= fastest <= 1, got {came}")

    def write(self, out: Path) -> None:
        world = make_world("foretoken/MultiRoute-v0", self.episodes)
        seeds = splitmix.split(np.full(self.episodes, self.seed), np.arange(self.episodes))
        speed, order = splitmix.uniform(seeds, 2).T
        place = (order.argsort().argsort() + 0.5) / self.episodes
        route = np.searchsorted(np.cumsum(self.shares)[:-1], place, side="right")
        player = Walker(route, self.slowest + (self.fastest - self.slowest) * speed, self.noise)
        (walked,) = record(world, player, np.zeros(self.episodes, np.int64), seeds)
        store = Store.create(out, world.spec, about={"recipe": "multi-route-demonstrations", "version": self.version})
        store.extend(walked.episode(row, route=int(route[row])) for row in range(self.episodes))


RECIPE = MultiRouteDemonstrations
