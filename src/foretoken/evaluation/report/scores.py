"""The score card: numbers that each carry the rule that made them."""

from html import escape

import numpy as np

from foretoken.evaluation.report.record import Record
from foretoken.evaluation.report.words import count, number, section
from foretoken.evaluation.scores import Score, ScoreCard, seeds


def draw(run: Record) -> str:
    if run.card is None:
        body = (
            f"<p>No evaluation yet. <code>{escape(run.evaluate_command)}</code> plays episodes and fills this card.</p>"
        )
        return section("Score card", body)
    head = '<tr><th>Number</th><th class="value">Value</th><th class="value">95\u00a0% interval</th><th>Rule that made it</th></tr>'
    rows = "".join(_score_row(score) for score in run.card.scores)
    earlier = len(run.evaluations) - len(run.counted)
    more = f" {count(earlier, 'earlier evaluation')} by <code>foretoken evaluate</code> not counted." if earlier else ""
    note = (
        f'<p class="note">{count(run.card.evaluations, "evaluation")}, {seeds(run.card)}. '
        "Intervals are over the episodes of one training run: they do not say how another training seed would have done."
        f"{more}</p>"
    )
    table = f'<div class="wide"><table class="score"><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
    return section("Score card", note + table + _targets(run.card))


def _score_row(score: Score) -> str:
    def shown(value: float) -> str:
        return f"{100 * value:.0f}\u00a0%" if score.name == "success rate" else number(value)

    spread = "unknown"
    if score.interval is not None and np.isfinite([score.interval.low, score.interval.high]).all():
        spread = f"{shown(score.interval.low)} to {shown(score.interval.high)}"
    return (
        f'<tr><th scope="row">{escape(score.name.capitalize())}</th><td class="value main">{shown(score.value)}</td>'
        f'<td class="value" data-label="95\u00a0% interval">{spread}</td><td class="rule">{escape(score.rule)}</td></tr>'
    )


def _targets(card: ScoreCard) -> str:
    """The last evaluation target by target, folded away."""
    if len(card.targets) < 2:
        return ""
    succeeds = any(entry.success for entry in card.targets)
    names = ["Asked", "Mean", "Standard deviation", "Lowest", "Highest", "Episodes"] + ["Success"] * succeeds
    head = "".join(f'<th class="value">{name}</th>' for name in names)
    rows = ""
    for entry in card.targets:
        told = [entry.target, entry.mean, entry.sd, entry.low, entry.high, entry.episodes]
        share = f"{100 * entry.success.value:.0f}\u00a0%" if entry.success else ""
        cells = [number(value) for value in told] + [share] * succeeds
        rows += "<tr>" + "".join(f'<td class="value">{cell}</td>' for cell in cells) + "</tr>"
    table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return f"<details><summary>Each target of the last evaluation</summary>{table}</details>"
