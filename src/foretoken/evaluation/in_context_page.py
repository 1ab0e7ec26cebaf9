"""The tables of docs/in-context.md: regret and return by episode of every in-context system beside learners that learn for real."""

import csv
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foretoken.core.errors import DataError
from foretoken.evaluation.in_context import spread

BEGIN = "<!-- in-context tables: written by `foretoken in-context` -->"
END = "<!-- end of the in-context tables -->"
_SHOWN = 6  # places of a curve that a table shows


@dataclass(frozen=True)
class Curves:
    """Everyone's curves in one environment.

    Args:
        environment: its id.
        kind: "regret" (cumulative, by step) or "return" (by episode of the trial).
        at: (P,) steps or episodes, counted from 1.
        values: by player, (N, P) of N tasks x seeds.
    """

    environment: str
    kind: str
    at: np.ndarray
    values: Mapping[str, np.ndarray]

    @property
    def file_name(self) -> str:
        return f"{self.environment.rpartition('/')[2].lower()}-{self.kind}.csv"


def write_csv(curves: Curves, folder: Path) -> Path:
    """One line per player and place: mean, 95 % interval and how many trials; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / curves.file_name
    with open(file, "w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(("player", "step" if curves.kind == "regret" else "episode", "mean", "low", "high", "trials"))
        for player, values in curves.values.items():
            for place, *figures in zip(curves.at, *spread(values), strict=True):
                writer.writerow((player, f"{place:g}", *(f"{figure:.5g}" for figure in figures), len(values)))
    return file


def fill(page: Path, curves: Iterable[Curves]) -> None:
    """Writes the tables into the page between its two marks. Raises DataError without them."""
    before, begin, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"{page} must hold the lines {BEGIN!r} and {END!r}, between which the tables go")
    tables = "\n\n".join(_table(one) for one in curves)
    page.write_text(f"{before}{begin}\n\n{tables}\n\n{end}{after}", encoding="utf-8")


def _table(curves: Curves) -> str:
    shown = np.unique(np.linspace(0, len(curves.at) - 1, _SHOWN).round().astype(int))
    what = (
        "cumulative regret by the number of steps" if curves.kind == "regret" else "return by the number of the episode"
    )
    head = ["player", *(f"{curves.at[i]:g}" for i in shown), "trials"]
    lines = [
        f"### {curves.environment}: {what}",
        "",
        *(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head))),
    ]
    for player, values in curves.values.items():
        mean, low, high = spread(values)
        cells = [f"{mean[i]:.3g} [{low[i]:.3g}, {high[i]:.3g}]" for i in shown]
        lines.append(f"| {player} | {' | '.join(cells)} | {len(values)} |")
    return "\n".join([*lines, "", f"All places with intervals: `results/in-context/{curves.file_name}`."])
