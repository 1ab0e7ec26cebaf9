"""The laws of every system file, found by discovery."""

from pathlib import Path

import pytest

from foretoken.core.catalogue import read_card, systems
from foretoken.testing import check_system
from foretoken.testing import systems as laws


@pytest.mark.parametrize("name", systems())
def test_system(name: str) -> None:
    check_system(systems()[name])


def test_keys_are_unique() -> None:
    keys = [entry.card.key for entry in systems().values()]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", systems())
def test_notices_a_class_after_the_presets(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = systems()[name]
    broken = tmp_path / "broken.py"
    broken.write_text(entry.file.read_text(encoding="utf-8") + "\n\nclass Late:\n    pass\n", encoding="utf-8")
    assert read_card(broken) == entry.card
    monkeypatch.setattr(laws, "_file", lambda module: broken)
    with pytest.raises(AssertionError, match="class Late"):
        laws.check_anatomy(entry.load())


@pytest.mark.parametrize("name", systems())
def test_notices_a_preset_that_is_not_repeatable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = systems()[name].load()
    smoke, seeds = module.smoke, iter(range(9))
    monkeypatch.setattr(module, "smoke", lambda: smoke().replace(seed=next(seeds)))
    with pytest.raises(AssertionError, match="differs between two calls"):
        laws.check_preset(module, "smoke")
