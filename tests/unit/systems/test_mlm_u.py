"""MLM-U: equal parameters of the arms, what is masked, and the verdict."""

import pytest

from foretoken.envs.diagnostic import make_world
from foretoken.envs.recipes.star_paths import StarPaths
from foretoken.experiment import run
from foretoken.systems.search import mlm_u
from foretoken.systems.search.mlm_u import claim, figures, paper, smoke, verdict


@pytest.mark.parametrize("names", [("mlm-u", "next-token"), ("star-mlm-u", "star-next-token")])
def test_arms_are_equal_but_for_the_objective(names):
    arms = [claim().arms[name] for name in names]
    spec = make_world(arms[0].source.recipe.world, 1).spec
    counts = [sum(p.numel() for p in arm.system.build(spec).parameters()) for arm in arms]
    assert max(counts) / min(counts) < 1.01
    same = [
        (arm.source, arm.evaluation, arm.training.updates, arm.training.batch_size, arm.system.script) for arm in arms
    ]
    assert same[0] == same[1]
    assert [arm.system.visibility for arm in arms] == ["uniform", "next-token"]


def test_the_rival_is_the_same_with_short_arms():
    """But for the graphs and fewer updates: were it broken, it would not solve them."""
    long, short = (claim().arms[name] for name in ("star-next-token", "short-star-next-token"))
    assert long == short.replace(source=long.source, training=long.training)
    assert short.training.updates < long.training.updates and short.training.optimiser.lr == long.training.optimiser.lr
    assert short.source.recipe == StarPaths(world="foretoken/StarGraph-2x2-16-v0")


def test_the_papers_network_has_8m_parameters():
    spec = make_world("foretoken/Maze10x10-v0", 1).spec
    assert sum(p.numel() for p in paper().system.build(spec).parameters()) == pytest.approx(8e6, rel=0.02)


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
    for star, short in ((0.61, 0.91), (0.59, 0.89)):
        stars = {"star-mlm-u": star, "star-next-token": 0.5, "short-star-next-token": short}
        stars = {name: [row(exact, 0.0)] * 3 for name, exact in stars.items()}
        assert list(verdict(results | stars).values()) == [holds, star > 0.6, short > 0.9]


def test_smoke_runs_and_is_judged(tmp_path, monkeypatch):
    monkeypatch.setenv("FORETOKEN_CACHE", str(tmp_path / "cache"))
    experiment = smoke()
    experiment = experiment.replace(training=experiment.training.replace(updates=2, evaluate_every=1))
    done = run(experiment, tmp_path / "run", progress=False)
    found = figures(done)
    assert 0 <= found["exact"] <= found["reached"] <= 1 and "exact at half" in found and found["minutes"] > 0
    assert mlm_u.CARD.acting == "own"
