"""`foretoken list`: the systems by family, each with the status of its claim."""

from collections.abc import Iterable
from itertools import groupby
from typing import Any

from foretoken.cli import results
from foretoken.cli.terminal import Parser, print_json, table
from foretoken.core import catalogue
from foretoken.core.catalogue import Entry


def main(argv: list[str]) -> int:
    parser = Parser(
        "list",
        "The systems by family, and whether their claims hold: holds, does not hold (and how many of its\nconditions do), or not yet run.",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    entries = list(catalogue.systems().values())
    if options.json:
        print_json([describe(entry) for entry in entries])
    else:
        print(_page(entries))
    return 0


def describe(entry: Entry) -> dict[str, Any]:
    """One system's line as JSON values."""
    card = entry.card
    return {
        "name": entry.name,
        "family": entry.family,
        "key": card.key,
        "title": card.title,
        "paper": card.paper,
        "claim": card.claim,
        "status": results.status(entry),
        "tags": list(card.tags),
    }


def _page(entries: Iterable[Entry]) -> str:
    families = [(family, list(members)) for family, members in groupby(entries, key=lambda entry: entry.family)]
    if not families:
        return "no systems are installed"
    names = max(len(entry.name) for _, members in families for entry in members)
    titles = max(len(entry.card.title) for _, members in families for entry in members)
    parts = []
    for family, members in families:
        rows = [(entry.name.ljust(names), entry.card.title.ljust(titles), results.told(entry)) for entry in members]
        parts.append(f"{family}\n{table(rows, indent=2)}")
    note = "A claim holds when all of its conditions do. `foretoken show NAME` tells more; `foretoken claim NAME` tests a claim."
    return "\n\n".join([*parts, note])
