"""`foretoken in-context`: everyone's curves on the same axes, on the page and in the csv."""

import csv
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from foretoken.cli import in_context
from foretoken.envs.learners import QLearning
from foretoken.evaluation.in_context import reference_returns
from foretoken.evaluation.in_context_page import BEGIN, END
from foretoken.experiment import Claim
from foretoken.systems.incontext import algorithm_distillation as ad


def claim() -> Claim:
    run = ad.smoke()
    run = run.replace(training=run.training.replace(updates=1, evaluate_every=1))
    recipe = run.source.recipe.replace(keep_every=2)
    thin = run.replace(source=run.source.replace(recipe=recipe))
    return Claim(
        says="It plays.",
        arms={"whole": run, "short": run.replace(system=run.system.replace(context=4)), "thin": thin},
        metric=lambda run: {"return": 0.0},
        seeds=(0,),
        holds=lambda results: {"it plays": True},
        minutes=1,
    )


def test_sources_and_references_stand_beside_the_arms(foretoken, monkeypatch) -> None:
    entry = SimpleNamespace(
        card=SimpleNamespace(key="it", tags=("in-context",)), load=lambda: SimpleNamespace(claim=claim)
    )
    monkeypatch.setattr(in_context.catalogue, "systems", lambda: {"it": entry})
    Path("page.md").write_text(f"{BEGIN}\n{END}\n")
    answer = foretoken("in-context", "--quiet", "--page", "page.md", "--csv", "csv")
    assert answer.code == 0, answer.err
    with open("csv/darkroom-7x7-v0-return.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    players = list(dict.fromkeys(row["player"] for row in rows))
    assert players == [
        "it: whole", "it: short", "it: thin", "best possible", "random",
        "source of it: whole", "source of it: thin", "source of it: thin, one episode in 2",
    ]  # fmt: skip
    page = Path("page.md").read_text()
    assert all(f"| {player} |" in page for player in players) and {row["trials"] for row in rows} == {"2"}
    where, learner = "foretoken/DarkRoom-7x7-v0", QLearning(episodes=6)
    played = reference_returns(where, learner, trials=2, episodes=2, seed=0)
    means = [float(row["mean"]) for row in rows if row["player"] == "source of it: whole"]
    np.testing.assert_allclose(means, played.mean(0), rtol=1e-4)
