"""Exhibits: plain data that survive JSON."""

import json

import numpy as np
import pytest
import torch

from foretoken.core.errors import ConfigError
from foretoken.core.exhibit import Exhibit, Grid, Line, Lines, Matrix, Path

LINE = Line(label="planned", x=torch.arange(3), y=torch.tensor([0.5, 1 / 3, -1.0]), look="dashed")
GRID = Grid(
    rows=2,
    columns=3,
    blocked=np.array([[1, 2]]),
    walls=torch.tensor([[0, 0, 0, 1]]),
    paths=(Path(label="true", cells=np.array([[0, 0], [1, 0]])),),
    marks={"start": np.array([0, 0])},
)
MATRIX = Matrix(
    values=np.eye(2), hidden=np.eye(2) == 0, rows=("a", "b"), columns=("a", "b"), value="weight", x="to", y="from"
)


def test_arrays_become_plain_numbers_and_survive_json() -> None:
    shown = Exhibit(title="All", says="Everything.", panels=(Lines(x="step", y="action", lines=(LINE,)), GRID, MATRIX))
    assert LINE.y == (0.5, 0.333333, -1.0) and MATRIX.hidden == ((False, True), (True, False))
    assert GRID.walls == ((0, 0, 0, 1),) and GRID.marks == {"start": (0, 0)}
    assert Exhibit.from_json(json.loads(json.dumps(shown.to_json(), allow_nan=False))) == shown


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Line(label="", x=(1,), y=(float("nan"),)), "Line.y must be finite, got nan"),
        (lambda: Line(label="", x=(1, 2), y=(1,)), r"x and y of one length, at least 1, got \[2, 1\]"),
        (lambda: Line(label="", x=(1,), y=(1,), low=(0,)), "low and high as long as x"),
        (lambda: Lines(x="", y="", lines=()), "at least one line"),
        (lambda: Grid(rows=0, columns=2), "at least one cell, got 0 x 2"),
        (lambda: Grid(rows=2, columns=2, walls=((0, 0, 1, 1),)), "walls between neighbouring cells"),
        (lambda: Matrix(values=((1, 2), (3,)), value="", x="", y=""), r"values of shape \(R, C\)"),
        (lambda: Matrix(values=((1, 2),), rows=("a", "b"), value="", x="", y=""), "a name for each row and column"),
        (lambda: Matrix(values=((1, 2),), hidden=((True,),), value="", x="", y=""), "hidden of that shape"),
        (lambda: Exhibit(title="", says="", panels=()), "1 to 12 panels, got 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, message) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
