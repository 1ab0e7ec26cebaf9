"""Where the run comes from: commands, configuration, versions and machine."""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any

from foretoken.evaluation.report.record import Record
from foretoken.evaluation.report.words import date, section, text


def draw(run: Record) -> str:
    return "\n".join(part for part in (_commands(run), _configuration(run), _origin(run)) if part)


def _commands(run: Record) -> str:
    commands = {
        "Train": shlex.join(run.command),
        "Evaluate": run.evaluate_command,
        "Film and write this page": run.report_command,
    }
    listed = "".join(f'<p class="label">{name}</p><pre>{escape(text)}</pre>' for name, text in commands.items() if text)
    note = '<p class="note">Evaluating and reporting start from the folder that holds the run.</p>'
    return section("Commands that made it", note + listed)


def _configuration(run: Record) -> str:
    if not run.experiment:
        return ""
    groups: dict[str, list[tuple[str, str]]] = {}
    for path, value in _flat(run.experiment):
        group, _, name = path.partition(".")
        groups.setdefault(group if name else "experiment", []).append((name or group, value))
    tables = "".join(f"<h3>{escape(group)}</h3>{_table(rows)}" for group, rows in groups.items())
    return section(
        "Configuration", f"<details><summary>All {sum(map(len, groups.values()))} settings</summary>{tables}</details>"
    )


def _origin(run: Record) -> str:
    facts = [("commit", text(run.info.get("commit", ""))), ("started", date(run.info.get("started")))]
    machine = run.info.get("machine", "")
    facts += list(_flat(machine)) if isinstance(machine, Mapping) else [("machine", text(machine))]
    facts += [(name, text(version)) for name, version in (run.info.get("versions") or {}).items()]
    seconds = run.curve("time/seconds")
    if seconds is not None:
        facts.append(("training time", f"{seconds[1][-1] / 60:,.1f} minutes"))
    listed = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts if value)
    return section("Versions and machine", f'<dl class="grid">{listed}</dl>')


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
            yield path + name, text(value)


def _table(rows: Iterable[tuple[str, str]]) -> str:
    cells = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="mono">{escape(value)}</td></tr>' for name, value in rows
    )
    return f'<table class="settings"><tbody>{cells}</tbody></table>'
