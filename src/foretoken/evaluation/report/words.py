"""How the report writes: numbers, dates, sections and figures, as text of HTML."""

import re
from datetime import UTC, datetime
from html import escape
from typing import Any

import numpy as np


def section(title: str, body: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{body}\n</section>"


def figure(svg: str, caption: str, *, spoken: str = "") -> str:
    """A picture over its caption; `spoken` is what is read out in place of a caption that does not say it all."""
    label = escape(spoken or re.sub(r"<[^>]*>", "", caption), quote=True)
    below = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f'<figure><div role="img" aria-label="{label}">{svg}</div>{below}</figure>'


def date(moment: Any) -> str:
    """A time as `2026-03-04 05:06 UTC`; text that is no date stays."""
    if isinstance(moment, int | float):
        return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M UTC")
    try:
        read = datetime.fromisoformat(str(moment or ""))
    except ValueError:
        return str(moment or "")
    return read.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC") if read.tzinfo else read.strftime("%Y-%m-%d %H:%M")


def text(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.10g}"
    if isinstance(value, list | tuple):
        return ", ".join(text(item) for item in value)
    return str(value)


def number(value: Any) -> str:
    """Four figures or so: 12,345 and 67.8 and 0.0123, with a true minus sign; "none" for None and NaN."""
    if value is None or not np.isfinite(value):
        return "none"
    value = float(value)
    size = abs(value)
    text = f"{value:,.0f}" if size >= 1000 or value == int(value) else f"{value:.1f}" if size >= 10 else f"{value:.3g}"
    return text.replace("-", "\u2212")


def signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "\u2212") if np.isfinite(value) else "undefined (all equal)"


def count(things: int, noun: str) -> str:
    return f"{number(things)} {noun}{'' if things == 1 else 's'}"
