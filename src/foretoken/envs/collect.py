"""Episodes of a policy, or of random actions, written into a store."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from foretoken.core.errors import ConfigError
from foretoken.core.method import Policy
from foretoken.core.spec import Spec, leaves
from foretoken.envs.play import RandomPolicy, play
from foretoken.envs.slots import Factory, Job, Slots, Tick, reset_seed
from foretoken.envs.spaces import build_tree, read_leaf

if TYPE_CHECKING:
    from foretoken.data.episode import Episode
    from foretoken.data.store import Store

SUCCESS = ("success", "is_success")


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
    max_steps: int = 0,
    floats: Literal["float32", "keep"] = "float32",
    device: torch.device | str = "cpu",
    about: Mapping[str, Any] | None = None,
) -> "Store":
    """Plays exactly `episodes` episodes and stores them in order of their number.

    The store is the same whatever `num_slots` is. Every episode carries the facts `episode`, `seed` (of its reset),
    `success` and `cost` where the environment reports them. When interrupted, the episodes that are complete so far in
    order are committed.

    Args:
        environment: a Gymnasium id or a factory.
        policy: a policy, or "random".
        seed: with `first_episode + i`, fixes the i-th episode's initial state and noise.
        spec: refuse an environment that differs; None takes the environment's.
        context: what every episode is begun with, without the row axis, for example `{"target_return": 3600.0}`.
        out: folder of the new store; None keeps it in memory.
        explore: handed to `policy.act`.
        max_steps: episodes are truncated after so many actions; 0 leaves that to the environment.
        floats: "float32", or "keep" for float64 columns where the environment has them.
    """
    from foretoken.data.store import Store

    if episodes < 1:
        raise ConfigError(f"episodes must be at least 1, got {episodes}")
    numbers = range(first_episode, first_episode + episodes)
    jobs = [Job(number, context=context or {}) for number in numbers]
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
    running: dict[int, _Recording] = {}
    paths = list(leaves(slots.spec.observation))
    for tick, _ in play(slots, policy, explore=explore):
        arrays = {path: read_leaf(tick.step.observation, path).cpu().numpy() for path in paths}
        for row, number in enumerate(tick.number.tolist()):
            running.setdefault(number, _Recording(paths)).add(arrays, tick, row)
        for row in tick.ended:
            number = int(tick.number[row])
            facts = {"episode": jobs[number].episode, "seed": reset_seed(slots.seed, jobs[number].episode)}
            writer.add(number, running.pop(number).episode(slots.actions(int(row)), tick, int(row), facts))


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


class _Recording:
    """One episode being played."""

    def __init__(self, paths: list[str]) -> None:
        self._observation: dict[str, list[np.ndarray]] = {path: [] for path in paths}
        self._reward: list[float] = []
        self._totals = Totals()

    def add(self, arrays: Mapping[str, np.ndarray], tick: Tick, row: int) -> None:
        for path, array in arrays.items():
            self._observation[path].append(array[row])
        self._reward.append(tick.reward[row])
        self._totals.add(tick.infos[row])

    def episode(self, action: Any, tick: Tick, row: int, facts: dict[str, Any]) -> "Episode":
        from foretoken.data.episode import Episode

        length = len(self._reward) - 1
        terminated, truncated = np.zeros(length, bool), np.zeros(length, bool)
        terminated[-1], truncated[-1] = tick.terminated[row], tick.truncated[row]
        return Episode(
            observation=build_tree({path: np.stack(steps) for path, steps in self._observation.items()}),
            action=action,
            reward=np.array(self._reward[1:]),
            terminated=terminated,
            truncated=truncated,
            facts=facts | self._totals.facts(),
        )


class Totals:
    """Success (at any step) and summed cost of an episode, as far as the environment's infos report them."""

    __slots__ = ("cost", "success")

    def __init__(self) -> None:
        self.success: bool | None = None
        self.cost: float | None = None

    def add(self, info: Mapping[str, Any]) -> None:
        if not info:
            return
        for name in SUCCESS:
            if name in info:
                self.success = bool(self.success) or bool(np.asarray(info[name]).any())
        if "cost" in info:
            self.cost = (self.cost or 0.0) + float(info["cost"])

    def facts(self) -> dict[str, Any]:
        known = {"success": self.success, "cost": self.cost}
        return {name: value for name, value in known.items() if value is not None}
