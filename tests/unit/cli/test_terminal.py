"""Negative values, tables, numbers and JSON."""

import json

import pytest

from foretoken.cli.terminal import Parser, number, numbers, print_json, table


@pytest.mark.parametrize("words", [["--targets=-100,50"], ["--targets", "-100,50"], ["--targets", "-100,.5e2"]])
def test_negative_values_may_follow_a_space(words) -> None:
    parser = Parser("test", "")
    parser.add_argument("--targets", type=numbers)
    assert parser.parse_args(words).targets == (-100.0, 50.0)


def test_wrong_numbers_are_named(capsys) -> None:
    parser = Parser("test", "")
    parser.add_argument("--targets", type=numbers)
    with pytest.raises(SystemExit) as end:
        parser.parse_args(["--targets", "3;4"])
    assert end.value.code == 2 and "'3;4'" in capsys.readouterr().err


def test_tables_align_numbers_to_the_right_and_words_to_the_left() -> None:
    assert (
        table([("a", 1.5, None), ("long", 22, 3.0)], ("name", "x", "y")) == "name    x  y\na     1.5  -\nlong   22  3"
    )
    assert table([]) == ""


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (float("nan"), "-"), (True, "yes"), (3, "3"), (-1234.56, "-1235"), (12345.6, "12,346"), ("x", "x")],
)
def test_numbers_are_short(value, shown) -> None:
    assert number(value) == shown


def test_json_has_no_nan(capsys) -> None:
    print_json({"a": [float("nan"), float("inf"), 1.5], "b": ("x", None)})
    assert json.loads(capsys.readouterr().out) == {"a": [None, None, 1.5], "b": ["x", None]}
