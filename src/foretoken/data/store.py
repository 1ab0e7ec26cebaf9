"""Store: packed, append-only episodes, in memory or in a folder that may be far larger than memory.

A folder holds `store.json` (what is in it and how much of it is committed), `episodes.jsonl` (one line per episode) and
one file of raw values per block (see `layout` and `blocks`), which are mapped into memory and never loaded.

Appending writes the blocks first and replaces `store.json` last, so a store is always what its last commit left, however
its writer died. A store has one writer at a time and any number of readers, which see what was committed when they opened.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from foretoken.core.batch import Batch
from foretoken.core.errors import ConfigError, DataError
from foretoken.core.names import nearest
from foretoken.core.spec import Space, Spec
from foretoken.core.store import Statistics
from foretoken.data.blocks import Block, FileBlock, MemoryBlock
from foretoken.data.episode import Episode, check_kind, flatten
from foretoken.data.layout import COMPUTED, KEPT, Column, Layout, lay_out, read_layout, stored_leaves
from foretoken.data.table import Table, describe, parse
from foretoken.data.transforms import DERIVED, Derived

FORMAT, VERSION = "foretoken-store", 1
_CHUNK_BYTES = 1 << 25  # how much is held in memory at once while columns are derived or measured


@dataclass(frozen=True)
class _Read:
    """One block's part of a request: entries lo..hi of its rows, cut into `sizes`; `leaves` names the pieces that were wanted."""

    block: str
    derived: bool
    low: int
    high: int
    sizes: list[int]
    leaves: tuple[tuple[int, str, tuple[int, ...]], ...]


class Store:
    """Implements `core.store.EpisodeStore`. Made by `Store.create` or `open_store`.

    Step columns, by the names that `gather` and `Window.columns` take: observation, action, reward and those declared at
    creation; of a Dict space either the whole ("observation", a nested mapping) or a part ("observation/goal"); computed
    ones (timestep, first, final, valid, at, terminated, truncated); return_to_go, and what `derive` added.
    """

    def __init__(
        self,
        spec: Spec,
        layout: Layout,
        blocks: Mapping[str, Block],
        table: Table,
        *,
        floats: str,
        about: Mapping[str, Any],
        path: Path | None,
    ) -> None:
        self.spec, self.about, self.path = spec, dict(about), path
        self._revision = 0
        self._layout, self._blocks, self._table, self._floats = layout, dict(blocks), table, floats
        self._definitions = {name: derived for name, derived in DERIVED.items() if name not in layout.columns}
        self._derived: dict[str, Block] = {}
        self._plans: dict[tuple[str, ...], tuple[_Read, ...]] = {}
        self._views: dict[tuple[str, int, int, int], tuple[np.ndarray, np.ndarray]] = {}
        self._measured: dict[str, tuple[int, dict[str, Statistics]]] = {}
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        self._lock: int | None = None
        self._root: Store = self
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
        folder = None if path is None else _empty_folder(Path(path))
        blocks: dict[str, Block] = {
            name: MemoryBlock(dtype, width)
            if folder is None
            else FileBlock.create(folder / f"{name}.bin", dtype, width)
            for name, (dtype, width) in layout.blocks.items()
        }
        store = cls(spec, layout, blocks, Table(), floats=floats, about=about or {}, path=folder)
        if folder is not None:
            (folder / "episodes.jsonl").write_bytes(b"")
            store._write_head()
        return store

    # -- what is in it

    @property
    def episodes(self) -> Mapping[str, np.ndarray]:
        """(N,) arrays: start (address of its first step), length (actions), return, terminated, truncated, and facts."""
        columns = self._table.columns
        return columns if self._chosen is None else {name: values[self._chosen] for name, values in columns.items()}

    @property
    def num_episodes(self) -> int:
        return len(self._table) if self._chosen is None else len(self._chosen)

    @property
    def num_steps(self) -> int:
        """Addresses in use: actions plus one final observation per episode."""
        return self._table.num_steps if self._chosen is None else int(self.episodes["length"].sum()) + len(self._chosen)

    @property
    def num_rows(self) -> int:
        """Rows of every block: one of zeros, then one per address; a subset has those of the whole store."""
        return 1 + self._table.num_steps

    @property
    def num_actions(self) -> int:
        return self.num_steps - self.num_episodes

    @property
    def revision(self) -> int:
        """Grows whenever episodes are added or removed."""
        return self._root._revision

    @property
    def columns(self) -> Mapping[str, Column]:
        """Stored leaf columns with shape and dtype."""
        return self._layout.columns

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
        at_ = np.asarray(at, np.int64)
        limit = self._table.num_steps
        if at_.size and (at_.min() < -1 or at_.max() >= limit):
            raise DataError(f"addresses must lie in -1 .. {limit - 1}, got {at_.min()} .. {at_.max()}")
        found = self.read(at_.reshape(-1) + 1, at_.shape, tuple(name for name in columns if name not in COMPUTED))
        computed = [name for name in columns if name in COMPUTED]
        if computed:
            found |= self._compute(at_, computed)
        return Batch({name: found[name] for name in columns})

    def check_columns(self, columns: tuple[str, ...]) -> None:
        """Raises a DataError, with the nearest name, for a step column that the store does not have."""
        self._plan(tuple(name for name in columns if name not in COMPUTED))

    def read(self, rows: np.ndarray, lead: tuple[int, ...], columns: tuple[str, ...]) -> dict[str, Any]:
        """Stored and derived columns at block rows (K,) int64 (address + 1; 0 reads zeros), shaped (*lead, ...). Trusts its arguments."""
        found: dict[str, Tensor] = {}
        for read in self._plan(columns):
            array = self._array(read)
            whole = (read.low, read.high) == (0, array.shape[1])
            _cut(array[rows] if whole else array[rows, read.low : read.high], read, lead, found)
        return {name: _nest(name, found) for name in columns}

    def read_runs(self, row_B: np.ndarray, length: int, gaps: np.ndarray, columns: tuple[str, ...]) -> dict[str, Any]:
        """Like `read` for runs of consecutive rows `row_B[b] .. + length`, which must exist; shaped (B, length, ...).

        The entries of flat numbers `gaps` read zeros. Copying runs costs about half of gathering single rows.
        """
        found: dict[str, Any] = {}
        for read in self._plan(columns):
            picked = self._runs(read, length)[row_B].reshape(-1, read.high - read.low)
            if len(gaps):
                picked[gaps] = 0
            _cut(picked, read, (len(row_B), length), found)
        return found if found.keys() == set(columns) else {name: _nest(name, found) for name in columns}

    def _runs(self, read: _Read, length: int) -> np.ndarray:
        """(runs, length * entries), or (runs, length, entries) of parts of rows: every run of rows, as an overlapping view."""
        array, key = self._array(read), (read.block, read.low, read.high, length)
        known = self._views.get(key)
        if known is None or known[0] is not array:
            (count, width), size = array.shape, array.itemsize
            shape: tuple[int, ...] = (count - length + 1, length, read.high - read.low)
            strides: tuple[int, ...] = (width * size, width * size, size)
            if read.high - read.low == width:
                shape, strides = (count - length + 1, length * width), (width * size, size)
            view: np.ndarray = np.ndarray(shape, array.dtype, array, read.low * size, strides)
            known = self._views[key] = (array, view)
        return known[1]

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
        entry = self._table.entries[number if self._chosen is None else int(self._chosen[number])]
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
            found = {leaf[len(column) :]: self._measure(leaf) for leaf in self._leaves(column)}
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
        view = Store(
            self.spec, self._layout, self._blocks, self._table, floats=self._floats, about=self.about, path=self.path
        )
        view._root, view._definitions = self._root, self._definitions
        view._chosen = chosen if self._chosen is None else self._chosen[chosen]
        return view

    def derive(self, name: str, derived: Derived) -> None:
        """Adds a derived step column, computed when first read and extended as the store grows; kept for this process only."""
        if name in COMPUTED or name in self._definitions or any(leaf.split("/")[0] == name for leaf in self.columns):
            raise DataError(f"a derived column cannot be called {name!r}: this store has one of that name")
        for leaf in derived.reads:
            if leaf not in self.columns and leaf not in self._definitions:
                raise DataError(
                    f"the derived column {name!r} reads {leaf!r}, which is not a leaf column{nearest(leaf, self.columns)}"
                )
        self._definitions[name] = derived

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
        before = len(self._table)
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
        self._table.truncate(num_episodes)
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

    # -- how reading works

    def _array(self, read: _Read) -> np.ndarray:
        return (self._root._derive(read.block) if read.derived else self._blocks[read.block]).array

    def _plan(self, columns: tuple[str, ...]) -> tuple[_Read, ...]:
        if columns not in self._plans:
            by_block: dict[str, list[tuple[int, str, Column]]] = {}
            reads = []
            for leaf in dict.fromkeys(leaf for name in columns for leaf in self._leaves(name)):
                if leaf in self._definitions:
                    column = Column(leaf, 0, self._definitions[leaf].shape, self._definitions[leaf].dtype)
                    reads.append(_read(leaf, True, [(0, leaf, column)], column.size))
                else:
                    column = self.columns[leaf]
                    by_block.setdefault(column.block, []).append((column.offset, leaf, column))
            for block, wanted in by_block.items():
                reads.append(
                    _read(block, False, sorted(wanted, key=lambda entry: entry[0]), self._layout.blocks[block][1])
                )
            self._plans[columns] = tuple(reads)
        return self._plans[columns]

    def _leaves(self, name: str) -> list[str]:
        """The leaf columns a name stands for."""
        if name in self._definitions:
            for leaf in self._definitions[name].reads:
                if leaf not in self.columns and leaf not in self._definitions:
                    raise DataError(
                        f"the column {name!r} is computed from {leaf!r}, which the store's steps do not have"
                    )
            return [name]
        found = [leaf for leaf in self.columns if leaf == name or leaf.startswith(f"{name}/")]
        if not found:
            derived = [
                name for name, one in self._definitions.items() if all(leaf in self.columns for leaf in one.reads)
            ]
            known = [*dict.fromkeys(leaf.split("/")[0] for leaf in self.columns), *self.columns, *derived]
            raise DataError(
                f"the store has no column {name!r}{nearest(name, [*known, *COMPUTED])}; it has {list(dict.fromkeys(known))}; "
                "whoever records the steps declares further ones with Store.create(columns=...) and gives them with each Episode"
            )
        return found

    def _compute(self, at: np.ndarray, names: Sequence[str]) -> dict[str, Tensor]:
        table = self._table.columns
        number = np.searchsorted(table["start"], at, side="right") - 1
        valid = at >= 0
        local = np.where(valid, at - table["start"][number], 0) if len(table["start"]) else np.zeros_like(at)
        lengths = {
            name: table[name][number] if len(table[name]) else at for name in ("length", "terminated", "truncated")
        }
        found = {"at": at, "valid": valid, "timestep": local}
        found |= compute(names, local, valid, lengths["length"], lengths["terminated"], lengths["truncated"])
        return {name: torch.from_numpy(np.array(found[name])) for name in names}

    def _derive(self, name: str) -> Block:
        """A derived column's block, up to date with the store."""
        block = self._derived.get(name)
        if block is not None and block.rows == self._table.num_steps:
            return block
        derived = self._definitions[name]
        if block is None:
            width = prod(derived.shape)
            block = MemoryBlock(derived.dtype, width)
            if self.path is not None:
                self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="foretoken-derived-")
                block = FileBlock.create(Path(self._scratch.name) / f"{len(self._derived)}.bin", derived.dtype, width)
            self._derived[name] = block
        for values in self._derived_chunks(name, block.rows):
            block.append(values)
        return block

    def _derived_chunks(self, name: str, rows: int) -> Iterator[np.ndarray]:
        """The derived values of all episodes from row `rows` on, some whole episodes at a time."""
        derived, table = self._definitions[name], self._table.columns
        bounds = np.append(table["start"], self._table.num_steps)
        first = int(np.searchsorted(bounds, rows))
        per_row = 8 * sum(self._slice(leaf, 0, 1).size for leaf in derived.reads)
        limit = max(1, _CHUNK_BYTES // max(per_row, 1))
        while first < len(bounds) - 1:
            last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + limit, side="right")) - 1)
            low, high = int(bounds[first]), int(bounds[last])
            columns = {leaf: self._slice(leaf, low, high) for leaf in derived.reads}
            values = np.asarray(derived.compute(columns, bounds[first : last + 1] - low), derived.dtype)
            shape = (high - low, *derived.shape)
            if values.shape != shape:
                raise DataError(
                    f"the derived column {name!r} must have shape {shape}, its function returned {values.shape}"
                )
            yield values.reshape(high - low, -1)
            first = last

    def _slice(self, leaf: str, low: int, high: int) -> np.ndarray:
        """A leaf column at addresses low..high, as a view."""
        if leaf in self._definitions:
            return (
                self._root._derive(leaf).array[1 + low : 1 + high].reshape(high - low, *self._definitions[leaf].shape)
            )
        column = self.columns[leaf]
        rows = self._blocks[column.block].array[1 + low : 1 + high, column.offset : column.offset + column.size]
        return rows.reshape(high - low, *column.shape)

    def _measure(self, leaf: str) -> Statistics:
        count, mean, spread, low, high = 0, np.float64(0), np.float64(0), np.float64(np.inf), np.float64(-np.inf)
        for values in self._action_chunks(leaf):
            part = values.astype(np.float64)
            part_mean = part.mean(0)
            # Chan, Golub and LeVeque 1983: means and squared deviations of two parts joined without cancellation.
            total, shift = count + len(part), part_mean - mean
            spread = spread + ((part - part_mean) ** 2).sum(0) + shift**2 * (count * len(part) / total)
            mean = mean + shift * (len(part) / total)
            low, high, count = np.minimum(low, part.min(0)), np.maximum(high, part.max(0)), total
        return Statistics(count, *(np.asarray(value) for value in (mean, np.sqrt(spread / count), low, high)))

    def _action_chunks(self, leaf: str) -> Iterator[np.ndarray]:
        """A leaf column at the steps that carry an action, some rows at a time."""
        start, length = self.episodes["start"], self.episodes["length"]
        size = self._slice(leaf, 0, 1).size
        limit = max(1, _CHUNK_BYTES // (8 * size))
        ends = start + length
        broken = np.flatnonzero(start[1:] != ends[:-1] + 1) + 1  # where the next episode is not the next in the files
        for run in np.split(np.arange(len(start)), broken):
            for low in range(int(start[run[0]]), int(ends[run[-1]]), limit):
                high = min(low + limit, int(ends[run[-1]]))
                keep = np.ones(high - low, bool)
                finals = ends[run[0] : run[-1] + 1]
                keep[finals[(finals >= low) & (finals < high)] - low] = False
                if keep.any():
                    yield self._slice(leaf, low, high)[keep]

    # -- how writing works

    def _begin_writing(self) -> None:
        """Takes the lock and drops what an earlier writer left beyond the commit."""
        if self._chosen is not None:
            raise DataError("a subset is a view and cannot be written; append to the whole store")
        if self.path is None or self._lock is not None:
            return
        lock = _lock(self.path)
        try:
            committed = _read_head(self.path)["committed"]
            if committed != self._count():
                raise DataError(f"{self.path} was changed by another writer since it was opened; open it again")
            for block in self._blocks.values():
                block.truncate(self._table.num_steps)
            os.truncate(self.path / "episodes.jsonl", _line_ends(self.path, len(self._table)))
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock

    def _add(self, episode: Episode) -> None:
        episode.validate(self.spec)
        self._table.check(episode.facts)
        packed = self._pack(episode)
        for name, values in packed.items():
            self._blocks[name].append(values)
        rewards = packed[self.columns["reward"].block][:, self.columns["reward"].offset]
        entry = describe(episode, float(rewards.sum(dtype=np.float64)))
        if self.path is not None:
            with open(self.path / "episodes.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        self._table.add(entry)
        self._revision += 1

    def _pack(self, episode: Episode) -> dict[str, np.ndarray]:
        """The rows of each block; where there is nothing to store at the final step, zeros."""
        given: dict[str, Any] = {"reward": episode.reward}
        given |= flatten(episode.observation, "observation") | flatten(episode.action, "action")
        for name, values in episode.columns.items():
            given |= flatten(values, name)
        self._check_names(given)
        rows = {
            name: np.zeros((episode.length + 1, width), dtype) for name, (dtype, width) in self._layout.blocks.items()
        }
        for name, values in given.items():
            self._place(rows, name, values)
        for name in (name for name in KEPT if name in self.columns):
            read = {leaf: self._part(rows, leaf) for leaf in DERIVED[name].reads}
            self._place(rows, name, DERIVED[name].compute(read, np.array([0, episode.length + 1])))
        return rows

    def _check_names(self, given: Mapping[str, Any]) -> None:
        wanted = [name for name in self.columns if name not in KEPT]
        missing, unknown = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
        if missing or unknown:
            near = nearest(unknown[0], wanted) if unknown else ""
            raise DataError(
                f"an episode must have the store's columns, which Store.create declares: missing {missing}, "
                f"unknown {unknown}{near}"
            )

    def _part(self, rows: Mapping[str, np.ndarray], name: str) -> np.ndarray:
        """A leaf column's entries in rows of its block, in the column's shape."""
        column = self.columns[name]
        return rows[column.block][:, column.offset : column.offset + column.size].reshape(-1, *column.shape)

    def _place(self, rows: Mapping[str, np.ndarray], name: str, values: np.ndarray) -> None:
        column = self.columns[name]
        if values.shape[1:] != column.shape:
            raise DataError(f"column {name!r} must have shape {column.shape} per step, got {values.shape[1:]}")
        check_kind(values, np.dtype(column.dtype), name)
        stored = rows[column.block][: len(values), column.offset : column.offset + column.size]
        with np.errstate(over="ignore"):
            stored[:] = values.reshape(len(values), -1)
        narrower = stored.dtype.kind == "f" and stored.itemsize < values.itemsize
        if narrower and np.isinf(stored).sum() > np.isinf(values).sum():
            raise DataError(
                f"{name} does not fit {column.dtype}, got up to {np.abs(values).max()}; "
                'create the store with floats="keep"'
            )

    def _cut_back(self, count: int) -> None:
        """Forgets episodes from number `count` on, in memory and in the files."""
        self._table.truncate(count)
        for block in (*self._blocks.values(), *self._derived.values()):
            block.truncate(min(block.rows, self._table.num_steps))
        if self.path is not None:
            os.truncate(self.path / "episodes.jsonl", _line_ends(self.path, count))
        self._revision += 1

    def _count(self) -> dict[str, int]:
        return {"episodes": len(self._table), "steps": self._table.num_steps}

    def _commit(self) -> None:
        if self.path is None:
            return
        for block in self._blocks.values():
            block.sync()
        with open(self.path / "episodes.jsonl", "rb") as file:
            os.fsync(file.fileno())
        self._write_head()

    def _write_head(self) -> None:
        assert self.path is not None
        head = {
            "format": FORMAT, "version": VERSION, "committed": self._count(), "floats": self._floats,
            "spec": self.spec.to_json(), **self._layout.to_json(), "about": self.about,
        }  # fmt: skip
        temporary = self.path / "store.json.part"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(head, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, self.path / "store.json")
        _sync_folder(self.path)


def open_store(path: str | Path) -> Store:
    """The store in a folder, as of its last commit. Data are mapped into memory when read; nothing is loaded but the episode table.

    Raises:
        DataError: no store there, another format or a newer version, files missing, truncated or at odds with one another.
    """
    folder = Path(path)
    head = _read_head(folder)
    where = f"{folder / 'store.json'}"
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
        name: FileBlock(folder / f"{name}.bin", dtype, width, steps) for name, (dtype, width) in layout.blocks.items()
    }
    table = _read_table(folder, head["committed"]["episodes"])
    if table.num_steps != steps:
        raise DataError(
            f"{folder}: unequal lengths: episodes.jsonl adds up to {table.num_steps} steps, store.json has {steps}; import it again"
        )
    return Store(spec, layout, blocks, table, floats=head["floats"], about=head["about"], path=folder)


def compute(
    names: Iterable[str],
    local: np.ndarray,
    valid: np.ndarray,
    length: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
) -> dict[str, np.ndarray]:
    """Flags from a step's index in its episode, whether it exists, and its episode's length and end; arguments broadcast."""
    last = valid & (local == length - 1)
    rules = {
        "first": lambda: valid & (local == 0),
        "final": lambda: valid & (local == length),
        "terminated": lambda: last & (terminated != 0),
        "truncated": lambda: last & (truncated != 0),
    }
    return {name: rules[name]() for name in names if name in rules}


def _read(block: str, derived: bool, wanted: list[tuple[int, str, Column]], width: int) -> _Read:
    low, high = wanted[0][0], max(offset + column.size for offset, _, column in wanted)
    if 2 * (high - low) >= width:
        low, high = 0, width  # whole rows copy faster than parts
    sizes: list[int] = []
    pieces = []
    position = low
    for offset, leaf, column in wanted:
        if offset > position:
            sizes.append(offset - position)
        pieces.append((len(sizes), leaf, column.shape))
        sizes.append(column.size)
        position = offset + column.size
    if position < high:
        sizes.append(high - position)
    return _Read(block, derived, low, high, sizes, tuple(pieces))


def _cut(picked: np.ndarray, read: _Read, lead: tuple[int, ...], found: dict[str, Tensor]) -> None:
    """Puts the wanted leaves of gathered rows into `found`, as views."""
    rows = torch.from_numpy(picked.reshape(*lead, read.high - read.low))
    pieces = rows.split_with_sizes(read.sizes, -1) if len(read.sizes) > 1 else (rows,)
    for number, leaf, shape in read.leaves:
        piece = pieces[number]
        found[leaf] = piece.squeeze(-1) if shape == () else piece if len(shape) == 1 else piece.unflatten(-1, shape)


def _nest(name: str, found: Mapping[str, Tensor]) -> Any:
    """The leaf `name`, or the mapping of all leaves below it."""
    if name in found:
        return found[name]
    tree: dict[str, Any] = {}
    for path, leaf in found.items():
        if path.startswith(f"{name}/"):
            *parents, last = path[len(name) + 1 :].split("/")
            branch = tree
            for parent in parents:
                branch = branch.setdefault(parent, {})
            branch[last] = leaf
    return tree


def _map(tree: Any, function: Any) -> Any:
    return {name: _map(part, function) for name, part in tree.items()} if isinstance(tree, Mapping) else function(tree)


def _empty_folder(folder: Path) -> Path:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} must be a new or empty folder; choose another, or open_store() what is there")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _read_head(folder: Path) -> dict[str, Any]:
    path = folder / "store.json"
    if not path.exists():
        raise DataError(
            f"no store at {folder}: store.json is missing; `foretoken import` makes a store from a data set"
        )
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as problem:
        raise DataError(f"{path} is not JSON: {problem}") from None
    if not isinstance(head, dict) or head.get("format") != FORMAT:
        raise DataError(
            f"{path} must have the format {FORMAT!r}, got {head.get('format') if isinstance(head, dict) else head!r}"
        )
    if head.get("version") != VERSION:
        raise DataError(
            f"{path} has version {head.get('version')!r}, this foretoken reads version {VERSION}; install one that fits"
        )
    for name, kind in (("spec", dict), ("committed", dict), ("about", dict), ("floats", str)):
        if not isinstance(head.get(name), kind):
            raise DataError(
                f"{path} must have {name!r} as a JSON {'object' if kind is dict else 'text'}, got {head.get(name)!r}"
            )
    for name in ("episodes", "steps"):
        count = head["committed"].get(name)
        if not isinstance(count, int) or count < 0:
            raise DataError(f"{path} must commit a number of {name}, got {count!r}")
    return head


def _read_table(folder: Path, count: int) -> Table:
    path = folder / "episodes.jsonl"
    if not path.exists():
        raise DataError(f"{path} is missing; the store is incomplete, copy or import it again")
    with open(path, encoding="utf-8") as lines:
        return parse(lines, count, str(path))


def _line_ends(folder: Path, count: int) -> int:
    """Bytes of the first `count` lines of episodes.jsonl."""
    with open(folder / "episodes.jsonl", "rb") as lines:
        return sum(len(next(lines, b"")) for _ in range(count))


def _lock(folder: Path) -> int:
    """An open descriptor that holds the folder's writer lock; a dead writer's lock is free."""
    handle = os.open(folder / "writer.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass  # no such locks on this system: keeping to one writer is the user's business
    except OSError:
        os.close(handle)
        raise DataError(
            f"{folder} is being written by another process or store object; close() that one first"
        ) from None
    return handle


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable, where folders can be synchronised."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
