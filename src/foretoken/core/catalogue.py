"""Finds system files by name: `<package>/<family>/<name>.py`, in this library and in every installed plug-in.

A file is a system when it assigns `CARD = Card(...)`. Cards are read from the source text, so listing a hundred systems
imports none of them; a system is imported when it is used.
"""

import ast
import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata, util
from pathlib import Path
from types import ModuleType

from foretoken.core.card import Card
from foretoken.core.errors import ConfigError, UnknownName
from foretoken.core.names import nearest


@dataclass(frozen=True)
class Entry:
    """A system that exists as a file; `name` is the file's, `family` its folder's."""

    name: str
    family: str
    module: str
    file: Path

    @cached_property
    def card(self) -> Card:
        return read_card(self.file)

    def load(self) -> ModuleType:
        """The system's module, imported now."""
        return importlib.import_module(self.module)


def read_card(file: Path) -> Card:
    """The `CARD = Card(...)` of a system file, without running it."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if (
            isinstance(node, ast.Assign)
            and getattr(node.targets[0], "id", "") == "CARD"
            and isinstance(node.value, ast.Call)
        ):
            try:
                return Card(**{word.arg: ast.literal_eval(word.value) for word in node.value.keywords if word.arg})
            except (ValueError, TypeError) as problem:
                raise ConfigError(f"{file}: CARD must be Card(...) with literal fields only: {problem}") from None
    raise ConfigError(f"{file}: no `CARD = Card(...)` at the top level")


def _packages() -> list[str]:
    return sorted(
        {"foretoken.systems"}
        | {point.value.split(":")[0] for point in metadata.entry_points(group="foretoken.systems")}
    )


def systems() -> dict[str, Entry]:
    """Every system by file name, ordered by family and name."""
    return {entry.name: entry for entry in sorted(_walk(), key=lambda entry: (entry.family, entry.name))}


def _walk() -> Iterator[Entry]:
    for package in _packages():
        found = util.find_spec(package)
        for root in (found.submodule_search_locations or []) if found else []:
            for file in Path(root).glob("*/*.py"):
                if not file.name.startswith("_") and "CARD = Card(" in file.read_text(encoding="utf-8"):
                    yield Entry(file.stem, file.parent.name, f"{package}.{file.parent.name}.{file.stem}", file)


def find(name: str) -> Entry:
    """The system whose file name or card key is `name`; hyphens and underscores are the same."""
    known = systems()
    wanted = name.replace("-", "_")
    for entry in known.values():
        if wanted in (entry.name, entry.card.key.replace("-", "_")):
            return entry
    names = [*known, *(entry.card.key for entry in known.values())]
    raise UnknownName(f"no system is called {name!r}{nearest(wanted, names)}; `foretoken list` shows all")
