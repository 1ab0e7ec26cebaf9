"""Claim results: `results/<key>.json`, where they are looked for and written, and what they say in a word."""

import json
import os
from pathlib import Path
from typing import Any

from foretoken.core.catalogue import Entry
from foretoken.core.errors import DataError

NOT_YET = "not yet run"


def folder_of(entry: Entry) -> Path:
    """`$FORETOKEN_RESULTS`, else `./results` where it exists, else `results` of the checkout that holds the system, else `./results`."""
    if os.environ.get("FORETOKEN_RESULTS"):
        return Path(os.environ["FORETOKEN_RESULTS"])
    here, home = Path("results"), checkout_of(entry.file)
    return here if here.is_dir() or home is None else home / "results"


def checkout_of(file: Path) -> Path | None:
    """The nearest folder above `file` with a pyproject.toml; None for an installed package."""
    return next((folder for folder in file.resolve().parents if (folder / "pyproject.toml").is_file()), None)


def file_of(entry: Entry) -> Path:
    return folder_of(entry) / f"{entry.card.key}.json"


def read(entry: Entry) -> dict[str, Any] | None:
    """The last claim's record; None where it was not run. Raises DataError for a broken file."""
    file = file_of(entry)
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        return {**record, "verdict": str(record["verdict"])}
    except (ValueError, KeyError, TypeError) as problem:
        raise DataError(
            f"{file} must be JSON with a verdict, as `foretoken claim {entry.name}` writes it: {problem!r}"
        ) from None


def status(entry: Entry) -> str:
    """ "holds", "does not hold", "not yet run", or "unreadable result"."""
    try:
        record = read(entry)
    except DataError:
        return "unreadable result"
    return record["verdict"] if record else NOT_YET


def told(entry: Entry) -> str:
    """The status, and where a claim does not hold, how many of its conditions do."""
    verdict = status(entry)
    conditions = (read(entry) or {}).get("conditions", {}) if verdict == "does not hold" else {}
    return f"{verdict}: {sum(conditions.values())} of {len(conditions)}" if conditions else verdict
