"""The table of the mixers' page, drawn from their records and put between two marks; the prose around it is left alone."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from foretoken.core.errors import DataError
from foretoken.evaluation.probe.tasks import TASKS

BEGIN = "<!-- probe table: written by `foretoken probe --table` -->"
END = "<!-- end of the probe table -->"
_PARALLEL = {"full": "all at once", "chunk": "by chunks", "scan": "by scan", "sequential": "token by token"}


def fill(page: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes the records' table into the page, in place of the one that stands between the marks. Raises DataError without them."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"{page} must hold the lines {BEGIN!r} and {END!r}, between which the table goes")
    page.write_text(f"{before}{begin}\n{drawn(records)}\n{end}{after}", encoding="utf-8")


def drawn(records: Iterable[Mapping[str, Any]]) -> str:
    """Two tables in Markdown, one line per mixer: what was learnt, and what it costs."""
    lines = sorted(records, key=lambda record: record["key"])
    chances = [f"{task.chance:.3g}" for task in TASKS.values()]
    learnt = [[record["key"], *(_scores(record["tasks"].get(name)) for name in TASKS)] for record in lines]
    learnt.insert(0, ["*chance*", *chances])
    costs = [[record["key"], *_costs(record["costs"], record["facts"])] for record in lines]
    return "\n".join(
        [
            "Score at the trained length / at twice that, mean ± standard deviation over seeds:",
            "",
            *_table(["mixer", *(task.title for task in TASKS.values())], learnt),
            "",
            "One layer of width 64 on one thread:",
            "",
            *_table(
                ["mixer", "a step", "of `nn.LSTMCell`'s", "training", "of plain attention's", "state", "training goes", "streaming"],
                costs,
            ),
            "",
            *_origins(lines),
        ]
    )  # fmt: skip


def _table(head: list[str], rows: Iterable[list[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (head, ["---"] * len(head), *rows)]


def _scores(task: Mapping[str, Any] | None) -> str:
    if task is None:
        return "-"
    spread = lambda one: f"{one['mean']:.2f}" + ("" if one["sd"] is None else f" ± {one['sd']:.2f}")  # noqa: E731
    return f"{spread(task['trained'])} / {spread(task['twice'])}"


def _costs(costs: Mapping[str, Any], facts: Mapping[str, Any]) -> list[str]:
    streaming = facts["streaming"].replace("_", " ")
    if facts["streaming"] != "exact" and facts["max_context"]:
        streaming += f" of {facts['max_context']}"
    return [
        f"{costs['step_us']:.0f} µs",
        f"{costs['step_ratio']:.1f} x",
        f"{costs['train_ms']:.1f} ms",
        f"{costs['train_ratio']:.1f} x",
        f"{facts['state_bytes']:,} B",
        _PARALLEL[facts["parallel"]],
        streaming,
    ]


def _origins(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """Where the figures come from, a line for each machine and torch."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for record in records:
        machine, versions = record.get("machine", {}), record.get("versions", {})
        groups.setdefault(f"{machine.get('cpu') or 'an unnamed CPU'}, torch {versions.get('torch', '?')}", []).append(
            record
        )
    told = []
    for place, members in groups.items():
        dates = sorted({record.get("date", "?") for record in members})
        commits = sorted({record.get("commit") or "?" for record in members})
        when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
        told.append(f"Measured on {place}; {when}, commit {', '.join(commits)}.")
    return told
