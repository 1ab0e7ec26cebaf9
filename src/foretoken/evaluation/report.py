"""The report of one run: a single HTML file that needs no network, no script and no other file.

It reads the run folder (run.json, metrics.jsonl, evaluations/*.json, videos/index.json) and leaves out nothing silently:
what is missing is named, with the command that makes it. The same folder always gives the same bytes.

    foretoken report runs/hopper            writes runs/hopper/report.html
"""

import base64
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from html import escape
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from foretoken.core import catalogue
from foretoken.core.errors import DataError, UnknownName
from foretoken.evaluation import plots
from foretoken.evaluation.evaluate import Evaluated, read_evaluation
from foretoken.evaluation.in_context import reference_curves, regrets, returns_by_episode, spread, steps
from foretoken.evaluation.scores import Score, ScoreCard, score_card
from foretoken.evaluation.statistics import Interval, bootstrap
from foretoken.evaluation.video import read_index

_EMBED_LIMIT = 6_000_000
"""Bytes of video, all films together, up to which they go into the page itself."""


def write_report(run: Path, *, data_returns: np.ndarray | None = None, out: Path | None = None) -> Path:
    """Writes the report of a run folder; replaces an earlier one whole.

    Args:
        run: the run's folder.
        data_returns: (M,) returns of the episodes it was trained on, to set targets and results against; those that
            run.json holds by default.
        out: the file to write, `<run>/report.html` by default.

    Raises:
        DataError: the folder holds no run, or one of its files is broken.
    """
    run = Path(run)
    out = Path(out) if out is not None else run / "report.html"
    record = _read(run)
    data = _checked(record.info.get("data_returns") if data_returns is None else data_returns)
    page = Template(_resource("report.html")).substitute(_parts(record, data, out))
    out.parent.mkdir(parents=True, exist_ok=True)
    part = out.with_name(out.name + ".part")
    part.write_text(page, encoding="utf-8")
    os.replace(part, out)
    return out


@dataclass(frozen=True)
class _Result:
    """The returns of one evaluation at one target, (N,) float64."""

    update: int
    target: float | None
    returns: np.ndarray

    @cached_property
    def mean(self) -> Interval:
        return bootstrap([self.returns], np.mean)


@dataclass(frozen=True)
class _Run:
    folder: Path
    info: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    evaluations: Sequence[Evaluated]
    """Oldest first, all of the environment that was evaluated last."""

    @property
    def experiment(self) -> Mapping[str, Any]:
        return self.info.get("experiment") or {}

    @cached_property
    def environment(self) -> str:
        if self.evaluations:
            return self.evaluations[-1].environment
        chosen = (self.experiment.get("evaluation") or {}).get("environment")
        return str(chosen or (self.info.get("spec") or {}).get("environment") or "")

    @cached_property
    def command(self) -> list[str]:
        """The words of the command that trained it; the program without the folder it was installed in."""
        told = self.info.get("command") or []
        words = [str(word) for word in told] if isinstance(told, list) else shlex.split(str(told))
        return [Path(words[0]).name, *words[1:]] if words else []

    @cached_property
    def system(self) -> str:
        """The title of the system that was trained by name or has its config in its own file, else the config's name in words."""
        if self.command[1:2] == ["train"] and len(self.command) > 2:
            with suppress(UnknownName):
                return catalogue.find(self.command[2]).card.title
        module, _, name = str((self.experiment.get("system") or {}).get("class", "")).partition(":")
        for entry in catalogue.systems().values():
            if entry.module == module:
                return entry.card.title
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name.removesuffix("Config")) or "A run"

    @cached_property
    def card(self) -> ScoreCard | None:
        return score_card(self.evaluations) if self.evaluations else None

    @cached_property
    def results(self) -> list[_Result]:
        """One per evaluation and target, in the order in which they were asked for."""
        return [result for evaluation in self.evaluations for result in _by_target(evaluation)]

    @cached_property
    def last(self) -> list[_Result]:
        """The results of the last evaluation, the main target first."""
        return _by_target(self.evaluations[-1]) if self.evaluations else []

    @cached_property
    def loss(self) -> str:
        """The loss to show: `loss` itself, else the first metric of training that has the word in its name."""
        logged = dict.fromkeys(
            key.removeprefix("train/") for line in self.metrics for key in line if key.startswith("train/")
        )
        return next(
            (name for name in logged if name == "loss"), next((name for name in logged if "loss" in name), "loss")
        )

    def curve(self, key: str) -> plots.Curve | None:
        """A logged metric over updates; lines where it was not a finite number are left out."""
        points = [(line["update"], line[key]) for line in self.metrics if isinstance(line.get(key), int | float)]
        updates, values = np.array(points, dtype=np.float64).reshape(-1, 2).T
        finite = np.isfinite(values)
        return (updates[finite], values[finite]) if finite.any() else None


def _read(run: Path) -> _Run:
    if not (run / "run.json").exists():
        raise DataError(f"a report needs a run folder, which holds run.json; there is none in {run}")
    info = _read_json(run / "run.json", "foretoken-run")
    evaluations = [read_evaluation(file) for file in sorted((run / "evaluations").glob("*.json"))]
    evaluations = sorted((found for found in evaluations if found.records), key=lambda found: found.update)
    evaluations = [found for found in evaluations if found.environment == evaluations[-1].environment]
    return _Run(run, info, _read_metrics(run / "metrics.jsonl"), evaluations)


def _read_json(file: Path, kind: str) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise DataError(f"{file} must hold JSON of format {kind!r}: {problem}") from None
    found = tree.get("format") if isinstance(tree, dict) else type(tree).__name__
    if found != kind or tree.get("version") != 1:
        version = tree.get("version") if isinstance(tree, dict) else None
        raise DataError(f"{file} must be of format {kind!r}, version 1, got {found!r}, version {version!r}")
    return tree


def _read_metrics(file: Path) -> list[dict[str, Any]]:
    """All lines; one that a killed run left unfinished is skipped."""
    if not file.exists():
        return []
    lines = file.read_bytes().split(b"\n")[:-1]
    try:
        return [json.loads(line) for line in lines if line.strip()]
    except ValueError as problem:
        raise DataError(f"{file} must hold one JSON object a line: {problem}") from None


def _checked(data_returns: Any) -> np.ndarray | None:
    if data_returns is None:
        return None
    returns = np.asarray(data_returns, dtype=np.float64)
    if returns.ndim != 1 or not np.isfinite(returns).all():
        raise DataError(f"data_returns must be finite numbers of shape (M,), got shape {returns.shape}")
    return returns if len(returns) else None


def _by_target(evaluation: Evaluated) -> list[_Result]:
    return [_Result(evaluation.update, target, evaluation.returns(target)) for target in evaluation.targets]


def _resource(name: str) -> str:
    return resources.files("foretoken.evaluation").joinpath(name).read_text(encoding="utf-8")


def _parts(run: _Run, data: np.ndarray | None, out: Path) -> dict[str, str]:
    where = f" on {run.environment}" if run.environment else ""
    sections = (
        _scores(run),
        _achieved(run, data),
        _routes(run),
        _in_context(run),
        _curves(run),
        _videos(run, out),
        _commands(run),
        _configuration(run),
        _origin(run),
    )
    return {
        "title": escape(f"{run.system}{where}"),
        "style": _resource("report.css").strip(),
        "header": _header(run),
        "main": "\n".join(section for section in sections if section),
        "footer": f"Made by foretoken from the run folder <span class=mono>{escape(run.folder.resolve().name)}</span>.",
    }


def _header(run: _Run) -> str:
    where = f" on {run.environment}" if run.environment else ""
    facts = {
        "started": _date(run.info.get("started")),
        "commit": str(run.info.get("commit") or "")[:12],
        "seed": _text(run.info.get("seed", run.experiment.get("seed", ""))),
        "updates": _number(run.metrics[-1]["update"]) if run.metrics else "",
        "status": _text(run.info.get("status", "")),
    }
    listed = "".join(f"<div><dt>{name}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items() if value)
    number, rule = _verdict(run)
    return (
        f'<p class="eyebrow">Run report</p>\n<h1>{escape(run.system + where)}</h1>\n<dl class="facts">{listed}</dl>\n'
        f'<div class="verdict"><span class="number{"" if run.results else " words"}">{number}</span>\n<p class="rule">{rule}</p></div>'
    )


def _verdict(run: _Run) -> tuple[str, str]:
    """The best number and, in a sentence or two, what made it."""
    if not run.results:
        return (
            "not evaluated",
            f"No episode has been played yet. <code>{escape(_evaluate_command(run))}</code> plays some.",
        )
    best = max(run.results, key=lambda result: result.mean.value)
    asked = "" if best.target is None else f", asked for {_number(best.target)}"
    rule = f"Mean return of {_count(len(best.returns), 'episode')}{asked}, after {_count(best.update, 'update')}."
    updates, targets = len({result.update for result in run.results}), len({result.target for result in run.results})
    if len(run.results) == 1:
        return _number(best.mean.value), f"{rule} It is the only evaluation, so nothing was selected."
    choices = [_count(updates, "evaluation")] * (updates > 1) + [_count(targets, "target")] * (targets > 1)
    main = run.last[0]
    asked = "" if main.target is None or targets == 1 else f" at the main target, {_number(main.target)},"
    return _number(best.mean.value), (
        f"{rule} Picked as the best of {' times '.join(choices)} on the very episodes it is reported on, so it flatters; "
        f"the last update{asked} earns <strong>{_number(main.mean.value)}</strong>."
    )


def _scores(run: _Run) -> str:
    if run.card is None:
        body = f"<p>No evaluation yet. <code>{escape(_evaluate_command(run))}</code> plays episodes and fills this card.</p>"
        return _section("Score card", body)
    head = '<tr><th>Number</th><th class="value">Value</th><th class="value">95\u00a0% interval</th><th>Rule that made it</th></tr>'
    rows = "".join(_score_row(score) for score in run.card.scores)
    note = (
        f'<p class="note">Evaluation seed {", ".join(map(str, run.card.seeds))}, '
        f"{_count(run.card.evaluations, 'evaluation')}. Intervals are over the episodes of one training run: "
        "they do not say how another training seed would have done.</p>"
    )
    table = f'<div class="wide"><table class="score"><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
    return _section("Score card", note + table + _targets(run.card))


def _score_row(score: Score) -> str:
    def shown(value: float) -> str:
        return f"{100 * value:.0f}\u00a0%" if score.name == "success rate" else _number(value)

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
        numbers = [entry.target, entry.mean, entry.sd, entry.low, entry.high, entry.episodes]
        cells = [_number(number) for number in numbers] + [
            f"{100 * entry.success.value:.0f}\u00a0%" if entry.success else ""
        ] * succeeds
        rows += "<tr>" + "".join(f'<td class="value">{cell}</td>' for cell in cells) + "</tr>"
    table = f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    return f"<details><summary>Each target of the last evaluation</summary>{table}</details>"


def _achieved(run: _Run, data: np.ndarray | None) -> str:
    """What was achieved: against what was asked for, and against the data."""
    if run.card is None:
        return ""
    asked = [result for result in run.last if result.target is not None]
    if asked:
        return f'<div class="pair">{_calibration(run, run.card, asked, data)}{_histogram(run, data)}</div>'
    note = (
        "The last evaluation asked for no return. For a system that takes one, "
        f"<code>{escape(_evaluate_command(run))} --targets 1000,2000</code> shows whether it delivers what it is asked for."
    )
    return _histogram(run, data) + _section("Asked and achieved", f"<p>{note}</p>")


def _calibration(run: _Run, card: ScoreCard, asked: Sequence[_Result], data: np.ndarray | None) -> str:
    targets = np.concatenate([np.full(len(result.returns), result.target) for result in asked])
    returns = np.concatenate([result.returns for result in asked])
    means = [(float(result.target or 0), result.mean.value, result.mean.low, result.mean.high) for result in asked]
    parts = [
        f"<strong>Mean absolute gap {_number(card.asked['gap'])}</strong> between a target and the mean return it got"
    ]
    if len(asked) > 1:
        rank = _signed(card.asked["spearman"])
        parts.append(f"<strong>Spearman correlation {rank}</strong> of asked and achieved over episodes")
    else:
        parts.append("one target only, so no correlation")
    rule = run.evaluations[-1].target_rule
    chosen = f" Targets: {escape(rule)}." if rule else ""
    caption = f"{'; '.join(parts)}. {_outside(asked, data)}{chosen}"
    return _section("Asked and achieved", _figure(plots.calibration(targets, returns, means, data), caption))


def _outside(asked: Sequence[_Result], data: np.ndarray | None) -> str:
    if data is None:
        return "The training data's returns are not known, so their range is not shown."
    low, high = float(data.min()), float(data.max())
    slack = 1e-5 * max(1.0, abs(low), abs(high))  # default targets are rounded to six digits
    targets = sorted(result.target or 0.0 for result in asked)
    beyond = [_number(target) for target in targets if not low - slack <= target <= high + slack]
    if not beyond:
        return f"All targets lie within the data's returns ({_number(low)} to {_number(high)}, shaded)."
    return f"The data's returns reach from {_number(low)} to {_number(high)} (shaded); outside it were asked: {', '.join(beyond)}."


def _histogram(run: _Run, data: np.ndarray | None) -> str:
    returns = np.concatenate([result.returns for result in run.last])
    caption = (
        f"<strong>From {_number(returns.min())} to {_number(returns.max())}</strong>, median {_number(float(np.median(returns)))}: "
        f"the {_count(len(returns), 'episode')} of the last evaluation{', all targets together' if len(run.last) > 1 else ''}."
    )
    if data is not None:
        caption += f" {100 * float((returns > data.max()).mean()):.0f}\u00a0% of them beat every episode in the data."
    return _section("Returns", _figure(plots.histogram(returns, data), caption))


def _routes(run: _Run) -> str:
    """Which of several ways the episodes of the last evaluation took, where the environment tells them apart."""
    last = run.evaluations[-1].records if run.evaluations else ()
    records = [record for record in last if record.route is not None]
    if not records:
        return ""
    route, arrived = np.array([(record.route, record.success is True) for record in records], int).T
    found = range(min(0, route.min()), route.max() + 1)
    shares = np.array([[(route == one).mean(), ((route == one) * arrived).mean()] for one in found])
    labels = ["none" if one < 0 else str(one) for one in found]
    told = ", ".join(f"{label} {100 * share:.0f}\u00a0%" for label, share in zip(labels, shares[:, 0], strict=True))
    caption = f"<strong>Routes</strong> of the last evaluation's {_count(len(records), 'episode')}: {told}."
    return _section("Routes taken", _figure(plots.routes(labels, *shares.T), caption))


def _in_context(run: _Run) -> str:
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
    return _section("Learning in context", f'<div class="plots">{"".join(figures)}</div>') if figures else ""


def _learned(name: str, lines: Mapping[str, plots.Band], x: str, y: str, title: str, note: str) -> str:
    ends = ", ".join(f"{escape(label)} {_number(band[1][-1])}" for label, band in lines.items())
    caption = f"<strong>{title}</strong> with its 95\u00a0% interval over tasks ({note}); at the end: {ends}."
    return _figure(plots.bands(name, lines, x, y), caption)


def _curves(run: _Run) -> str:
    train, held_out = run.curve(f"train/{run.loss}"), run.curve(f"held_out/{run.loss}")
    figures = []
    if train is not None:
        caption = f"<strong>Loss</strong>, {_number(train[1][-1])} at the end."
        if held_out is not None:
            caption += f" Held-out episodes: {_number(held_out[1][-1])}, lowest at update {_number(held_out[0][held_out[1].argmin()])}."
        else:
            caption += " No held-out loss; <code>--source.held-out 0.05</code> keeps some episodes aside for it."
        figures.append(_figure(plots.losses(train, held_out), caption))
    if len({result.update for result in run.results}) > 1:
        figures.append(
            _figure(
                plots.bands("returns", _lines(run), "updates", "return"),
                f"<strong>Evaluation return</strong>, {_shown_lines(run)}.",
            )
        )
    rate = run.curve("time/updates_per_second")
    if rate is not None:
        figures.append(
            _figure(
                plots.speed(rate),
                f"<strong>Speed</strong>, {_number(float(np.median(rate[1])))} updates/s in the median.",
            )
        )
    if not figures:
        return _section(
            "Learning curves", "<p>metrics.jsonl holds no training yet; <code>foretoken train</code> writes it.</p>"
        )
    return _section("Learning curves", f'<div class="plots">{"".join(figures)}</div>')


def _lines(run: _Run) -> dict[str, plots.Band]:
    """The evaluation returns of at most five targets, spread evenly over those of the last evaluation."""
    targets = sorted((result.target for result in run.last), key=lambda target: -(target or 0.0))
    chosen = [targets[i] for i in np.unique(np.linspace(0, len(targets) - 1, min(5, len(targets))).round().astype(int))]
    lines = {}
    for target in chosen:
        points = [(r.update, r.mean.value, r.mean.low, r.mean.high) for r in run.results if r.target == target]
        updates, mean, low, high = (np.array(column, dtype=np.float64) for column in zip(*points, strict=True))
        lines["" if target is None else f"asked {_number(target)}"] = (updates, mean, low, high)
    return lines


def _shown_lines(run: _Run) -> str:
    targets = len(run.last)
    some = f"{len(_lines(run))} of {targets} targets" if targets > 5 else "by target" if targets > 1 else "mean"
    return f"{some}, with the 95\u00a0% interval over episodes"


def _videos(run: _Run, out: Path) -> str:
    folder = run.folder / "videos"
    index = read_index(folder)
    newest = max((video["update"] for video in index["videos"]), default=0)
    films = [video for video in index["videos"] if video["update"] == newest and (folder / video["file"]).exists()]
    if not films:
        reason = f" {escape(index['missing'])}." if index["missing"] else ""
        which = "the best, the median and the worst episode of the last evaluation"
        return _section(
            "Videos", f"<p>There are none.{reason} <code>{escape(_report_command(run))}</code> films {which}.</p>"
        )
    embedded = sum((folder / video["file"]).stat().st_size for video in films) < _EMBED_LIMIT
    figures = "".join(_film(video, folder, out, embedded) for video in films)
    note = [
        f"Replayed from the reset seed and the recorded actions, with the recorded return checked; update {_number(newest)}."
    ]
    if any(video["renderer"] == "sketch" for video in films):
        note.append("Drawn as a sketch, for want of OpenGL.")
    if not embedded:
        note.append("Too large to be part of this page: they play from the run folder.")
    return _section("Videos", f'<p class="note">{" ".join(note)}</p><div class="videos">{figures}</div>')


def _film(video: Mapping[str, Any], folder: Path, out: Path, embedded: bool) -> str:
    file = folder / video["file"]
    if embedded:
        source = "data:video/mp4;base64," + base64.b64encode(file.read_bytes()).decode()
    else:
        source = escape(Path(os.path.relpath(file, out.parent)).as_posix())
    asked = "" if video["target"] is None else f"asked {_number(video['target'])}, "
    told = f"{asked}achieved {_number(video['achieved'])} in {_count(video['length'], 'step')}"
    cut = f"; the first {_number(video['shown'])} are shown" if video["shown"] < video["length"] else ""
    name = escape(str(video["name"]))
    return (
        f'<figure><video controls muted loop playsinline preload="metadata" aria-label="{name} episode: {told}" src="{source}"></video>'
        f'<figcaption><span class="name">{name}</span>: {told}{cut}. Episode {video["episode"]}, reset seed {video["reset_seed"]}.'
        "</figcaption></figure>"
    )


def _commands(run: _Run) -> str:
    commands = {
        "Train": shlex.join(run.command),
        "Evaluate": _evaluate_command(run),
        "Film and write this page": _report_command(run),
    }
    listed = "".join(f'<p class="label">{name}</p><pre>{escape(text)}</pre>' for name, text in commands.items() if text)
    note = '<p class="note">Evaluating and reporting start from the folder that holds the run.</p>'
    return _section("Commands that made it", note + listed)


def _configuration(run: _Run) -> str:
    if not run.experiment:
        return ""
    groups: dict[str, list[tuple[str, str]]] = {}
    for path, value in _flat(run.experiment):
        group, _, name = path.partition(".")
        groups.setdefault(group if name else "experiment", []).append((name or group, value))
    tables = "".join(f"<h3>{escape(group)}</h3>{_table(rows)}" for group, rows in groups.items())
    return _section(
        "Configuration", f"<details><summary>All {sum(map(len, groups.values()))} settings</summary>{tables}</details>"
    )


def _origin(run: _Run) -> str:
    facts = [("commit", _text(run.info.get("commit", ""))), ("started", _date(run.info.get("started")))]
    machine = run.info.get("machine", "")
    facts += list(_flat(machine)) if isinstance(machine, Mapping) else [("machine", _text(machine))]
    facts += [(name, _text(version)) for name, version in (run.info.get("versions") or {}).items()]
    seconds = run.curve("time/seconds")
    if seconds is not None:
        facts.append(("training time", f"{seconds[1][-1] / 60:,.1f} minutes"))
    listed = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts if value)
    return _section("Versions and machine", f'<dl class="grid">{listed}</dl>')


def _flat(tree: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    """Dotted names and values of a nested mapping; a config's class stands for the config itself."""
    for name, value in tree.items():
        if name == "class" and path:
            yield path.removesuffix("."), str(value).rpartition(":")[2]
        elif name == "class":
            continue
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{path}{name}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            yield from _flat({str(i): item for i, item in enumerate(value)}, f"{path}{name}.")
        else:
            yield path + name, _text(value)


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="mono">{escape(value)}</td></tr>' for name, value in rows
    )
    return f'<table class="settings"><tbody>{cells}</tbody></table>'


def _section(title: str, body: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{body}\n</section>"


def _figure(svg: str, caption: str) -> str:
    spoken = escape(re.sub(r"<[^>]*>", "", caption), quote=True)
    return f'<figure><div role="img" aria-label="{spoken}">{svg}</div><figcaption>{caption}</figcaption></figure>'


def _evaluate_command(run: _Run) -> str:
    return f"foretoken evaluate {shlex.quote(run.folder.resolve().name)}"


def _report_command(run: _Run) -> str:
    return f"foretoken report {shlex.quote(run.folder.resolve().name)}"


def _date(moment: Any) -> str:
    """A time as `2026-03-04 05:06 UTC`; text that is no date stays."""
    if isinstance(moment, int | float):
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")
    try:
        read = datetime.fromisoformat(str(moment or ""))
    except ValueError:
        return str(moment or "")
    return read.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC") if read.tzinfo else read.strftime("%Y-%m-%d %H:%M")


def _text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value)
    return str(value)


def _number(value: Any) -> str:
    """Four figures or so: 12,345 and 67.8 and 0.0123, with a true minus sign; "none" for None and NaN."""
    if value is None or not np.isfinite(value):
        return "none"
    value = float(value)
    size = abs(value)
    text = f"{value:,.0f}" if size >= 1000 or value == int(value) else f"{value:.1f}" if size >= 10 else f"{value:.3g}"
    return text.replace("-", "\u2212")


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\u2212") if np.isfinite(value) else "undefined (all equal)"


def _count(number: int, noun: str) -> str:
    return f"{_number(number)} {noun}{'' if number == 1 else 's'}"
