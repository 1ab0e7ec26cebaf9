"""Plays a list of episodes with a policy: many at once, over environments and return targets alike.

The jobs are fixed beforehand, so exactly those episodes count and short ones gain no weight. Initial states and noise
depend on `(seed, episode)` alone: the i-th episode starts alike for every target, and the number of slots changes
nothing. A finished slot takes the next job at once; when jobs run out the batch shrinks.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from foretoken.core.memory import keep_freed_memory
from foretoken.core.method import Policy
from foretoken.core.spec import Spec
from foretoken.envs.collect import Totals
from foretoken.envs.play import play
from foretoken.envs.slots import Factory, Job, Slots, Tick
from foretoken.envs.traced import Engine


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """What came of one episode.

    `target` and `target_cost` are what was asked for. `success` is true when any step's info said so under "success" or
    "is_success", None when none ever spoke of it; `cost` sums `info["cost"]`. `actions` holds the (n, ...) actions as the
    environment received them, when asked to keep them: with `reset_seed` they replay the episode. `index` is its place among
    the episodes of its job, `task` the task that was chosen for them; `regret` sums `info["regret"]` up to each of at most 100
    evenly spaced actions, the last included. `route` is the last `info["route"]`: which of several ways it took, -1 for none;
    `delay` the last `info["delay"]`: over how many steps something had to be remembered.
    """

    target: float | None
    episode: int
    reset_seed: int
    total: float  # the undiscounted return, summed in float64
    length: int
    success: bool | None = None
    cost: float | None = None
    terminated: bool = False
    actions: Any = None
    index: int = 0
    task: int | None = None
    target_cost: float | None = None
    regret: tuple[float, ...] | None = None
    route: int | None = None
    delay: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The record of an evaluation file; the return stands under "return"."""
        return {
            "target": self.target,
            "episode": self.episode,
            "reset_seed": self.reset_seed,
            "return": self.total,
            "length": self.length,
            "success": self.success,
            "cost": self.cost,
            "terminated": self.terminated,
            "index": self.index,
            "task": self.task,
            "target_cost": self.target_cost,
            "regret": self.regret,
            "route": self.route,
            "delay": self.delay,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> "EpisodeResult":
        known = {name: record[name] for name in _RECORDED} | {name: record[name] for name in _ADDED if name in record}
        regret = record.get("regret")
        return cls(total=float(record["return"]), regret=None if regret is None else tuple(regret), **known)

    @property
    def fingerprint(self) -> str:
        """A short hash of the kept actions, "" where none were kept."""
        digest = hashlib.blake2b(digest_size=8)
        for array in tree_leaves(self.actions) if self.actions is not None else []:
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest() if self.actions is not None else ""


_RECORDED = ("target", "episode", "reset_seed", "length", "success", "cost", "terminated")
_ADDED = ("index", "task", "target_cost", "route", "delay")  # files written before these were told lack them


def job_of(result: EpisodeResult) -> Job:
    """The job that plays a result's first episode again."""
    context = {} if result.target_cost is None else {"target_cost": result.target_cost}
    options = None if result.task is None else {"task": result.task}
    return Job(result.episode, result.target, context=context, options=options)


def rollout(
    policy: Policy,
    environment: Factory,
    jobs: Sequence[Job],
    *,
    spec: Spec | None = None,
    seed: int,
    num_slots: int = 32,
    device: torch.device | str = "cpu",
    explore: bool = False,
    max_steps: int = 0,
    engine: Engine = "torch",
    keep_actions: bool = False,
    on_episode: Callable[[EpisodeResult], None] | None = None,
    watch: Callable[[Tick], None] | None = None,
) -> list[EpisodeResult]:
    """Plays every job exactly once and returns the results of their episodes, in the order of the jobs.

    The policy acts in evaluation mode without gradients, and its modules' modes are restored. A job's target reaches
    `policy.begin` as `context["target_return"]`, (K,) float32 for K episodes begun at once.

    Args:
        environment: a Gymnasium id or a factory.
        spec: what the policy was made for; a differing environment is refused with an EnvironmentMismatch.
        seed: with a job's episode number, fixes its initial state and noise.
        num_slots: episodes played at once.
        max_steps: episodes are cut after so many actions; 0 leaves that to the environment.
        engine: what runs the policy's graph once its steps repeat; see `Evaluation`.
        keep_actions: keep every episode's actions in its result.
        on_episode: called with each result as its episode ends.
        watch: called with every tick, to look and not to touch.
    """
    keep_freed_memory()
    jobs = list(jobs)
    if not jobs:
        return []
    results: dict[tuple[int, int], EpisodeResult] = {}
    with Slots(
        environment, jobs, num_slots=num_slots, seed=seed, spec=spec, device=device, max_steps=max_steps
    ) as slots:
        totals = Totals(slots.num_slots)
        for tick, _ in play(slots, policy, explore=explore, trace=True, engine=engine):
            totals.add(tick)
            if watch is not None:
                watch(tick)
            for row in tick.ended.tolist():
                number, index = int(tick.number[row]), int(tick.index[row])
                job = jobs[number]
                results[number, index] = result = EpisodeResult(
                    target=job.target,
                    episode=job.episode,
                    index=index,
                    task=job.task,
                    target_cost=job.context.get("target_cost"),
                    reset_seed=slots.reset_seed(row),
                    terminated=bool(tick.terminated[row]),
                    actions=slots.actions(row) if keep_actions else None,
                    **totals.take(row),
                )
                if on_episode is not None:
                    on_episode(result)
    return [results[key] for key in sorted(results)]
