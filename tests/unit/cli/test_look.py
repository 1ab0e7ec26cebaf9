"""list, show and doctor."""

import json

import pytest

from foretoken.cli.presets import presets
from foretoken.cli.show import draw, result_text
from foretoken.core import catalogue

RECORD = {
    "key": "dt",
    "verdict": "does not hold",
    "says": "asked for more it earns more",
    "conditions": {"ranked": True, "beats cloning": False},
    "arms": {"dt": {"return": {"mean": 12.5, "interval": [10.0, 15.0], "values": [12.0, 13.0]}, "seeds": [0, 1]}},
    "minutes": 3.0,
    "commit": "abc123",
    "date": "2026-01-02",
}


@pytest.fixture
def _claimed(tmp_path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "dt.json").write_text(json.dumps(RECORD))


def test_list_shows_systems_by_family_with_their_status(foretoken) -> None:
    answer = foretoken("list")
    assert answer.code == 0 and "offline\n  " in answer.out
    (line,) = [line for line in answer.out.splitlines() if "  decision_transformer " in line]
    assert line.startswith("  decision_transformer ") and line.endswith("not yet run")


@pytest.mark.usefixtures("_claimed")
def test_list_takes_the_status_from_the_results(foretoken) -> None:
    (system,) = [one for one in json.loads(foretoken("list", "--json").out) if one["key"] == "dt"]
    assert (
        system["status"] == "does not hold"
        and system["family"] == "offline"
        and system["name"] == "decision_transformer"
    )
    assert "does not hold: 1 of 2" in foretoken("list").out


def test_a_broken_result_is_named(foretoken, tmp_path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "dt.json").write_text('{"key": "dt"')
    assert "unreadable result" in foretoken("list").out
    answer = foretoken("show", "dt")
    assert answer.code == 2 and "dt.json" in answer.err


def test_results_beside_us_are_found(foretoken, tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("FORETOKEN_RESULTS")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "dt.json").write_text(json.dumps(RECORD | {"verdict": "holds"}))
    assert json.loads(foretoken("show", "dt", "--json").out)["status"] == "holds"


@pytest.mark.parametrize("name", ["decision_transformer", "decision-transformer", "dt"])
def test_show_tells_what_the_card_says(name, foretoken) -> None:
    card = catalogue.find("dt").card
    answer = foretoken("show", name)
    assert answer.code == 0
    for text in (
        card.title,
        card.paper,
        "| R_t |",
        "not yet run",
        "smoke",
        "decision_transformer.py",
        "1. ",
        f"{len(card.deviations)}. ",
    ):
        assert text in answer.out
    assert max(map(len, answer.out.splitlines())) <= 140


@pytest.mark.usefixtures("_claimed")
def test_show_tells_the_last_claim(foretoken) -> None:
    out = foretoken("show", "dt").out
    for text in (
        "Claim: does not hold",
        "abc123",
        "asked for more",
        "yes  ranked",
        "NO   beats cloning",
        "12.5",
        "10 .. 15",
        "3 minutes)",
    ):
        assert text in out


def test_show_tells_what_was_waited_where_runs_went_side_by_side() -> None:
    assert "3 minutes, 1.6 with 2 workers)" in result_text(RECORD | {"workers": 2, "wall_minutes": 1.6})
    assert "3 minutes)" in result_text(RECORD | {"workers": 2, "wall_minutes": None})
    assert "3 minutes)" in result_text(RECORD | {"workers": 1, "wall_minutes": 3.1})


def test_show_as_json(foretoken) -> None:
    tree = json.loads(foretoken("show", "dt", "--json").out)
    assert set(tree["presets"]) >= {"smoke", "cpu", "paper"} and tree["result"] is None and tree["stream"]


def test_show_suggests_the_nearest_system(foretoken) -> None:
    answer = foretoken("show", "decision_transfomer")
    assert answer.code == 2 and "did you mean 'decision_transformer'" in answer.err


@pytest.mark.parametrize(
    "stream", ["a  b -> c", "a_(t-1)  R_t  s_t -> a_t", "a", "two\nlines", "a -> b -> c", "-> a", ""]
)
def test_any_stream_can_be_drawn(stream) -> None:
    drawn = draw(stream)
    assert all(token in drawn for token in stream.replace("->", " ").split())


def test_an_arrow_stands_below_the_last_token() -> None:
    *_, edge, bar, head, target = draw("a  s_t -> a_t").splitlines()
    column = bar.index("|")
    assert edge[column] == "-" and head[column] == "v" and target[column] != " "


def test_presets_are_functions_without_arguments_that_return_an_experiment(tmp_path) -> None:
    file = tmp_path / "system.py"
    file.write_text(
        'def one() -> Experiment:\n    """First line.\n\n    More."""\ndef two() -> "Experiment": ...\n'
        "def part(width: int) -> Experiment: ...\ndef _hidden() -> Experiment: ...\ndef claim() -> Claim: ...\n"
    )
    assert presets(file) == {"one": "First line.", "two": ""}


def test_doctor_passes_sound_data(store, foretoken) -> None:
    answer = foretoken("doctor", store)
    assert answer.code == 0 and "0 errors" in answer.out
    assert all(finding["severity"] != "error" for finding in json.loads(foretoken("doctor", store, "--json").out))


def test_doctor_exits_with_1_where_there_are_errors(tmp_path, foretoken) -> None:
    from foretoken.core.spec import Box, Discrete, Spec
    from foretoken.data.store import Store

    Store.create(tmp_path / "empty", Spec(observation=Box(shape=(2,)), action=Discrete(n=2)))
    answer = foretoken("doctor", tmp_path / "empty")
    assert answer.code == 1 and "error" in answer.out and "1 error," in answer.out


def test_doctor_names_a_missing_store(foretoken) -> None:
    answer = foretoken("doctor", "stores/nowhere")
    assert answer.code == 2 and "'stores/nowhere'" in answer.err


def test_doctor_without_a_store_names_those_that_come_with_the_package(foretoken) -> None:
    answer = foretoken("doctor")
    assert answer.code == 2 and "hopper-mixed" in answer.err and "t-maze-demonstrations" in answer.err
