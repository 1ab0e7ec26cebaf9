"""`foretoken show SYSTEM`: its card, the token stream drawn as text, presets, deviations, and the last claim's figures."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from foretoken.cli import results
from foretoken.cli.list import describe
from foretoken.cli.presets import presets
from foretoken.cli.terminal import Parser, number, print_json, table, wrap
from foretoken.core import catalogue
from foretoken.core.card import Card
from foretoken.core.catalogue import Entry


def main(argv: list[str]) -> int:
    parser = Parser(
        "show", "One system: its card, token stream, presets, deviations from the paper, and the last claim's figures."
    )
    parser.add_argument("system", help="file name or key, as `foretoken list` shows it")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    entry = catalogue.find(options.system)
    if options.json:
        print_json(_describe(entry))
    else:
        print("\n\n".join(_parts(entry)))
    return 0


def _describe(entry: Entry) -> dict[str, Any]:
    card = entry.card
    more = {"stream": card.stream, "acting": card.acting, "deviations": list(card.deviations)}
    return (
        describe(entry)
        | more
        | {"presets": presets(entry.file), "result": results.read(entry), "file": str(entry.file)}
    )


def _parts(entry: Entry) -> Iterator[str]:
    card = entry.card
    yield f"{card.title}  ({entry.family}/{entry.name}, key {card.key})\n{card.paper}"
    yield wrap(card.claim)
    yield f"One step of the token stream\n\n{draw(card.stream)}"
    yield f"Acts by {ACTING.get(card.acting, card.acting)}\nTags: {', '.join(card.tags) or 'none'}"
    yield "Presets\n" + "\n".join(_preset_line(name, line, entry) for name, line in presets(entry.file).items())
    yield _deviations(card)
    record = results.read(entry)
    yield result_text(record) if record else f"Claim: {results.NOT_YET}; `foretoken claim {entry.name}` runs it"
    yield f"File: {entry.file}"


ACTING = {
    "window": "re-reading its last steps at every decision, as trained",
    "streaming": "carrying a state from step to step",
    "stateless": "looking at the present observation only",
    "own": "rules of its own, which are not the forward pass of training",
}


def draw(stream: str) -> str:
    """Tokens as boxes in the order of the sequence; what an arrow points to is predicted from the token before it.

    A stream of several lines, or one with more than one arrow, is shown as it is written.
    """
    before, arrow, after = stream.partition("->")
    tokens = re.split(r"\s{2,}", before.strip()) if before.strip() else []
    if "\n" in stream.strip() or "->" in after or not tokens:
        return "\n".join(f"  {line}" for line in stream.strip().splitlines())
    middle = "   ".join(f"| {token} |" for token in tokens)
    edge = "   ".join(f"+{'-' * (len(token) + 2)}+" for token in tokens)
    lines = [edge, middle, edge]
    if arrow:
        target = after.strip()
        at = len(middle) - (len(tokens[-1]) + 4) // 2 - 1
        lines += [" " * at + "|", " " * at + "v", " " * max(0, at - len(target) // 2) + target]
    return "\n".join(f"  {line}" for line in lines)


def _preset_line(name: str, line: str, entry: Entry) -> str:
    width = max(map(len, presets(entry.file)))
    return wrap(f"{name} {line}", indent=2, hanging=width + 4).replace(f"  {name} ", f"  {name.ljust(width)}  ", 1)


def _deviations(card: Card) -> str:
    if not card.deviations:
        return "Deviations from the paper: none"
    return "Deviations from the paper\n" + "\n".join(
        wrap(f"{i}. {text}", indent=2, hanging=5) for i, text in enumerate(card.deviations, 1)
    )


def result_text(record: Mapping[str, Any]) -> str:
    waited = record.get("wall_minutes") if record.get("workers", 1) > 1 else None
    took = f"{number(record.get('minutes'))} minutes" + (
        "" if waited is None else f", {number(waited)} with {record['workers']} workers"
    )
    made = ", ".join(part for part in (record.get("date"), record.get("commit"), took) if part)
    parts = [f"Claim: {record['verdict']}  ({made})"]
    if record.get("says"):
        parts.append(wrap(str(record["says"]), indent=2))
    parts += [f"  {'yes' if kept else 'NO '}  {name}" for name, kept in record.get("conditions", {}).items()]
    parts.append(table(_figures(record), ("arm", "figure", "mean", "95 % interval", "seeds"), indent=2))
    return "\n".join(part for part in parts if part)


def _figures(record: Mapping[str, Any]) -> Iterator[tuple[Any, ...]]:
    for arm, rows in record.get("arms", {}).items():
        for name, figure in rows.items():
            if isinstance(figure, Mapping):
                low, high = figure.get("interval") or (None, None)
                yield arm, name, figure.get("mean"), f"{number(low)} .. {number(high)}", len(figure.get("values", ()))
