"""How a token sees earlier tokens: one file per mechanism, each with a naive reference."""

import importlib
import pkgutil

from foretoken.core.errors import UnknownName
from foretoken.core.names import nearest
from foretoken.nn.mixer import MixerConfig


def shelf() -> dict[str, type[MixerConfig]]:
    """Every mixer's config by key: the name of its file, or of the class where a file holds another one besides."""
    found: dict[str, type[MixerConfig]] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, MixerConfig)]
        kinds = [kind for kind in kinds if kind.__module__ == module.__name__ and kind.owner is not None]
        for kind in kinds:
            name = kind.__name__.removesuffix("Config").lower()
            found[info.name if len(kinds) == 1 or name == info.name.replace("_", "") else name] = kind
    return found


def find(name: str) -> type[MixerConfig]:
    """The config of the mixer with this key. Raises UnknownName, with the nearest one."""
    known, key = shelf(), name.replace("-", "_")
    if key not in known:
        raise UnknownName(f"no mixer is called {name!r}{nearest(key, known)}; there are {', '.join(known)}")
    return known[key]
