"""Pendulums of many bodies pushed at random, and swung up by a player whose noise differs from episode to episode.

A share of the episodes is random: torques that last, each mostly what the one before was. In the others the scripted player
acts, and gives way to such torques at a rate that the episode draws from [0, 1).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from foretoken.core import splitmix
from foretoken.data.store import Store
from foretoken.envs.diagnostic import make_world
from foretoken.envs.diagnostic.pendulums import TORQUE
from foretoken.envs.diagnostic.record import Experience, record
from foretoken.envs.diagnostic.world import World
from foretoken.envs.recipes.base import RecipeConfig

_LASTS = 0.6  # correlation of a random torque with the one before


@dataclass(frozen=True, kw_only=True)
class PendulumSwings(RecipeConfig):
    """
    Args:
        bodies: whether they are those for training or the held-out ones.
        episodes: how many, of the bodies in turn.
        random: share of episodes without the player.
        seed: draws starts, rates and torques.
        world: a world of pendulums.
    """

    bodies: Literal["train", "held-out"] = "train"
    episodes: int = 1000
    random: float = 0.5
    seed: int = 0
    world: str = "foretoken/Pendulums-v0"

    def write(self, out: Path) -> None:
        world = make_world(self.world, self.episodes)
        task = np.array([world.task_of(self.bodies, number) for number in range(self.episodes)])
        seeds = splitmix.split(np.full(self.episodes, self.seed), np.arange(self.episodes))
        kind, rate = splitmix.uniform(seeds, 2).T
        rate = np.where(kind < self.random, 1.0, rate)
        (swung,) = record(world, Noisy(rate), task, seeds)
        store = Store.create(out, world.spec, about={"recipe": "pendulum-swings", "version": self.version})
        store.extend(swung.episode(row, task=int(task[row]), rate=float(rate[row])) for row in range(self.episodes))


class Noisy:
    """The scripted player, in whose place a lasting random torque acts at `rate` (B,)."""

    def __init__(self, rate: np.ndarray) -> None:
        self.rate, self.torque = rate, np.zeros((len(rate), 1))

    def act(self, world: World) -> np.ndarray:
        drawn = world.uniform(2)
        fresh = TORQUE * (2 * drawn[:, :1] - 1)
        keeps = splitmix.uniform(splitmix.split(world.seed, 99 + world.clock), 1) < _LASTS
        self.torque = np.where(keeps & (world.clock > 0)[:, None], self.torque, fresh)
        return np.where(drawn[:, 1:] < self.rate[:, None], self.torque, world.expert()).astype(np.float32)

    def learn(self, experience: Experience) -> None:
        pass


RECIPE = PendulumSwings
