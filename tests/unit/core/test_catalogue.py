"""The catalogue reads cards from source text, finds by name or key, and suggests near names."""

from pathlib import Path

import pytest

from foretoken.core.catalogue import find, read_card, systems
from foretoken.core.errors import ConfigError, UnknownName


def test_finds_by_name_and_key() -> None:
    entry = systems()["decision_transformer"]
    assert entry.family == "offline" and entry.card.key == "dt"
    for name in ("decision_transformer", "decision-transformer", "dt"):
        assert find(name) == entry
    assert entry.card == entry.load().CARD


def test_suggests_the_nearest() -> None:
    with pytest.raises(
        UnknownName, match=r"no system is called 'decision_transfomer' \(did you mean 'decision_transformer'\?\)"
    ):
        find("decision_transfomer")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n", "no `CARD = Card"),
        ("CARD = Card(key=KEY)\n", "literal fields only"),
        ("CARD = Card(key='a', colour='red')\n", "literal fields only"),
    ],
)
def test_broken_cards_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(ConfigError, match=rf"broken\.py: .*{message}"):
        read_card(file)


def test_reading_a_card_runs_nothing(tmp_path: Path) -> None:
    file = tmp_path / "loud.py"
    file.write_text("raise SystemExit\nCARD = Card(key='l', title='t', paper='p', claim='c', stream='s')\n")
    assert read_card(file).key == "l"
