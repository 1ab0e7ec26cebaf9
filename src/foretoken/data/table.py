"""The episode table of a store: length, return, how it ended, and facts, one entry per episode."""

import json
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from foretoken.core.errors import DataError
from foretoken.data.episode import Episode, Fact

RESERVED = ("start", "length", "return", "terminated", "truncated")


class Table:
    """Entries in order, and their columns as arrays, which are extended rather than rebuilt when the table grows."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.num_steps = 0
        self._columns: dict[str, np.ndarray] = {}
        self._kinds: dict[str, bool] = {}

    def __len__(self) -> int:
        return len(self.entries)

    def check(self, facts: Mapping[str, Fact]) -> None:
        """Refuses facts that cannot join the table's columns."""
        for name, fact in facts.items():
            if name in RESERVED:
                raise DataError(f"an episode fact cannot be called {name!r}: every store has that column")
            if self._kinds.get(name, isinstance(fact, str)) != isinstance(fact, str):
                raise DataError(
                    f"the episode fact {name!r} was {'text' if self._kinds[name] else 'a number'} so far, got {fact!r}"
                )

    def add(self, entry: dict[str, Any]) -> None:
        """Appends an entry as `describe` or `parse` makes it."""
        self._kinds.update({name: isinstance(fact, str) for name, fact in entry["facts"].items()})
        self.entries.append(entry)
        self.num_steps += entry["length"] + 1

    def truncate(self, count: int) -> None:
        kept, self.entries, self.num_steps = self.entries[:count], [], 0
        self._columns, self._kinds = {}, {}
        for entry in kept:
            self.add(entry)

    @property
    def columns(self) -> Mapping[str, np.ndarray]:
        """(N,) arrays: those in RESERVED, and the facts; where an episode lacks a fact it reads NaN, or "" for text."""
        known = len(self._columns["length"]) if self._columns else 0
        if known < len(self.entries) or not self._columns:
            self._columns = _join(self._columns, known, _columns(self.entries[known:]), len(self.entries) - known)
        return MappingProxyType(self._columns)


def describe(episode: Episode, total_return: float) -> dict[str, Any]:
    """A checked episode's entry; plain JSON values."""
    facts = {name: fact.item() if isinstance(fact, np.generic) else fact for name, fact in episode.facts.items()}
    return {
        "length": episode.length,
        "return": total_return,
        "terminated": bool(episode.terminated[-1]),
        "truncated": bool(episode.truncated[-1]),
        "facts": facts,
    }


def parse(lines: Iterator[str], count: int, where: str) -> Table:
    """The table of the first `count` JSON lines.

    Raises:
        DataError: a line is missing or damaged.
    """
    table = Table()
    for number in range(count):
        try:
            entry = json.loads(next(lines))
            entry["length"] = int(entry["length"])
            entry["return"] = float(entry["return"])
            table.check(entry["facts"])
            table.add({name: entry[name] for name in ("length", "return", "terminated", "truncated", "facts")})
        except StopIteration:
            raise DataError(f"{where} is truncated: {count} episodes are committed, it lists {number}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise DataError(f"{where}: line {number + 1} does not describe an episode ({problem!r})") from None
    return table


def _columns(entries: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    length = np.array([entry["length"] for entry in entries], np.int64)
    found = {
        "start": np.concatenate(([0], np.cumsum(length + 1)[:-1])).astype(np.int64)[: len(length)],
        "length": length,
        "return": np.array([entry["return"] for entry in entries], np.float64),
        "terminated": np.array([entry["terminated"] for entry in entries], bool),
        "truncated": np.array([entry["truncated"] for entry in entries], bool),
    }
    names = dict.fromkeys(name for entry in entries for name in entry["facts"])
    for name in names:
        values = [entry["facts"].get(name) for entry in entries]
        absent = "" if any(isinstance(value, str) for value in values) else np.nan
        found[name] = np.array([absent if value is None else value for value in values])
    return found


def _join(
    old: dict[str, np.ndarray], old_count: int, new: dict[str, np.ndarray], new_count: int
) -> dict[str, np.ndarray]:
    if not old:
        return new
    if old_count:
        new["start"] = new["start"] + old["start"][-1] + old["length"][-1] + 1
    joined = {}
    for name in dict.fromkeys((*old, *new)):
        like = old.get(name, new.get(name))
        absent: Any = "" if like is not None and like.dtype.kind == "U" else np.nan
        parts = [old.get(name, np.full(old_count, absent)), new.get(name, np.full(new_count, absent))]
        joined[name] = np.concatenate([part for part in parts if len(part)] or parts[:1])
    return joined
