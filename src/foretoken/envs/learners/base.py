"""LearnerConfig: a player that learns while it plays, described by its settings; and the two players that know nothing to learn.

    player = QLearning(episodes=200).build(world)
    for recorded in record(world, player, task, seed, episodes=200): ...

A row of the player's memory belongs to a row of the world: one stream of learning. What a row does is a function of its task,
its seed and its own past, whoever the other rows are.
"""

import math
import zlib
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from foretoken.core import splitmix
from foretoken.core.config import Config, configures
from foretoken.core.errors import ConfigError
from foretoken.core.spec import Box, Discrete, MultiDiscrete, Space
from foretoken.envs.diagnostic.record import Experience, Expert, Player
from foretoken.envs.diagnostic.world import World


@dataclass(frozen=True, kw_only=True)
class LearnerConfig(Config):
    """Abstract. `build(world)` makes the player; its memory begins there and outlives episodes.

    Attributes:
        adaptive: what is done depends on what was seen before, so the steps of a history mean something in their order alone.
    """

    adaptive: ClassVar[bool] = True


def seeds(config: LearnerConfig, world: World) -> np.ndarray:
    """(B,) uint64 for a learner's random numbers at this step: not the world's own, and another kind of learner has others."""
    return splitmix.split(episode_seeds(config, world), world.clock)


def episode_seeds(config: LearnerConfig, world: World) -> np.ndarray:
    """(B,) uint64, the same at every step of an episode."""
    return splitmix.split(world.seed, zlib.crc32(type(config).__name__.encode()))


def greedy(value_BA: np.ndarray, uniform_BA: np.ndarray) -> np.ndarray:
    """(B,) int64 each row's best choice; ties are broken by random numbers."""
    return np.where(value_BA == value_BA.max(1, keepdims=True), uniform_BA, -1.0).argmax(1)


def choice(share_BA: np.ndarray, uniform_B: np.ndarray) -> np.ndarray:
    """(B,) int64 choices drawn with the probabilities of each row."""
    return np.minimum((share_BA.cumsum(1) <= uniform_B[:, None]).sum(1), share_BA.shape[1] - 1)


def any_action(space: Space, seed_B: np.ndarray) -> np.ndarray:
    """(B, ...) uniform actions of a Discrete space or a bounded Box."""
    if isinstance(space, Discrete):
        return space.start + (splitmix.uniform(seed_B, 1)[:, 0] * space.n).astype(np.int64)
    if isinstance(space, Box) and np.isfinite([*space.low, *space.high]).all():
        low, high = np.array(space.low), np.array(space.high)
        values = low + (high - low) * splitmix.uniform(seed_B, space.size)
        return values.astype(space.dtype).reshape(-1, *space.shape)
    raise ConfigError(f"uniform actions need a Discrete space or a Box with finite bounds, got {space}")


def num_choices(space: Space, what: str) -> int:
    """How many values a Discrete space that counts from 0, or a MultiDiscrete one, has; learners with tables need it."""
    if isinstance(space, MultiDiscrete):
        return math.prod(space.nvec)
    if not isinstance(space, Discrete) or space.start:
        raise ConfigError(f"{what} must be MultiDiscrete, or Discrete from 0, got {space}")
    return space.n


def numbered(space: Space, values_B: np.ndarray) -> np.ndarray:
    """(B,) int64 each value's number among those that `num_choices` counts."""
    return np.ravel_multi_index(tuple(values_B.T), space.nvec) if isinstance(space, MultiDiscrete) else values_B


def told_by_number(space: Space, experience: Experience) -> Experience:
    """The same with observations as their numbers."""
    seen, now = (numbered(space, part) for part in (experience.observation, experience.next_observation))
    return experience._replace(observation=seen, next_observation=now)


@dataclass(frozen=True, kw_only=True)
class UniformRandom(LearnerConfig):
    """Any action, whatever was seen."""

    adaptive: ClassVar[bool] = False


@configures(UniformRandom)
class UniformPlayer:
    def __init__(self, config: UniformRandom, world: World) -> None:
        self.config = config

    def act(self, world: World) -> np.ndarray:
        return any_action(world.spec.action, seeds(self.config, world))

    def learn(self, experience: Experience) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Noisy(LearnerConfig):
    """Improves without learning: with probability epsilon a uniform action, else the player's; epsilon changes at every step.

    Zisman et al., ICML 2024, arXiv 2312.12275. Epsilon is a function of the share of the history that is over, counted in
    episodes and in steps within them, so that it falls evenly where all episodes are of one length.

    Args:
        episodes: of a whole history.
        floor: epsilon after its fall; what is left of the player there is the best that a history shows.
        fall: the share of the history in which a linear epsilon comes down from 1 to `floor`, where it stays. The released
            code falls by 1 in 0.9 of the history and stops at the floor: that is 0.9 * (1 - floor).
        schedule: "linear"; "reversed", the same backwards in time; "constant", always the floor.
        player: who acts otherwise; None is the world's scripted player.
    """

    episodes: int
    floor: float = 0.0
    fall: float = 0.9
    schedule: Literal["linear", "reversed", "constant"] = "linear"
    player: LearnerConfig | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(episodes=1)
        if not 0 <= self.floor <= 1:
            raise ConfigError(f"floor is a probability, in [0, 1], got {self.floor}")
        if not 0 < self.fall <= 1:
            raise ConfigError(f"fall is a share of the history, in (0, 1], got {self.fall}")

    def epsilon(self, over_B: np.ndarray) -> np.ndarray:
        """(B,) by the share of the history that is over (B,)."""
        if self.schedule == "constant":
            return np.full(len(over_B), self.floor)
        share = (1 - over_B if self.schedule == "reversed" else over_B) / self.fall
        return np.maximum(self.floor, 1 - (1 - self.floor) * share)


@configures(Noisy)
class NoisyPlayer:
    def __init__(self, config: Noisy, world: World) -> None:
        self.config, self.ended = config, np.zeros(world.rows, np.int64)
        self.player: Player = Expert() if config.player is None else config.player.build(world)

    def act(self, world: World) -> np.ndarray:
        over = (self.ended + world.clock / world.spec.max_episode_steps) / self.config.episodes
        seed = seeds(self.config, world)
        meant, other = self.player.act(world), any_action(world.spec.action, splitmix.split(seed, 0))
        stray = splitmix.uniform(seed, 1)[:, 0] < self.config.epsilon(over)
        return np.where(stray.reshape(-1, *[1] * (meant.ndim - 1)), other, meant)

    def learn(self, experience: Experience) -> None:
        self.ended += experience.alive & (experience.terminated | experience.truncated)
        self.player.learn(experience)
