"""Store: packed, append-only episodes, in memory or in a folder that may be far larger than memory.

A folder holds `store.json` (what is in it and how much of it is committed), `episodes.jsonl` (one line per episode) and
one file of raw values per block (see `layout` and `blocks`), which are mapped into memory and never loaded.

Appending writes the blocks first and replaces `store.json` last, so a store is always what its last commit left, however
its writer died. A store has one writer at a time and any number of readers, which see what was committed when they opened.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from foretoken.core.batch import Batch
from foretoken.core.errors import ConfigError, DataError
from foretoken.core.spec import Space, Spec
from foretoken.core.store import Statistics
from foretoken.data.blocks import Block, FileBlock, MemoryBlock
from foretoken.data.episode import Episode
from foretoken.data.folder import Folder
from foretoken.data.layout import KEPT, Column, lay_out, read_layout, stored_leaves
from foretoken.data.measure import measure
from foretoken.data.packing import pack, unpack
from foretoken.data.steps import Steps
from foretoken.data.table import Table, describe
from foretoken.data.transforms import Derived


class Store:
    """Implements `core.store.EpisodeStore`. Made by `Store.create` or `open_store`.

    Step columns, by the names that `gather` and `Window.columns` take: observation, action, reward and those declared at
    creation; of a Dict space either the whole ("observation", a nested mapping) or a part ("observation/goal"); computed
    ones (timestep, first, final, valid, at, terminated, truncated); return_to_go, and what `derive` added.
    """

    def __init__(
        self, spec: Spec, steps: Steps, *, floats: str, about: Mapping[str, Any], folder: Folder | None
    ) -> None:
        self.spec, self.about = spec, dict(about)
        self.path = None if folder is None else folder.path
        self._steps, self._floats, self._folder = steps, floats, folder
        self._measured: dict[str, tuple[int, dict[str, Statistics]]] = {}
        self._lock: int | None = None
        self._chosen: np.ndarray | None = None

    @classmethod
    def create(
        cls,
        path: str | Path | None,
        spec: Spec,
        *,
        columns: Mapping[str, Space] | None = None,
        floats: Literal["float32", "keep"] = "float32",
        about: Mapping[str, Any] | None = None,
    ) -> "Store":
        """A new, empty store.

        Args:
            path: a folder that does not exist or is empty; None keeps everything in memory.
            spec: what the episodes look like, with the environment they come from.
            columns: further step columns and their spaces.
            floats: "float32" stores float64 as float32; "keep" stores floats as the spec has them, rewards as float64.
            about: plain JSON values kept in `store.json` (source, licence, ...).

        Raises:
            DataError: the folder is not empty, or a column has a reserved name, an unknown dtype or no entries.
        """
        if floats not in ("float32", "keep"):
            raise DataError(f'floats must be "float32" or "keep", got {floats!r}')
        layout = lay_out(stored_leaves(spec, columns or {}, floats))
        folder = None if path is None else Folder.create(path)
        blocks: dict[str, Block] = {
            name: MemoryBlock(dtype, width)
            if folder is None
            else FileBlock.create(folder.path / f"{name}.bin", dtype, width)
            for name, (dtype, width) in layout.blocks.items()
        }
        steps = Steps(layout, blocks, Table(), on_disk=folder is not None)
        store = cls(spec, steps, floats=floats, about=about or {}, folder=folder)
        store._write_head()
        return store

    # -- what is in it

    @property
    def episodes(self) -> Mapping[str, np.ndarray]:
        """(N,) arrays: start (address of its first step), length (actions), return, terminated, truncated, and facts."""
        columns = self._steps.table.columns
        return columns if self._chosen is None else {name: values[self._chosen] for name, values in columns.items()}

    @property
    def num_episodes(self) -> int:
        return len(self._steps.table) if self._chosen is None else len(self._chosen)

    @property
    def num_steps(self) -> int:
        """Addresses in use: actions plus one final observation per episode."""
        return len(self._steps) if self._chosen is None else int(self.episodes["length"].sum()) + len(self._chosen)

    @property
    def num_rows(self) -> int:
        """Rows of every block: one of zeros, then one per address; a subset has those of the whole store."""
        return 1 + len(self._steps)

    @property
    def num_actions(self) -> int:
        return self.num_steps - self.num_episodes

    @property
    def revision(self) -> int:
        """Grows whenever episodes are added or removed."""
        return self._steps.revision

    @property
    def columns(self) -> Mapping[str, Column]:
        """Stored leaf columns with shape and dtype."""
        return self._steps.layout.columns

    def __repr__(self) -> str:
        where, environment = self.path or "in memory", self.spec.environment or "?"
        return f"Store({where}: {self.num_episodes} episodes, {self.num_actions} actions of {environment})"

    # -- reading

    def gather(self, at: Any, columns: tuple[str, ...]) -> Batch:
        """Columns at addresses.

        Args:
            at: int64 addresses of any shape; -1 is padding and reads zeros.
            columns: names as in the class's text.

        Returns:
            A Batch of (*at.shape, ...) tensors. They may be views of one tensor.

        Raises:
            DataError: an address outside the store, or an unknown column.
        """
        return self._steps.gather(at, columns)

    def check_columns(self, columns: tuple[str, ...]) -> None:
        """Raises a DataError, with the nearest name, for a step column that the store does not have."""
        self._steps.check(columns)

    def read(self, rows: np.ndarray, lead: tuple[int, ...], columns: tuple[str, ...]) -> dict[str, Any]:
        """Stored and derived columns at block rows (K,) int64 (address + 1; 0 reads zeros), shaped (*lead, ...). Trusts its arguments."""
        return self._steps.read(rows, lead, columns)

    def read_runs(self, row_B: np.ndarray, length: int, gaps: np.ndarray, columns: tuple[str, ...]) -> dict[str, Any]:
        """Like `read` for runs of consecutive rows `row_B[b] .. + length`, which must exist; shaped (B, length, ...).

        The entries of flat numbers `gaps` read zeros. Copying runs costs about half of gathering single rows.
        """
        return self._steps.read_runs(row_B, length, gaps, columns)

    def episode(self, number: int) -> Episode:
        """Copies of one episode's arrays; further columns come with n + 1 entries."""
        if not 0 <= number < self.num_episodes:
            raise DataError(f"episode numbers lie in 0 .. {self.num_episodes - 1}, got {number}")
        table = self.episodes
        start, length = int(table["start"][number]), int(table["length"][number])
        at = np.arange(start, start + length + 1)
        short = ("action", "reward", "terminated", "truncated")
        whole = tuple(
            dict.fromkeys(name.split("/")[0] for name in self.columns if name.split("/")[0] not in (*short, *KEPT))
        )
        batch = self.gather(at, (*short, *whole))
        parts = {name: _map(batch[name], lambda leaf: leaf[:-1].numpy().copy()) for name in short}
        columns = {name: _map(batch[name], lambda leaf: leaf.numpy().copy()) for name in whole}
        entry = self._steps.table.entries[number if self._chosen is None else int(self._chosen[number])]
        return Episode(observation=columns.pop("observation"), **parts, columns=columns, facts=dict(entry["facts"]))

    def statistics(self, column: str) -> Mapping[str, Statistics]:
        """Exact statistics over the steps that carry an action, by leaf path: `{"": ...}` for a plain column.

        Raises:
            DataError: an unknown or computed column, or no episodes.
        """
        if self.num_episodes == 0:
            raise DataError(f"statistics of {column!r} need episodes, {self} has none")
        known = self._measured.get(column)
        if known is None or known[0] != self.revision:
            start, length = self.episodes["start"], self.episodes["length"]
            leaves = self._steps.leaves(column)
            found = {leaf[len(column) :]: measure(self._steps, leaf, start, length) for leaf in leaves}
            known = self._measured[column] = (self.revision, found)
        return known[1]

    def subset(self, numbers: Sequence[int] | np.ndarray) -> "Store":
        """A read-only view of some episodes (numbers in this store), in the order given; addresses stay those of the whole store."""
        chosen = np.asarray(numbers, np.int64)
        if chosen.ndim != 1 or len(np.unique(chosen)) != len(chosen):
            raise DataError(f"a subset needs a list of different episode numbers, got {numbers!r}")
        if len(chosen) and (chosen.min() < 0 or chosen.max() >= self.num_episodes):
            raise DataError(
                f"episode numbers lie in 0 .. {self.num_episodes - 1}, got {chosen.min()} .. {chosen.max()}"
            )
        view = Store(self.spec, self._steps, floats=self._floats, about=self.about, folder=self._folder)
        view._chosen = chosen if self._chosen is None else self._chosen[chosen]
        return view

    def derive(self, name: str, derived: Derived) -> None:
        """Adds a derived step column, computed when first read and extended as the store grows; kept for this process only."""
        self._steps.define(name, derived)

    # -- writing

    def append(self, episode: Episode | Mapping[str, Any]) -> int:
        """Adds one episode and commits it: whole or not at all, and durable on return. Returns its number.

        Raises:
            DataError: the episode does not fit (see `Episode.validate`), or this store cannot be written.
        """
        return self.extend([episode])

    def extend(self, episodes: Iterable[Episode | Mapping[str, Any]]) -> int:
        """Adds episodes and commits once, all or none; much faster than appending singly. Returns the number of the first."""
        self._begin_writing()
        before = len(self._steps.table)
        try:
            for episode in episodes:
                self._add(episode if isinstance(episode, Episode) else Episode(**episode))
        except BaseException:
            self._cut_back(before)
            raise
        self._commit()
        return before

    def truncate(self, num_episodes: int) -> None:
        """Forgets all episodes from number `num_episodes` on; a run that resumes goes back to what its checkpoint knew."""
        if not 0 <= num_episodes <= self.num_episodes:
            raise DataError(f"a store of {self.num_episodes} episodes cannot be truncated to {num_episodes}")
        self._begin_writing()
        self._steps.table.truncate(num_episodes)
        self._commit()  # before the files shrink: what they hold beyond the commit is ignored
        self._cut_back(num_episodes)

    def close(self) -> None:
        """Lets another writer in. Reading goes on."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __del__(self) -> None:
        if getattr(self, "_lock", None) is not None:
            self.close()

    def _begin_writing(self) -> None:
        """Takes the lock and drops what an earlier writer left beyond the commit."""
        if self._chosen is not None:
            raise DataError("a subset is a view and cannot be written; append to the whole store")
        if self._folder is None or self._lock is not None:
            return
        lock = self._folder.lock()
        try:
            if self._folder.read_head()["committed"] != self._count():
                raise DataError(f"{self.path} was changed by another writer since it was opened; open it again")
            for block in self._steps.blocks.values():
                block.truncate(len(self._steps))
            self._folder.truncate_lines(self.num_episodes)
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock

    def _add(self, episode: Episode) -> None:
        episode.validate(self.spec)
        self._steps.table.check(episode.facts)
        packed = pack(episode, self._steps.layout)
        entry = describe(episode, float(unpack(packed, self.columns["reward"]).sum(dtype=np.float64)))
        self._steps.add(packed, entry)
        if self._folder is not None:
            self._folder.add_line(entry)

    def _cut_back(self, count: int) -> None:
        """Forgets episodes from number `count` on, in memory and in the files."""
        self._steps.truncate(count)
        if self._folder is not None:
            self._folder.truncate_lines(count)

    def _count(self) -> dict[str, int]:
        return {"episodes": len(self._steps.table), "steps": len(self._steps)}

    def _commit(self) -> None:
        if self._folder is None:
            return
        for block in self._steps.blocks.values():
            block.sync()
        self._folder.sync_lines()
        self._write_head()

    def _write_head(self) -> None:
        if self._folder is not None:
            self._folder.write_head({
                "committed": self._count(), "floats": self._floats, "spec": self.spec.to_json(),
                **self._steps.layout.to_json(), "about": self.about,
            })  # fmt: skip


def open_store(path: str | Path) -> Store:
    """The store in a folder, as of its last commit. Data are mapped into memory when read; nothing is loaded but the episode table.

    Raises:
        DataError: no store there, another format or a newer version, files missing, truncated or at odds with one another.
    """
    folder = Folder(path)
    head = folder.read_head()
    where = f"{folder.path / 'store.json'}"
    layout = read_layout(head, where)
    try:
        spec = Spec.from_json(head["spec"])
    except ConfigError as problem:
        raise DataError(f"{where}: the spec is damaged: {problem}") from None
    for name, (shape, dtype) in stored_leaves(spec, {}, head["floats"]).items():
        column = layout.columns.get(name)
        if column is None or (column.shape, column.dtype) != (shape, dtype):
            raise DataError(
                f"{where}: the spec needs a column {name!r} of shape {shape} and dtype {dtype}, the layout has {column}"
            )
    steps = head["committed"]["steps"]
    blocks = {
        name: FileBlock(folder.path / f"{name}.bin", dtype, width, steps)
        for name, (dtype, width) in layout.blocks.items()
    }
    table = folder.read_table(head["committed"]["episodes"])
    if table.num_steps != steps:
        raise DataError(
            f"{folder.path}: unequal lengths: episodes.jsonl adds up to {table.num_steps} steps, store.json has {steps}; import it again"
        )
    read = Steps(layout, blocks, table, on_disk=True)
    return Store(spec, read, floats=head["floats"], about=head["about"], folder=folder)


def _map(tree: Any, function: Any) -> Any:
    return {name: _map(part, function) for name, part in tree.items()} if isinstance(tree, Mapping) else function(tree)
