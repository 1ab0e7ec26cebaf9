"""The page: its header, and the sections in their order."""

import os
from html import escape
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np

from foretoken.core.errors import DataError
from foretoken.evaluation.report import (
    about,
    achieved,
    curves,
    delays,
    exhibits,
    in_context,
    routes,
    scores,
    videos,
)
from foretoken.evaluation.report.record import Record, read_record
from foretoken.evaluation.report.words import count, date, number, text

SECTIONS = (
    scores.draw,
    achieved.draw,
    routes.draw,
    delays.draw,
    in_context.draw,
    exhibits.draw,
    curves.draw,
    videos.draw,
    about.draw,
)
"""What draws the page, in this order."""


def write_report(run: Path, *, data_returns: np.ndarray | None = None, out: Path | None = None) -> Path:
    """Writes the report of a run folder; replaces an earlier one whole.

    Args:
        run: the run's folder.
        data_returns: (M,) returns of the episodes it was trained on, to set targets and results against; those that
            run.json holds by default.
        out: the file to write, `<run>/report.html` by default.

    Raises:
        DataError: the folder holds no run, one of its files is broken, or `out` is a folder.
    """
    run = Path(run)
    out = Path(out) if out is not None else run / "report.html"
    if out.is_dir():
        raise DataError(f"the page needs a file, and {out} is a folder; give for example {out / 'report.html'}")
    page = Template(_resource("report.html")).substitute(_parts(read_record(run, out, data_returns)))
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, out)
    return out


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _parts(run: Record) -> dict[str, str]:
    where = f" on {run.environment}" if run.environment else ""
    return {
        "title": escape(f"{run.system}{where}"),
        "style": _resource("report.css").strip(),
        "header": _header(run),
        "main": "\n".join(drawn for drawn in (draw(run) for draw in SECTIONS) if drawn),
        "footer": f"Made by foretoken from the run folder <span class=mono>{escape(run.folder.resolve().name)}</span>.",
    }


def _header(run: Record) -> str:
    where = f" on {run.environment}" if run.environment else ""
    facts = {
        "started": date(run.info.get("started")),
        "commit": str(run.info.get("commit") or "")[:12],
        "seed": text(run.info.get("seed", run.experiment.get("seed", ""))),
        "updates": number(run.metrics[-1]["update"]) if run.metrics else "",
        "status": text(run.info.get("status", "")),
    }
    listed = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items() if value)
    best, rule = _verdict(run)
    return (
        f'<p class="eyebrow">Run report</p>\n<h1>{escape(run.system + where)}</h1>\n<dl class="facts">{listed}</dl>\n'
        f'<div class="verdict"><span class="number{"" if run.results else " words"}">{best}</span>\n<p class="rule">{rule}</p></div>'
    )


def _verdict(run: Record) -> tuple[str, str]:
    """The best number and, in a sentence or two, what made it."""
    if not run.results:
        return (
            "not evaluated",
            f"No episode has been played yet. <code>{escape(run.evaluate_command)}</code> plays some.",
        )
    best = max(run.results, key=lambda result: result.mean.value)
    asked = "" if best.target is None else f", asked for {number(best.target)}"
    rule = f"Mean return of {count(len(best.returns), 'episode')}{asked}, after {count(best.update, 'update')}."
    played, targets = len(run.counted), len({result.target for result in run.results})
    if len(run.results) == 1:
        return number(best.mean.value), f"{rule} It is the only evaluation, so nothing was selected."
    choices = [count(played, "evaluation")] * (played > 1) + [count(targets, "target")] * (targets > 1)
    if len(run.results) < played * targets:
        choices = [f"{count(len(run.results), 'pair')} of evaluation and target"]
    main = run.last[0]
    asked = "" if main.target is None or targets == 1 else f" at the main target, {number(main.target)},"
    return number(best.mean.value), (
        f"{rule} Picked as the best of {' times '.join(choices)} on the very episodes it is reported on, so it flatters; "
        f"the last evaluation{asked} gives <strong>{number(main.mean.value)}</strong>."
    )
