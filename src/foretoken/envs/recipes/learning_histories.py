"""Learning histories: every episode a learner played while it learned, in order, on many tasks. What Algorithm Distillation reads.

Laskin et al., ICLR 2023, arXiv 2210.14215. A *history* is one stream of learning on one task. Its episodes follow each other in
the store and carry the facts task, stream, history (a number of its own) and order (0, 1, ... in the history), so that windows
with across="history" run on through a learner's episodes and never from one task or stream into another.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from foretoken.core import splitmix
from foretoken.core.errors import ConfigError
from foretoken.data.episode import Episode
from foretoken.data.store import Store
from foretoken.envs.diagnostic import World, make_world
from foretoken.envs.diagnostic.record import record
from foretoken.envs.learners import LearnerConfig, QLearning
from foretoken.envs.recipes.base import RecipeConfig

_STEPS_AT_ONCE = 1 << 22  # how many steps of histories are held in memory


def training_tasks(world: World, count: int) -> np.ndarray:
    """(count,) int64, the first training tasks of a world, all different."""
    tasks = np.array([world.task_of("train", number) for number in range(count)], np.int64)
    if len(np.unique(tasks)) < count:
        raise ConfigError(
            f"{world.spec.environment} has {len(np.unique(tasks))} training tasks, got tasks={count}; "
            "ask for fewer, or for more of each"
        )
    return tasks


def row_seeds(seed: int, task: np.ndarray, stream: np.ndarray) -> np.ndarray:
    """(B,) uint64 by the numbers of each row's task and stream, so that more of either leave the others as they were."""
    return splitmix.split(splitmix.split(np.full(len(task), seed), task), stream)


@dataclass(frozen=True, kw_only=True)
class Histories(RecipeConfig):
    """Abstract: histories of `players()`.

    Attributes:
        name: of the recipe.

    Args:
        environment: id of a world.
        tasks: how many training tasks.
        streams: histories of each task, which differ in their random numbers.
        episodes: length of a history as it is played.
        keep_every: every k-th episode is kept, the first included, and `order` counts those. With `episodes` it sets how much a
            history improves from one stored episode to the next, and so within a window.
        seed: another gives other histories of the same tasks.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 2

    environment: str = "foretoken/DarkRoom-7x7-v0"
    tasks: int = 39
    streams: int = 4
    episodes: int = 150
    keep_every: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tasks", "streams", "episodes", "keep_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        self.at_least(seed=0)

    def players(self) -> tuple[LearnerConfig, ...]:
        """Stream j of each task is played by player j modulo their number."""
        raise NotImplementedError(f"{type(self).__name__} must define players()")

    def write(self, out: Path) -> None:
        world = make_world(self.environment, 1)
        tasks = training_tasks(world, self.tasks)
        about = {"recipe": self.name, "version": self.version, "settings": self.to_json()}
        store = Store.create(out, world.spec, about=about)
        store.extend(self._episodes(tasks, world.spec.max_episode_steps))

    def _episodes(self, tasks: np.ndarray, longest: int) -> Iterator[Episode]:
        task, stream = (part.ravel() for part in np.divmod(np.arange(self.tasks * self.streams), self.streams))
        rows = max(1, _STEPS_AT_ONCE // (longest * len(range(0, self.episodes, self.keep_every))))
        for turn, learner in enumerate(self.players()):
            own = np.flatnonzero(stream % len(self.players()) == turn)
            for part in np.split(own, range(rows, len(own), rows)):
                yield from self._play(learner, tasks, task[part], stream[part])

    def _play(
        self, learner: LearnerConfig, tasks: np.ndarray, task: np.ndarray, stream: np.ndarray
    ) -> Iterator[Episode]:
        """The histories of some rows; `task` and `stream` are their numbers."""
        world = make_world(self.environment, len(task))
        played = record(
            world, learner.build(world), tasks[task], row_seeds(self.seed, task, stream), episodes=self.episodes
        )
        kept = [recorded for number, recorded in enumerate(played) if number % self.keep_every == 0]
        for row in range(len(task)):
            facts: dict[str, Any] = {
                "task": int(tasks[task[row]]),
                "stream": int(stream[row]),
                "history": int(task[row] * self.streams + stream[row]),
            }
            for order, recorded in enumerate(kept):
                yield recorded.episode(row, **facts, order=order)


@dataclass(frozen=True, kw_only=True)
class LearningHistories(Histories):
    """
    Args:
        learner: who plays and learns. Its own length of a history, where it has one, may differ from `episodes`.
        others: further learners that take turns with it: stream j of each task is learned by learner j modulo their number
            (for example some that never get better, to be filtered out).
    """

    name: ClassVar[str] = "learning-histories"

    learner: LearnerConfig = QLearning(episodes=150)
    others: tuple[LearnerConfig, ...] = ()

    def players(self) -> tuple[LearnerConfig, ...]:
        return (self.learner, *self.others)


RECIPE = LearningHistories
