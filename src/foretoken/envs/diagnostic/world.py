"""World: many copies of one small environment as arrays, stepped together in numpy.

A row is one copy. Every call of `step` moves all rows; each row begins and ends by itself. A *task* is what stays the same
over the episodes of one in-context trial (the goal's place, the arms' means): an integer, of which the world's parameters are
a pure function. What happens in an episode is a function of (task, seed, actions) alone, whoever the other rows are.

    world = make_world("foretoken/DarkRoom-v0", rows=256)
    world.begin(np.arange(256), task, seed)
    outcome = world.step(world.expert())
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np

from foretoken.core import splitmix
from foretoken.core.errors import ConfigError
from foretoken.core.spec import Spec
from foretoken.envs.spaces import to_space

Part = Literal["train", "held-out"]

_HELD_OUT = 1 << 40  # where the held-out tasks of an endless world begin
_TRAIN_SHARE = 0.8
_NOISE, _TASK = 1, 2  # streams of random numbers of one seed


class Outcome(NamedTuple):
    """What one step brought, one entry per row. `info` may hold "regret", "cost", "success", "route" and "delay", (B,) each."""

    reward: np.ndarray  # (B,) float64
    terminated: np.ndarray  # (B,) bool
    truncated: np.ndarray  # (B,) bool
    info: Mapping[str, np.ndarray] = {}


@cache
def _parts(num_tasks: int) -> Mapping[Part, np.ndarray]:
    """A finite world's tasks for training and those held out."""
    order = np.random.default_rng(0).permutation(num_tasks)
    train = max(1, round(_TRAIN_SHARE * num_tasks))
    return {"train": order[:train], "held-out": order[train:]}


class World(ABC):
    """Abstract. Subclasses set `spec` and `num_tasks`, keep their state in arrays with the row first, and name those in `arrays`.

    Args:
        rows: copies.

    Attributes:
        spec: spaces, the id it is registered under, and `max_episode_steps`, after which an episode is truncated.
        num_tasks: how many tasks there are; 0 = endless (any integer is one).
        arrays: names of the attributes that are a row's state beside `task`, `seed` and `clock`.
        delays: the fewest and the most steps over which something must be remembered; None where that is not the question.
            Where they differ, `info["delay"]` is the episode's.
        task, seed: (B,) int64 and uint64, as given to `begin`; clock: (B,) int64, actions taken in the episode.
    """

    spec: Spec
    num_tasks: int = 0
    arrays: tuple[str, ...] = ()
    delays: tuple[int, int] | None = None

    def __init__(self, rows: int) -> None:
        if rows < 1:
            raise ConfigError(f"a world needs at least 1 row, got {rows}")
        self.task, self.seed = np.zeros(rows, np.int64), np.zeros(rows, np.uint64)
        self.clock = np.zeros(rows, np.int64)

    @property
    def rows(self) -> int:
        return len(self.clock)

    # -- what a subclass writes

    @abstractmethod
    def observe(self) -> np.ndarray:
        """What each row shows now, (B, *observation shape) in the spec's dtype, not to be written into."""

    @abstractmethod
    def expert(self) -> np.ndarray:
        """The scripted player's action in each row's present situation, (B, *action shape); it knows the task."""

    @abstractmethod
    def best_return(self, task: np.ndarray) -> np.ndarray:
        """(K,) float64: what the scripted player earns in an episode of these tasks, in expectation."""

    @abstractmethod
    def _begin(self, rows: np.ndarray) -> None:
        """Sets the state arrays of rows whose `task`, `seed` and `clock` (0) were just set."""

    @abstractmethod
    def _move(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]]:
        """Moves all rows; reward (B,) float64, terminated (B,) bool, info. `clock` still counts the actions before this one."""

    # -- what everyone calls

    def begin(self, rows: np.ndarray, task: np.ndarray, seed: np.ndarray) -> None:
        """Begins new episodes.

        Args:
            rows: (K,) which rows.
            task: (K,) the task of each.
            seed: (K,) integers >= 0, from which everything random in the episode follows.
        """
        task = np.asarray(task, np.int64)
        if self.num_tasks and (task.min(initial=0) < 0 or task.max(initial=0) >= self.num_tasks):
            raise ConfigError(
                f"tasks of {self.spec.environment} lie in 0 .. {self.num_tasks - 1}, got {task.tolist()[:3]}"
            )
        self.task[rows], self.seed[rows], self.clock[rows] = task, np.asarray(seed).astype(np.uint64), 0
        self._begin(np.asarray(rows))

    def step(self, action: np.ndarray) -> Outcome:
        """Moves all rows by one action each; rows whose episode is over must be begun again before they mean anything."""
        reward, terminated, info = self._move(action)
        self.clock += 1
        return Outcome(reward, terminated, ~terminated & (self.clock >= self.spec.max_episode_steps), info)

    def uniform(self, count: int) -> np.ndarray:
        """(B, count) float64 in [0, 1) for this step of each row's episode; equal when asked again."""
        return splitmix.uniform(splitmix.split(splitmix.split(self.seed, _NOISE), self.clock), count)

    def normal(self, count: int) -> np.ndarray:
        """(B, count) float64 standard normal for this step of each row's episode; equal when asked again."""
        return splitmix.normal(splitmix.split(splitmix.split(self.seed, _NOISE), self.clock), count)

    def task_of(self, part: Part, number: int) -> int:
        """The number-th task of a part: four fifths of a finite world's tasks, in an order fixed for ever, are for training."""
        if not self.num_tasks:
            return number + (_HELD_OUT if part == "held-out" else 0)
        tasks = _parts(self.num_tasks)[part]
        if not len(tasks):
            raise ConfigError(f"{self.spec.environment} has {self.num_tasks} tasks, none of them held out")
        return int(tasks[number % len(tasks)])

    def drawn_task(self, seed: int) -> int:
        """A training task by a seed, for who resets without naming one."""
        return int(self.drawn_tasks(np.array([seed]))[0])

    def drawn_tasks(self, seed: np.ndarray) -> np.ndarray:
        """(K,) int64: `drawn_task` of each of the seeds (K,)."""
        number = (splitmix.split(seed, _TASK) >> np.uint64(1)).astype(np.int64) % (self.num_tasks or _HELD_OUT)
        if not self.num_tasks:
            return number
        tasks = _parts(self.num_tasks)["train"]
        return tasks[number % len(tasks)]

    def keep(self, rows: np.ndarray) -> None:
        """Goes on with only these rows, in this order; a row named twice becomes two."""
        for name in ("task", "seed", "clock", *self.arrays):
            setattr(self, name, getattr(self, name)[rows])

    def save(self, row: int) -> dict[str, np.ndarray]:
        """A row's whole state."""
        return {name: np.array(getattr(self, name)[row]) for name in ("task", "seed", "clock", *self.arrays)}

    def load(self, row: int, saved: Mapping[str, np.ndarray]) -> None:
        """Takes back what `save` gave."""
        for name in ("task", "seed", "clock", *self.arrays):
            getattr(self, name)[row] = saved[name]


class WorldEnv(gymnasium.Env):
    """A world of one row as a Gymnasium environment. `reset(options={"task": 3})` names the task; otherwise the seed draws one."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium's own attribute)

    def __init__(self, world: World) -> None:
        self.world = world
        self.observation_space, self.action_space = to_space(world.spec.observation), to_space(world.spec.action)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        chosen = int(self.np_random.integers(2**31)) if seed is None else seed
        task = self.world.drawn_task(chosen) if not options or "task" not in options else int(options["task"])
        self.world.begin(np.array([0]), np.array([task]), np.array([chosen]))
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        outcome = self.world.step(np.asarray(action)[None])
        info = {name: values[0] for name, values in outcome.info.items()}
        return (
            self._observation(),
            float(outcome.reward[0]),
            bool(outcome.terminated[0]),
            bool(outcome.truncated[0]),
            info,
        )

    def _observation(self) -> Any:
        seen = self.world.observe()[0]
        return seen.copy() if seen.ndim else seen.item()

    def task_of(self, part: Part, number: int) -> int:
        """The world's; see `World.task_of`."""
        return self.world.task_of(part, number)

    def drawn_task(self, seed: int) -> int:
        """The task of a reset with this seed that names none."""
        return self.world.drawn_task(seed)

    def save(self) -> dict[str, np.ndarray]:
        """The whole state; see `foretoken.envs.slots`."""
        return self.world.save(0)

    def load(self, saved: Mapping[str, np.ndarray]) -> None:
        self.world.load(0, saved)
