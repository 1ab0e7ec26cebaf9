"""Exhibits: what a method can show of a played episode beside its return, as plain data that a report can draw.

A method answers `Method.exhibits(episodes)`; evaluation keeps the answer in the run's folder as JSON, and the report draws
each panel by its class, knowing nothing of methods:

    Lines   curves over common axes: planned chunks over actions, imagined beside real observations, an error against horizon
    Grid    a board or maze from above, with walls, paths and marks
    Matrix  numbers of pairs: attention weights under a mask

Numbers may be given as arrays or tensors of any device; they must be finite, and are kept to six digits.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from foretoken.core.config import Config
from foretoken.core.errors import ConfigError

if TYPE_CHECKING:
    Numbers: TypeAlias = Any
    Cells: TypeAlias = Any
    Pairs: TypeAlias = Any
    Table: TypeAlias = Any
    Mask: TypeAlias = Any
else:  # what they are once taken in
    Numbers = tuple[float, ...]  # (N,)
    Cells = tuple[tuple[float, float], ...]  # (N, 2): row, column
    Pairs = tuple[tuple[int, int, int, int], ...]  # (N, 4): row, column, row, column
    Table = tuple[tuple[float, ...], ...]  # (R, C)
    Mask = tuple[tuple[bool, ...], ...]  # (R, C)


@dataclass(frozen=True, kw_only=True)
class _Shown(Config):
    """What is shown; arrays become nested tuples of plain numbers."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            where = f"{type(self).__name__}.{entry.name}"
            object.__setattr__(self, entry.name, _plain(getattr(self, entry.name), where))
        super().__post_init__()

    def _need(self, holds: bool, requirement: str, came: Any) -> None:
        if not holds:
            raise ConfigError(f"{type(self).__name__} {requirement}, got {came}")


@dataclass(frozen=True, kw_only=True)
class Line(_Shown):
    """One curve, (N,) numbers each.

    Args:
        label: its name in the legend; lines of one label share colour and entry, as the many plans of one policy do.
        low, high: the ends of an interval around y; empty for none.
        look: "line", "dashed" or "points".
    """

    label: str
    x: Numbers
    y: Numbers
    low: Numbers = ()
    high: Numbers = ()
    look: Literal["line", "dashed", "points"] = "line"

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = [len(self.x), len(self.y), len(self.low), len(self.high)]
        self._need(sizes[0] == sizes[1] > 0, "needs x and y of one length, at least 1", sizes[:2])
        self._need(sizes[2:] in ([0, 0], [sizes[0]] * 2), "needs low and high as long as x, or both empty", sizes)


@dataclass(frozen=True, kw_only=True)
class Lines(_Shown):
    """Curves over one pair of axes; `x` and `y` name them, with units."""

    x: str
    y: str
    lines: tuple[Line, ...]
    title: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(bool(self.lines), "needs at least one line", 0)


@dataclass(frozen=True, kw_only=True)
class Path(_Shown):
    """A way over a grid: (N, 2) places (row, column), integers at the middle of cells."""

    label: str
    cells: Cells
    look: Literal["line", "dashed"] = "line"


@dataclass(frozen=True, kw_only=True)
class Grid(_Shown):
    """A board seen from above, row 0 on top.

    Args:
        rows, columns: its cells.
        blocked: (N, 2) cells (row, column) that are walls.
        walls: (N, 4) pairs of neighbouring cells (row, column, row, column) between which a wall stands.
        paths: ways over it, drawn in this order.
        marks: a word for some places (row, column), for example {"start": (0, 0)}.
    """

    rows: int
    columns: int
    blocked: Cells = ()
    walls: Pairs = ()
    paths: tuple[Path, ...] = ()
    marks: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    title: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(min(self.rows, self.columns) >= 1, "needs at least one cell", f"{self.rows} x {self.columns}")
        apart = [wall for wall in self.walls if abs(wall[0] - wall[2]) + abs(wall[1] - wall[3]) != 1]
        self._need(not apart, "needs walls between neighbouring cells", apart[:1])


@dataclass(frozen=True, kw_only=True)
class Matrix(_Shown):
    """Numbers of pairs.

    Args:
        values: (R, C), row by row.
        value: what a number is, for example "attention weight".
        x, y: what columns and rows are.
        rows, columns: the names of each; empty numbers them.
        hidden: (R, C), true where there is nothing to show: drawn as a blank, as pairs that a mask keeps apart.
    """

    values: Table
    value: str
    x: str
    y: str
    rows: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    hidden: Mask = ()
    title: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = {len(row) for row in self.values}
        self._need(len(sizes) == 1 and sizes != {0}, "needs values of shape (R, C), at least (1, 1)", sorted(sizes))
        shape = (len(self.values), len(self.values[0]))
        names = (len(self.rows), len(self.columns))
        fits = all(found in (0, size) for found, size in zip(names, shape, strict=True))
        self._need(fits, f"of shape {shape} needs a name for each row and column, or none", names)
        hidden = (len(self.hidden), *{len(row) for row in self.hidden})
        self._need(hidden in ((0,), shape), f"of shape {shape} needs hidden of that shape, or none", hidden)


Panel: TypeAlias = Lines | Grid | Matrix


@dataclass(frozen=True, kw_only=True)
class Exhibit(_Shown):
    """One thing to show: a heading, what is seen in a plain sentence or two, and panels side by side, at most twelve."""

    title: str
    says: str
    panels: tuple[Panel, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._need(1 <= len(self.panels) <= 12, "needs 1 to 12 panels", len(self.panels))


def _plain(value: Any, where: str) -> Any:
    """Arrays and tensors as nested tuples; floats, which must be finite, to six digits."""
    if not isinstance(value, Config) and hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: _plain(item, where) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_plain(item, where) for item in value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ConfigError(f"{where} must be finite, got {value}; leave out what is not known")
        return float(f"{value:.6g}")
    return value
