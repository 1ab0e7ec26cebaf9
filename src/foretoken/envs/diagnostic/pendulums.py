"""Pendulums: Gymnasium's Pendulum with 25 bodies, which look alike and move differently.

The observation is (cos, sin of the angle from upright, angular velocity), the action a torque of at most 2, held for two steps
of 0.05 s, each of which costs angle^2 + 0.1 velocity^2 + 0.001 torque^2 and adds to the

    velocity    0.05 (3 g sin(angle) / (2 length) + 3 torque / (mass length^2) - damping velocity)
    angle       0.05 velocity

A task is a body, (mass, length, damping) hashed from its number; 20 are for training. Which it is shows only in how it
answers to torques. Torques lift no body at once: it must be swung up. Tassa et al. 2018, arXiv 1801.00690, has such families.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from foretoken.core import splitmix
from foretoken.core.spec import Box, Spec
from foretoken.envs.diagnostic.record import Expert, record
from foretoken.envs.diagnostic.world import World

GRAVITY, SECONDS, TORQUE, FASTEST = 10.0, 0.05, 2.0, 8.0
MASS, LENGTH, DAMPING = (0.5, 1.5), (0.5, 1.25), (0.0, 0.2)
BODIES = 25
_EPISODE, _BODY = 3, 7  # streams of random numbers, of one seed and of one task


def bodies(task: np.ndarray) -> np.ndarray:
    """(K, 3) float64: mass, length and damping of these tasks (K,)."""
    low, high = np.array([MASS, LENGTH, DAMPING]).T
    return low + (high - low) * splitmix.uniform(splitmix.split(np.asarray(task), _BODY), 3)


class Pendulums(World):
    """
    Args:
        rows: copies.
        id: registered name.
        horizon: actions of an episode; it never ends before.
        repeat: steps of 0.05 s for which an action is held.
        varied: whether bodies differ; else all are Gymnasium's, of mass and length 1, undamped.

    Attributes:
        angle, velocity: (B,) float64; body: (B, 3) float64, mass, length and damping.
    """

    arrays = ("angle", "velocity", "body")

    def __init__(self, rows: int, id: str, *, horizon: int = 50, repeat: int = 2, varied: bool = True) -> None:
        super().__init__(rows)
        self.num_tasks, self.repeat = BODIES if varied else 1, repeat
        self.spec = Spec(
            observation=Box(shape=(3,), low=(-1, -1, -FASTEST), high=(1, 1, FASTEST)),
            action=Box(shape=(1,), low=(-TORQUE,), high=(TORQUE,)),
            environment=id,
            max_episode_steps=horizon,
        )
        self.angle, self.velocity, self.body = np.zeros(rows), np.zeros(rows), np.tile([1.0, 1.0, 0.0], (rows, 1))

    def observe(self) -> np.ndarray:
        return np.stack([np.cos(self.angle), np.sin(self.angle), self.velocity], axis=1).astype(np.float32)

    def expert(self) -> np.ndarray:
        """(B, 1) float32: pumps the energy of standing upright into the body, and holds it there."""
        mass, length, damping = self.body.T
        angle, weight, inertia = _wrapped(self.angle), mass * GRAVITY * length / 2, mass * length**2 / 3
        lacking = weight * (1 - np.cos(angle)) - inertia * self.velocity**2 / 2
        pump = TORQUE * np.clip(3 * lacking, -1, 1) * np.where(self.velocity >= 0, 1, -1)
        hold = damping * inertia * self.velocity - weight * np.sin(angle) - inertia * (25 * angle + 8 * self.velocity)
        near = (np.abs(hold) < 2 * TORQUE) & (np.abs(angle) < 0.6)
        return np.clip(np.where(near, hold, pump), -TORQUE, TORQUE).astype(np.float32)[:, None]

    def best_return(self, task: np.ndarray) -> np.ndarray:
        """Has no closed form: the mean over 512 episodes of the player with each body, which are played once."""
        played = _played(self.spec.environment, self.num_tasks, self.spec.max_episode_steps)
        return played[task]

    def _begin(self, rows: np.ndarray) -> None:
        if self.num_tasks > 1:
            self.body[rows] = bodies(self.task[rows])
        start = 2 * splitmix.uniform(splitmix.split(self.seed[rows], _EPISODE), 2) - 1
        self.angle[rows], self.velocity[rows] = np.pi * start[:, 0], start[:, 1]

    def _move(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]]:
        mass, length, damping = self.body.T
        torque, reward = np.clip(action[:, 0].astype(np.float64), -TORQUE, TORQUE), np.zeros(self.rows)
        for _ in range(self.repeat):
            reward -= _wrapped(self.angle) ** 2 + 0.1 * self.velocity**2 + 0.001 * torque**2
            pull = 1.5 * GRAVITY / length * np.sin(self.angle) - damping * self.velocity
            push = 3 * torque / (mass * length**2)
            self.velocity = np.clip(self.velocity + SECONDS * (pull + push), -FASTEST, FASTEST)
            self.angle = self.angle + SECONDS * self.velocity
        return reward, np.zeros(self.rows, bool), {}


def _wrapped(angle: np.ndarray) -> np.ndarray:
    return (angle + np.pi) % (2 * np.pi) - np.pi


@cache
def _played(id: str, num_tasks: int, horizon: int) -> np.ndarray:
    world = Pendulums(512 * num_tasks, id, horizon=horizon, varied=num_tasks > 1)
    (played,) = record(world, Expert(), np.repeat(np.arange(num_tasks), 512), np.arange(world.rows))
    return played.total.reshape(num_tasks, 512).mean(1)


IDS: dict[str, dict[str, Any]] = {
    "foretoken/Pendulums-v0": {},
    "foretoken/Pendulum-v0": {"varied": False},
}
"""Registered names and their settings."""

WORLD = Pendulums
