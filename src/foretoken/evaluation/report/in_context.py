"""What was learned while acting, beside reference learners and the learner that was distilled, on the same tasks."""

from collections.abc import Mapping
from contextlib import suppress
from html import escape

import numpy as np

from foretoken.core.config import Config
from foretoken.core.errors import ConfigError
from foretoken.envs.recipes.learning_histories import Histories
from foretoken.evaluation import plots
from foretoken.evaluation.in_context import (
    reference_curves,
    regrets,
    returns_by_episode,
    source_curves,
    spread,
    steps,
)
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
        recipe = _histories(run)
        source = {} if recipe is None else source_curves(last, recipe)
        curves = {"this policy": returns_by_episode(last)} | reference_curves(last) | source
        lines = {label: (np.arange(1, values.shape[1] + 1), *spread(values)) for label, values in curves.items()}
        figures.append(
            _learned(
                "trials", lines, "episode of the trial", "return", "Return by episode", "memory is kept in between"
            )
        )
    return section("Learning in context", f'<div class="plots">{"".join(figures)}</div>') if figures else ""


def _histories(run: Record) -> Histories | None:
    """The recipe of its training data, where these are histories; None too where this version cannot read it."""
    tree = (run.experiment.get("source") or {}).get("recipe")
    with suppress(ConfigError):
        recipe = Config.from_json(tree) if tree else None
        return recipe if isinstance(recipe, Histories) else None
    return None


def _learned(name: str, lines: Mapping[str, plots.Band], x: str, y: str, title: str, note: str) -> str:
    ends = ", ".join(f"{escape(label)} {number(band[1][-1])}" for label, band in lines.items())
    caption = f"<strong>{title}</strong> with its 95\u00a0% interval over tasks ({note}); at the end: {ends}."
    return figure(plots.bands(name, lines, x, y), caption)
