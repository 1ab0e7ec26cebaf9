"""Mixture: one batch out of several stores of the same kind of experience."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from foretoken.core.batch import Batch
from foretoken.core.errors import DataError
from foretoken.core.spec import Window
from foretoken.data.store import Store
from foretoken.data.windows import WindowSampler, part_of, random_bits

_STORE = 3  # the stream of random numbers that picks stores


class Mixture:
    """Draws each row's store by weight, and its window as `WindowSampler` does. Weights are of rows, not of store sizes.

    Batches have a row column `store` (B,) int64 beside the sampler's: the number of the store that `at` is an address of.

    Raises:
        DataError: no stores, weights that do not fit, or stores whose observations or actions differ.
    """

    def __init__(self, stores: Sequence[Store], weights: Sequence[float], window: Window) -> None:
        share = np.asarray(weights, np.float64)
        if (
            not len(stores)
            or share.shape != (len(stores),)
            or not np.isfinite(share).all()
            or (share < 0).any()
            or share.sum() <= 0
        ):
            raise DataError(
                f"a mixture of {len(stores)} stores needs as many weights, none negative, got {list(weights)}"
            )
        for number, store in enumerate(stores):
            if (store.spec.observation, store.spec.action) != (stores[0].spec.observation, stores[0].spec.action):
                raise DataError(
                    f"stores of a mixture must have the same spaces; store {number} differs from store 0: {store!r}"
                )
        self.window = window
        self.samplers = [WindowSampler(store, window) for store in stores]
        self._limits = np.cumsum(share / share.sum())[:-1]

    @property
    def num_anchors(self) -> int:
        return sum(sampler.num_anchors for sampler in self.samplers)

    def draw(self, rows: int, seed: int, *, part: tuple[int, int] = (0, 1)) -> Batch:
        """See `WindowSampler.draw`."""
        numbers = part_of(rows, part)
        share = (random_bits([seed], numbers, _STORE) >> np.uint64(11)) * 2.0**-53
        store = np.searchsorted(self._limits, share, side="right")
        order = np.argsort(store, kind="stable")
        used = [number for number in range(len(self.samplers)) if (store == number).any()]
        parts = [self.samplers[number].draw_rows(seed, numbers[store == number]) for number in used or [0]]
        back = torch.from_numpy(np.argsort(order))
        joined: Any = pytree.tree_map(lambda *leaves: torch.cat(leaves)[back], *parts)
        return Batch(joined, store=torch.from_numpy(store))

    def draw_block(self, rows: int, seeds: Sequence[int], *, part: tuple[int, int] = (0, 1)) -> list[Batch]:
        """See `WindowSampler.draw_block`; here it is no faster than single draws."""
        return [self.draw(rows, seed, part=part) for seed in seeds]
