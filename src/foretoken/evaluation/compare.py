"""Compares two evaluations episode by episode: the same initial state and noise on both sides, so that luck cancels."""

import math
from dataclasses import dataclass
from typing import Any

from foretoken.core.errors import DataError
from foretoken.evaluation.evaluate import Evaluated
from foretoken.evaluation.rollout import EpisodeResult
from foretoken.evaluation.statistics import Difference, paired_difference

Key = tuple[float | None, float | None, int, int]
"""What names an episode on both sides: target, limit of cost, its number, and its place in its trial."""


@dataclass(frozen=True)
class Comparison:
    """How much more return b earned than a, over the episodes that both played."""

    environment: str
    difference: Difference
    targets: tuple[float | None, ...]
    unpaired: int  # episodes that only one side played

    @property
    def verdict(self) -> str:
        """One sentence."""
        found, gap = self.difference, self.difference.interval
        pairs = f"{found.pairs} paired episode{'' if found.pairs == 1 else 's'} in {self.environment}"
        if not math.isfinite(gap.low):
            return f"undecided: one pair per target shows no spread; b - a = {gap.value:.4g} over {pairs}"
        figures = (
            f"b - a = {gap.value:.4g} (95 % interval {gap.low:.4g} to {gap.high:.4g}, p = {found.p:.2g}) over {pairs}"
        )
        if gap.low == gap.high == 0:
            return f"equal: both earned the same in every episode, {pairs}"
        if gap.low <= 0 <= gap.high:
            return f"no difference shown: {figures}"
        return f"{'b' if gap.value > 0 else 'a'} is better: {figures}"

    def to_json(self) -> dict[str, Any]:
        return {
            "environment": self.environment,
            "mean_a": self.difference.a,
            "mean_b": self.difference.b,
            "difference": self.difference.interval.to_json(),
            "p": self.difference.p,
            "pairs": self.difference.pairs,
            "unpaired": self.unpaired,
            "targets": list(self.targets),
            "verdict": self.verdict,
            "note": "over episodes of one training run on each side; other training seeds may differ",
        }


def compare(a: Evaluated, b: Evaluated, *, seed: int = 0) -> Comparison:
    """Pairs episodes by target, episode number and reset seed, and compares returns; intervals are stratified by target.

    A side that asked for nothing is paired with every target of the other.

    Raises:
        DataError: the environments differ, the episodes begin differently (other seeds), or no episode is common.
    """
    if a.environment != b.environment:
        raise DataError(
            f"compare needs one environment, got {a.environment!r} and {b.environment!r}; "
            "`foretoken evaluate RUN --environment ID` plays another of the same spaces"
        )
    left, right = _by_key(a), _by_key(b)
    pairs = [(key, left[mine], right[theirs]) for key, mine, theirs in _matches(left, right)]
    if not pairs:
        raise DataError(
            f"no episode is common: targets {list(a.targets)} with episodes {_range(left)}, and targets {list(b.targets)} with episodes "
            f"{_range(right)}; evaluate both with the same targets and episodes"
        )
    for _, one, other in pairs:
        if one.reset_seed != other.reset_seed:
            raise DataError(
                f"episode {one.episode} begins differently on both sides (reset seeds {one.reset_seed} and {other.reset_seed}): "
                f"evaluate both with one seed, got {a.seed} and {b.seed}"
            )
    difference = paired_difference(
        [one.total for _, one, _ in pairs],
        [other.total for _, _, other in pairs],
        strata=[key[0] for key, _, _ in pairs],
        seed=seed,
    )
    used = {id(record) for _, one, other in pairs for record in (one, other)}
    return Comparison(
        environment=a.environment,
        difference=difference,
        targets=tuple(dict.fromkeys(key[0] for key, _, _ in pairs)),
        unpaired=len(a.records) + len(b.records) - len(used),
    )


def _by_key(evaluation: Evaluated) -> dict[Key, EpisodeResult]:
    return {(record.target, record.target_cost, record.episode, record.index): record for record in evaluation.records}


def _matches(left: dict[Key, EpisodeResult], right: dict[Key, EpisodeResult]) -> list[tuple[Key, Key, Key]]:
    """(key, key on the left, key on the right) of every pair."""
    found = [(key, _find(left, key), _find(right, key)) for key in dict.fromkeys([*left, *right])]
    return [(key, mine, theirs) for key, mine, theirs in found if mine is not None and theirs is not None]


def _find(records: dict[Key, EpisodeResult], key: Key) -> Key | None:
    """The key itself, or that of the same episode with nothing asked for."""
    return next((known for known in (key, (None, None, *key[2:])) if known in records), None)


def _range(records: dict[Key, EpisodeResult]) -> str:
    numbers = [key[2] for key in records]
    return f"{min(numbers)} to {max(numbers)}" if numbers else "none"
