"""What the commands share: a parser that names the nearest option, aligned tables, and small conversions of words."""

import argparse
import json
import math
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

_NEGATIVE = re.compile(r"-[\d.]")


class Parser(argparse.ArgumentParser):
    """argparse with whole option names only, negative values after a space, and errors of one line.

    `--targets -100,50` means `--targets=-100,50`; plain argparse takes such a value for an option.
    """

    def __init__(self, verb: str, description: str, **more: Any) -> None:
        super().__init__(
            prog=f"foretoken {verb}",
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **more,
        )

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return super().parse_known_args(_glue_negatives(args or []), namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            from foretoken.core.names import nearest

            known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
            self.error(f"unknown argument {unknown[0]!r}{nearest(unknown[0].split('=')[0], known)}")
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"foretoken: error: {message}\n{self.prog} --help explains the arguments\n")


def _glue_negatives(words: Sequence[str]) -> list[str]:
    glued: list[str] = []
    for word in words:
        if _NEGATIVE.match(word) and glued and glued[-1].startswith("--") and "=" not in glued[-1]:
            glued[-1] += f"={word}"
        else:
            glued.append(word)
    return glued


def numbers(text: str) -> tuple[float, ...]:
    """`"3600,1800"` as floats, for argparse."""
    return tuple(_each(text, float, "numbers"))


def whole_numbers(text: str) -> tuple[int, ...]:
    """`"0,1,2"` as ints, for argparse."""
    return tuple(_each(text, int, "whole numbers"))


def _each(text: str, kind: Any, what: str) -> list[Any]:
    try:
        found = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found:
        raise argparse.ArgumentTypeError(f"needs {what} separated by commas, got {text!r}")
    return found


def count(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    return _at_least(1, text)


def whole(text: str) -> int:
    """A whole number of at least 0, for argparse."""
    return _at_least(0, text)


def _at_least(least: int, text: str) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"needs a whole number of at least {least}, got {text!r}")
    return int(text)


def some(number: int, noun: str) -> str:
    """`1 episode`, `2 episodes`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def table(rows: Iterable[Sequence[Any]], head: Sequence[str] = (), *, indent: int = 0) -> str:
    """Aligned columns, two spaces apart: columns of numbers to the right, others to the left. "" where there are no rows."""
    kept = [list(row) for row in rows]
    if not kept:
        return ""
    right = [
        all(isinstance(value, int | float) or value is None for value in column) for column in zip(*kept, strict=True)
    ]
    cells = ([list(head)] if head else []) + [[number(value) for value in row] for row in kept]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(" " * indent + _row(line, widths, right) for line in cells)


def _row(line: list[str], widths: list[int], right: list[bool]) -> str:
    pieces = [
        text.rjust(width) if to_right else text.ljust(width)
        for text, width, to_right in zip(line, widths, right, strict=True)
    ]
    return "  ".join(pieces).rstrip()


def number(value: Any) -> str:
    """Four figures of a number, "-" for None and NaN; anything else as it is."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"
    return str(value)


def wrap(text: str, *, indent: int = 0, hanging: int | None = None, width: int = 100) -> str:
    """The text in lines of at most `width`; lines after the first are indented by `hanging`, by default like the first."""
    later = " " * (indent if hanging is None else hanging)
    lines = textwrap.TextWrapper(width, " " * indent, later, break_on_hyphens=False, break_long_words=False)
    return lines.fill(" ".join(text.split()))


def print_json(tree: Any) -> None:
    """One JSON document on stdout; NaN and infinity, which JSON does not have, become null."""
    print(json.dumps(_finite(tree), indent=1))


def _finite(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [_finite(value) for value in tree]
    return None if isinstance(tree, float) and not math.isfinite(tree) else tree


def say(message: str) -> None:
    """A line of progress, on stderr."""
    print(message, file=sys.stderr, flush=True)
