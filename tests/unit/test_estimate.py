"""What a run will cost, told beforehand: its parts, and that nothing of the measuring stays."""

import time

import pytest
import torch

from foretoken.estimate import WARM, Estimate, estimate
from foretoken.systems.imitation import behavior_transformer
from foretoken.systems.memory import gated_transformer_xl
from foretoken.systems.offline import decision_transformer
from foretoken.training.sources import OfflineSource


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch):
    monkeypatch.setenv("FORETOKEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("preset", [behavior_transformer.smoke, gated_transformer_xl.smoke])
def test_parts_are_those_of_the_run(preset, tmp_path):
    run = preset()
    run = run.replace(training=run.training.replace(evaluate_every=run.training.updates))
    before = torch.get_num_threads()
    found = estimate(run, seconds=0.2)
    assert [name.split(" of ")[0] for name in found.seconds] == [
        "opening the data", "setting up training", f"{run.training.updates} updates", "1 evaluation",
    ]  # fmt: skip
    assert all(value >= 0 for value in found.seconds.values()) and found.memory > 2**20
    assert torch.get_num_threads() == before and {path.name for path in tmp_path.iterdir()} <= {"cache"}


def test_twice_the_updates_cost_twice(tmp_path):
    run = behavior_transformer.smoke()
    costs = [
        next(value for name, value in estimate(part, seconds=0.5).seconds.items() if "updates" in name)
        for part in (run.replace(training=run.training.replace(updates=updates)) for updates in (1_000, 20_000))
    ]
    assert 5 < costs[1] / costs[0] < 80


def test_few_slow_updates_are_enough(monkeypatch):
    run, begun, advance = decision_transformer.smoke(), [], OfflineSource.advance

    def slow(source, update):
        begun.append(update)
        time.sleep(0.05)
        return advance(source, update)

    monkeypatch.setattr(OfflineSource, "advance", slow)
    found = estimate(run.replace(training=run.training.replace(evaluate_every=0)), seconds=0.01)
    assert len(begun) == WARM + 1
    assert next(value for name, value in found.seconds.items() if "updates" in name) > 0.05 * run.training.updates


def test_text_tells_the_large_parts_alone():
    found = Estimate({"opening the data": 0.001, "5,000 updates of 12 ms": 600.0, "2 evaluations": 7200.0}, 3 * 2**30)
    assert (
        found.text()
        == "about 2 h 10 min (10 min for 5,000 updates of 12 ms, 2 h 0 min for 2 evaluations) and 3 GiB of memory"
    )
