"""Multi-Route: a point walks to a goal behind a wall with four gates; every gate is as good, their average is wall.

The agent sees its place (x, y). An action in [-1, 1] per axis, shortened to length 1, moves it by STEP of itself. Episodes
begin near (0, 0.5); arrival at the disc around (1, 0.5) pays 1 and ends the episode, touching the wall ends it for nothing.
`info["route"]` is the gate entered last, 0 to 3 from below, and -1 as long as there was none; `info["success"]` is arrival.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from foretoken.core import splitmix
from foretoken.core.spec import Box, Spec
from foretoken.envs.diagnostic.record import Experience
from foretoken.envs.diagnostic.world import World

STEP = 0.2
"""So long that the choice is made at once. With short steps cloning of the average arrives too: its flow keeps the flow of the crowd,
and none of that leads into the wall."""
WALL = (0.45, 0.55)  # where along x
GATES = (0.1, 0.25, 0.75, 0.9)  # the middles of the openings along y
HALF_GATE = 0.05
GOAL, RADIUS = (1.0, 0.5), 0.05
JITTER = 0.001  # how far from (0, 0.5) an episode may begin, per axis: too little to tell the route
MARGIN = 0.05  # how far from the wall the scripted player turns towards its gate, and away from it
ALIGNED = 0.02  # how near a gate's middle it must be before it walks in
_NOISE, _ROUTE = 11, 12  # a player's streams of random numbers

_GATES, _GOAL = np.array(GATES), np.array(GOAL)
_CUTS = (_GATES[1:] + _GATES[:-1]) / 2  # between which the gate nearest to a y lies


class MultiRoute(World):
    """
    Args:
        rows: copies.
        id: registered name.
        horizon: steps of an episode.

    Attributes:
        place: (B, 2) float64 (x, y), in [-0.1, 1.1] and [0, 1].
        route: (B,) int64, the gate entered last, -1 before the first.
    """

    num_tasks = 1
    arrays = ("place", "route")

    def __init__(self, rows: int, id: str, *, horizon: int = 100) -> None:
        super().__init__(rows)
        self.spec = Spec(
            observation=Box(shape=(2,), low=(-0.1, 0.0), high=(1.1, 1.0)),
            action=Box(shape=(2,), low=(-1,), high=(1,)),
            environment=id,
            max_episode_steps=horizon,
        )
        self.place, self.route = np.tile([0.0, 0.5], (rows, 1)), np.full(rows, -1)

    def observe(self) -> np.ndarray:
        return self.place.astype(np.float32)

    def towards(self, route: np.ndarray, pace: float | np.ndarray = 1.0) -> np.ndarray:
        """(B, 2) float32 the action of a player that takes a gate (B,): to its front, straight through, to the goal.

        Args:
            pace: (B,) or a number, the length of its actions, in (0, 1].
        """
        x, y = self.place[:, 0], self.place[:, 1]
        gate = _GATES[route]
        enters = (x >= WALL[0]) | (np.abs(y - gate) <= ALIGNED)
        front = np.where(enters, WALL[1] + MARGIN, WALL[0] - MARGIN)
        past = x >= WALL[1] + MARGIN / 2
        aim = np.stack([np.where(past, GOAL[0], front), np.where(past, GOAL[1], gate)], axis=1)
        way = (aim - self.place) / STEP
        return (way / np.maximum(_length(way) / pace, 1)[:, None]).astype(np.float32)

    def expert(self) -> np.ndarray:
        """Takes each gate in a quarter of the episodes, by their seeds."""
        return self.towards((splitmix.split(self.seed, _ROUTE) >> np.uint64(62)).astype(np.int64))

    def best_return(self, task: np.ndarray) -> np.ndarray:
        return np.ones(len(task))

    def _begin(self, rows: np.ndarray) -> None:
        self.place[rows] = [0.0, 0.5] + JITTER * (2 * self.uniform(2)[rows] - 1)
        self.route[rows] = -1

    def _move(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]]:
        before, force = self.place, np.clip(action, -1, 1, dtype=np.float64)
        force *= STEP / np.maximum(_length(force), 1)[:, None]
        self.place = np.clip(before + force, (-0.1, 0.0), (1.1, 1.0))
        (x, y), (x_then, y_then) = self.place.T, before.T
        # The part of the step inside the wall is straight: it is free when its two ends lie in one gate.
        gone = x - x_then
        slope = (y - y_then) / np.where(gone == 0, 1, gone)
        entered, left = np.clip(x_then, *WALL), np.clip(x, *WALL)
        inside = (entered != left) | ((x >= WALL[0]) & (x <= WALL[1]))
        ends = y_then + slope * (entered - x_then), np.where(gone == 0, y, y_then + slope * (left - x_then))
        gate = np.searchsorted(_CUTS, ends[1])
        middle = _GATES[gate]
        hit = inside & (np.maximum(np.abs(ends[0] - middle), np.abs(ends[1] - middle)) > HALF_GATE)
        self.route = np.where(inside & ~hit, gate, self.route)
        arrived = ~hit & (_length(self.place - _GOAL) <= RADIUS)
        return arrived.astype(np.float64), arrived | hit, {"success": arrived, "route": self.route}


def _length(vector_B2: np.ndarray) -> np.ndarray:
    return np.sqrt(vector_B2[:, 0] ** 2 + vector_B2[:, 1] ** 2)


class Walker:
    """A player that takes a given gate with unsteady hands.

    Args:
        route: (B,) gates.
        pace: (B,) the length of its actions before noise.
        noise: standard deviation of the noise on actions.
    """

    def __init__(self, route: np.ndarray, pace: np.ndarray, noise: float) -> None:
        self.route, self.pace, self.noise = route, pace, noise

    def act(self, world: World) -> np.ndarray:
        assert isinstance(world, MultiRoute)
        noise = splitmix.normal(splitmix.split(splitmix.split(world.seed, _NOISE), world.clock), 2)
        return np.clip(world.towards(self.route, self.pace) + self.noise * noise, -1, 1).astype(np.float32)

    def learn(self, experience: Experience) -> None:
        pass


IDS: dict[str, dict[str, Any]] = {"foretoken/MultiRoute-v0": {}}
"""Registered names and their settings."""

WORLD = MultiRoute
