"""EpisodeStore: what methods and samplers may ask of stored experience. `foretoken.data.store` implements it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from foretoken.core.batch import Batch
from foretoken.core.spec import Spec


@dataclass(frozen=True)
class Statistics:
    """Exact statistics of one column over the steps that carry an action, in float64, each of the column's shape."""

    count: int
    mean: np.ndarray
    std: np.ndarray
    low: np.ndarray
    high: np.ndarray


def pooled(parts: Sequence[Statistics]) -> Statistics:
    """The statistics of several sets of steps together, as exact as theirs."""
    count = sum(part.count for part in parts)
    mean = sum(part.mean * (part.count / count) for part in parts)
    square = sum((part.std**2 + (part.mean - mean) ** 2) * (part.count / count) for part in parts)
    low, high = np.min([part.low for part in parts], axis=0), np.max([part.high for part in parts], axis=0)
    return Statistics(count, np.asarray(mean), np.sqrt(square), low, high)


def joint_statistics(stores: Mapping[str, "EpisodeStore"], column: str) -> dict[str, Statistics]:
    """Statistics of one column over all stores together, by leaf path; the stores have one spec."""
    found = [store.statistics(column) for store in stores.values()]
    return {path: pooled([part[path] for part in found]) for path in found[0]}


def all_values(stores: Mapping[str, "EpisodeStore"], column: str) -> Any:
    """(N, ...): one column at every step that carries an action, of all stores together; for what must see values one by one."""
    found = []
    for store in stores.values():
        start, length = (np.asarray(store.episodes[name], np.int64) for name in ("start", "length"))
        within = np.arange(length.sum()) - np.repeat(length.cumsum() - length, length)
        found.append(store.gather(np.repeat(start, length) + within, (column,))[column])
    return torch.cat(found)


class EpisodeStore(Protocol):
    """Packed, append-only episodes addressed by step; an episode of n actions occupies n + 1 addresses."""

    spec: Spec

    @property
    def episodes(self) -> Mapping[str, np.ndarray]:
        """(N,) arrays: start (address of its first step), length (actions), return, and whatever else is known (task, order, ...)."""

    @property
    def num_episodes(self) -> int: ...
    @property
    def num_steps(self) -> int:
        """Addresses in use: actions plus one final observation per episode."""

    def gather(self, at: Any, columns: tuple[str, ...]) -> Batch:
        """Columns at addresses `at` (int64 of any shape, -1 = padding, read as zeros); each comes as (*at.shape, ...)."""

    def statistics(self, column: str) -> Mapping[str, Statistics]:
        """Statistics by leaf path of the column's space: `{"": ...}` for a plain one."""

    def append(self, episode: Mapping[str, Any]) -> int:
        """Adds one episode, whole or not at all; returns its number."""
