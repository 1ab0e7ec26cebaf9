"""`foretoken in-context`: the table of in-context learners. Runs the claims of the family where they were not run, or goes on."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from foretoken.cli import results
from foretoken.cli.terminal import Parser, say
from foretoken.core import catalogue

if TYPE_CHECKING:
    from foretoken.envs.recipes.learning_histories import Histories
    from foretoken.experiment import Experiment


def main(argv: list[str]) -> int:
    parser = Parser(
        "in-context",
        "Plays every in-context system of the catalogue on held-out tasks, as its claim trains it, beside learners that learn by\n"
        "gradients or by counting, and writes the tables of docs/in-context.md with their csv. Restartable.",
    )
    parser.add_argument("--runs", metavar="FOLDER", default="runs/claims", help="where the claims' runs are or go")
    parser.add_argument("--csv", metavar="FOLDER", help="where the csv goes (default: results/in-context)")
    parser.add_argument("--page", metavar="FILE", help="the page with the tables (default: docs/in-context.md)")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    options = parser.parse_args(argv)
    home = results.checkout_of(Path(__file__)) or Path(".")
    from foretoken.evaluation.in_context_page import fill, write_csv

    found = _curves(Path(options.runs), quiet=options.quiet)
    folder = Path(options.csv or os.environ.get("FORETOKEN_RESULTS") or home / "results")
    files = [write_csv(one, folder if options.csv else folder / "in-context") for one in found]
    page = Path(options.page) if options.page else home / "docs" / "in-context.md"
    fill(page, found)
    print(f"{len(found)} tables in {page}, {', '.join(str(file) for file in files)}")
    return 0


def _curves(folder: Path, *, quiet: bool) -> list:
    """The curves of all arms of the family's claims by environment, with those of the references and of whoever was distilled."""
    from foretoken.claims import run_claim
    from foretoken.evaluation.in_context import reference_curves, regrets, returns_by_episode, source_curves, steps
    from foretoken.evaluation.in_context_page import Curves
    from foretoken.experiment import Run

    drawn: dict[str, dict[str, list[np.ndarray]]] = {}
    # references play the same tasks whoever is compared with them: once per seed
    beside: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    at: dict[str, np.ndarray] = {}
    for entry in (entry for entry in catalogue.systems().values() if "in-context" in entry.card.tags):
        claim = entry.load().claim()
        run_claim(entry.card.key, claim, folder / entry.card.key, progress=not quiet, tell=say)
        named = _sources(entry.card.key, claim.arms)
        for arm in claim.arms:
            for seed in claim.seeds:
                last = Run.open(folder / entry.card.key / arm / f"seed-{seed}").evaluations()[-1]
                told = last.records[0].regret is not None
                own, where = (regrets if told else returns_by_episode)(last), last.environment
                players = drawn.setdefault(where, {})
                players.setdefault(f"{entry.card.key}: {arm}", []).append(own)
                length = last.records[0].length if told else own.shape[1]
                at.setdefault(where, steps(own, length))
                picked = at[where].round().astype(int) - 1
                found = reference_curves(last)
                if arm in named and not told:
                    name, recipe = named[arm]
                    found |= source_curves(last, recipe, name)
                for name, values in found.items():
                    beside.setdefault(where, {}).setdefault(name, {})[seed] = values[:, picked] if told else values
    return [
        Curves(
            where,
            "regret" if "Bandit" in where else "return",
            at[where],
            {name: np.concatenate(found) for name, found in players.items()}
            | {name: np.concatenate([*by_seed.values()]) for name, by_seed in beside.get(where, {}).items()},
        )
        for where, players in drawn.items()
    ]


def _sources(key: str, arms: Mapping[str, "Experiment"]) -> dict[str, tuple[str, "Histories"]]:
    """Who played the histories that arms learn from: a name and the recipe, once for each recipe, by the first arm that has it."""
    from foretoken.envs.recipes.learning_histories import Histories

    recipes = {arm: getattr(experiment.source, "recipe", None) for arm, experiment in arms.items()}
    first = {recipe: arm for arm, recipe in reversed(recipes.items()) if isinstance(recipe, Histories)}
    whose = f"source of {key}"
    return {arm: (whose if len(first) == 1 else f"{whose}: {arm}", recipe) for recipe, arm in first.items()}
