"""What was learned while acting, beside reference learners on the same tasks."""

from collections.abc import Mapping
from html import escape

import numpy as np

from foretoken.evaluation import plots
from foretoken.evaluation.in_context import reference_curves, regrets, returns_by_episode, spread, steps
from foretoken.evaluation.report.record import Record
from foretoken.evaluation.report.words import figure, number, section


def draw(run: Record) -> str:
    """What was learned while acting, where the last evaluation was made of trials or the environment tells regret."""
    if not run.evaluations:
        return ""
    last, figures = run.evaluations[-1], []
    if any(record.regret is not None for record in last.records):
        curves = {"this policy": regrets(last)} | reference_curves(last)
        lines = {label: (steps(values, last.records[0].length), *spread(values)) for label, values in curves.items()}
        figures.append(
            _learned("regret", lines, "step", "cumulative regret", "Regret", "what the best arm would have paid more")
        )
    if any(record.index for record in last.records):
        curves = {"this policy": returns_by_episode(last)} | reference_curves(last)
        lines = {label: (np.arange(1, values.shape[1] + 1), *spread(values)) for label, values in curves.items()}
        figures.append(
            _learned(
                "trials", lines, "episode of the trial", "return", "Return by episode", "memory is kept in between"
            )
        )
    return section("Learning in context", f'<div class="plots">{"".join(figures)}</div>') if figures else ""


def _learned(name: str, lines: Mapping[str, plots.Band], x: str, y: str, title: str, note: str) -> str:
    ends = ", ".join(f"{escape(label)} {number(band[1][-1])}" for label, band in lines.items())
    caption = f"<strong>{title}</strong> with its 95\u00a0% interval over tasks ({note}); at the end: {ends}."
    return figure(plots.bands(name, lines, x, y), caption)
