"""Every command of docs/memory-tasks.md trains; where its package is not installed, it is skipped."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from foretoken import estimate
from foretoken.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "memory-tasks.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    foretoken (.*)$", PAGE, flags=re.MULTILINE)
PACKAGES = {"popgym-": "popgym", "MortarMayhem": "memory_gym"}
SHORT = "--training.updates 1 --training.evaluate-every 0 --source.num-slots 4 --source.steps 64 --training.batch-size 1 --quiet"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_the_page_trains(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for lead, package in PACKAGES.items():
        if lead in command and find_spec(package) is None:
            pytest.skip(f"needs {package}")
    if " paper" in command:  # takes a GPU: its settings are built, no more
        monkeypatch.setattr(estimate, "estimate", lambda experiment: estimate.Estimate())
        assert main([*command.split(), "--dry-run"]) == 0
        return
    assert main([*command.split(), *SHORT.split(), "--out", "run"]) == 0, capsys.readouterr().err
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_the_page_has_every_task():
    for id in (
        "TMaze",
        "RepeatPrevious-4",
        "CartPole-Positions",
        "popgym-Autoencode",
        "popgym-RepeatPrevious",
        "MortarMayhem-Grid",
    ):
        assert id in PAGE
    assert len(COMMANDS) == 10
