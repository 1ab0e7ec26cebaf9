"""WindowSampler: windows of steps out of a store, drawn as a pure function of a seed.

How a window is laid. Let i be the drawn step, T the window's length, and a *segment* its episode (with `across`, the run
of consecutive episodes of equal value). `main` is the first scored step.

    anchor     first step            last step              main
    start      i - back              i + T - back - 1       i
    end        i - T + 1             i                      i - (T - back) + 1
    full       i - T + 1, at least   first + T - 1          i - (T - back) + 1
               the segment's first
    episode    the segment's first   the segment's last     the segment's first

all cut to the segment. The segment's steps are those that carry an action, and with `final` the final observations too;
then "end" and "full" windows end one step later, at the successor of the drawn step, so that every action's successor is
seen. Drawn are always steps that carry an action. Steps before `main` are in `back`: given, not scored.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foretoken.core import splitmix
from foretoken.core.batch import Batch
from foretoken.core.errors import ConfigError, DataError
from foretoken.core.names import nearest
from foretoken.core.spec import Window
from foretoken.data.layout import COMPUTED
from foretoken.data.lookup import Intervals
from foretoken.data.steps import flags
from foretoken.data.store import Store

MASKS = ("valid", "scored", "first", "final", "fresh", "timestep", "at")
_EPISODE, _STEP = 1, 2  # independent streams of random numbers of one row


class WindowSampler:
    """Draws windows from the episodes of a store; follows a store that grows.

    Batches have the window's columns and MASKS, each (B, T, ...); padded entries read zeros (`at` -1). Tensors of one
    batch may be views of one another: replace columns rather than write into them.

    Args:
        store: where the steps are. Need not hold episodes yet.
        window: what a method asks for.
        episodes: numbers of the episodes to draw from; None for all, those to come included.

    Raises:
        ConfigError: anchor="episode" together with `back`.
        DataError: a column that the store lacks, or an unknown `across`.
    """

    def __init__(self, store: Store, window: Window, *, episodes: Sequence[int] | np.ndarray | None = None) -> None:
        if window.anchor == "episode" and window.back:
            raise ConfigError(f'anchor="episode" has no earlier steps: back must be 0, got {window.back}')
        self.store = store if episodes is None else store.subset(episodes)
        self.window = window
        self._revision = -1
        self._steps = np.arange(window.length)
        self._flags = tuple(name for name in window.columns if name in ("terminated", "truncated"))
        self._columns = tuple(name for name in window.columns if name not in COMPUTED)
        self.store.check_columns(self._columns)

    @property
    def num_anchors(self) -> int:
        """How many different windows can be drawn."""
        self._refresh()
        return len(self._runs) if self.window.anchor == "episode" else int(self._actions[-1])

    def anchors(self, numbers: np.ndarray | None = None) -> np.ndarray:
        """Addresses of the anchors with these numbers (int64, below `num_anchors`), for `windows`; None for all, in order."""
        numbers = np.arange(self.num_anchors) if numbers is None else np.asarray(numbers, np.int64)
        self._refresh()
        if self.window.anchor == "episode":
            return self._start[self._runs[numbers]]
        rank = self._actions.searchsorted(numbers, side="right") - 1
        return self._start[rank] + numbers - self._actions[rank]

    def draw(self, rows: int, seed: int, *, part: tuple[int, int] = (0, 1)) -> Batch:
        """`rows` windows, a pure function of the seed and the stored data.

        Args:
            rows: B of the whole draw.
            seed: any integer.
            part: (rank, world size): only this rank's rows, so that the ranks together draw what one process would.
        """
        return self.draw_rows(seed, part_of(rows, part))

    def draw_rows(self, seed: int, numbers: np.ndarray) -> Batch:
        """The rows with these numbers (int64) of the draw with this seed."""
        return self._windows(*self._choose([seed], numbers))

    def draw_block(self, rows: int, seeds: Sequence[int], *, part: tuple[int, int] = (0, 1)) -> list[Batch]:
        """As many batches as seeds, each equal to `draw(rows, seed, part=part)`; cheaper than drawing one at a time."""
        return split_rows(self._windows(*self._choose(seeds, part_of(rows, part))), len(seeds))

    def windows(self, anchors: Any) -> Batch:
        """The windows of given drawn steps: (B,) addresses of steps that carry an action.

        Raises:
            DataError: an address outside the sampler's episodes, or of a final observation.
        """
        at = np.asarray(anchors, np.int64).reshape(-1)
        self._refresh()
        rank = (
            self._by_start[self._start[self._by_start].searchsorted(at, side="right") - 1] if len(self._start) else at
        )
        bad = (
            np.ones(len(at), bool)
            if not len(self._start)
            else (at < self._start[rank]) | (at >= (self._start + self._length)[rank])
        )
        if bad.any():
            raise DataError(
                f"anchors must be addresses of steps with an action, in the sampler's episodes; {at[bad][:3].tolist()} are not"
            )
        return self._windows(rank, at - self._start[rank])

    # -- choosing anchors

    def _choose(self, seeds: Sequence[int], numbers_R: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each seed and row number the drawn episode's rank and the step in it, both (S * R,)."""
        self._refresh()
        if not len(self._start):
            raise DataError(f"cannot draw windows: {self.store!r} has no episodes; collect or import some first")
        if self.window.anchor == "episode":
            rank = self._runs[below(seeds, numbers_R, _EPISODE, len(self._runs))]
            return rank, np.zeros_like(rank)
        if self.window.weights == "episodes":
            rank = below(seeds, numbers_R, _EPISODE, len(self._start))
            return rank, below(seeds, numbers_R, _STEP, self._length[rank])
        action = below(seeds, numbers_R, _STEP, int(self._actions[-1]))
        rank = self._drawn[action]
        return rank, action - self._actions[rank]

    def _refresh(self) -> None:
        """Reads the episode table again where the store changed.

        Coordinates number the steps that windows may hold through the chosen episodes: `_base[r]` is that of episode r's first step.
        """
        if self._revision == self.store.revision:
            return
        episodes = self.store.episodes
        self._start, self._length = episodes["start"], episodes["length"]
        self._ends = {name: episodes[name] for name in ("terminated", "truncated")}
        self._actions = np.concatenate(([0], np.cumsum(self._length)))
        self._by_start = np.argsort(self._start)
        self._base = self._actions + np.arange(len(self._actions)) if self.window.final else self._actions
        self._drawn = Intervals(self._actions)
        self._held = Intervals(self._base) if self.window.final and self.window.across else self._drawn
        changes = self._changes(episodes)
        self._runs = np.flatnonzero(changes)
        run = np.cumsum(changes) - 1
        limits = np.append(self._runs, len(changes))
        self._low, self._high = self._base[limits[run]], self._base[limits[run + 1]] - 1
        self._revision = self.store.revision

    def _changes(self, episodes: Any) -> np.ndarray:
        """(N,) bool: a segment begins with this episode."""
        changes = np.ones(len(self._start), bool)
        if self.window.across and len(changes):
            if self.window.across not in episodes:
                near = nearest(self.window.across, episodes)
                raise DataError(
                    f"across={self.window.across!r} is no column of the store's episodes{near}; they have {sorted(episodes)}; "
                    f"give every episode the fact {self.window.across!r}, with episodes of one value one after another"
                )
            values = episodes[self.window.across]
            changes[1:] = values[1:] != values[:-1]
        return changes

    # -- laying windows

    def _windows(self, rank_B: np.ndarray, step_B: np.ndarray) -> Batch:
        # A batch of 64 short windows costs what its numpy calls cost, not what they move: hence few of them.
        left = self.window.pad == "left"
        first, last, main = self._span(rank_B, step_B)
        begin = last - (self.window.length - 1) if left else first
        step_BT = begin[:, None] + self._steps
        valid_BT = step_BT >= first[:, None] if left else step_BT <= last[:, None]
        fresh_BT = step_BT == first[:, None]
        gaps = np.flatnonzero(~valid_BT)
        if self.window.across:
            rank_BT = self._ranks(step_BT, first, last)
            local_BT = step_BT - self._base[rank_BT]
            start, begins_BT = self._start[rank_BT], valid_BT & (local_BT == 0)
        else:
            rank_BT, local_BT = rank_B[:, None], step_BT
            start, begins_BT = self._start[rank_BT], fresh_BT & (first == 0)[:, None]
        finals_BT, scored_BT = np.zeros(valid_BT.shape, bool), valid_BT
        if self.window.final:
            finals_BT = valid_BT & (local_BT == self._length[rank_BT])
            scored_BT = valid_BT ^ finals_BT
        if self.window.back:
            scored_BT = scored_BT & (step_BT >= main[:, None])
        at_BT = local_BT + start
        row_B = None if self.window.across else at_BT[:, 0] + 1
        at_BT.reshape(-1)[gaps] = -1
        found = self._read(at_BT, row_B, gaps)
        found |= self._ends_of_episodes(local_BT, valid_BT, rank_BT)
        local_BT.reshape(-1)[gaps] = 0
        masks = zip(MASKS, (valid_BT, scored_BT, begins_BT, finals_BT, fresh_BT, local_BT, at_BT), strict=True)
        found |= {name: torch.from_numpy(mask) for name, mask in masks}
        return Batch(found)

    def _ranks(self, step_BT: np.ndarray, first: np.ndarray, last: np.ndarray) -> np.ndarray:
        """The episode of each coordinate; padding counts to its window's nearest."""
        inside_BT = np.clip(step_BT, first[:, None], last[:, None])
        return self._held[inside_BT]

    def _ends_of_episodes(self, local_BT: np.ndarray, valid_BT: np.ndarray, rank_BT: np.ndarray) -> dict[str, Any]:
        if not self._flags:
            return {}
        ends = (self._ends[name][rank_BT] for name in ("terminated", "truncated"))
        found = flags(self._flags, local_BT, valid_BT, self._length[rank_BT], *ends)
        return {name: torch.from_numpy(values) for name, values in found.items()}

    def _span(self, rank: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First and last steps of the windows, and their first scored ones; see the module's table.

        Counted from the episode's start, or with `across` in coordinates.
        """
        window = self.window
        if window.across:
            drawn, low, high = self._base[rank] + step, self._low[rank], self._high[rank]
        else:
            drawn, low, high = step, 0, self._length[rank] - (not window.final)
        if window.anchor == "start":
            first = np.maximum(drawn - window.back, low) if window.back else drawn
            return first, np.minimum(drawn + (window.length - window.back - 1), high), drawn
        if window.anchor == "episode":
            return self._whole(drawn, high)
        drawn = drawn + window.final
        first, main = np.maximum(drawn - (window.length - 1), low), drawn - (window.length - window.back - 1)
        return first, drawn if window.anchor == "end" else np.minimum(first + (window.length - 1), high), main

    def _whole(self, first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        longest = int((last - first).max(initial=0)) + 1
        if longest > self.window.length:
            raise DataError(
                f'anchor="episode" needs windows as long as the longest episode drawn: length is {self.window.length}, '
                f"one has {longest} steps; ask for longer windows (the system's context), or keep shorter episodes"
            )
        return first, last, first

    def _read(self, at_BT: np.ndarray, row_B: np.ndarray | None, gaps: np.ndarray) -> dict[str, Any]:
        """The window's columns: as runs of rows from `row_B` where windows, padding included, lie within the files."""
        T = self.window.length
        if row_B is not None and len(row_B):
            # Padding stands before the window or after it, so it can leave the files on one side only.
            inside = row_B.min() >= 0 if self.window.pad == "left" else row_B.max() + T <= self.store.num_rows
            if inside and self.store.num_rows >= T:
                return self.store.read_runs(row_B, T, gaps, self._columns)
        return self.store.read(at_BT.reshape(-1) + 1, at_BT.shape, self._columns)


def part_of(rows: int, part: tuple[int, int]) -> np.ndarray:
    """The numbers of the rows, out of `rows`, that fall to `part` = (rank, world size)."""
    rank, size = part
    return np.arange(rows * rank // size, rows * (rank + 1) // size)


def split_rows(block: Batch, count: int) -> list[Batch]:
    """A batch of count * B rows as `count` batches of B rows, as views."""
    rows = zip(*(_split(column, count) for column in block.values()), strict=True)
    return [Batch(dict(zip(block, row, strict=True))) for row in rows]


def _split(column: Any, count: int) -> Sequence[Any]:
    if isinstance(column, Tensor):
        return column.split_with_sizes([len(column) // count] * count)
    rows = zip(*(_split(part, count) for part in column.values()), strict=True)
    return [dict(zip(column, row, strict=True)) for row in rows]


def random_bits(seeds: Sequence[int], numbers_R: np.ndarray, stream: int) -> np.ndarray:
    """(S * R,) uint64, each a function of its seed (any integer), its row number (int64 >= 0) and the stream alone."""
    key_S1 = np.array([[splitmix.scramble_number(seed * 3 + stream * splitmix.GOLDEN)] for seed in seeds], np.uint64)
    return splitmix.scramble((numbers_R.astype(np.uint64) * np.uint64(splitmix.GOLDEN) + key_S1).reshape(-1))


def below(seeds: Sequence[int], numbers_R: np.ndarray, stream: int, limit: Any) -> np.ndarray:
    """(S * R,) int64 even in [0, limit), by remainder: the bias is limit / 2^64."""
    bits = random_bits(seeds, numbers_R, stream)
    return (bits % (np.uint64(limit) if isinstance(limit, int) else limit.astype(np.uint64))).view(np.int64)
