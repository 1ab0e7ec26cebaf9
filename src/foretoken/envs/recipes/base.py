"""RecipeConfig: a dataset described by its settings instead of its files."""

import hashlib
import json
from pathlib import Path
from typing import ClassVar

from foretoken.core.config import Config
from foretoken.data.embedded import cached_store
from foretoken.data.store import Store


class RecipeConfig(Config):
    """Abstract. A recipe's data are a function of its fields and `version` alone, so they are made once and kept.

    Attributes:
        version: raise it when `write` makes other data than before.
    """

    version: ClassVar[int] = 1

    def write(self, out: Path) -> None:
        """Makes the store in the new folder `out`."""
        raise NotImplementedError(f"{type(self).__name__} must define write(out)")

    def open(self) -> Store:
        """The recipe's store, made in the cache folder at first use, whole or not at all."""
        described = json.dumps([self.version, self.to_json()], sort_keys=True)
        name = type(self).__module__.rpartition(".")[2].replace("_", "-")
        return cached_store(f"{name}-{hashlib.sha256(described.encode()).hexdigest()[:12]}", self.write)
