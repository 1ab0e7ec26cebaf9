"""MLM-U: equal parameters of the arms, what is masked, and the verdict."""

import pytest

from foretoken.envs.diagnostic import make_world
from foretoken.experiment import run
from foretoken.systems.search import mlm_u
from foretoken.systems.search.mlm_u import claim, figures, smoke, verdict


def test_arms_are_equal_but_for_the_objective():
    arms, spec = claim().arms, make_world("foretoken/Maze5x5-v0", 1).spec
    counts = {name: sum(p.numel() for p in arm.system.build(spec).parameters()) for name, arm in arms.items()}
    assert max(counts.values()) / min(counts.values()) < 1.01
    same = [(arm.source, arm.evaluation, arm.training.updates, arm.training.batch_size) for arm in arms.values()]
    assert all(one == same[0] for one in same)
    assert [arm.system.visibility for arm in arms.values()] == ["uniform", "next-token"]


@pytest.mark.parametrize(
    ("own", "half", "other", "other_half", "holds"),
    [
        (0.701, 0.3, 0.6, 0.0, True),
        (0.69, 0.59, 0.6, 0.0, False),
        (0.65, 0.6, 0.6, 0.59, True),
        (0.9, 0.2, 0.85, 0.0, False),
        (0.021, 0.021, 0.021, 0.021, False),  # nothing learned
        (1.0, 1.0, 1.0, 1.0, False),  # both as soon
    ],
)
def test_verdict(own, half, other, other_half, holds):
    row = lambda exact, early: {"exact": exact, "exact at half": early}  # noqa: E731
    results = {"mlm-u": [row(own, half)] * 3, "next-token": [row(other, other_half)] * 3}
    assert list(verdict(results).values()) == [holds]


def test_smoke_runs_and_is_judged(tmp_path, monkeypatch):
    monkeypatch.setenv("FORETOKEN_CACHE", str(tmp_path / "cache"))
    experiment = smoke()
    experiment = experiment.replace(training=experiment.training.replace(updates=2, evaluate_every=1))
    done = run(experiment, tmp_path / "run", progress=False)
    found = figures(done)
    assert 0 <= found["exact"] <= found["reached"] <= 1 and "exact at half" in found and found["minutes"] > 0
    assert mlm_u.CARD.acting == "own"
