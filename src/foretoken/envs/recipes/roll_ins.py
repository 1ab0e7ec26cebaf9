"""Roll-ins: on each task a block of transitions, whoever made them, and the best action in every situation they passed.

Pretraining data of Decision-Pretrained Transformers, Lee et al., NeurIPS 2023, arXiv 2306.14892. A block of `horizon` transitions
is one episode of the store with two more columns: optimal_action, the labeler's in the situation of the step, and
next_observation, the transition's own successor, for the next step need not begin there: states may be drawn, and a
player's episodes follow each other in a block. So returns and ends of a block mean nothing. Facts: task, history (the
block's number) and adaptive.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from foretoken.core import splitmix
from foretoken.core.errors import ConfigError
from foretoken.data.episode import Episode
from foretoken.data.store import Store
from foretoken.envs.diagnostic import make_world
from foretoken.envs.diagnostic.record import Experience, Expert
from foretoken.envs.learners import LearnerConfig, MixedArms, UniformRandom
from foretoken.envs.recipes.base import RecipeConfig
from foretoken.envs.recipes.learning_histories import row_seeds, training_tasks

_ROWS_AT_ONCE = 2048
_PLACE = 101  # a stream of random numbers of one seed, beside the world's own


@dataclass(frozen=True, kw_only=True)
class RollIns(RecipeConfig):
    """
    Args:
        environment: id of a world.
        kind: "uniform" draws state and action of every transition evenly, in worlds whose rows can be `put` anywhere;
            "mixed" draws arms with probabilities of each block's own (`MixedArms`); "learner" lets `learner` play.
        learner: of kind "learner". Where it is adaptive, the transitions of a block must not be shuffled, as the store says under
            `about` and in the fact.
        label: who else is told of every transition; what it would have done is the column label_action. Shows what
            happens when data and lessons come from different algorithms (Lin, Bai and Mei, ICLR 2024, arXiv 2310.08566).
        labeler: who says optimal_action, the label of pretraining: None is the world's own scripted player, which knows the task; where
            a world has none that is the best, `ValueIteration()` plans, and `Trained(learner=..., episodes=...)` is an expert that
            learned each task before. It is not told of the block's transitions.
        tasks: how many training tasks.
        horizon: transitions of a block.
        blocks: blocks of each task; a learner begins each of them anew.
        seed: another gives other blocks of the same tasks.
    """

    version: ClassVar[int] = 2

    environment: str = "foretoken/Bandit-v0"
    kind: Literal["uniform", "mixed", "learner"] = "mixed"
    learner: LearnerConfig | None = None
    label: LearnerConfig | None = None
    labeler: LearnerConfig | None = None
    tasks: int = 20_000
    horizon: int = 200
    blocks: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tasks", "horizon", "blocks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        self.at_least(seed=0)
        if (self.kind == "learner") != (self.learner is not None):
            raise ConfigError(
                f'a learner is given with kind="learner", and only then, got kind={self.kind!r} and {self.learner}'
            )

    @property
    def player(self) -> LearnerConfig:
        """Who acts."""
        return self.learner or (MixedArms() if self.kind == "mixed" else UniformRandom())

    def write(self, out: Path) -> None:
        world = make_world(self.environment, 1)
        if self.kind == "uniform" and not hasattr(world, "cells"):
            raise ConfigError(
                f'{self.environment} has no cells to be put in; for its own trajectories take kind="learner" with '
                "learner=UniformRandom()"
            )
        columns = {"optimal_action": world.spec.action, "next_observation": world.spec.observation}
        columns |= {"label_action": world.spec.action} if self.label else {}
        about = {
            "recipe": "roll-ins",
            "version": self.version,
            "adaptive": self.player.adaptive,
            "settings": self.to_json(),
        }
        store = Store.create(out, world.spec, columns=columns, about=about)
        store.extend(self._episodes(training_tasks(world, self.tasks)))

    def _episodes(self, tasks: np.ndarray) -> Iterator[Episode]:
        ends = np.arange(self.horizon) == self.horizon - 1
        for low in range(0, self.tasks * self.blocks, _ROWS_AT_ONCE):
            history = np.arange(low, min(low + _ROWS_AT_ONCE, self.tasks * self.blocks))
            task, block = np.divmod(history, self.blocks)
            found = self._roll(tasks[task], row_seeds(self.seed, task, block))
            observation, action, reward = (found.pop(name) for name in ("observation", "action", "reward"))
            last = found["next_observation"][:, -1:]
            observation = np.concatenate([observation, last], axis=1)
            for row, number in enumerate(history):
                yield Episode(
                    observation=observation[row],
                    action=action[row],
                    reward=reward[row],
                    terminated=np.zeros_like(ends),
                    truncated=ends,
                    columns={name: values[row] for name, values in found.items()},
                    facts={
                        "task": int(tasks[task[row]]),
                        "history": int(number),
                        "adaptive": self.player.adaptive,
                    },
                )

    def _roll(self, task: np.ndarray, seed: np.ndarray) -> dict[str, np.ndarray]:
        """A block per row: arrays (B, horizon, ...) by column."""
        world = make_world(self.environment, len(task))
        player, label = self.player.build(world), self.label.build(world) if self.label else None
        labeler = self.labeler.build(world) if self.labeler else Expert()
        number = np.zeros(len(task), np.int64)
        world.begin(np.arange(len(task)), task, splitmix.split(seed, number))
        steps: list[Mapping[str, np.ndarray]] = []
        for _ in range(self.horizon):
            if self.kind == "uniform":
                _scatter(world)
            seen = world.observe().copy()
            step = {"observation": seen, "optimal_action": labeler.act(world), "action": player.act(world)}
            step |= {"label_action": label.act(world)} if label else {}
            outcome = world.step(step["action"])
            step |= {"reward": outcome.reward, "next_observation": world.observe().copy()}
            told = Experience(
                seen, step["action"], outcome.reward, step["next_observation"], outcome.terminated, outcome.truncated,
                np.ones(len(task), bool),
            )  # fmt: skip
            for learner in (player, label) if label else (player,):
                learner.learn(told)
            steps.append(step)
            over = np.flatnonzero(outcome.terminated | outcome.truncated)
            number[over] += 1
            world.begin(over, task[over], splitmix.split(seed[over], number[over]))
        return {name: np.stack([step[name] for step in steps], axis=1) for name in steps[0]}


def _scatter(world: Any) -> None:
    """Puts every row into any cell, all as likely."""
    seed = splitmix.split(splitmix.split(world.seed, _PLACE), world.clock)
    world.put((splitmix.uniform(seed, 1)[:, 0] * world.cells).astype(np.int64))


RECIPE = RollIns
