"""Plain data and contracts; imports torch and numpy only, and not before one of its names is used that needs them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from foretoken.core.batch import Batch, Decision, Loss, Step, masked_mean
    from foretoken.core.card import Card
    from foretoken.core.config import Config, configures
    from foretoken.core.method import Condition, Context, Method, Objective, Policy, Source
    from foretoken.core.spec import Spec, Window
    from foretoken.core.state import State
    from foretoken.core.store import EpisodeStore, Statistics

_NAMES = {
    "batch": ("Batch", "Decision", "Loss", "Step", "masked_mean"),
    "card": ("Card",),
    "config": ("Config", "configures"),
    "method": ("Condition", "Context", "Method", "Objective", "Policy", "Source"),
    "spec": ("Spec", "Window"),
    "state": ("State",),
    "store": ("EpisodeStore", "Statistics"),
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"foretoken.core.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'foretoken.core' has no attribute {name!r}")
