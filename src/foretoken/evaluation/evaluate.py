"""Evaluates a method: chosen return targets times numbered episodes, as one batch of jobs.

The result is written beside the checkpoint as JSON, one record per episode, so that every later number (score card,
comparison, report) is computed from episodes and not from summaries.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foretoken.core.config import Config
from foretoken.core.errors import ConfigError, DataError
from foretoken.core.method import Method
from foretoken.core.spec import Spec
from foretoken.envs.slots import Factory, Job, Tasks, Tick, with_tasks
from foretoken.envs.traced import Engine
from foretoken.evaluation.rollout import EpisodeResult, rollout

log = logging.getLogger(__name__)

FORMAT, VERSION = "foretoken-evaluation", 1
TARGET_RULE = "the best return in the data and four more, evenly spaced down to its 10 % quantile"


@dataclass(frozen=True, kw_only=True)
class Evaluation(Config):
    """How a method is evaluated.

    Args:
        environment: Gymnasium id; "" takes the one the data come from.
        episodes: episodes (or trials) per target; every target plays the same initial states.
        targets: returns to ask for, the most important first; empty: chosen from the data's returns (`default_targets`)
            where those are known. A policy that asks for no return plays without any.
        costs: limits of cost to ask for beside every target, of a policy that takes one.
        num_slots: episodes played at once; changes the speed only.
        max_steps: episodes are cut after so many actions; 0 leaves that to the environment.
        trial: so many episodes of one task, with one memory, are played in place of each episode.
        tasks: episode i plays the environment's i-th task of this part; "" lets the reset draw one.
        engine: what runs the policy's graph once its steps repeat: "torch" bit for bit as the policy; "onnx" (extra "onnx")
            faster for few slots, and equal within rounding; "onnx-int8" about twice as fast, with weights of eight bits.
    """

    environment: str = ""
    episodes: int = 10
    targets: tuple[float, ...] = ()
    costs: tuple[float, ...] = ()
    num_slots: int = 32
    max_steps: int = 0
    trial: int = 1
    tasks: Tasks = ""
    engine: Engine = "torch"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(episodes=1, num_slots=1, max_steps=0, trial=1)
        for name in ("targets", "costs"):
            asked = getattr(self, name)
            if not np.isfinite(asked).all():
                raise ConfigError(f"Evaluation.{name} must be finite, got {asked}")
            if len(set(asked)) < len(asked):
                raise ConfigError(f"Evaluation.{name} must differ from one another, got {asked}")


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """One evaluation: every episode's record, in the order of targets and then episodes; `card` is its score card as JSON."""

    environment: str
    seed: int
    update: int
    num_slots: int
    records: tuple[EpisodeResult, ...]
    seconds: float = 0.0
    decisions: int = 0
    target_rule: str = ""
    card: Mapping[str, Any] = field(default_factory=dict)
    played: float = 0.0  # when, in seconds since 1970; 0 where an older file does not tell
    file: Path | None = field(default=None, compare=False)  # where it was read from

    @property
    def targets(self) -> tuple[float | None, ...]:
        """The targets asked for, in order, the main one first; `(None,)` where nothing was asked."""
        return tuple(dict.fromkeys(record.target for record in self.records))

    def returns(self, target: float | None) -> np.ndarray:
        """The (n,) float64 returns of a target's episodes."""
        return np.array([record.total for record in self.records if record.target == target], np.float64)

    def metrics(self) -> dict[str, float]:
        """Numbers to log, of the main target; the first, `return`, is the mean. Trials also tell that of their first and of
        their last fifth."""
        main = [record for record in self.records if record.target == self.targets[0]]
        found = {
            "return": _mean([record.total for record in main]),
            "length": _mean([record.length for record in main]),
        }
        found |= {
            f"return/{target:g}": float(self.returns(target).mean()) for target in self.targets if target is not None
        }
        if last := max(record.index for record in main):
            fifth = max(1, (last + 1) // 5)
            found["return/first"] = _mean([record.total for record in main if record.index < fifth])
            found["return/last"] = _mean([record.total for record in main if record.index > last - fifth])
        for name in ("success", "cost"):
            known = [float(value) for value in (getattr(record, name) for record in main) if value is not None]
            found |= {name: _mean(known)} if known else {}
        for limit in dict.fromkeys(record.target_cost for record in main if record.target_cost is not None):
            found[f"cost/{limit:g}"] = _mean([record.cost or 0.0 for record in main if record.target_cost == limit])
        return found

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "version": VERSION,
            "environment": self.environment,
            "seed": self.seed,
            "update": self.update,
            "num_slots": self.num_slots,
            "target_rule": self.target_rule,
            "records": [record.to_json() for record in self.records],
            "seconds": self.seconds,
            "decisions": self.decisions,
            "played": self.played,
            "card": dict(self.card),
        }

    @classmethod
    def from_json(cls, tree: Any) -> "Evaluated":
        """The evaluation that `to_json` described; a DataError where it is something else or incomplete."""
        if not isinstance(tree, Mapping) or (tree.get("format"), tree.get("version")) != (FORMAT, VERSION):
            found = (tree.get("format"), tree.get("version")) if isinstance(tree, Mapping) else type(tree).__name__
            raise DataError(f"an evaluation must have format {FORMAT!r} and version {VERSION}, got {found}")
        try:
            plain = {
                name: tree[name] for name in ("environment", "seed", "update", "num_slots", "seconds", "decisions")
            }
            records = tuple(EpisodeResult.from_json(record) for record in tree["records"])
        except KeyError as problem:
            raise DataError(f"this evaluation lacks {problem.args[0]!r}; evaluate again") from None
        added = {"target_rule": tree.get("target_rule", ""), "played": float(tree.get("played") or 0.0)}
        return cls(records=records, card=tree.get("card") or {}, **added, **plain)

    def write(self, file: str | Path) -> Path:
        """Writes the JSON, whole or not at all."""
        file = Path(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_name(file.name + ".part")
        part.write_text(json.dumps(self.to_json(), indent=1) + "\n", encoding="utf-8")
        os.replace(part, file)
        return file


def read_evaluation(file: str | Path) -> Evaluated:
    """The evaluation in a JSON file, or a DataError that names the file."""
    try:
        found = Evaluated.from_json(json.loads(Path(file).read_text(encoding="utf-8")))
    except (DataError, ValueError, OSError) as problem:
        raise DataError(f"{file} is no evaluation: {problem}") from None
    return replace(found, file=Path(file))


def read_evaluations(run: str | Path) -> list[Evaluated]:
    """Everything that a run's folder keeps of its episodes, in the order in which it was played.

    Raises:
        DataError: one of the files is broken.
    """
    found = [read_evaluation(file) for file in sorted((Path(run) / "evaluations").glob("*.json"))]
    return sorted(found, key=lambda one: (one.played, one.update))


def default_targets(returns: Any) -> tuple[float, ...]:
    """Targets chosen from the data's (M,) returns by `TARGET_RULE`, without repetitions, the highest first."""
    known = np.asarray(returns, np.float64).reshape(-1)
    if not known.size or not np.isfinite(known).all():
        bad = int((~np.isfinite(known)).sum())
        raise DataError(
            f"default_targets needs at least one return, all finite, got {known.size} of which {bad} are not"
        )
    chosen = np.linspace(known.max(), np.quantile(known, 0.1), 5)
    return tuple(dict.fromkeys(float(f"{value:.6g}") for value in chosen))


def evaluate(
    method: Method,
    spec: Spec,
    config: Evaluation,
    *,
    seed: int,
    update: int = 0,
    data_returns: Any = None,
    environment: Factory | None = None,
    device: torch.device | str = "cpu",
    keep_actions: bool = False,
    on_episode: Callable[[EpisodeResult], None] | None = None,
    on_warning: Callable[[str], None] = log.warning,
    watch: Callable[[Tick], None] | None = None,
) -> Evaluated:
    """Plays `config.episodes` episodes per target with the method's policy, all targets in one batch.

    Args:
        spec: what the method was made for; an environment that differs is refused with an EnvironmentMismatch.
        seed: with the episode number, fixes initial states and noise.
        update: how long the method has been trained, for the record.
        data_returns: (M,) returns of the training data: the source of default targets and of the warning about targets
            outside them. None where unknown, or where the method takes no target.
        environment: a factory to use instead of the configured id.
        on_warning: called once with a sentence when targets lie outside the data's returns.
        watch: called with every tick of the rollout, whose jobs are in the order of targets and then episodes.
    """
    where = environment or config.environment or spec.environment
    if not where:
        raise ConfigError(
            "Evaluation.environment must name a Gymnasium id because the data name none (--environment Hopper-v5), got ''"
        )
    targets, rule = _targets(config, data_returns) if "target_return" in method.asks else ((None,), "nothing asked for")
    _warn_outside(targets, data_returns, on_warning)
    if "target_cost" in method.asks and not config.costs:
        raise ConfigError("this policy is asked for a limit of cost: Evaluation.costs must name at least one, got ()")
    limits = [{"target_cost": cost} for cost in config.costs] if "target_cost" in method.asks else [{}]
    jobs = [
        Job(number, target, context=limit, episodes=config.trial)
        for target in targets
        for limit in limits
        for number in range(config.episodes)
    ]
    jobs = with_tasks(jobs, where, config.tasks)
    policy = method.policy
    modes = [(module, module.training) for module in method.modules()]
    method.eval()
    began = time.perf_counter()
    try:
        records = rollout(
            policy,
            where,
            jobs,
            spec=spec,
            seed=seed,
            num_slots=config.num_slots,
            device=device,
            max_steps=config.max_steps,
            engine=config.engine,
            keep_actions=keep_actions,
            on_episode=on_episode,
            watch=watch,
        )
    finally:
        for module, was_training in modes:
            module.training = was_training
    found = Evaluated(
        environment=where
        if isinstance(where, str)
        else (config.environment or spec.environment or getattr(where, "__name__", "")),
        seed=seed,
        update=update,
        num_slots=config.num_slots,
        records=tuple(records),
        seconds=time.perf_counter() - began,
        decisions=sum(record.length for record in records),
        target_rule=rule,
        played=time.time(),
    )
    return replace(found, card=_card(found))


def _card(found: Evaluated) -> Mapping[str, Any]:
    from foretoken.evaluation.scores import score_card

    return score_card([found]).to_json()


def _targets(config: Evaluation, data_returns: Any) -> tuple[Sequence[float | None], str]:
    if config.targets:
        return config.targets, "as given"
    if data_returns is None or not len(data_returns):
        return (None,), "nothing asked for"
    return default_targets(data_returns), TARGET_RULE


def _warn_outside(targets: Sequence[float | None], data_returns: Any, on_warning: Callable[[str], None]) -> None:
    if data_returns is None or not len(data_returns):
        return
    low, high = float(np.min(data_returns)), float(np.max(data_returns))
    slack = 1e-5 * max(1.0, abs(low), abs(high))  # default targets are rounded to six digits
    beyond = [f"{target:g}" for target in targets if target is not None and not low - slack <= target <= high + slack]
    if beyond:
        on_warning(
            f"targets outside the data's returns ({low:g} to {high:g}), where nothing was learned: {', '.join(beyond)}"
        )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
