"""What the method shows of its own episodes: plans, imagined steps, mazes, attention; see `foretoken.core.exhibit`."""

from html import escape

from foretoken.core.errors import DataError
from foretoken.core.exhibit import Exhibit, Lines, Matrix
from foretoken.evaluation.exhibits import Shown, read_exhibits
from foretoken.evaluation.panels import panel
from foretoken.evaluation.report.record import Record
from foretoken.evaluation.report.words import figure, number, section


def draw(run: Record) -> str:
    try:
        shown = read_exhibits(run.folder)
    except DataError as problem:
        shown = Shown(0, missing=str(problem))
    if shown is None:
        return ""
    if shown.missing:
        return section("What the method shows", f"<p>There is nothing to see: {escape(shown.missing)}.</p>")
    return "\n".join(_exhibit(exhibit, place, shown.update) for place, exhibit in enumerate(shown.exhibits))


def _exhibit(exhibit: Exhibit, place: int, update: int) -> str:
    note = f'<p class="note">{escape(exhibit.says)} Update {number(update)}.</p>'
    figures = ""
    for order, one in enumerate(exhibit.panels):
        caption = f"{one.title}: {one.value}" if isinstance(one, Matrix) and one.title else one.title
        spoken = one.title or (f"{one.y} against {one.x}" if isinstance(one, Lines) else f"picture {order + 1}")
        figures += figure(panel(f"exhibit-{place}-{order}", one), escape(caption), spoken=f"{exhibit.title}: {spoken}")
    return section(escape(exhibit.title), f'{note}<div class="plots">{figures}</div>')
