"""The panels of exhibits as SVG text: curves, boards seen from above, numbers of pairs. See `foretoken.core.exhibit`."""

from itertools import cycle
from typing import Any

import numpy as np

from foretoken.core.exhibit import Grid, Lines, Matrix, Panel
from foretoken.evaluation.plots import DATA, INK, MUTED, RULE, SERIES, canvas

_DASHES = (3.2, 1.6)


def panel(name: str, shown: Panel) -> str:
    """One panel; `name` keeps the figures of a page apart."""
    if isinstance(shown, Lines):
        return _lines(name, shown)
    return _grid(name, shown) if isinstance(shown, Grid) else _matrix(name, shown)


def _lines(name: str, shown: Lines) -> str:
    labels = [line.label for line in shown.lines]
    with canvas(name) as (axes, finish):
        colours: dict[str, str] = {}
        for line in shown.lines:
            new = line.label not in colours
            colour = colours.setdefault(line.label, SERIES[len(colours) % len(SERIES)])
            look: dict[str, Any] = {"color": colour, "label": line.label if new else None}
            if line.low:
                axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
            if line.look == "points":
                look |= {"linestyle": "", "marker": "o", "markersize": 4}
            elif line.look == "dashed":
                look |= {"dashes": _DASHES, "linewidth": 1.3, "zorder": 1.9}
                if labels.count(line.label) > 1:  # a dot where each begins: stretches follow one another
                    look |= {"marker": "o", "markevery": [0], "markersize": 3.5}
            elif len(line.x) == 1:
                look |= {"marker": "o", "markersize": 4}
            axes.plot(line.x, line.y, **look)
        axes.set(xlabel=shown.x, ylabel=shown.y)
        whole = all(place.is_integer() for line in shown.lines for place in line.x)
        return finish(legend=len(colours) > 1, whole=whole)


def _grid(name: str, shown: Grid) -> str:
    rows, columns = shown.rows, shown.columns
    with canvas(name, (3.6, 0.5 + 3.4 * min(1.6, rows / columns))) as (axes, finish):
        axes.set(xlim=(-0.6, columns - 0.4), ylim=(rows - 0.4, -0.6))
        axes.set_aspect("equal")
        axes.set_axis_off()
        for place in range(1, columns):
            axes.plot([place - 0.5] * 2, [-0.5, rows - 0.5], color=RULE, linewidth=0.6)
        for place in range(1, rows):
            axes.plot([-0.5, columns - 0.5], [place - 0.5] * 2, color=RULE, linewidth=0.6)
        for row, column in shown.blocked:
            axes.fill(*_cell(row, column), color=MUTED, linewidth=0)
        border = {"color": INK, "linewidth": 1.8, "solid_capstyle": "projecting"}
        right, bottom = columns - 0.5, rows - 0.5
        axes.plot([-0.5, right, right, -0.5, -0.5], [-0.5, -0.5, bottom, bottom, -0.5], **border)
        for row, column, other_row, other_column in shown.walls:
            middle = np.array([(column + other_column) / 2, (row + other_row) / 2])
            along = np.array([row - other_row, column - other_column]) / 2
            axes.plot(*np.stack([middle - along, middle + along], axis=1), **border)
        labels = list(dict.fromkeys(path.label for path in shown.paths))
        for number, path in enumerate(shown.paths):
            if not path.cells:
                continue
            # Set apart a little, so that equal ways are both seen.
            order = labels.index(path.label)
            label = path.label if path.label not in [other.label for other in shown.paths[:number]] else None
            y, x = np.array(path.cells).T + 0.14 * (order - (len(labels) - 1) / 2)
            look: dict[str, Any] = {"dashes": _DASHES} if path.look == "dashed" else {}
            look |= {"marker": "o", "markersize": 6} if len(path.cells) == 1 else {}
            axes.plot(x, y, color=SERIES[order % len(SERIES)], linewidth=2.2, label=label, **look)
        size = 8 if max(rows, columns) <= 10 else 5
        for marker, (word, (row, column)) in zip(cycle("o*^D"), shown.marks.items(), strict=False):
            bigger = 1.5 if marker == "*" else 1
            look = {"marker": marker, "markersize": bigger * size, "linestyle": "", "color": INK, "zorder": 3}
            axes.plot([column], [row], label=word, **look)
        return finish(legend=bool(labels or shown.marks))


def _matrix(name: str, shown: Matrix) -> str:
    values_RC = np.array(shown.values)
    hidden_RC = np.array(shown.hidden or np.zeros_like(values_RC), bool)
    rows, columns = values_RC.shape
    top = float(np.abs(values_RC[~hidden_RC]).max(initial=0)) or 1.0
    with canvas(name, (4.2, 1.1 + 3.4 * min(1.4, max(0.4, rows / columns)))) as (axes, finish):
        axes.grid(False)
        axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), xlabel=shown.x, ylabel=shown.y)
        axes.set_aspect("equal")
        for row, column in np.ndindex(rows, columns):
            share = float(values_RC[row, column]) / top
            colour, strength = (SERIES[0] if share >= 0 else SERIES[1]), abs(share)
            if hidden_RC[row, column]:
                colour, strength = DATA, 0.25
            if strength > 0.004:
                axes.fill(*_cell(row, column), color=colour, alpha=round(strength, 3), linewidth=0)
        small = 9 if max(rows, columns) <= 12 else 6.5 if max(rows, columns) <= 30 else 4.5
        if shown.columns:
            axes.set_xticks(range(columns), shown.columns, rotation=90, fontsize=small)
        if shown.rows:
            axes.set_yticks(range(rows), shown.rows, fontsize=small)
        axes.fill([], [], color=SERIES[0], linewidth=0, label=f"{top:.2g}")
        if (values_RC[~hidden_RC] < 0).any():
            axes.fill([], [], color=SERIES[1], linewidth=0, label=f"\u2212{top:.2g}")
        else:
            axes.fill([], [], color=SERIES[0], alpha=0.5, linewidth=0, label=f"{top / 2:.2g}")
        if hidden_RC.any():
            axes.fill([], [], color=DATA, alpha=0.25, linewidth=0, label="kept apart")
        axes.figure.tight_layout(rect=(0, 0, 1, 0.9))  # squares first: what is below them is measured by their place
        return finish(legend=True)


def _cell(row: float, column: float) -> tuple[list[float], list[float]]:
    return [column - 0.5, column + 0.5, column + 0.5, column - 0.5], [row - 0.5, row - 0.5, row + 0.5, row + 0.5]
