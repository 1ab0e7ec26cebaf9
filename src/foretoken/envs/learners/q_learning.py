"""Q-learning on a table per row, the usual source of learning histories in small rooms.

Watkins and Dayan 1992. Learning rate, discount, exploration and the table's first values are those of the released code of
Sinii et al., ICML 2024, arXiv 2312.13327 (corl-team/headless-ad): epsilon falls from 1 by the episode, and a table that
begins high and uneven sends the greedy player on to what it has not tried.
"""

from dataclasses import dataclass

import numpy as np

from foretoken.core import splitmix
from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.envs.diagnostic.record import Experience
from foretoken.envs.diagnostic.world import World
from foretoken.envs.learners.base import LearnerConfig, greedy, num_choices, numbered, seeds, told_by_number


@dataclass(frozen=True, kw_only=True)
class QLearning(LearnerConfig):
    """Q(s, a) += lr * (r + discount * max Q(s', .) - Q(s, a)), where nothing follows a terminated episode.

    Args:
        episodes: of a whole history; in the first nine tenths epsilon falls linearly from 1.
        lr, discount: in (0, 1] and [0, 1].
        floor: epsilon's last value, the share of actions that stay random.
        initial: the table begins uniform in [0, initial).
    """

    episodes: int = 200
    lr: float = 0.9933
    discount: float = 0.6238
    floor: float = 0.0
    initial: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(episodes=1)
        if not (0 < self.lr <= 1 and 0 <= self.discount <= 1 and 0 <= self.floor <= 1):
            raise ConfigError(
                f"lr must lie in (0, 1], discount and floor in [0, 1], got {self.lr}, {self.discount} and {self.floor}"
            )


@configures(QLearning)
class QPlayer:
    def __init__(self, config: QLearning, world: World) -> None:
        states, actions = num_choices(world.spec.observation, "observation"), num_choices(world.spec.action, "action")
        self.config, self.ended, self.seen = config, np.zeros(world.rows, np.int64), world.spec.observation
        self.q_BSA = np.zeros((world.rows, states, actions))
        self.began = False

    def act(self, world: World) -> np.ndarray:
        config, seed = self.config, seeds(self.config, world)
        rows, _, actions = np.arange(world.rows), *self.q_BSA.shape[1:]
        if not self.began:
            self.q_BSA += config.initial * splitmix.uniform(splitmix.split(seed, 0), self.q_BSA[0].size).reshape(
                self.q_BSA.shape
            )
            self.began = True
        epsilon = np.maximum(config.floor, 1 - self.ended / (0.9 * config.episodes))
        u = splitmix.uniform(seed, 2 + actions)
        best = greedy(self.q_BSA[rows, numbered(self.seen, world.observe())], u[:, 2:])
        return np.where(u[:, 0] < epsilon, (u[:, 1] * actions).astype(np.int64), best)

    def learn(self, experience: Experience) -> None:
        row, experience = np.flatnonzero(experience.alive), told_by_number(self.seen, experience)
        seen, action = experience.observation[row], experience.action[row]
        onward = self.q_BSA[row, experience.next_observation[row]].max(1) * ~experience.terminated[row]
        error = experience.reward[row] + self.config.discount * onward - self.q_BSA[row, seen, action]
        self.q_BSA[row, seen, action] += self.config.lr * error
        self.ended += experience.alive & (experience.terminated | experience.truncated)
