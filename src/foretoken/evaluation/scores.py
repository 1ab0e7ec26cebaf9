"""The score card of a run: numbers that each carry the rule that made them.

It is computed from the run's evaluations, oldest first. The main target is the one listed first. Best-of numbers are
chosen on the very episodes they are reported on, and their rules say so.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretoken.core.errors import DataError, UnknownName
from foretoken.data.scores import normalised_score
from foretoken.evaluation.evaluate import Evaluated
from foretoken.evaluation.rollout import EpisodeResult
from foretoken.evaluation.statistics import Interval, bootstrap, calibration_gap, iqm, spearman, wilson


@dataclass(frozen=True)
class Score:
    """One number, its interval where one is known, over how many episodes, and the rule that made it."""

    name: str
    value: float
    rule: str
    episodes: int
    interval: Interval | None = None

    def to_json(self) -> dict[str, Any]:
        interval = self.interval.to_json() if self.interval is not None else {}
        bounds = [interval.get("low"), interval.get("high")]
        return {
            "name": self.name,
            "value": _plain(self.value),
            "interval": bounds,
            "episodes": self.episodes,
            "rule": self.rule,
        }


@dataclass(frozen=True)
class TargetScore:
    """What one target of the last evaluation brought; `sd` is the sample's (n - 1), NaN for one episode."""

    target: float | None
    episodes: int
    mean: float
    sd: float
    low: float
    high: float
    success: Interval | None = None

    def to_json(self) -> dict[str, Any]:
        known = {name: getattr(self, name) for name in ("target", "episodes", "mean", "sd", "low", "high")}
        return {name: _plain(value) for name, value in known.items()} | {
            "success": self.success.to_json() if self.success else None
        }


@dataclass(frozen=True)
class ScoreCard:
    """Last, best over training, best over targets and interquartile mean; each target; asked against achieved; seeds."""

    environment: str
    scores: tuple[Score, ...]
    targets: tuple[TargetScore, ...]
    asked: Mapping[str, float]
    seeds: tuple[int, ...]
    evaluations: int

    def __getitem__(self, name: str) -> Score:
        for score in self.scores:
            if score.name == name:
                return score
        raise DataError(f"this score card has no {name!r}; it has {[score.name for score in self.scores]}")

    def to_json(self) -> dict[str, Any]:
        return {
            "environment": self.environment,
            "scores": [score.to_json() for score in self.scores],
            "targets": [target.to_json() for target in self.targets],
            "asked": {name: _plain(value) for name, value in self.asked.items()},
            "seeds": list(self.seeds),
            "evaluations": self.evaluations,
        }

    def text(self) -> str:
        """The card as aligned tables for a terminal."""
        lines = [f"{self.environment}, {_count(self.evaluations, 'evaluation')}, {seeds(self)}", ""]
        rows = [(score.name, _short(score.value), _between(score.interval), score.rule) for score in self.scores]
        lines += _table(("score", "value", "95 % interval", "rule"), rows)
        if any(entry.target is not None for entry in self.targets) or len(self.targets) > 1:
            head = ("asked", "mean", "sd", "lowest", "highest", "episodes", "success")
            told = len(head) - all(entry.success is None for entry in self.targets)
            lines += ["", *_table(head[:told], [_target_row(entry)[:told] for entry in self.targets])]
        if self.asked:
            rank = f", Spearman {_short(self.asked['spearman'])}" if len(self.targets) > 1 else ""
            lines += ["", f"asked against achieved: mean absolute gap {_short(self.asked['gap'])}{rank}"]
        return "\n".join(lines) + "\n"


def seeds(card: ScoreCard) -> str:
    """ "seed 0", "seeds 0 and 7"."""
    return f"seed{'s' if len(card.seeds) > 1 else ''} {' and '.join(map(str, card.seeds))}"


def while_training(found: Evaluated) -> bool:
    """Whether training played it, and nobody asked for it by hand: `foretoken evaluate` names its files `user-...`."""
    return found.file is None or not found.file.stem.startswith("user-")


def for_card(evaluations: Sequence[Evaluated]) -> list[Evaluated]:
    """Those of a run's evaluations, oldest first, that its card is made of: the last, and those of training in its environment.

    Earlier ones that were asked for by hand are left out: a best over them would grow with how often one asked.
    """
    *before, last = evaluations
    return [*(one for one in before if one.environment == last.environment and while_training(one)), last]


def score_card(evaluations: Sequence[Evaluated], *, seed: int = 0) -> ScoreCard:
    """The score card of a run's evaluations, oldest first; `seed` is that of the bootstrap.

    Raises:
        DataError: no evaluation, one without episodes, or evaluations of different environments.
    """
    if not evaluations or not all(evaluation.records for evaluation in evaluations):
        raise DataError(
            "a score card needs at least one evaluation, each with at least one episode; run `foretoken evaluate`"
        )
    environments = list(dict.fromkeys(evaluation.environment for evaluation in evaluations))
    if len(environments) > 1:
        raise DataError(
            f"a score card is of one environment, got evaluations of {environments}; make one card for each"
        )
    last = evaluations[-1]
    asked, achieved = _asked(last)
    return ScoreCard(
        environment=last.environment,
        scores=tuple(_scores(evaluations, seed)),
        targets=tuple(_target_score(last, target) for target in last.targets),
        asked={"gap": calibration_gap(asked, achieved), "spearman": spearman(asked, achieved)} if asked else {},
        seeds=tuple(dict.fromkeys(evaluation.seed for evaluation in evaluations)),
        evaluations=len(evaluations),
    )


def _scores(evaluations: Sequence[Evaluated], seed: int) -> list[Score]:
    last = evaluations[-1]
    main = last.targets[0]
    returns = last.returns(main)
    rule = f"{_rule(returns, main)}, last evaluation (update {last.update})"
    scores = [_mean_score("last", returns, rule, seed)]
    scores.append(_best_over_training(evaluations, main, seed))
    if len(last.targets) > 1:
        scores.append(_best_over_targets(last, seed))
    middle = rule.replace("mean", "mean of the middle half", 1)
    scores.append(Score("interquartile mean", iqm(returns), middle, len(returns), bootstrap([returns], iqm, seed=seed)))
    scores += _normalised(last.environment, scores[0])
    scores += _reported([record for record in last.records if record.target == main], rule, seed)
    return scores


def _rule(returns: np.ndarray, target: float | None) -> str:
    return f"mean of {_count(len(returns), 'episode')}" + ("" if target is None else f" at target {_short(target)}")


def _mean_score(name: str, returns: np.ndarray, rule: str, seed: int) -> Score:
    return Score(name, float(returns.mean()), rule, len(returns), bootstrap([returns], np.mean, seed=seed))


def _best_over_training(evaluations: Sequence[Evaluated], target: float | None, seed: int) -> Score:
    known = [evaluation for evaluation in evaluations if target in evaluation.targets]
    best = max(known, key=lambda evaluation: evaluation.returns(target).mean())
    returns = best.returns(target)
    chosen = f"best of {len(known)} evaluations (update {best.update}), picked on these episodes"
    only = "the only evaluation" + (" at this target" if len(evaluations) > 1 else "")
    picked = chosen if len(known) > 1 else only
    return _mean_score("best over training", returns, f"{_rule(returns, target)}, {picked}", seed)


def _best_over_targets(last: Evaluated, seed: int) -> Score:
    best = max(last.targets, key=lambda target: last.returns(target).mean())
    returns = last.returns(best)
    rule = f"{_rule(returns, best)}, best of {len(last.targets)} targets, last evaluation, picked on these episodes"
    return _mean_score("best over targets", returns, rule, seed)


def _normalised(environment: str, last: Score) -> list[Score]:
    """The last score on the 0 (random) to 100 (expert) scale of a named table, where one knows the environment."""
    interval = last.interval or Interval(last.value, math.nan, math.nan)
    try:
        found = normalised_score(environment, [last.value, interval.low, interval.high])
    except UnknownName:
        return []
    value, low, high = map(float, found.values)
    table = f"0 = {_short(found.reference.low)}, 100 = {_short(found.reference.high)} of the table '{found.reference.table}'"
    note = f" ({found.reference.note})" if found.reference.note else ""
    return [Score("normalised", value, f"{last.rule}; {table}{note}", last.episodes, Interval(value, low, high))]


def _reported(records: Sequence[EpisodeResult], rule: str, seed: int) -> list[Score]:
    """Success rate and mean cost, where the environment reports them; of a policy that is asked for limits, the cost at each."""
    scores = []
    success = _success(records)
    if success is not None:
        scores.append(Score("success rate", success.value, rule.replace("mean", "share", 1), len(records), success))
    for limit in dict.fromkeys(record.target_cost for record in records):
        costs = np.array([record.cost for record in records if record.target_cost == limit and record.cost is not None])
        if not costs.size:
            continue
        name, how = "cost", rule
        if limit is not None:
            played, some = (_count(number, "episode") for number in (len(records), costs.size))
            name = f"cost at limit {_short(limit)}"
            how = rule.replace(played, f"{some} asked to cost at most {_short(limit)}", 1)
        scores.append(_mean_score(name, costs, how, seed))
    return scores


def _success(records: Sequence[EpisodeResult]) -> Interval | None:
    known = [record.success for record in records if record.success is not None]
    return wilson(sum(known), len(known)) if known else None


def _target_score(last: Evaluated, target: float | None) -> TargetScore:
    returns = last.returns(target)
    sd = float(returns.std(ddof=1)) if len(returns) > 1 else math.nan
    success = _success([record for record in last.records if record.target == target])
    return TargetScore(
        target, len(returns), float(returns.mean()), sd, float(returns.min()), float(returns.max()), success
    )


def _asked(evaluation: Evaluated) -> tuple[list[float], list[float]]:
    pairs = [(record.target, record.total) for record in evaluation.records if record.target is not None]
    return [target for target, _ in pairs], [achieved for _, achieved in pairs]


def _target_row(entry: TargetScore) -> tuple[str, ...]:
    asked = "nothing" if entry.target is None else _short(entry.target)
    numbers = [_short(value) for value in (entry.mean, entry.sd, entry.low, entry.high)]
    return asked, *numbers, str(entry.episodes), _between(entry.success) if entry.success else ""


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *rows)
    ]


def _between(interval: Interval | None) -> str:
    if interval is None or not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return "unknown"
    return f"{_short(interval.low)} to {_short(interval.high)}"


def _short(value: float) -> str:
    if not math.isfinite(value):
        return "unknown"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _plain(value: Any) -> Any:
    """A JSON value: numbers that are not finite become null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
