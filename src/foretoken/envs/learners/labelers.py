"""Who can say the best action anywhere in a world, because it knows the task or has learned it before: labels for pretraining.

Data rarely tell what would have been best. Lee et al., NeurIPS 2023, arXiv 2306.14892, take it from closed forms (a world's own
`expert()` here), from planning in a known model, and from experts trained on each task.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from foretoken.core import splitmix
from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.envs.diagnostic import make_world
from foretoken.envs.diagnostic.record import Experience, record
from foretoken.envs.diagnostic.world import World
from foretoken.envs.learners.base import LearnerConfig, num_choices, numbered

_SETTLED = 1e-9  # values that move by less in a sweep are taken as final
_LESSONS = 102  # a stream of random numbers of one seed, beside the world's own


@dataclass(frozen=True, kw_only=True)
class ValueIteration(LearnerConfig):
    """Plans: Q(s, a) = r + discount * max Q(s', .), for worlds without chance whose rows can be `put` into any cell.

    Each move is tried once in each cell of a task. Episodes count as endless, so near a time limit it may want what no longer pays.

    Args:
        discount: in [0, 1).
    """

    adaptive: ClassVar[bool] = False

    discount: float = 0.99

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.discount < 1:
            raise ConfigError(f"discount must lie in [0, 1), got {self.discount}")


@configures(ValueIteration)
class ValueIterationPlayer:
    """S cells, A actions; cells are numbered as observations are."""

    def __init__(self, config: ValueIteration, world: World) -> None:
        if not hasattr(world, "cells") or not hasattr(world, "put"):
            raise ConfigError(
                f"{world.spec.environment} has no cells to be put in, which value iteration needs to try moves"
            )
        self.config, self.q_SA = config, dict[int, np.ndarray]()

    def act(self, world: World) -> np.ndarray:
        tasks, which = np.unique(world.task, return_inverse=True)
        for task in set(tasks.tolist()) - self.q_SA.keys():
            self.q_SA[task] = self.solve(world.spec.environment, task)
        best_KS = np.stack([self.q_SA[task].argmax(1) for task in tasks.tolist()])
        return best_KS[which, numbered(world.spec.observation, world.observe())]

    def solve(self, environment: str, task: int) -> np.ndarray:
        """(S, A) float64, the values of a task's actions."""
        spec = make_world(environment, 1).spec
        states, actions = num_choices(spec.observation, "observation"), num_choices(spec.action, "action")
        cell, action = np.divmod(np.arange(states * actions), actions)
        world = make_world(environment, len(cell))
        world.begin(np.arange(len(cell)), np.full(len(cell), task), np.zeros(len(cell), np.int64))
        world.put(cell)  # type: ignore[attr-defined]
        outcome = world.step(action)
        after, onward = numbered(spec.observation, world.observe()), self.config.discount * ~outcome.terminated
        value = np.zeros(states)
        while True:
            q_SA = (outcome.reward + onward * value[after]).reshape(states, actions)
            moved, value = np.abs(q_SA.max(1) - value).max(), q_SA.max(1)
            if moved < _SETTLED:
                return q_SA

    def learn(self, experience: Experience) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Trained(LearnerConfig):
    """A learner that has played a row's task by itself before it is asked; then it acts as it learned to, and learns no more.

    Args:
        learner: who. It should act without chance at last, as `QLearning(episodes=...)` does.
        episodes: how many it plays.
    """

    adaptive: ClassVar[bool] = False

    learner: LearnerConfig
    episodes: int

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(episodes=1)


@configures(Trained)
class TrainedPlayer:
    def __init__(self, config: Trained, world: World) -> None:
        self.config, self.task = config, np.zeros(0, np.int64)

    def act(self, world: World) -> np.ndarray:
        if not np.array_equal(self.task, world.task):
            self.task, school = world.task.copy(), make_world(world.spec.environment, world.rows)
            self.player = self.config.learner.build(school)
            lessons = record(
                school, self.player, self.task, splitmix.split(world.seed, _LESSONS), episodes=self.config.episodes
            )
            for _ in lessons:
                pass
        return self.player.act(world)

    def learn(self, experience: Experience) -> None:
        pass
