"""How the step columns of a store lie in its blocks.

Small columns of one dtype share one packed block: a row holds all of them, so that one read brings a whole step. Large
columns (images) have a block of their own. Every block begins with one row of zeros, which is what padding reads.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from foretoken.core.errors import DataError
from foretoken.core.spec import Box, Dict, Space, Spec, leaves
from foretoken.data.transforms import DERIVED

DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
_SMALL = 4096  # bytes per step from which a column gets a block of its own

COMPUTED = ("timestep", "first", "final", "valid", "at", "terminated", "truncated")
"""Step columns that every store has without storing them."""

KEPT = ("return_to_go",)
"""Derived columns that are computed on append and packed with the others: episodes are appended whole, so they are known."""


@dataclass(frozen=True)
class Column:
    """A stored leaf column: entries `offset .. offset + size` of each row of `block`, to be read as `shape`."""

    block: str
    offset: int
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """The stored columns by leaf path ("observation/goal") and the blocks as name -> (dtype, entries per row)."""

    columns: Mapping[str, Column]
    blocks: Mapping[str, tuple[str, int]]

    def to_json(self) -> dict[str, Any]:
        return {
            "blocks": {name: {"dtype": dtype, "width": width} for name, (dtype, width) in self.blocks.items()},
            "columns": {
                name: {"block": column.block, "offset": column.offset, "shape": list(column.shape)}
                for name, column in self.columns.items()
            },
        }


def stored_leaves(spec: Spec, columns: Mapping[str, Space], floats: str) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of every stored leaf column."""
    spaces = leaves(spec.observation, "observation") | leaves(spec.action, "action")
    spaces["reward"] = Box(shape=(), dtype="float64" if floats == "keep" else "float32")
    for name, space in columns.items():
        if name in (*COMPUTED, *DERIVED) or name.split("/")[0] in ("observation", "action", "reward"):
            raise DataError(f"a column cannot be called {name!r}: every store has one of that name")
        spaces |= leaves(space, name)
    spaces |= {name: Box(shape=DERIVED[name].shape, dtype=DERIVED[name].dtype) for name in KEPT}
    found = {}
    for space in (spec.observation, spec.action, *columns.values()):
        _check_keys(space)
    for name, leaf in spaces.items():
        dtype = "float32" if leaf.dtype == "float64" and floats != "keep" else leaf.dtype
        _check_leaf(name, leaf.shape, dtype)
        found[name] = (leaf.shape, dtype)
    return found


def lay_out(found: Mapping[str, tuple[tuple[int, ...], str]]) -> Layout:
    """Places leaf columns, given as name -> (shape, dtype), into blocks."""
    columns: dict[str, Column] = {}
    blocks: dict[str, tuple[str, int]] = {}
    for number, (name, (shape, dtype)) in enumerate(found.items()):
        size = prod(shape)
        large = size * np.dtype(dtype).itemsize > _SMALL
        block = f"column{number}-{re.sub('[^A-Za-z0-9_]', '-', name)}" if large else f"steps-{dtype}"
        offset = blocks[block][1] if block in blocks else 0
        columns[name] = Column(block, offset, shape, dtype)
        blocks[block] = (dtype, offset + size)
    return Layout(columns, blocks)


def _check_keys(space: Space) -> None:
    if isinstance(space, Dict):
        for key, part in space.spaces.items():
            if not key or "/" in key:
                raise DataError(f'the parts of a Dict need names without "/", got {key!r}')
            _check_keys(part)


def _check_leaf(name: str, shape: tuple[int, ...], dtype: str) -> None:
    if dtype not in DTYPES:
        raise DataError(f"column {name!r} has the dtype {dtype!r}; stores hold {list(DTYPES)}")
    if prod(shape) < 1:
        raise DataError(f"column {name!r} has the shape {shape} without entries; leave it out")


def read_layout(tree: Any, where: str) -> Layout:
    """The layout that `to_json` described.

    Raises:
        DataError: unknown dtypes, columns outside their block, block names that are not plain file names.
    """
    try:
        blocks = {str(name): (str(entry["dtype"]), int(entry["width"])) for name, entry in tree["blocks"].items()}
        for name, (dtype, width) in blocks.items():
            _check_leaf(name, (width,), dtype)
            if not re.fullmatch("[A-Za-z0-9_-]+", name):
                raise DataError(f"{where}: the block name {name!r} is not a plain file name")
        columns = {
            str(name): Column(
                entry["block"], int(entry["offset"]), tuple(map(int, entry["shape"])), blocks[entry["block"]][0]
            )
            for name, entry in tree["columns"].items()
        }
    except (KeyError, TypeError, ValueError, AttributeError) as problem:
        if isinstance(problem, DataError):
            raise DataError(f"{where}: {problem}") from None
        raise DataError(f"{where}: the layout of columns and blocks is damaged ({problem!r})") from None
    for name, column in columns.items():
        if not 0 <= column.offset <= column.offset + column.size <= blocks[column.block][1]:
            raise DataError(f"{where}: column {name!r} lies outside its block {column.block!r}")
    return Layout(columns, blocks)
