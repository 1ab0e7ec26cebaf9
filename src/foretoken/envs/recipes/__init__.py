"""Datasets that are made on the spot by a scripted player: one file each, found by name."""

from importlib import import_module
from pathlib import Path

from foretoken.data.embedded import cache_folder
from foretoken.data.store import Store, open_store


def recipe_names() -> list[str]:
    """Names of the recipes, as sources take them."""
    return sorted(file.stem.replace("_", "-") for file in Path(__file__).parent.glob("[a-z]*.py"))


def open_recipe(name: str) -> Store:
    """The store of a recipe, made in the cache folder at first use (whole or not at all)."""
    module = import_module(f"foretoken.envs.recipes.{name.replace('-', '_')}")
    out = cache_folder() / "stores" / f"{name}-v{module.VERSION}"
    if not (out / "store.json").exists():
        module.make(out)
    return open_store(out)
