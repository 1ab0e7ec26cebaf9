"""Learning curves: loss, return, success, speed."""

from collections.abc import Sequence
from html import escape

import numpy as np

from foretoken.evaluation import plots
from foretoken.evaluation.report.record import Record, Result
from foretoken.evaluation.report.words import figure, number, section
from foretoken.evaluation.statistics import wilson


def draw(run: Record) -> str:
    train, held_out = run.curve(f"train/{run.loss}"), run.curve(f"held_out/{run.loss}")
    figures = []
    if train is not None:
        caption = f"<strong>Loss</strong>, {number(train[1][-1])} at the end."
        if held_out is not None:
            caption += f" Held-out episodes: {number(held_out[1][-1])}, lowest at update {number(held_out[0][held_out[1].argmin()])}."
        elif "held_out" in (run.experiment.get("source") or {"held_out": None}):
            caption += " No held-out loss; <code>--source.held-out 0.05</code> keeps some episodes aside for it."
        figures.append(figure(plots.losses(train, held_out), caption))
    if len({result.update for result in run.trained}) > 1:
        figures.append(
            figure(
                plots.bands("returns", _lines(run), "updates", "return"),
                f"<strong>Evaluation return</strong>, {_shown_lines(run)}.",
            )
        )
    figures += _success(run)
    rate = run.curve("time/updates_per_second")
    if rate is not None:
        figures.append(
            figure(
                plots.speed(rate),
                f"<strong>Speed</strong>, {number(float(np.median(rate[1])))} updates/s in the median.",
            )
        )
    if not figures:
        return section(
            "Learning curves", "<p>metrics.jsonl holds no training yet; <code>foretoken train</code> writes it.</p>"
        )
    return section("Learning curves", f'<div class="plots">{"".join(figures)}</div>')


def _success(run: Record) -> list[str]:
    """Success over updates: of the main target in every environment, or of several targets in the only one."""
    places = list(dict.fromkeys(found.environment for found in run.everything))
    told: dict[str, dict[int, list[bool]]] = {}
    for found in run.everything:
        for target in _chosen(run.last) if len(places) == 1 else found.targets[:1]:
            asked = "" if target is None else f"asked {number(target)}"
            known = [one.success for one in found.records if one.success is not None and one.target == target]
            line = told.setdefault(asked if len(places) == 1 else found.environment, {})
            line.setdefault(found.update, []).extend(known)
    lines, ends = {}, []
    for label, line in told.items():
        points = [(update, wilson(sum(known), len(known))) for update, known in sorted(line.items()) if known]
        if len(points) > 1:
            rows = [(update, share.value, share.low, share.high) for update, share in points]
            updates, mean, low, high = np.array(rows, np.float64).T
            lines[label] = (updates, mean, low, high)
            ends.append(f"{escape(label)} {100 * mean[-1]:.0f}\u00a0%".strip())
    if not lines:
        return []
    caption = f"<strong>Success rate</strong> with its 95\u00a0% interval over episodes; at the end: {', '.join(ends)}."
    return [figure(plots.bands("success", lines, "updates", "successful episodes", percent=True), caption)]


def _chosen(last: Sequence[Result]) -> list[float | None]:
    """At most five targets, spread evenly over those of an evaluation."""
    targets = sorted((result.target for result in last), key=lambda target: -(target or 0.0))
    return [targets[i] for i in np.unique(np.linspace(0, len(targets) - 1, min(5, len(targets))).round().astype(int))]


def _asked(run: Record) -> list[Result]:
    """The results of the last evaluation that training played."""
    return [result for result in run.trained if result.update == run.trained[-1].update]


def _lines(run: Record) -> dict[str, plots.Band]:
    lines = {}
    for target in _chosen(_asked(run)):
        points = sorted((r.update, r.mean.value, r.mean.low, r.mean.high) for r in run.trained if r.target == target)
        updates, mean, low, high = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
        lines["" if target is None else f"asked {number(target)}"] = (updates, mean, low, high)
    return lines


def _shown_lines(run: Record) -> str:
    targets = len(_asked(run))
    some = f"{len(_lines(run))} of {targets} targets" if targets > 5 else "by target" if targets > 1 else "mean"
    return f"{some}, with the 95\u00a0% interval over episodes"
