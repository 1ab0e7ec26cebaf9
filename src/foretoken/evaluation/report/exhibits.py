"""What the method shows of its own episodes: plans, imagined steps, mazes, attention; see `foretoken.core.exhibit`."""

from html import escape
from pathlib import Path

from foretoken.core.errors import DataError
from foretoken.core.exhibit import Exhibit, Lines, Matrix
from foretoken.evaluation.exhibits import Shown, read_exhibits
from foretoken.evaluation.panels import panel
from foretoken.evaluation.report.record import Record
from foretoken.evaluation.report.words import figure, number, section


def draw(run: Record) -> str:
    """Of the last evaluation; where nothing was kept of it, of the newest one before it in the same environment."""
    for age, found in enumerate(reversed(run.evaluations)):
        shown = None if found.file is None else _kept(found.file)
        if shown is not None:
            when = f"Update {number(shown.update)}{', an earlier evaluation' if age else ''}."
            return _sections(shown, when)
    return ""


def _kept(evaluation: Path) -> Shown | None:
    try:
        return read_exhibits(evaluation)
    except DataError as problem:
        return Shown(0, missing=str(problem))


def _sections(shown: Shown, when: str) -> str:
    if shown.missing:
        return section("What the method shows", f"<p>There is nothing to see: {escape(shown.missing)}.</p>")
    return "\n".join(_exhibit(exhibit, place, when) for place, exhibit in enumerate(shown.exhibits))


def _exhibit(exhibit: Exhibit, place: int, when: str) -> str:
    note = f'<p class="note">{escape(exhibit.says)} {when}</p>'
    figures = ""
    for order, one in enumerate(exhibit.panels):
        caption = f"{one.title}: {one.value}" if isinstance(one, Matrix) and one.title else one.title
        spoken = one.title or (f"{one.y} against {one.x}" if isinstance(one, Lines) else f"picture {order + 1}")
        figures += figure(panel(f"exhibit-{place}-{order}", one), escape(caption), spoken=f"{exhibit.title}: {spoken}")
    return section(escape(exhibit.title), f'{note}<div class="plots">{figures}</div>')
