"""The laws of system files: a complete card, presets that survive JSON, a well-formed claim, one order of parts."""

import ast
import inspect
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from foretoken.core.card import Card
from foretoken.core.catalogue import Entry, read_card
from foretoken.core.config import Config
from foretoken.testing.agreement import require
from foretoken.testing.methods import Trial
from foretoken.testing.stores import SPECS

PRESETS = ("smoke", "cpu", "paper")
_ACTING = ("window", "streaming", "stateless", "own")


def check_system(system: Entry | ModuleType, *, specs: Sequence[str] | None = None) -> None:
    """Checks a system file and builds its smallest preset.

    Args:
        system: the module, or its entry in the catalogue.
        specs: names in `foretoken.testing.stores.SPECS` that the method is built for; by default those its tags name.

    Raises:
        AssertionError: a law does not hold.
    """
    module = system.load() if isinstance(system, Entry) else system
    check_card(module)
    check_anatomy(module)
    for name in presets(module):
        check_preset(module, name)
    check_claim(module)
    for name in specs if specs is not None else fitting_specs(module):
        check_build(module, name)


def presets(module: ModuleType) -> list[str]:
    """The names of the functions that are declared to return an Experiment."""
    found = [
        name
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
        and getattr(function.__annotations__.get("return"), "__name__", function.__annotations__.get("return"))
        == "Experiment"
    ]
    for name in PRESETS:
        require(name in found, "presets", f"{module.__name__} has no `def {name}() -> Experiment`, only {found}")
    return found


def fitting_specs(module: ModuleType) -> list[str]:
    """The small specs that the card's tags name ("maze", or else "continuous", "discrete"); all kinds of actions without such a tag."""
    if "maze" in module.CARD.tags:
        return ["maze"]
    return [name for name in ("continuous", "discrete") if name in module.CARD.tags] or ["continuous", "discrete"]


def check_card(module: ModuleType) -> None:
    """The card is complete, literal, and the one that a listing reads without importing the file."""
    card = getattr(module, "CARD", None)
    where = module.__name__
    require(isinstance(card, Card), "card", f"{where} has no CARD = Card(...)")
    assert isinstance(card, Card)
    for name in ("key", "title", "paper", "claim", "stream"):
        require(bool(getattr(card, name).strip()), "card", f"{where}: {name} is empty")
    plain = re.fullmatch(r"[a-z0-9][a-z0-9-]*", card.key) is not None
    require(plain, "card", f"{where}: key {card.key!r} must be lower case, digits and hyphens")
    require(card.acting in _ACTING, "card", f"{where}: acting must be one of {_ACTING}, got {card.acting!r}")
    require(
        bool(card.tags) and len(set(card.tags)) == len(card.tags),
        "card",
        f"{where}: tags must be there, each once, got {card.tags}",
    )
    require(read_card(_file(module)) == card, "card", f"{where}: CARD differs from the literals in the file")


def check_anatomy(module: ModuleType) -> None:
    """Docstring with the paper, imports, CARD, config and method, presets, claim, in this order; no system imports another."""
    where, tree = module.__name__, ast.parse(_file(module).read_text(encoding="utf-8"))
    text = ast.get_docstring(tree) or ""
    require(bool(re.search(r"arxiv|paper", text, re.IGNORECASE)), "anatomy", f"{where}: the docstring names no paper")
    at: dict[str, int] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            at.update({target.id: node.lineno for target in targets if isinstance(target, ast.Name)})
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            at[node.name] = node.lineno
    classes = {node.name: node.lineno for node in tree.body if isinstance(node, ast.ClassDef)}
    functions = {node.name: node.lineno for node in tree.body if isinstance(node, ast.FunctionDef)}
    lines = [at[name] for name in presets(module)]
    first = min([*classes.values(), *functions.values()])
    require(
        at["CARD"] < first,
        "anatomy",
        f"{where}: CARD (line {at['CARD']}) must come before classes and functions (line {first})",
    )
    for name, line in classes.items():
        require(
            line < min(lines),
            "anatomy",
            f"{where}: class {name} (line {line}) must come before the presets (line {min(lines)})",
        )
    require("claim" in functions, "anatomy", f"{where} has no `def claim() -> Claim`")
    last, claim = max(lines), functions["claim"]
    require(claim > last, "anatomy", f"{where}: claim (line {claim}) must come after the presets (line {last})")
    others = [name for name in _imported(tree) if name.startswith("foretoken.systems.")]
    require(not others, "anatomy", f"{where} imports another system: {others}; shared code belongs to methods or nn")


def _imported(tree: ast.Module) -> list[str]:
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names.append(node.module or "")
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return names


def check_preset(module: ModuleType, name: str) -> None:
    """A preset makes an equal experiment at every call, and JSON keeps all of it."""
    preset = getattr(module, name)
    _check_experiment(preset(), f"{module.__name__}.{name}()")
    require(preset() == preset(), "presets", f"{module.__name__}.{name}() differs between two calls")


def check_claim(module: ModuleType) -> None:
    """The claim has a sentence, at least two different arms, seeds, a metric and a verdict."""
    claim, where = module.claim(), f"{module.__name__}.claim()"
    require(bool(claim.says.strip()), "claim", f"{where}: says is empty")
    require(
        isinstance(claim.arms, Mapping) and len(claim.arms) >= 2,
        "claim",
        f"{where}: a claim compares at least two arms",
    )
    for arm, experiment in claim.arms.items():
        _check_experiment(experiment, f"{where}.arms[{arm!r}]")
    described = [json.dumps(experiment.to_json(), sort_keys=True) for experiment in claim.arms.values()]
    require(len(set(described)) == len(described), "claim", f"{where}: some of the arms {list(claim.arms)} are equal")
    seeds = list(claim.seeds)
    require(
        bool(seeds) and len(set(seeds)) == len(seeds), "claim", f"{where}: seeds must be there, each once, got {seeds}"
    )
    require(callable(claim.metric) and callable(claim.holds), "claim", f"{where}: metric and holds must be functions")
    require(claim.minutes > 0, "claim", f"{where}: minutes must be positive, got {claim.minutes}")


def check_build(module: ModuleType, spec: str) -> None:
    """The smallest preset's method builds for a spec, fits a store and gives a finite loss."""
    trial = Trial(module.smoke().system, SPECS[spec])
    method = trial.build()
    for objective in method.objectives():
        loss = objective.loss(*trial.draw(method, objective, rows=4))
        detail = f"{module.__name__}, {spec}: objective {objective.name!r} has the loss {loss.total}"
        require(bool(loss.total.isfinite()), "smoke builds", detail)


def _check_experiment(experiment: Any, where: str) -> None:
    parts = ("system", "source", "training", "evaluation", "seed")
    fine = isinstance(experiment, Config) and all(hasattr(experiment, part) for part in parts)
    require(fine, "presets", f"{where} must be an Experiment, got {type(experiment).__name__}")
    back = type(experiment).from_json(json.loads(json.dumps(experiment.to_json())))
    require(back == experiment, "presets survive JSON", f"{where} came back as {back}")


def _file(module: ModuleType) -> Path:
    return Path(inspect.getfile(module))
