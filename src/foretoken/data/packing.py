"""An episode as the rows of a store's blocks."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from foretoken.core.errors import DataError
from foretoken.core.names import nearest
from foretoken.data.episode import Episode, check_kind, flatten
from foretoken.data.layout import KEPT, Column, Layout
from foretoken.data.transforms import DERIVED


def pack(episode: Episode, layout: Layout) -> dict[str, np.ndarray]:
    """The (n + 1, width) rows of each block; where there is nothing to store at the final step, zeros.

    Raises:
        DataError: the episode's columns are not those of the layout, or their values do not fit.
    """
    given: dict[str, Any] = {"reward": episode.reward}
    given |= flatten(episode.observation, "observation") | flatten(episode.action, "action")
    for name, values in episode.columns.items():
        given |= flatten(values, name)
    _check_names(given, layout)
    rows = {name: np.zeros((episode.length + 1, width), dtype) for name, (dtype, width) in layout.blocks.items()}
    for name, values in given.items():
        _place(rows, name, layout.columns[name], values)
    for name in (name for name in KEPT if name in layout.columns):
        read = {leaf: unpack(rows, layout.columns[leaf]) for leaf in DERIVED[name].reads}
        _place(rows, name, layout.columns[name], DERIVED[name].compute(read, np.array([0, episode.length + 1])))
    return rows


def unpack(rows: Mapping[str, np.ndarray], column: Column) -> np.ndarray:
    """A leaf column's entries in rows of its block, (n + 1, *shape)."""
    return rows[column.block][:, column.offset : column.offset + column.size].reshape(-1, *column.shape)


def _check_names(given: Mapping[str, Any], layout: Layout) -> None:
    wanted = [name for name in layout.columns if name not in KEPT]
    missing, unknown = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if missing or unknown:
        near = nearest(unknown[0], wanted) if unknown else ""
        raise DataError(
            f"an episode must have the store's columns, which Store.create declares: missing {missing}, "
            f"unknown {unknown}{near}"
        )


def _place(rows: Mapping[str, np.ndarray], name: str, column: Column, values: np.ndarray) -> None:
    if values.shape[1:] != column.shape:
        raise DataError(f"column {name!r} must have shape {column.shape} per step, got {values.shape[1:]}")
    check_kind(values, np.dtype(column.dtype), name)
    stored = rows[column.block][: len(values), column.offset : column.offset + column.size]
    with np.errstate(over="ignore"):
        stored[:] = values.reshape(len(values), -1)
    narrower = stored.dtype.kind == "f" and stored.itemsize < values.itemsize
    if narrower and np.isinf(stored).sum() > np.isinf(values).sum():
        raise DataError(
            f'{name} does not fit {column.dtype}, got up to {np.abs(values).max()}; create the store with floats="keep"'
        )
