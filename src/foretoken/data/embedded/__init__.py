"""Small real datasets that come with the package, and the folder where they and other prepared stores are kept."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from foretoken.core.errors import UnknownName
from foretoken.core.names import nearest

if TYPE_CHECKING:
    from foretoken.data.store import Store


def cache_folder() -> Path:
    """Where prepared stores live: `$FORETOKEN_CACHE`, or `~/.cache/foretoken`."""
    return Path(os.environ.get("FORETOKEN_CACHE") or Path.home() / ".cache" / "foretoken")


def cached_store(name: str, write: Callable[[Path], object]) -> "Store":
    """A store of the cache folder, made there by `write(new folder)` at first use: whole or not at all, and once.

    Processes and threads that ask for it meanwhile wait until it is made.
    """
    from foretoken.data.store import open_store

    out = cache_folder() / "stores" / name
    if not (out / "store.json").exists():
        with _alone(cache_folder() / "locks" / name):
            if not (out / "store.json").exists():
                part = out.with_name(f".{name}.part")
                shutil.rmtree(part, ignore_errors=True)
                part.parent.mkdir(parents=True, exist_ok=True)
                write(part)
                part.rename(out)
    return open_store(out)


@contextmanager
def _alone(file: Path) -> Iterator[None]:
    """Waits until nobody else holds the lock `file`; that of a dead process is free."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a") as handle:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        except ImportError:
            pass  # no such locks on this system: one process at a time is the user's business
        yield


def embedded_names() -> list[str]:
    """Names of the embedded datasets."""
    return sorted(folder.name for folder in Path(__file__).parent.iterdir() if (folder / "data").is_dir())


def open_embedded(name: str) -> "Store":
    """The embedded dataset as a store, imported into the cache folder at first use."""
    from foretoken.data.imports import import_dataset

    if name not in embedded_names():
        raise UnknownName(
            f"no embedded dataset is called {name!r}{nearest(name, embedded_names())}; there are {embedded_names()}"
        )
    return cached_store(f"{name}-v1", lambda out: import_dataset(Path(__file__).parent / name, out))
