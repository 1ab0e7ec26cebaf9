"""The steps of a store, read by address: columns that lie in its blocks, columns derived from them, and computed flags.

A store and its subsets share one `Steps`. Reading follows a plan, made once per set of columns: which entries of which block,
and how they are cut into leaves, so that a batch costs one numpy call per block.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foretoken.core.batch import Batch
from foretoken.core.errors import DataError
from foretoken.core.names import nearest
from foretoken.data.blocks import Block, FileBlock, MemoryBlock
from foretoken.data.layout import COMPUTED, Column, Layout
from foretoken.data.lookup import Runs
from foretoken.data.table import Table
from foretoken.data.transforms import DERIVED, Derived

CHUNK_BYTES = 1 << 25
"""How much is held in memory at once while columns are derived or measured."""


@dataclass(frozen=True)
class _Read:
    """One block's part of a request: entries lo..hi of its rows, cut into `sizes`; `leaves` names the pieces that were wanted."""

    block: str
    derived: bool
    low: int
    high: int
    sizes: list[int]
    leaves: tuple[tuple[int, str, tuple[int, ...]], ...]


class Steps:
    """What is known of every step.

    Args:
        layout, blocks: the stored columns and where they are; row a + 1 of a block is address a.
        table: the episodes that the addresses belong to.
        on_disk: whether derived columns are kept in (temporary) files as well.
    """

    def __init__(self, layout: Layout, blocks: Mapping[str, Block], table: Table, *, on_disk: bool) -> None:
        self.layout, self.blocks, self.table = layout, dict(blocks), table
        self.revision = 0
        self._on_disk = on_disk
        self._definitions = {name: derived for name, derived in DERIVED.items() if name not in layout.columns}
        self._derived: dict[str, Block] = {}
        self._plans: dict[tuple[str, ...], tuple[_Read, ...]] = {}
        self._runs_of: dict[tuple[str, int, int, int], tuple[np.ndarray, Runs]] = {}
        self._scratch: tempfile.TemporaryDirectory[str] | None = None

    def __len__(self) -> int:
        """Addresses in use."""
        return self.table.num_steps

    # -- reading

    def gather(self, at: Any, columns: tuple[str, ...]) -> Batch:
        """See `Store.gather`."""
        at_ = np.asarray(at, np.int64)
        limit = len(self)
        if at_.size and (at_.min() < -1 or at_.max() >= limit):
            raise DataError(f"addresses must lie in -1 .. {limit - 1}, got {at_.min()} .. {at_.max()}")
        found = self.read(at_.reshape(-1) + 1, at_.shape, tuple(name for name in columns if name not in COMPUTED))
        computed = [name for name in columns if name in COMPUTED]
        if computed:
            found |= self._compute(at_, computed)
        return Batch({name: found[name] for name in columns})

    def check(self, columns: tuple[str, ...]) -> None:
        """Raises a DataError, with the nearest name, for a step column that does not exist."""
        self._plan(tuple(name for name in columns if name not in COMPUTED))

    def read(self, rows: np.ndarray, lead: tuple[int, ...], columns: tuple[str, ...]) -> dict[str, Any]:
        """See `Store.read`."""
        found: dict[str, Tensor] = {}
        for read in self._plan(columns):
            array = self._array(read)
            whole = (read.low, read.high) == (0, array.shape[1])
            _cut(array[rows] if whole else array[rows, read.low : read.high], read, lead, found)
        return {name: _nest(name, found) for name in columns}

    def read_runs(self, row_B: np.ndarray, length: int, gaps: np.ndarray, columns: tuple[str, ...]) -> dict[str, Any]:
        """See `Store.read_runs`."""
        found: dict[str, Any] = {}
        for read in self._plan(columns):
            picked = self._runs(read, length)[row_B].reshape(-1, read.high - read.low)
            if len(gaps):
                picked[gaps] = 0
            _cut(picked, read, (len(row_B), length), found)
        return found if found.keys() == set(columns) else {name: _nest(name, found) for name in columns}

    def _runs(self, read: _Read, length: int) -> Runs:
        array, key = self._array(read), (read.block, read.low, read.high, length)
        known = self._runs_of.get(key)
        if known is None or known[0] is not array:
            known = self._runs_of[key] = (array, Runs(array[:, read.low : read.high], length))
        return known[1]

    def slice(self, leaf: str, low: int, high: int) -> np.ndarray:
        """A leaf column at addresses low..high, as a view of shape (high - low, *shape)."""
        if leaf in self._definitions:
            return self._derive(leaf).array[1 + low : 1 + high].reshape(high - low, *self._definitions[leaf].shape)
        column = self.layout.columns[leaf]
        rows = self.blocks[column.block].array[1 + low : 1 + high, column.offset : column.offset + column.size]
        return rows.reshape(high - low, *column.shape)

    def leaves(self, name: str) -> list[str]:
        """The leaf columns a name stands for."""
        stored = self.layout.columns
        if name in self._definitions:
            for leaf in self._definitions[name].reads:
                if leaf not in stored and leaf not in self._definitions:
                    raise DataError(
                        f"the column {name!r} is computed from {leaf!r}, which the store's steps do not have"
                    )
            return [name]
        found = [leaf for leaf in stored if leaf == name or leaf.startswith(f"{name}/")]
        if not found:
            derived = [name for name, one in self._definitions.items() if all(leaf in stored for leaf in one.reads)]
            known = [*dict.fromkeys(leaf.split("/")[0] for leaf in stored), *stored, *derived]
            raise DataError(
                f"the store has no column {name!r}{nearest(name, [*known, *COMPUTED])}; it has {list(dict.fromkeys(known))}; "
                "whoever records the steps declares further ones with Store.create(columns=...) and gives them with each Episode"
            )
        return found

    def _plan(self, columns: tuple[str, ...]) -> tuple[_Read, ...]:
        if columns not in self._plans:
            by_block: dict[str, list[tuple[int, str, Column]]] = {}
            reads = []
            for leaf in dict.fromkeys(leaf for name in columns for leaf in self.leaves(name)):
                if leaf in self._definitions:
                    column = Column(leaf, 0, self._definitions[leaf].shape, self._definitions[leaf].dtype)
                    reads.append(_read(leaf, True, [(0, leaf, column)], column.size))
                else:
                    column = self.layout.columns[leaf]
                    by_block.setdefault(column.block, []).append((column.offset, leaf, column))
            for block, wanted in by_block.items():
                reads.append(
                    _read(block, False, sorted(wanted, key=lambda entry: entry[0]), self.layout.blocks[block][1])
                )
            self._plans[columns] = tuple(reads)
        return self._plans[columns]

    def _array(self, read: _Read) -> np.ndarray:
        return (self._derive(read.block) if read.derived else self.blocks[read.block]).array

    def _compute(self, at: np.ndarray, names: Sequence[str]) -> dict[str, Tensor]:
        table = self.table.columns
        number = np.searchsorted(table["start"], at, side="right") - 1
        valid = at >= 0
        local = np.where(valid, at - table["start"][number], 0) if len(table["start"]) else np.zeros_like(at)
        lengths = {
            name: table[name][number] if len(table[name]) else at for name in ("length", "terminated", "truncated")
        }
        found = {"at": at, "valid": valid, "timestep": local}
        found |= flags(names, local, valid, lengths["length"], lengths["terminated"], lengths["truncated"])
        return {name: torch.from_numpy(np.array(found[name])) for name in names}

    # -- derived columns

    def define(self, name: str, derived: Derived) -> None:
        """See `Store.derive`."""
        stored = self.layout.columns
        if name in COMPUTED or name in self._definitions or any(leaf.split("/")[0] == name for leaf in stored):
            raise DataError(f"a derived column cannot be called {name!r}: this store has one of that name")
        for leaf in derived.reads:
            if leaf not in stored and leaf not in self._definitions:
                raise DataError(
                    f"the derived column {name!r} reads {leaf!r}, which is not a leaf column{nearest(leaf, stored)}"
                )
        self._definitions[name] = derived

    def _derive(self, name: str) -> Block:
        """A derived column's block, up to date with the table."""
        block = self._derived.get(name)
        if block is not None and block.rows == len(self):
            return block
        derived = self._definitions[name]
        if block is None:
            width = prod(derived.shape)
            block = MemoryBlock(derived.dtype, width)
            if self._on_disk:
                self._scratch = self._scratch or tempfile.TemporaryDirectory(prefix="foretoken-derived-")
                block = FileBlock.create(Path(self._scratch.name) / f"{len(self._derived)}.bin", derived.dtype, width)
            self._derived[name] = block
        for values in self._derived_chunks(name, block.rows):
            block.append(values)
        return block

    def _derived_chunks(self, name: str, rows: int) -> Iterator[np.ndarray]:
        """The derived values of all episodes from row `rows` on, some whole episodes at a time."""
        derived = self._definitions[name]
        bounds = np.append(self.table.columns["start"], len(self))
        first = int(np.searchsorted(bounds, rows))
        per_row = 8 * sum(self.slice(leaf, 0, 1).size for leaf in derived.reads)
        limit = max(1, CHUNK_BYTES // max(per_row, 1))
        while first < len(bounds) - 1:
            last = max(first + 1, int(np.searchsorted(bounds, bounds[first] + limit, side="right")) - 1)
            low, high = int(bounds[first]), int(bounds[last])
            columns = {leaf: self.slice(leaf, low, high) for leaf in derived.reads}
            values = np.asarray(derived.compute(columns, bounds[first : last + 1] - low), derived.dtype)
            shape = (high - low, *derived.shape)
            if values.shape != shape:
                raise DataError(
                    f"the derived column {name!r} must have shape {shape}, its function returned {values.shape}"
                )
            yield values.reshape(high - low, -1)
            first = last

    # -- growing and shrinking

    def add(self, packed: Mapping[str, np.ndarray], entry: dict[str, Any]) -> None:
        """Appends the rows of an episode to the blocks, and its entry to the table."""
        for name, values in packed.items():
            self.blocks[name].append(values)
        self.table.add(entry)
        self.revision += 1

    def truncate(self, count: int) -> None:
        """Forgets episodes from number `count` on."""
        self.table.truncate(count)
        for block in (*self.blocks.values(), *self._derived.values()):
            block.truncate(min(block.rows, len(self)))
        self.revision += 1


def flags(
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
