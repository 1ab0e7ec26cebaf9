"""What was achieved: against what was asked for, and against the data."""

from collections.abc import Sequence
from html import escape

import numpy as np

from foretoken.evaluation import plots
from foretoken.evaluation.report.record import Record, Result
from foretoken.evaluation.report.words import count, figure, number, section, signed
from foretoken.evaluation.scores import ScoreCard


def draw(run: Record) -> str:
    """What was achieved: against what was asked for, and against the data."""
    if run.card is None:
        return ""
    asked = [result for result in run.last if result.target is not None]
    if asked:
        return f'<div class="pair">{_calibration(run, run.card, asked)}{_histogram(run)}</div>'
    if run.card_of_system is not None and "returns" not in run.card_of_system.tags:
        return _histogram(run)
    note = (
        "The last evaluation asked for no return. For a system that takes one, "
        f"<code>{escape(run.evaluate_command)} --targets 1000,2000</code> shows whether it delivers what it is asked for."
    )
    return _histogram(run) + section("Asked and achieved", f"<p>{note}</p>")


def _calibration(run: Record, card: ScoreCard, asked: Sequence[Result]) -> str:
    targets = np.concatenate([np.full(len(result.returns), result.target) for result in asked])
    returns = np.concatenate([result.returns for result in asked])
    means = [(float(result.target or 0), result.mean.value, result.mean.low, result.mean.high) for result in asked]
    parts = [
        f"<strong>Mean absolute gap {number(card.asked['gap'])}</strong> between a target and the mean return it got"
    ]
    if len(asked) > 1:
        rank = signed(card.asked["spearman"])
        parts.append(f"<strong>Spearman correlation {rank}</strong> of asked and achieved over episodes")
    else:
        parts.append("one target only, so no correlation")
    rule = run.evaluations[-1].target_rule
    chosen = f" Targets: {escape(rule)}." if rule else ""
    caption = f"{'; '.join(parts)}. {_outside(asked, run.data)}{chosen}"
    return section("Asked and achieved", figure(plots.calibration(targets, returns, means, run.data), caption))


def _outside(asked: Sequence[Result], data: np.ndarray | None) -> str:
    if data is None:
        return "The training data's returns are not known, so their range is not shown."
    low, high = float(data.min()), float(data.max())
    slack = 1e-5 * max(1.0, abs(low), abs(high))  # default targets are rounded to six digits
    targets = sorted(result.target or 0.0 for result in asked)
    beyond = [number(target) for target in targets if not low - slack <= target <= high + slack]
    if not beyond:
        return f"All targets lie within the data's returns ({number(low)} to {number(high)}, shaded)."
    return f"The data's returns reach from {number(low)} to {number(high)} (shaded); outside it were asked: {', '.join(beyond)}."


def _histogram(run: Record) -> str:
    returns = np.concatenate([result.returns for result in run.last])
    told = f"<strong>From {number(returns.min())} to {number(returns.max())}</strong>, median {number(float(np.median(returns)))}"
    if returns.min() == returns.max():
        told = f"<strong>{number(returns.min())}</strong> in every episode"
    caption = f"{told}: the {count(len(returns), 'episode')} of the last evaluation{', all targets together' if len(run.last) > 1 else ''}."
    if run.data is not None:
        caption += (
            f" {100 * float((returns > run.data.max()).mean()):.0f}\u00a0% of them beat every episode in the data."
        )
    return section("Returns", figure(plots.histogram(returns, run.data), caption))
