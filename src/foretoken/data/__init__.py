"""Episodes in, batches out: the store, the window sampler, readers of foreign formats, and views of the same experience."""

from typing import Any

from foretoken.core.store import EpisodeStore
from foretoken.data.episode import Episode
from foretoken.data.mixture import Mixture
from foretoken.data.store import Store, open_store
from foretoken.data.windows import WindowSampler

__all__ = ["Episode", "EpisodeStore", "Mixture", "Store", "WindowSampler", "import_dataset", "open_store"]


def import_dataset(*args: Any, **kwargs: Any) -> Any:
    """`foretoken.data.imports.import_dataset`, loaded with its readers when it is called."""
    from foretoken.data import imports

    return imports.import_dataset(*args, **kwargs)
