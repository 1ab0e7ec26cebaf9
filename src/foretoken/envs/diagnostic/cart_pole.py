"""Cart-pole, whole and with its velocities hidden: a pole on a cart is kept upright by pushes to the left and right.

The agent sees (place, velocity, angle, angular velocity), or in the Positions variant place and angle alone, so that it must
remember to know how things move. Every step earns 1; an angle beyond 12 degrees or a place beyond 2.4 ends the episode, as in
Gymnasium's CartPole-v1, whose dynamics (Barto, Sutton, Anderson 1983; explicit Euler, 0.02 s) these are.
"""

from collections.abc import Mapping

import numpy as np

from foretoken.core import splitmix
from foretoken.core.spec import Box, Discrete, Spec
from foretoken.envs.diagnostic.world import World

_GRAVITY, _CART, _POLE, _HALF, _FORCE, _STEP = (
    9.8,
    1.0,
    0.1,
    0.5,
    10.0,
    0.02,
)  # SI units; _HALF is half the pole's length
_FAR, _TILTED = 2.4, 12 * np.pi / 180
_EPISODE = 3  # a stream of random numbers of one seed, beside the world's own
_LEAN = np.array([0.5, 1.0, 10.0, 2.0])  # the scripted player pushes to the side where this sum leans


class CartPole(World):
    """
    Args:
        rows: copies.
        id: registered name.
        horizon: steps, after which an episode is truncated.
        hidden: velocities are not seen.

    Attributes:
        body: (B, 4) float64, place, velocity, angle and angular velocity.
    """

    num_tasks = 1
    arrays = ("body",)

    def __init__(self, rows: int, id: str, *, horizon: int = 500, hidden: bool = False) -> None:
        super().__init__(rows)
        self.seen = [0, 2] if hidden else [0, 1, 2, 3]
        self.spec = Spec(
            observation=Box(shape=(len(self.seen),)), action=Discrete(n=2), environment=id, max_episode_steps=horizon
        )
        self.body = np.zeros((rows, 4))

    def observe(self) -> np.ndarray:
        return self.body[:, self.seen].astype(np.float32)

    def expert(self) -> np.ndarray:
        return (self.body @ _LEAN > 0).astype(np.int64)

    def best_return(self, task: np.ndarray) -> np.ndarray:
        return np.full(len(task), float(self.spec.max_episode_steps))

    def _begin(self, rows: np.ndarray) -> None:
        self.body[rows] = 0.1 * splitmix.uniform(splitmix.split(self.seed[rows], _EPISODE), 4) - 0.05

    def _move(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]]:
        _, velocity, angle, spin = self.body.T
        sine, cosine, mass = np.sin(angle), np.cos(angle), _CART + _POLE
        pushed = (np.where(action == 1, _FORCE, -_FORCE) + _POLE * _HALF * spin**2 * sine) / mass
        turn = (_GRAVITY * sine - cosine * pushed) / (_HALF * (4 / 3 - _POLE * cosine**2 / mass))
        speed = pushed - _POLE * _HALF * turn * cosine / mass
        self.body = self.body + _STEP * np.stack((velocity, speed, spin, turn), axis=1)
        fallen = (np.abs(self.body[:, 0]) > _FAR) | (np.abs(self.body[:, 2]) > _TILTED)
        return np.ones(self.rows), fallen, {}


IDS = {
    "foretoken/CartPole-v0": {},
    "foretoken/CartPole-Positions-v0": {"hidden": True},
    "foretoken/CartPole-Positions-200-v0": {"hidden": True, "horizon": 200},
}
"""Registered names and their settings."""

WORLD = CartPole
"""The class that they name."""
