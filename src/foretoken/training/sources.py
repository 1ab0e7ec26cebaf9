"""Where batches come from: recorded stores (Offline), and several sources at once (Together).

The live policy's episodes are `foretoken.training.replay`, its newest steps alone `foretoken.training.rollouts`.

A source is built for one run: `config.build(batch_size=, seed=, rank=, world_size=, folder=)`. What it draws is a pure
function of (seed, view, update, micro-batch) and of the data stored; processes take parts of the same drawn rows, so
together they see exactly the batch that one process would see.
"""

import hashlib
import logging
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from foretoken.core.batch import Batch
from foretoken.core.config import Config, configures
from foretoken.core.errors import CheckpointError, ConfigError, DataError, UnknownName
from foretoken.core.method import Method
from foretoken.core.names import nearest
from foretoken.core.spec import Window
from foretoken.core.state import nbytes
from foretoken.data.embedded import cached_store, embedded_names, open_embedded
from foretoken.data.imports import import_dataset
from foretoken.data.mixture import Mixture
from foretoken.data.store import Store, open_store
from foretoken.data.transforms import top_fraction
from foretoken.data.windows import WindowSampler
from foretoken.envs.recipes import open_recipe, recipe_names
from foretoken.envs.recipes.base import RecipeConfig
from foretoken.training.drawing import Drawing
from foretoken.training.replay import Replay as Replay  # configs written before it moved name it here
from foretoken.training.seeding import mix

log = logging.getLogger(__name__)

_AHEAD_BATCHES, _AHEAD_BYTES = 16, 1 << 24  # what an offline source draws ahead at most


def packaged_names() -> list[str]:
    """Names of the datasets that come with the package, embedded or made by a recipe."""
    return [*embedded_names(), *recipe_names()]


def resolve_store(name: str) -> Store:
    """The store that `name` means: a store's folder, a dataset to import, or the name of a dataset in the package
    (embedded, or made by a recipe).

    A dataset in a known format is imported once into a cache folder ($FORETOKEN_CACHE, or ~/.cache/foretoken), under its
    name and a hash of path, size and time of change.

    Raises:
        UnknownName: it is neither; the message says the nearest packaged name.
    """
    path = Path(name).expanduser()
    if (path / "store.json").is_file():
        return open_store(path)
    if name in embedded_names():
        return open_embedded(name)
    if name in recipe_names():
        return open_recipe(name)
    if not path.exists():
        names = packaged_names()
        raise UnknownName(
            f"no store, dataset file or packaged dataset is called {name!r}{nearest(name, names)}; "
            f"`foretoken import DATASET --out {shlex.quote(name)}` makes a store there; {len(names)} datasets come with the "
            f"package ({', '.join(names[:3])}, ...), `foretoken doctor` names them"
        )

    def write(out: Path) -> None:
        log.info("importing %s into the cache", path)
        for finding in import_dataset(path, out)[1]:
            log.info("%s: %s", finding.severity, finding.message)

    return cached_store(f"{path.stem}-{_fingerprint(path)}", write)


def _fingerprint(path: Path) -> str:
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    facts = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Offline(Config):
    """Recorded episodes, which never change.

    Args:
        store: a store's folder, a dataset file, or a packaged dataset; several as a comma-separated list. "" takes `recipe`.
        recipe: how the data are made, where no store is named. `replace` with one of the two drops the other.
        weights: with several, how often a row comes from each; () takes their sizes.
        held_out: fraction of whole episodes kept out of training for validation, chosen by the run's seed; 0 = none. Where the
            episodes belong to tasks, whole tasks.
        best_fraction: trains only on the episodes with the highest returns, which hold this fraction of all steps (1 = all).
    """

    store: str = ""
    recipe: RecipeConfig | None = None
    weights: tuple[float, ...] = ()
    held_out: float = 0.05
    best_fraction: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"held_out must lie in [0, 1), got {self.held_out}")
        if not 0 < self.best_fraction <= 1:
            raise ConfigError(f"best_fraction must lie in (0, 1], got {self.best_fraction}")
        if not self.names and self.recipe is None:
            raise ConfigError("store must name a store, a dataset file or a packaged dataset, got ''")
        if self.weights and len(self.weights) != max(1, len(self.names)):
            raise ConfigError(f"weights must be one per store, got {len(self.weights)} for {len(self.names)} stores")
        if any(weight < 0 for weight in self.weights) or (self.weights and not any(self.weights)):
            raise ConfigError(f"weights must not be negative, and not all 0, got {self.weights}")

    def replace(self, **changes: Any) -> Self:
        if changes.get("recipe") is not None:
            changes = {"store": ""} | changes
        elif changes.get("store"):
            changes = {"recipe": None} | changes
        return super().replace(**changes)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.store.split(",") if name.strip())

    def open(self) -> dict[str, Store]:
        """The stores by name."""
        if self.names:
            return {name: resolve_store(name) for name in self.names}
        assert self.recipe is not None
        return {"recipe": self.recipe.open()}


@configures(Offline)
class OfflineSource(Drawing):
    """Draws windows from stores. `method.annotate` sees each batch when it is drawn.

    Args:
        batch_size: rows of one draw over all processes together.
        folder: not used; there is nothing to write.
    """

    def __init__(
        self,
        config: Offline,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        folder: Path | None = None,
    ) -> None:
        super().__init__(batch_size, seed, rank, world_size)
        stores = config.open()
        pairs = [_split(store, config.held_out, seed) for store in stores.values()]
        train = [
            store.subset(top_fraction(store, config.best_fraction)) if config.best_fraction < 1 else store
            for store, _ in pairs
        ]
        kept = [store for _, store in pairs if store is not None]
        self.spec = train[0].spec
        for name, store in zip(stores, train, strict=True):
            if (store.spec.observation, store.spec.action) != (self.spec.observation, self.spec.action):
                raise DataError(
                    f"stores mixed in one source need equal spaces, {name!r} differs from {next(iter(stores))!r}; "
                    "use Together for several specs"
                )
        # held-out episodes are drawn by the sizes of their stores, so that validation does not depend on the weights
        self._pools = {False: (train, config.weights or _sizes(train)), True: (kept, _sizes(kept))}
        self.stores = {"data": train[0]} if len(train) == 1 else dict(zip(stores, train, strict=True))
        self._samplers: dict[tuple[Window, bool], WindowSampler | Mixture] = {}
        self._ahead: dict[tuple[str, Window, int], tuple[int, list[Batch]]] = {}

    def draw(self, view: str, window: Window, update: int, micro: int = 0) -> Batch:
        """This process's part of the batch for (view, update, micro); small ones are drawn for several updates at once.

        Stores do not change here, so what later updates will draw is known, and many windows a call cost a third of few.
        """
        key = (view, window, micro)
        first, batches = self._ahead.get(key, (update, []))
        if not 0 <= update - first < len(batches):
            size = nbytes(batches[0]) if batches else _AHEAD_BYTES  # at first, one batch shows how large they are
            count = max(1, min(_AHEAD_BATCHES, _AHEAD_BYTES // max(1, size)))
            seeds = [self._draw_seed(view, later, micro) for later in range(update, update + count)]
            first, batches = update, self._sampler(window).draw_block(self.batch_size, seeds, part=self.part)
            self._ahead[key] = first, batches
        return self._annotate(batches[update - first])

    def advance(self, update: int) -> Mapping[str, float]:
        return {}

    def held_out(self, view: str, window: Window, number: int) -> Batch | None:
        """The number-th batch of held-out windows: the whole of it on every process."""
        if not self._pools[True][0]:
            return None
        seed = mix(self.seed, "held out", view, number)
        return self._annotate(self._sampler(window, held_out=True).draw(self.batch_size, seed))

    def state_dict(self) -> Mapping[str, Any]:
        """Nothing changes; the sizes are compared when a run resumes."""
        return {"episodes": [store.num_episodes for store in self.stores.values()]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        now = self.state_dict()["episodes"]
        if list(state["episodes"]) != now:
            was = list(state["episodes"])
            raise CheckpointError(
                f"the run was trained on stores of {was} episodes, now they have {now}; resume with the same data"
            )

    def _sampler(self, window: Window, held_out: bool = False) -> WindowSampler | Mixture:
        key = (window, held_out)
        if key not in self._samplers:
            stores, weights = self._pools[held_out]
            self._samplers[key] = (
                WindowSampler(stores[0], window) if len(stores) == 1 else Mixture(stores, weights, window)
            )
        return self._samplers[key]


def _sizes(stores: Sequence[Store]) -> tuple[float, ...]:
    return tuple(float(store.num_actions) for store in stores)


def _split(store: Store, fraction: float, seed: int) -> tuple[Store, Store | None]:
    """Training and held-out episodes, each in their old order; at least one of each where there are two and `fraction` > 0."""
    if store.num_episodes == 0:
        raise DataError("a store without episodes cannot be trained on")
    owner = store.episodes.get("task", np.arange(store.num_episodes))  # a task's episodes stay together
    groups = np.unique(owner)
    if fraction == 0 or len(groups) == 1:
        return store, None
    kept = min(len(groups) - 1, max(1, round(fraction * len(groups))))
    order = np.random.default_rng(mix(seed, "split")).permutation(len(groups))
    held = np.isin(owner, groups[order[:kept]])
    return store.subset(np.flatnonzero(~held)), store.subset(np.flatnonzero(held))


@dataclass(frozen=True, kw_only=True)
class Together(Config):
    """Several sources as one.

    A view named `part` or `part/anything` is drawn from the part of that name.

    Args:
        parts: the sources' configs by name.
    """

    parts: Mapping[str, Config]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.parts or any("/" in name for name in self.parts):
            raise ConfigError(f"Together needs at least one part, with names without '/', got {list(self.parts)}")


@configures(Together)
class TogetherSource:
    """Hands every call to the part that a view's name says; `spec` and `stores` are by part."""

    def __init__(
        self,
        config: Together,
        *,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        folder: Path | None = None,
    ) -> None:
        self.parts: dict[str, Any] = {
            name: part.build(
                batch_size=batch_size,
                seed=mix(seed, "part", name),
                rank=rank,
                world_size=world_size,
                folder=None if folder is None else Path(folder) / name,
            )
            for name, part in config.parts.items()
        }
        self.spec = {name: part.spec for name, part in self.parts.items()}

    @property
    def stores(self) -> Mapping[str, Any]:
        """A part's only store by the part's name, several as `part/name`."""
        return dict(self._stores())

    def _stores(self) -> Iterable[tuple[str, Any]]:
        for name, part in self.parts.items():
            for inner, store in part.stores.items():
                yield (name if len(part.stores) == 1 else f"{name}/{inner}"), store

    def connect(self, method: Method) -> None:
        for part in self.parts.values():
            part.connect(method)

    def advance(self, update: int) -> Mapping[str, float]:
        return {
            f"{name}/{key}": value for name, part in self.parts.items() for key, value in part.advance(update).items()
        }

    def draw(self, view: str, window: Window, update: int, micro: int = 0) -> Batch:
        return self._part(view).draw(view, window, update, micro)

    def held_out(self, view: str, window: Window, number: int) -> Batch | None:
        return self._part(view).held_out(view, window, number)

    def state_dict(self) -> Mapping[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])

    def _part(self, view: str) -> Any:
        name = view.split("/")[0]
        if name not in self.parts:
            raise ConfigError(
                f"view {view!r} names no part of this Together{nearest(name, self.parts)}; parts are {list(self.parts)}"
            )
        return self.parts[name]
