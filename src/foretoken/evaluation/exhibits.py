"""What a method shows of its own episodes, made after an evaluation and kept in the run's folder for the report.

The first episodes of the evaluation's main target, none of them selected, are recorded step by step and handed to
`Method.exhibits`. They are kept under the name of the evaluation whose episodes they show, so that a report sets no picture
beside the numbers of another environment. Nothing here ends a run: what goes wrong is kept in place of the pictures,
and the report tells it.

    evaluations/update-00005000.json    the episodes
    exhibits/update-00005000.json       {"format": "foretoken-exhibits", "version": 1, "exhibits": [...], "missing": "why there are none"}
"""

import json
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from foretoken.core.batch import Batch, Step
from foretoken.core.errors import DataError, ForetokenError
from foretoken.core.exhibit import Exhibit
from foretoken.core.method import Method
from foretoken.core.spec import Spec
from foretoken.envs.play import acting
from foretoken.envs.slots import Tick
from foretoken.evaluation.evaluate import Evaluated
from foretoken.evaluation.rollout import job_of, rollout

FORMAT, VERSION = "foretoken-exhibits", 1
EPISODES, STEPS = 4, 200
"""How many episodes are shown at most, and how many of their steps."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Shown:
    """What there is to see of one evaluation; `missing` says why there is nothing."""

    update: int
    exhibits: tuple[Exhibit, ...] = ()
    missing: str = ""


def shows(owner: type | None) -> bool:
    """Whether there may be anything to see of methods of this class."""
    return getattr(owner, "exhibits", Method.exhibits) is not Method.exhibits


class Watch:
    """Records the first episodes of a rollout while they are played, as `Method.exhibits` takes them.

    Args:
        episodes: the first so many jobs, and the first episode of each.
    """

    def __init__(self, episodes: int) -> None:
        self._steps: list[list[Step]] = [[] for _ in range(episodes)]
        self._terminated = [False] * episodes
        self._contexts: list[Any] = [{}] * episodes
        self._problem: Exception | None = None

    def __call__(self, tick: Tick) -> None:
        try:
            self._see(tick)
        # The rollout goes on; whoever asks for the episodes is told.
        except Exception as problem:
            self._problem = problem

    def _see(self, tick: Tick) -> None:
        watched = (tick.number < len(self._steps)) & (tick.index == 0)
        if self._problem is not None or not watched.any():
            return
        context = tick.context(tick.step.seed.device) if len(tick.jobs) else {}
        for place, row in enumerate(tick.born.tolist()):
            if watched[row]:
                begun = {name: values[place : place + 1] for name, values in context.items()}
                self._contexts[int(tick.number[row])] = begun
        for row in watched.nonzero()[0].tolist():
            number = int(tick.number[row])
            if len(self._steps[number]) <= STEPS:
                self._steps[number].append(tree_map(lambda leaf, row=row: leaf[row].clone(), tick.step))
                self._terminated[number] = bool(tick.terminated[row])

    def episodes(self) -> list[Batch]:
        """What was seen, as batches of one row; an episode that goes on after so many steps is truncated there."""
        if self._problem is not None:
            raise self._problem
        seen = zip(self._steps, self._terminated, self._contexts, strict=True)
        return [_episode(*parts) for parts in seen if len(parts[0]) > 1]


def replay(method: Method, spec: Spec, found: Evaluated, max_steps: int = 0) -> list[Batch]:
    """The first episodes of an evaluation's main target, played again."""
    first = (record for record in found.records if not record.index and record.target == found.targets[0])
    jobs = [job_of(record) for record in islice(first, EPISODES)]
    device = next((leaf.device for leaf in method.state_dict().values()), torch.device("cpu"))
    watch, steps = Watch(len(jobs)), min(max_steps or STEPS, STEPS)
    rollout(
        method.policy, found.environment, jobs, spec=spec, seed=found.seed, num_slots=len(jobs), device=device,
        max_steps=steps, watch=watch,
    )  # fmt: skip
    return watch.episodes()


def write_exhibits(
    evaluation: Path, method: Method, update: int, episodes: Callable[[], Sequence[Batch]]
) -> Path | None:
    """Writes what a method shows of an evaluation; None where it has nothing to show.

    Args:
        evaluation: the evaluation's file, in the folder `evaluations` of its run.
        method: as it was evaluated; its mode and weights stay as they are.
        update: how long it has been trained.
        episodes: gives the episodes that it played; see `Method.exhibits`.
    """
    if not shows(type(method)):
        return None
    exhibits: tuple[Exhibit, ...] = ()
    missing = ""
    try:
        with acting(method), torch.no_grad():
            made = tuple(method.exhibits(episodes()))
        if strange := [type(one).__name__ for one in made if not isinstance(one, Exhibit)]:
            raise DataError(f"exhibits must be a sequence of Exhibit, got {strange}")
        exhibits = made
    # A picture is worth no run, whatever its maker stumbles over.
    except Exception as problem:
        missing = str(problem) if isinstance(problem, ForetokenError) else f"{type(problem).__name__}: {problem}"
        log.warning("no exhibits of %s: %s", evaluation.name, missing)
    if not exhibits and not missing:
        return None
    return _write(file_of(evaluation), Shown(update, exhibits, missing))


def file_of(evaluation: Path) -> Path:
    """Where the exhibits of an evaluation stand, given its file."""
    return evaluation.parents[1] / "exhibits" / evaluation.name


def read_exhibits(evaluation: Path) -> Shown | None:
    """The exhibits of an evaluation, given its file; None where there are none.

    Raises:
        DataError: the file is broken, or of another version.
    """
    file = file_of(evaluation)
    if not file.exists():
        return None
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
        if (tree.get("format"), tree.get("version")) != (FORMAT, VERSION):
            raise DataError(f"it must have format {FORMAT!r} and version {VERSION}")
        exhibits = tuple(Exhibit.from_json(one) for one in tree["exhibits"])
        return Shown(int(tree["update"]), exhibits, str(tree["missing"]))
    except (ForetokenError, ValueError, KeyError, AttributeError, TypeError) as problem:
        raise DataError(f"{file} holds no exhibits: {problem}") from None


def _episode(told: Sequence[Step], terminated: bool, context: Any) -> Batch:
    """The batch of one row of an episode's n + 1 steps."""
    step: Step = tree_map(lambda *leaves: torch.stack(leaves)[None], *told)
    final = torch.zeros_like(step.final)
    final[:, -1] = True
    at_last_action = final.roll(-1, dims=1)
    return Batch(
        observation=step.observation,
        action=tree_map(_next, step.previous_action),
        reward=_next(step.previous_reward),
        cost=_next(step.previous_cost),
        terminated=at_last_action & terminated,
        truncated=at_last_action & (not terminated),
        timestep=step.timestep,
        valid=step.valid,
        scored=step.valid & ~final,
        first=step.first,
        final=final,
        fresh=step.first,
        seed=step.seed,
        context=context,
    )


def _next(before_BT: Tensor) -> Tensor:
    """What was told of the previous step, put where it happened; zeros at the final step."""
    return torch.cat((before_BT[:, 1:], torch.zeros_like(before_BT[:, :1])), dim=1)


def _write(file: Path, shown: Shown) -> Path:
    tree = {
        "format": FORMAT,
        "version": VERSION,
        "update": shown.update,
        "exhibits": [exhibit.to_json() for exhibit in shown.exhibits],
        "missing": shown.missing,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(file.name + ".part")
    part.write_text(json.dumps(tree) + "\n", encoding="utf-8")
    os.replace(part, file)
    return file
