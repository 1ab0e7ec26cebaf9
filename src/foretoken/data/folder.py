"""A store's folder: `store.json`, which says what is committed, `episodes.jsonl`, and the lock of its one writer."""

import json
import os
from pathlib import Path
from typing import Any

from foretoken.core.errors import DataError
from foretoken.data.table import Table, parse

FORMAT, VERSION = "foretoken-store", 1


class Folder:
    """The files beside the blocks. Nothing is read or written before it is asked for."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._head, self._lines = self.path / "store.json", self.path / "episodes.jsonl"

    @classmethod
    def create(cls, path: str | Path) -> "Folder":
        """A new folder without episodes; a DataError where there is something."""
        folder = cls(path)
        if folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
            raise DataError(f"{path} must be a new or empty folder; choose another, or open_store() what is there")
        folder.path.mkdir(parents=True, exist_ok=True)
        folder._lines.write_bytes(b"")
        return folder

    # -- store.json

    def read_head(self) -> dict[str, Any]:
        """What was committed last, its outline checked."""
        file = self._head
        if not file.exists():
            raise DataError(
                f"no store at {self.path}: store.json is missing; `foretoken import` makes a store from a data set"
            )
        try:
            head = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as problem:
            raise DataError(f"{file} is not JSON: {problem}") from None
        if not isinstance(head, dict) or head.get("format") != FORMAT:
            raise DataError(
                f"{file} must have the format {FORMAT!r}, got {head.get('format') if isinstance(head, dict) else head!r}"
            )
        if head.get("version") != VERSION:
            raise DataError(
                f"{file} has version {head.get('version')!r}, this foretoken reads version {VERSION}; install one that fits"
            )
        for name, kind in (("spec", dict), ("committed", dict), ("about", dict), ("floats", str)):
            if not isinstance(head.get(name), kind):
                raise DataError(
                    f"{file} must have {name!r} as a JSON {'object' if kind is dict else 'text'}, got {head.get(name)!r}"
                )
        for name in ("episodes", "steps"):
            count = head["committed"].get(name)
            if not isinstance(count, int) or count < 0:
                raise DataError(f"{file} must commit a number of {name}, got {count!r}")
        return head

    def write_head(self, head: dict[str, Any]) -> None:
        """Replaces `store.json`, durably: this is what commits."""
        part = self.path / "store.json.part"
        with open(part, "w", encoding="utf-8") as file:
            json.dump({"format": FORMAT, "version": VERSION, **head}, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self._head)
        self._sync()

    def _sync(self) -> None:
        """Makes a rename durable, where folders can be synchronised."""
        if os.name == "posix":
            handle = os.open(self.path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)

    # -- episodes.jsonl

    def read_table(self, count: int) -> Table:
        """The table of the first `count` episodes."""
        if not self._lines.exists():
            raise DataError(f"{self._lines} is missing; the store is incomplete, copy or import it again")
        with open(self._lines, encoding="utf-8") as lines:
            return parse(lines, count, str(self._lines))

    def add_line(self, entry: dict[str, Any]) -> None:
        with open(self._lines, "a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")

    def truncate_lines(self, count: int) -> None:
        """Keeps the first `count` lines."""
        with open(self._lines, "rb") as lines:
            end = sum(len(next(lines, b"")) for _ in range(count))
        os.truncate(self._lines, end)

    def sync_lines(self) -> None:
        with open(self._lines, "rb") as file:
            os.fsync(file.fileno())

    # -- the writer

    def lock(self) -> int:
        """An open descriptor that holds the writer's lock; a dead writer's lock is free."""
        handle = os.open(self.path / "writer.lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # no such locks on this system: keeping to one writer is the user's business
        except OSError:
            os.close(handle)
            raise DataError(
                f"{self.path} is being written by another process or store object; close() that one first"
            ) from None
        return handle
