"""Environments that diagnose one capacity each: vectorised in numpy, with a scripted player that knows how to play them.

One file each, found by name; a file defines WORLD, its class, and IDS, registered names with their settings.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium

from foretoken.core.errors import ConfigError, UnknownName
from foretoken.core.names import nearest
from foretoken.envs.diagnostic.world import Outcome, Part, World, WorldEnv

__all__ = ["Outcome", "Part", "World", "WorldEnv", "make_world", "register_worlds", "world_ids"]


@cache
def world_ids() -> dict[str, tuple[Callable[..., World], dict[str, Any]]]:
    """Every registered world's class and settings, by id."""
    names = sorted(
        file.stem for file in Path(__file__).parent.glob("[a-z]*.py") if file.stem not in ("world", "record")
    )
    modules = [import_module(f"{__name__}.{name}") for name in names]
    return {id: (module.WORLD, settings) for module in modules for id, settings in module.IDS.items()}


def make_world(id: str, rows: int) -> World:
    """`rows` copies of a world by its id. Raises UnknownName, with the nearest id."""
    if id not in world_ids():
        raise UnknownName(f"no world is called {id!r}{nearest(id, world_ids())}; there are {sorted(world_ids())}")
    kind, settings = world_ids()[id]
    return kind(rows, id, **settings)


def register_worlds() -> None:
    """Makes every world known to Gymnasium, as an environment of one row."""
    for id in world_ids():
        if id not in gymnasium.registry:
            # by name, not as a function, so that Gymnasium can write it down
            gymnasium.register(id, entry_point=f"{__name__}:_single", kwargs={"id": id})


def _single(id: str, **settings: Any) -> WorldEnv:
    given = {name: value for name, value in settings.items() if value is not None}
    if given:
        raise ConfigError(f"{id} takes no settings of its own, got {given}; other settings are other ids")
    return WorldEnv(make_world(id, 1))
