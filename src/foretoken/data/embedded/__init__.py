"""Small real datasets that come with the package, and the folder where they and other prepared stores are kept."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

from foretoken.core.errors import UnknownName
from foretoken.core.names import nearest

if TYPE_CHECKING:
    from foretoken.data.store import Store


def cache_folder() -> Path:
    """Where prepared stores live: `$FORETOKEN_CACHE`, or `~/.cache/foretoken`."""
    return Path(os.environ.get("FORETOKEN_CACHE") or Path.home() / ".cache" / "foretoken")


def embedded_names() -> list[str]:
    """Names of the embedded datasets."""
    return sorted(folder.name for folder in Path(__file__).parent.iterdir() if (folder / "data").is_dir())


def open_embedded(name: str) -> "Store":
    """The embedded dataset as a store, imported into the cache folder at first use."""
    from foretoken.data.imports import import_dataset
    from foretoken.data.store import open_store

    if name not in embedded_names():
        raise UnknownName(
            f"no embedded dataset is called {name!r}{nearest(name, embedded_names())}; there are {embedded_names()}"
        )
    out = cache_folder() / "stores" / f"{name}-v1"
    if not (out / "store.json").exists():
        import_dataset(Path(__file__).parent / name, out)
    return open_store(out)
