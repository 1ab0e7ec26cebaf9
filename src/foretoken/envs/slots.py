"""Slots: many environments of one kind stepped together, in this process, with every reset seeded by the driver.

Episodes are jobs. A slot plays one job, shows its final observation as a step of its own (`final=True`, the answer to it
is ignored), and on the next tick begins the next job; when jobs run out the batch shrinks, so no slot idles. What an
episode meets depends on `(seed, episode)` only, never on the number of slots: its reset seed is a hash of the two, and
`step.seed` a hash of them and the timestep.

A job may be a *trial*: several episodes of one task, played one after another with one memory. Each begins with a step
whose `first` is true, but only the job's first bears the row: the policy's state goes on through the others, whose seeds are
hashes of the first one's and their index.

    slots = Slots("CartPole-v1", range(100), num_slots=8, seed=0)
    tick, state = slots.start(), None
    while tick is not None:
        state = follow(state, tick, policy.begin)
        decision = policy.act(tick.step, state)
        state, tick = decision.state, slots.advance(decision.action)

`envs.play.play` is this loop, with the policy in evaluation mode.

Environments in progress are saved in one of three grades, chosen per slot:

    arrays   the environment has `save() -> mapping of arrays` and `load(mapping)`
    replay   reset with the episode's seed, its actions repeated, the last observation and reward compared bit for bit
    none     the comparison failed: the job is dropped, the next one begins, and a note says so
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Literal, NamedTuple, get_args

import gymnasium
import numpy as np
import torch
from torch import Tensor

from foretoken.core import splitmix
from foretoken.core import state as state_trees
from foretoken.core.batch import Step
from foretoken.core.errors import ConfigError, DataError
from foretoken.core.spec import Spec, leaves
from foretoken.core.state import State
from foretoken.envs.gate import Gate
from foretoken.envs.make import make
from foretoken.envs.spaces import build_tree, check_same, environment_name, part_dtype, read_leaf, to_spec
from foretoken.envs.stage import Begin, Feedback, stage_of
from foretoken.envs.tape import Tape

log = logging.getLogger(__name__)

Factory = str | Callable[[], gymnasium.Env]
"""A Gymnasium id, or a function that makes one new environment."""

_RESET, _LATER = -1, -2  # keys of the reset seed and of a job's later episodes; timesteps use 0, 1, ...


@dataclass(frozen=True)
class Job:
    """One episode to play, or several of one task after one another.

    Args:
        episode: its number; with the seed it fixes the initial state and all noise.
        target: the return to ask for; None where nothing is asked.
        context: further entries for `Policy.begin`, without the row axis (goal, prompt, ...).
        options: handed to `env.reset(options=...)`, at every episode.
        episodes: how many are played, one after another, with one memory.
    """

    episode: int
    target: float | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] | None = None
    episodes: int = 1

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ConfigError(f"a job must have at least 1 episode, got {self.episodes}")

    @property
    def task(self) -> int | None:
        """The task its options name."""
        task = None if self.options is None else self.options.get("task")
        return int(task) if isinstance(task, int | np.integer) else None


Tasks = Literal["", "train", "held-out"]
"""Which of an environment's tasks are played: those for training, those held out; "" leaves it to the reset."""


def with_tasks(jobs: Iterable[Job], environment: Factory, tasks: Tasks) -> list[Job]:
    """The same jobs, where job i is to play the environment's task `task_of(tasks, i)`, i being its episode number.

    Raises:
        ConfigError: the environment has no `task_of`, or no such tasks.
    """
    jobs = list(jobs)
    if not tasks:
        return jobs
    if tasks not in get_args(Tasks):
        raise ConfigError(f"tasks must be one of {list(get_args(Tasks))}, got {tasks!r}")
    env = make(environment) if isinstance(environment, str) else environment()
    try:
        task_of = getattr(env.unwrapped, "task_of", None)
        if task_of is None:
            raise ConfigError(
                f"tasks={tasks!r} needs an environment that numbers its tasks (task_of, as foretoken/DarkRoom-v0 has), got "
                f"{environment_name(env)}; leave tasks empty there"
            )
        chosen = ({**(job.options or {}), "task": task_of(tasks, job.episode)} for job in jobs)
        return [replace(job, options=options) for job, options in zip(jobs, chosen, strict=True)]
    finally:
        env.close()


class Tick(NamedTuple):
    """One moment of all slots in use (B rows). Row lists refer to this tick's rows unless said otherwise.

    `reward`, `terminated`, `truncated` and `infos` are what the action *before* this step brought; at an episode's
    first step they are 0, False, False and the info of the reset.
    """

    step: Step
    kept: Tensor | None  # (B,) int64: the rows of the previous tick that these rows were; None: all of them, in order
    born: Tensor  # (K,) int64: rows whose job begins now; their state must be born
    jobs: tuple[Job, ...]  # the K born rows' jobs
    ended: np.ndarray  # rows whose step is final: the episode is over
    number: np.ndarray  # (B,) int64: the row's job, counted from 0 in the order in which jobs were given
    index: np.ndarray  # type: ignore[assignment]  # (B,) int64: which episode of its job the row is in, from 0
    reward: np.ndarray  # (B,) float64
    terminated: np.ndarray  # (B,) bool
    truncated: np.ndarray  # (B,) bool
    infos: Sequence[Mapping[str, Any]]  # B; those of a world's rows are made when asked for, see `foretoken.envs.stage`

    def context(self, device: torch.device | str = "cpu") -> dict[str, Any]:
        """What the born rows are begun with, one entry per row; `target` of a job becomes `target_return` (K,)."""
        return join_contexts(self.jobs, device)


class Restored(NamedTuple):
    """What `Slots.load` answers."""

    tick: Tick | None
    grades: tuple[str, ...]  # per saved row: "arrays", "replay", "none", or "over" (its episode had ended)
    notes: tuple[str, ...]  # what a run must report: one sentence per dropped job


def reset_seed(seed: int, episode: int, index: int = 0) -> int:
    """The seed, in 0 .. 2**31 - 1, of the reset of a job's `index`-th episode."""
    return int(_reset_seeds(_episode_seeds(seed, np.array([episode]), np.array([index])))[0])


def _episode_seeds(seed: int, episode_K: np.ndarray, index_K: np.ndarray) -> np.ndarray:
    """(K,) uint64, from which everything random in an episode follows."""
    first = splitmix.split(np.array([seed]), episode_K)
    return np.where(index_K == 0, first, splitmix.split(splitmix.split(first, _LATER), index_K))


def _reset_seeds(seed_K: np.ndarray) -> np.ndarray:
    return (splitmix.split(seed_K, _RESET) & np.uint64(0x7FFFFFFF)).astype(np.int64)


def join_contexts(jobs: Iterable[Job], device: torch.device | str = "cpu") -> dict[str, Any]:
    """Contexts of several jobs as one: numbers and arrays are stacked to tensors with the row first, others become lists.

    Raises:
        DataError: when some of the jobs have a key (or a target) and others do not.
    """
    rows = [{**({} if job.target is None else {"target_return": float(job.target)}), **job.context} for job in jobs]
    for row in rows:
        if row.keys() != rows[0].keys():
            raise DataError(f"jobs played together need the same context keys, got {sorted(rows[0])} and {sorted(row)}")
    return {name: _join([row[name] for row in rows], device) for name in (rows[0] if rows else ())}


def _join(values: list[Any], device: torch.device | str) -> Any:
    if isinstance(values[0], Tensor):
        return torch.stack(values).to(device)
    if isinstance(values[0], bool | int | float | np.ndarray | np.generic):
        joined = torch.from_numpy(np.stack([np.asarray(value) for value in values]))
        return joined.to(device, torch.float32 if joined.is_floating_point() else joined.dtype)
    return values


def follow(
    state: State | None,
    tick: Tick,
    begin: Callable[[int, Mapping[str, Any]], State],
    device: torch.device | str = "cpu",
) -> State:
    """The policy's state for this tick's rows: rows that left are dropped, born rows are begun.

    Args:
        state: the state after the previous tick's decision; None at the first tick.
        begin: `policy.begin`.
    """
    if state is not None and tick.kept is not None:
        state = state_trees.gather(state, tick.kept.to(device))
    if not len(tick.jobs):
        assert state is not None, "the first tick bears all rows"
        return state
    born = begin(len(tick.jobs), tick.context(device))
    if state is None or len(tick.jobs) == len(tick.number):
        return born
    return state_trees.write_rows(state, born, tick.born.to(device))


class Slots:
    """Environments in one process, played in step; see the module's text for the protocol.

    Where the environment is one of our worlds (`foretoken.envs.diagnostic`), all rows are one world, stepped as arrays.

    Args:
        environment: a Gymnasium id or a factory; called once per slot (and once per episode where `renew`),
            or only once where it makes a world.
        jobs: the episodes to play, in order; an int stands for `Job(int)`. May be endless.
        num_slots: episodes played at once; fewer when there are fewer jobs.
        seed: with an episode's number, the source of all its randomness.
        spec: refuse environments that differ from it; None takes it from the environment.
        device: where steps are put.
        max_steps: episodes are truncated after so many actions; 0 leaves that to the environment.
        floats: "float32", or "keep" for float64 observations and actions where the spec has them.
        renew: a fresh instance for every episode; None does so where episodes are known to depend on the instance's
            past (Box2D).

    Actions must be finite and are cast to the space's dtype. A Box action is clipped to finite bounds, as
    `gymnasium.wrappers.ClipAction` does; `num_clipped` counts the actions that lay outside by more than rounding. The
    clipped action is what `previous_action` shows. Steps are new tensors at each tick and may be kept.

    Raises:
        EnvironmentMismatch: when the environment's spaces are not those of `spec`.
        DataError: when an action is not finite, out of range or of the wrong shape.
    """

    def __init__(
        self,
        environment: Factory,
        jobs: Iterable[Job | int],
        *,
        num_slots: int,
        seed: int,
        spec: Spec | None = None,
        device: torch.device | str = "cpu",
        max_steps: int = 0,
        floats: str = "float32",
        renew: bool | None = None,
    ) -> None:
        if num_slots < 1:
            raise ConfigError(f"num_slots must be at least 1, got {num_slots}")
        if isinstance(jobs, Sized):
            num_slots = min(num_slots, max(1, len(jobs)))
        factory = (lambda: make(environment)) if isinstance(environment, str) else environment
        first = factory()
        own = to_spec(first)
        if spec is None:
            spec = own
        else:
            check_same(spec, first, made_for="the policy's spec")
        self.spec, self.seed, self.num_slots, self.device = spec, seed, num_slots, torch.device(device)
        self._tensor: Callable[[np.ndarray], Tensor] = (
            torch.from_numpy if self.device.type == "cpu" else lambda array: torch.from_numpy(array).to(self.device)
        )
        self.name = own.environment or environment_name(first)
        self.started = 0
        self.num_actions = 0
        self._jobs: Iterator[Job] = (job if isinstance(job, Job) else Job(job) for job in jobs)
        self._max_steps = max_steps
        self._gate = Gate(own.action, self.name)
        self._stage = stage_of(first, factory, spec, floats, renew)
        self._dtypes = {path: part_dtype(part, floats) for path, part in leaves(spec.action).items()}
        self._open(0)

    def _open(self, rows: int) -> None:
        """Nothing has been played yet in so many rows."""
        self._job = [Job(0)] * rows
        self._number, self._index, self._left, self._timestep = (np.zeros(rows, np.int64) for _ in range(4))
        self._seed, self._reset_seed = np.zeros(rows, np.uint64), np.zeros(rows, np.int64)
        self._feedback = Feedback.none(rows)
        self._final, self._ended = [False] * rows, np.zeros(0, np.int64)
        actions = leaves(self.spec.action)
        self._previous = {path: np.zeros((rows, *actions[path].shape), dtype) for path, dtype in self._dtypes.items()}
        self._tape = Tape(rows, self._gate.pack([]))

    @property
    def num_clipped(self) -> int:
        """Actions so far that lay outside the action bounds by more than rounding."""
        return self._gate.num_clipped

    @property
    def active(self) -> int:
        """Rows of the present tick."""
        return len(self._job)

    def start(self) -> Tick | None:
        """Begins the first jobs; None when there are none."""
        jobs = list(islice(self._jobs, self.num_slots))
        rows = np.arange(len(jobs))
        self._open(len(jobs))
        self._stage.open(len(jobs))
        self._take(rows, jobs)
        self._begin(rows)
        return self._tick(None, rows)

    def advance(self, action: Any) -> Tick | None:
        """Plays one action per row (tensors of shape (B, ...), or a mapping of such); rows whose step was final ignore theirs.

        Returns None when every job is over.
        """
        moves, arrays = self._gate.admit(action, self.active, self._final)
        self._feedback = self._stage.step(moves, arrays, self._final)
        self._tape.write(self._timestep, arrays)
        self._previous = {path: arrays[path].astype(dtype) for path, dtype in self._dtypes.items()}
        self._timestep = self._timestep + 1
        self.num_actions += self.active - len(self._ended)
        if self._max_steps:
            np.logical_or(self._feedback.truncated, self._timestep >= self._max_steps, out=self._feedback.truncated)
        return self._tick(*self._go_on(self._ended))

    def actions(self, row: int) -> Any:
        """The actions performed so far in a row's present episode, (n, ...) arrays, as the environment received them."""
        return build_tree(self._tape.read(row, int(self._timestep[row])))

    def reset_seed(self, row: int) -> int:
        """The seed with which a row's present episode was reset; see the function `reset_seed`."""
        return int(self._reset_seed[row])

    def observation(self, row: int) -> Any:
        """A row's present observation as the environment gave it (its own dtype)."""
        return self._stage.observation(row)

    def save(self) -> dict[str, Any]:
        """Everything needed to go on from the present tick: plain values, and numpy arrays the receiver may keep.

        The policy's state is the driver's to save, as it is after `follow` for this tick.
        """
        return {
            "started": self.started,
            "num_actions": self.num_actions,
            "rows": [self._save_row(row) for row in range(self.active)],
        }

    def load(self, saved: Mapping[str, Any]) -> Restored:
        """Goes on from `save`'s answer, in place of `start`, on new Slots made with the same arguments and the same jobs.

        The tick is the one that was saved, except that rows of dropped jobs begin their next one. `tick.born` lists every
        row at its job's first step, so that the driver can begin its state again. A row's `infos` are empty after the grade
        "arrays".

        Raises:
            DataError: when there are more rows saved than slots, or fewer jobs than had been started.
        """
        rows = saved["rows"]
        if len(rows) > self.num_slots:
            raise DataError(
                f"the saved state has {len(rows)} rows, these slots are {self.num_slots}; resume with at least as many slots"
            )
        wanted = {int(row["number"]) for row in rows}
        given = {n: job for n, job in enumerate(islice(self._jobs, int(saved["started"]))) if n in wanted}
        if wanted - given.keys():
            raise DataError(
                f"the saved state has started {saved['started']} jobs, these slots were given fewer; give the same jobs"
            )
        self.started, self.num_actions = int(saved["started"]), int(saved["num_actions"])
        self._open(len(rows))
        self._stage.open(len(rows))
        for row, entry in enumerate(rows):
            job = self._job[row] = given[int(entry["number"])]
            self._number[row], self._index[row] = entry["number"], entry["index"]
            self._left[row] = job.episodes - 1 - entry["index"]
        self._begin(np.arange(len(rows)))
        grades = tuple(self._load_row(row, entry) for row, entry in enumerate(rows))
        lost = np.array([row for row, grade in enumerate(grades) if grade == "none"], np.int64)
        notes = tuple(
            f"{self.name}: episode {self._job[row].episode} could not be resumed at step {self._timestep[row]}; it was dropped"
            for row in lost
        )
        for note in notes:
            log.warning(note)
        self._left[lost] = 0
        self._go_on(lost)
        born = np.flatnonzero((self._timestep == 0) & (self._index == 0))
        return Restored(self._tick(None, born), grades, notes)

    def close(self) -> None:
        """Closes every environment."""
        self._stage.close()

    def __enter__(self) -> "Slots":
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def _go_on(self, over: np.ndarray) -> tuple[Tensor | None, np.ndarray]:
        """Begins what follows in rows whose episode is over; a tick's `kept`, and the rows whose job is new."""
        if not len(over):
            return None, over
        goes_on = self._left[over] > 0
        again, free = over[goes_on], over[~goes_on]
        self._index[again] += 1
        self._left[again] -= 1
        jobs = list(islice(self._jobs, len(free)))
        born, gone = free[: len(jobs)], free[len(jobs) :]
        self._take(born, jobs)
        self._begin(np.setdiff1d(over, gone) if len(gone) else over)
        if not len(gone):
            return None, born
        stay = np.setdiff1d(np.arange(self.active), gone)
        self._keep(stay)
        return torch.from_numpy(stay), np.searchsorted(stay, born)

    def _take(self, rows: np.ndarray, jobs: list[Job]) -> None:
        """Gives rows their next jobs."""
        for row, job in zip(rows.tolist(), jobs, strict=True):
            self._job[row] = job
        self._number[rows] = np.arange(self.started, self.started + len(jobs))
        self._index[rows], self._left[rows] = 0, [job.episodes - 1 for job in jobs]
        self.started += len(jobs)

    def _begin(self, rows: np.ndarray) -> None:
        """Resets these rows, as their jobs and indices say."""
        jobs = [self._job[row] for row in rows.tolist()]
        episodes = np.array([job.episode for job in jobs], np.int64)
        self._seed[rows] = _episode_seeds(self.seed, episodes, self._index[rows])
        self._reset_seed[rows] = _reset_seeds(self._seed[rows])
        first_seeds = _reset_seeds(_episode_seeds(self.seed, episodes, np.zeros_like(rows)))
        self._stage.begin(Begin(rows, self._reset_seed[rows], first_seeds, [job.options for job in jobs]))
        for column in (*self._feedback, self._timestep, *self._previous.values()):
            column[rows] = 0

    def _keep(self, rows: np.ndarray) -> None:
        """Goes on with only these rows."""
        self._job = [self._job[row] for row in rows]
        self._number, self._index, self._left = self._number[rows], self._index[rows], self._left[rows]
        self._timestep, self._seed, self._reset_seed = self._timestep[rows], self._seed[rows], self._reset_seed[rows]
        self._feedback = Feedback(*(column[rows] for column in self._feedback))
        self._previous = {path: array[rows] for path, array in self._previous.items()}
        self._stage.keep(rows)
        self._tape.keep(rows)

    def _tick(self, kept: Tensor | None, born: np.ndarray) -> Tick | None:
        if not self.active:
            return None
        reward, cost, terminated, truncated = self._feedback
        final = terminated | truncated
        self._final, self._ended = final.tolist(), np.flatnonzero(final)
        step = Step(
            observation=self._tensors(self._stage.observe()),
            previous_action=self._tensors(self._previous),
            previous_reward=self._tensor(reward.astype(np.float32)),
            previous_cost=self._tensor(cost.astype(np.float32)),
            first=self._tensor(self._timestep == 0),
            final=self._tensor(final),
            valid=torch.ones(self.active, dtype=torch.bool, device=self.device),
            timestep=self._tensor(self._timestep.copy()),
            seed=self._tensor(splitmix.split(self._seed, self._timestep).view(np.int64)),
        )
        return Tick(
            step=step,
            kept=kept,
            born=torch.from_numpy(born),
            jobs=tuple(self._job[row] for row in born.tolist()),
            ended=self._ended,
            number=self._number.copy(),
            index=self._index.copy(),
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            infos=self._stage.infos(),
        )

    def _tensors(self, arrays: Mapping[str, np.ndarray]) -> Any:
        return build_tree({path: self._tensor(array) for path, array in arrays.items()})

    def _save_row(self, row: int) -> dict[str, Any]:
        observation, timestep = self.observation(row), int(self._timestep[row])
        entry: dict[str, Any] = {
            "number": int(self._number[row]),
            "index": int(self._index[row]),
            "timestep": timestep,
            **{name: column[row].item() for name, column in self._feedback._asdict().items()},
            "observation": {path: np.array(read_leaf(observation, path)) for path in leaves(self.spec.observation)},
            "previous_action": {path: array[row].copy() for path, array in self._previous.items()},
            "actions": self._tape.read(row, timestep),
        }
        return entry if self._final[row] else entry | self._stage.save(row)

    def _load_row(self, row: int, entry: Mapping[str, Any]) -> str:
        """Puts a begun row back; its grade."""
        self._timestep[row] = entry["timestep"]
        for name, column in self._feedback._asdict().items():
            column[row] = entry[name]
        for path, array in self._previous.items():
            array[row] = entry["previous_action"][path]
        self._tape.put(row, entry["actions"])
        if entry["terminated"] or entry["truncated"]:
            self._stage.show(row, entry["observation"])
            return "over"
        return self._stage.load(row, entry, self._gate.unpack(entry["actions"]))
