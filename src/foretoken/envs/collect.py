"""Episodes of a policy, or of random actions, written into a store."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from foretoken.core.errors import ConfigError
from foretoken.core.method import Policy
from foretoken.core.spec import Spec, leaves
from foretoken.envs.play import RandomPolicy, play
from foretoken.envs.slots import Factory, Job, Slots, Tasks, Tick, with_tasks
from foretoken.envs.spaces import build_tree, read_leaf
from foretoken.envs.stage import Told
from foretoken.envs.tape import Tape

if TYPE_CHECKING:
    from foretoken.data.episode import Episode
    from foretoken.data.store import Store

_REPORTED = {"success": "success", "is_success": "success"} | {
    name: name for name in ("cost", "regret", "route", "delay")
}
"""What infos may say, by the name under which it is kept."""

_LAST = ("route", "delay")  # whole numbers, of which the last said counts

_CURVE = 100  # the steps at which an episode's regret is told, at most


def collect(
    environment: Factory,
    policy: Policy | str,
    *,
    episodes: int,
    seed: int,
    num_slots: int = 8,
    spec: Spec | None = None,
    context: Mapping[str, Any] | None = None,
    out: str | Path | None = None,
    explore: bool = True,
    first_episode: int = 0,
    trial: int = 1,
    tasks: Tasks = "",
    max_steps: int = 0,
    floats: Literal["float32", "keep"] = "float32",
    device: torch.device | str = "cpu",
    about: Mapping[str, Any] | None = None,
) -> "Store":
    """Plays exactly `episodes` episodes (or trials) and stores them in order of their number.

    The store is the same whatever `num_slots` is. Every episode carries the facts `episode`, `order` (its place in its
    trial), `seed` (of its reset), `task` where one was chosen, `success`, `cost` and `route` where the environment reports them. When
    interrupted, the episodes that are complete so far in order are committed.

    Args:
        environment: a Gymnasium id or a factory.
        policy: a policy, or "random".
        seed: with `first_episode + i`, fixes the i-th episode's initial state and noise.
        spec: refuse an environment that differs; None takes the environment's.
        context: what every episode is begun with, without the row axis, for example `{"target_return": 3600.0}`.
        out: folder of the new store; None keeps it in memory.
        explore: handed to `policy.act`.
        trial: so many episodes of one task, with one memory, are played in place of each episode; they share its number.
        tasks: episode i plays the environment's i-th task of this part; "" lets the reset draw one.
        max_steps: episodes are truncated after so many actions; 0 leaves that to the environment.
        floats: "float32", or "keep" for float64 columns where the environment has them.
    """
    from foretoken.data.store import Store

    if episodes < 1:
        raise ConfigError(f"episodes must be at least 1, got {episodes}")
    numbers = range(first_episode, first_episode + episodes)
    jobs = with_tasks([Job(number, context=context or {}, episodes=trial) for number in numbers], environment, tasks)
    with Slots(
        environment, jobs, num_slots=num_slots, seed=seed, spec=spec, device=device, max_steps=max_steps, floats=floats
    ) as slots:
        player = _player(policy, slots.spec)
        made = {
            "collected_by": policy if isinstance(policy, str) else type(policy).__name__,
            "environment": slots.name,
            "seed": seed,
        }
        store = Store.create(out, slots.spec, floats=floats, about=made | dict(about or {}))
        writer = _Writer(store)
        try:
            _record(slots, player, explore, jobs, writer)
        finally:
            writer.flush()
    return store


def _player(policy: Policy | str, spec: Spec) -> Policy:
    if not isinstance(policy, str):
        return policy
    if policy != "random":
        raise ConfigError(f"policy must be a policy or 'random', got {policy!r}")
    return RandomPolicy(spec)


def _record(slots: Slots, policy: Policy, explore: bool, jobs: list[Job], writer: "_Writer") -> None:
    from foretoken.data.episode import Episode

    paths = list(leaves(slots.spec.observation))
    totals, tape = Totals(slots.num_slots), None
    for tick, _ in play(slots, policy, explore=explore):
        totals.add(tick)
        seen = {path: read_leaf(tick.step.observation, path).cpu().numpy() for path in paths} | {"reward": tick.reward}
        if tape is None:
            tape = Tape(slots.num_slots, {name: array[:0] for name, array in seen.items()})
        elif tick.kept is not None:
            tape.keep(tick.kept.numpy())
        tape.write(tick.step.timestep.cpu().numpy(), seen)
        for row in tick.ended.tolist():
            number, order, total = int(tick.number[row]), int(tick.index[row]), totals.take(row)
            job, steps = jobs[number], tape.read(row, total["length"] + 1)
            ends = np.arange(total["length"]) == total["length"] - 1
            facts = {"episode": job.episode, "order": order, "seed": slots.reset_seed(row), "task": job.task}
            facts |= {name: total[name] for name in ("success", "cost", "route")}
            episode = Episode(
                observation=build_tree({path: steps[path] for path in paths}),
                action=slots.actions(row),
                reward=steps["reward"][1:],
                terminated=ends & tick.terminated[row],
                truncated=ends & tick.truncated[row],
                facts={name: value for name, value in facts.items() if value is not None},
            )
            writer.add(number * job.episodes + order, episode)


class _Writer:
    """Appends episodes by number: one that ends early waits for those before it, so that slots do not show."""

    def __init__(self, store: "Store", group: int = 64) -> None:
        self._store, self._group = store, group
        self._waiting: dict[int, Episode] = {}
        self._ready: list[Episode] = []
        self._next = 0

    def add(self, number: int, episode: "Episode") -> None:
        self._waiting[number] = episode
        while self._next in self._waiting:
            self._ready.append(self._waiting.pop(self._next))
            self._next += 1
        if len(self._ready) >= self._group:
            self.flush()

    def flush(self) -> None:
        """Commits what is complete in order."""
        ready, self._ready = self._ready, []
        if ready:
            self._store.extend(ready)


class Totals:
    """What the episodes in progress have come to, row by row: for who adds every tick, and takes every row that ended.

    Args:
        rows: of the first tick.
    """

    def __init__(self, rows: int) -> None:
        self._steps = np.zeros(rows, np.int64)  # ticks of the episode, one more than actions
        self._return = np.zeros(rows)
        self._sum = {name: np.zeros(rows) for name in _REPORTED.values()}
        self._known = {name: np.zeros(rows, bool) for name in self._sum}
        self._regret: Tape | None = None  # summed so far; made when first spoken of

    def add(self, tick: Tick) -> None:
        if tick.kept is not None:
            self._keep(tick.kept.numpy())
        self._steps += 1
        self._return += tick.reward
        for said, (rows, values) in _reported(tick.infos).items():
            name = _REPORTED[said]
            total = self._sum[name]
            if name == "success":
                values = np.maximum(total[rows], values)
            elif name not in _LAST:
                values = total[rows] + values
            total[rows] = values
            self._known[name][rows] = True
            if name == "regret" and self._regret is None:
                self._regret = Tape(len(self._steps), {"regret": total[:0]})
        if self._regret is not None:
            self._regret.write(self._steps - 1, self._sum)

    def take(self, row: int) -> dict[str, Any]:
        """The episode that ended in a row, which is then forgotten.

        Returns:
            total: the return; length: actions. What no info spoke of is None: success (at any step), cost (summed), route
            and delay (the last), and regret, its sum so far after at most 100 evenly spaced actions, the last among them.
        """
        length = int(self._steps[row]) - 1
        said: dict[str, Any] = {
            name: total[row].item() if self._known[name][row] else None for name, total in self._sum.items()
        }
        if said["success"] is not None:
            said["success"] = bool(said["success"])
        said |= {name: int(said[name]) for name in _LAST if said[name] is not None}
        if said["regret"] is not None:
            assert self._regret is not None
            count = min(length, _CURVE)
            picked = -(-length * np.arange(1, count + 1) // count)
            said["regret"] = tuple(self._regret.read(row, length + 1)["regret"][picked].tolist())
        taken = {"total": self._return[row].item(), "length": length, **said}
        for column in (self._steps, self._return, *self._sum.values(), *self._known.values()):
            column[row] = 0
        return taken

    def _keep(self, rows: np.ndarray) -> None:
        self._steps, self._return = self._steps[rows], self._return[rows]
        self._sum, self._known = (
            {name: column[rows] for name, column in part.items()} for part in (self._sum, self._known)
        )
        if self._regret is not None:
            self._regret.keep(rows)


def _reported(infos: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, Any]]:
    """By name, the rows whose info has that entry, and their entries."""
    if isinstance(infos, Told):
        rows = np.flatnonzero(~infos.silent)
        return {name: (rows, infos.columns[name][rows]) for name in _REPORTED if name in infos.columns}
    found: dict[str, tuple[list[int], list[float]]] = {}
    for row, info in enumerate(infos):
        for name in _REPORTED if info else ():
            if name in info:
                rows_of, values = found.setdefault(name, ([], []))
                rows_of.append(row)
                values.append(float(np.any(info[name]) if _REPORTED[name] == "success" else info[name]))
    return {name: (rows_of, np.array(values)) for name, (rows_of, values) in found.items()}
