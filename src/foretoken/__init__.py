"""foretoken: the home of sequence models that act.

Names are loaded when first used, so that `import foretoken` costs nothing.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "Batch": "core",
    "Config": "core",
    "Method": "core",
    "Spec": "core",
    "Window": "core",
    "EpisodeStore": "data",
    "Episode": "data",
    "open_store": "data",
    "import_dataset": "data",
    "Experiment": "experiment",
    "Claim": "experiment",
    "run": "experiment",
    "load": "experiment",
    "collect": "evaluation",
    "evaluate": "evaluation",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"foretoken.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'foretoken' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
