"""A run's folder as the report reads it."""

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from foretoken.core import catalogue
from foretoken.core.card import Card
from foretoken.core.errors import DataError, UnknownName
from foretoken.evaluation import plots
from foretoken.evaluation.evaluate import Evaluated, read_evaluations
from foretoken.evaluation.scores import ScoreCard, for_card, score_card, while_training
from foretoken.evaluation.statistics import Interval, bootstrap


@dataclass(frozen=True)
class Result:
    """The returns of one evaluation at one target, (N,) float64."""

    update: int
    target: float | None
    returns: np.ndarray

    @cached_property
    def mean(self) -> Interval:
        return bootstrap([self.returns], np.mean)


@dataclass(frozen=True)
class Record:
    folder: Path
    info: Mapping[str, Any]
    metrics: Sequence[Mapping[str, Any]]
    everything: Sequence[Evaluated]
    """All evaluations, in the order in which they were played."""
    data: np.ndarray | None
    """(M,) returns of the training data, None where they are not known."""
    out: Path
    """The page to be written."""

    @cached_property
    def evaluations(self) -> list[Evaluated]:
        """Those of the environment that was evaluated last."""
        return [found for found in self.everything if found.environment == self.everything[-1].environment]

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
    def card_of_system(self) -> Card | None:
        """The card of the system that was trained by name or has its config in its own file."""
        if self.command[1:2] == ["train"] and len(self.command) > 2:
            with suppress(UnknownName):
                return catalogue.find(self.command[2]).card
        return next((entry.card for entry in catalogue.systems().values() if entry.module == self._config[0]), None)

    @property
    def _config(self) -> tuple[str, str]:
        """Module and name of the system's config."""
        module, _, name = str((self.experiment.get("system") or {}).get("class", "")).partition(":")
        return module, name

    @cached_property
    def system(self) -> str:
        """The title of the system's card, else its config's name in words."""
        if self.card_of_system is not None:
            return self.card_of_system.title
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", self._config[1].removesuffix("Config")) or "A run"

    @property
    def evaluate_command(self) -> str:
        return f"foretoken evaluate {shlex.quote(self.folder.resolve().name)}"

    @property
    def report_command(self) -> str:
        return f"foretoken report {shlex.quote(self.folder.resolve().name)}"

    @cached_property
    def counted(self) -> list[Evaluated]:
        """Those that the card, the headline and the curves are made of, as for the card of `foretoken evaluate`."""
        return for_card(self.evaluations) if self.evaluations else []

    @cached_property
    def card(self) -> ScoreCard | None:
        return score_card(self.counted) if self.counted else None

    @cached_property
    def results(self) -> list[Result]:
        """One per counted evaluation and target, in the order in which they were asked for."""
        return [result for evaluation in self.counted for result in _by_target(evaluation)]

    @cached_property
    def trained(self) -> list[Result]:
        """Those of the evaluations that training played."""
        return [result for found in self.counted if while_training(found) for result in _by_target(found)]

    @cached_property
    def last(self) -> list[Result]:
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


def read_record(run: Path, out: Path, data_returns: Any = None) -> Record:
    """Reads a run's folder; a DataError where it is none, or one of its files is broken."""
    if not (run / "run.json").exists():
        raise DataError(f"a report needs a run folder, which holds run.json; there is none in {run}")
    info = _read_json(run / "run.json", "foretoken-run")
    evaluations = [found for found in read_evaluations(run) if found.records]
    data = _checked(info.get("data_returns") if data_returns is None else data_returns)
    return Record(run, info, _read_metrics(run / "metrics.jsonl"), evaluations, data, out)


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


def _by_target(evaluation: Evaluated) -> list[Result]:
    return [Result(evaluation.update, target, evaluation.returns(target)) for target in evaluation.targets]
