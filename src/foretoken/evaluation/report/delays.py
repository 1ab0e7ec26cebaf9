"""What memory is worth: success or return against the steps over which something had to be remembered."""

from collections.abc import Sequence
from html import escape

import numpy as np

from foretoken.envs.diagnostic import make_world, world_ids
from foretoken.evaluation import plots
from foretoken.evaluation.evaluate import Evaluated
from foretoken.evaluation.report.record import Record
from foretoken.evaluation.report.words import count, figure, number, section
from foretoken.evaluation.rollout import EpisodeResult
from foretoken.evaluation.statistics import bootstrap, wilson

_POINTS = 12
"""At most so many are drawn: neighbouring delays are taken together."""


def draw(run: Record) -> str:
    """All evaluations of the newest update count, whatever their environment; of each the main target."""
    most = max((found.update for found in run.everything), default=0)
    newest = [found for found in run.everything if found.update == most]
    told = [(delay, record) for found in newest for delay, record in _delays(found)]
    if not told:
        return ""
    delays = sorted({delay for delay, _ in told})
    if len(delays) == 1:
        more = f"<code>{escape(run.evaluate_command)} --environment ID</code>"
        return section("Memory", f"<p>All episodes had one delay, {count(delays[0], 'step')}; {more} adds others.</p>")
    groups = [set(group.tolist()) for group in np.array_split(delays, min(_POINTS, len(delays)))]
    played = [[(delay, record) for delay, record in told if delay in group] for group in groups]
    succeeds = all(record.success is not None for _, record in told)
    rows = [
        (np.mean([delay for delay, _ in part]), *_interval([record for _, record in part], succeeds)) for part in played
    ]
    places, mean, low, high = np.array(rows, np.float64).T
    trained = _range(str((run.info.get("spec") or {}).get("environment") or ""))
    what = "Success" if succeeds else "Return"
    first, last = (_told(groups[end]) for end in (0, -1))
    shown = (lambda value: f"{100 * value:.0f}\u00a0%") if succeeds else number
    caption = (
        f"<strong>{what} against delay</strong>, the steps between what is to be remembered and what needs it, with its 95\u00a0% "
        f"interval over episodes: {shown(mean[0])} at {first}, {shown(mean[-1])} at {last}; "
        f"{count(len(told), 'episode')} of {count(len(newest), 'evaluation')} at update {number(newest[0].update)}."
    )
    if trained is not None:
        caption += f" Trained with {_told(set(trained))}."
    drawn = plots.bands(
        "delays",
        {"": (places, mean, low, high)},
        "steps to remember",
        "successful episodes" if succeeds else "return",
        percent=succeeds,
        shade=None if trained is None else (*trained, "delays in training"),
    )
    return section("Memory", figure(drawn, caption))


def _delays(found: Evaluated) -> list[tuple[int, EpisodeResult]]:
    """The delay of every episode of the main target, where it is known."""
    fixed = _range(found.environment)
    only = fixed[0] if fixed is not None and fixed[0] == fixed[1] else None
    records = [record for record in found.records if record.target == found.targets[0]]
    known = [(only if record.delay is None else record.delay, record) for record in records]
    return [(delay, record) for delay, record in known if delay is not None]


def _range(environment: str) -> tuple[int, int] | None:
    """The delays that one of our worlds has."""
    return make_world(environment, 1).delays if environment in world_ids() else None


def _told(delays: set[int]) -> str:
    low, high = min(delays), max(delays)
    return count(high, "step") if low == high else f"{number(low)} to {count(high, 'step')}"


def _interval(records: Sequence[EpisodeResult], succeeds: bool) -> tuple[float, float, float]:
    if succeeds:
        share = wilson(sum(record.success is True for record in records), len(records))
        return share.value, share.low, share.high
    mean = bootstrap([np.array([record.total for record in records])], np.mean)
    return mean.value, mean.low, mean.high
