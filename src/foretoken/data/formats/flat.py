"""Flat files: the rows of all episodes after one another, cut into episodes here.

A row is a transition. Its successor is the next row's observation, except at the end of an episode, where the final
observation comes from one of three places:

    next    the file's own `next_observation` of the last row: nothing is lost
    drop    the last row's action is given up and its observation becomes the final one: all successors are true, one
            transition is lost (right for truncated episodes, whose last value would be bootstrapped)
    repeat  the last observation is given twice: no action is lost, and the last successor is a placeholder (harmless
            where the episode terminated, since nothing is bootstrapped there)
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np

from foretoken.core.errors import DataError
from foretoken.core.spec import Box, Discrete, MultiDiscrete, Space
from foretoken.data.episode import Episode
from foretoken.data.findings import Finding

T = TypeVar("T")
R = TypeVar("R")
Final: TypeAlias = Literal["next", "drop", "repeat"]
Rows: TypeAlias = Callable[[str, int, int], np.ndarray]
"""Reads rows start..stop of a named array."""

BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class Cuts:
    """Where E episodes lie in N rows and how each ends.

    Args:
        start, stop: (E,) int64, the episode's rows are start..stop-1.
        terminated, truncated: (E,) bool, what the last row says.
        final: where the final observation comes from, for terminated and for truncated episodes.
    """

    start: np.ndarray
    stop: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    final: Mapping[str, Final]

    @property
    def dropped(self) -> np.ndarray:
        """(E,) bool: the last action is given up to make the final observation."""
        return np.where(self.terminated, self.final["terminated"] == "drop", self.final["truncated"] == "drop")

    @property
    def repeated(self) -> np.ndarray:
        """(E,) bool: the last observation is given twice."""
        return np.where(self.terminated, self.final["terminated"] == "repeat", self.final["truncated"] == "repeat")

    @property
    def kept(self) -> np.ndarray:
        """(E,) bool: at least one action is left."""
        return (self.stop - self.start - self.dropped) > 0


def episodes(
    read: Rows, cuts: Cuts, columns: tuple[str, ...] = (), facts: Mapping[str, np.ndarray] | None = None
) -> Iterator[Episode]:
    """Episodes, reading about `BLOCK_ROWS` rows at a time, and the next ones while these are dealt with.

    Args:
        read: reads rows of "observation", "next_observation" (where `cuts` wants it), "action", "reward" and `columns`.
        cuts: the episodes.
        columns: further arrays with one entry per row.
        facts: (E,) arrays, one value per episode.
    """
    dropped, repeated = cuts.dropped, cuts.repeated
    names = ["observation", "action", "reward", *columns]
    if "next" in cuts.final.values():
        names.append("next_observation")

    def block_of(run: tuple[int, int]) -> tuple[int, int, int, dict[str, np.ndarray]]:
        first, last = run
        base, stop = int(cuts.start[first]), int(cuts.stop[last - 1])
        return first, last, base, {name: read(name, base, stop) for name in names}

    for first, last, base, block in _ahead(block_of, blocks(cuts.stop, BLOCK_ROWS)):
        for number in range(first, last):
            rows = slice(int(cuts.start[number]) - base, int(cuts.stop[number]) - base)
            if not cuts.kept[number]:
                continue
            piece = {name: values[rows] for name, values in block.items()}
            yield _episode(
                piece,
                columns,
                bool(dropped[number]),
                bool(repeated[number]),
                bool(cuts.terminated[number]),
                bool(cuts.truncated[number]),
                facts_of(facts or {}, number),
            )


def _ahead(function: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """`map`, each result made by another thread while the one before it is dealt with; decompressing needs no Python."""
    with ThreadPoolExecutor(1) as thread:
        coming: Future[R] | None = None
        for item in items:
            ready, coming = coming, thread.submit(function, item)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


def facts_of(facts: Mapping[str, np.ndarray], number: int) -> dict[str, Any]:
    """One episode's values; NaN and "" stand for a value that it does not have."""
    values = {name: column[number].item() for name, column in facts.items()}
    return {name: value for name, value in values.items() if value == value and value != ""}


def blocks(stop: np.ndarray, rows: int) -> Iterator[tuple[int, int]]:
    """Runs of whole episodes first..last-1 of about `rows` rows each; a longer episode is a run of its own."""
    first = 0
    while first < len(stop):
        base = int(stop[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(stop, base + rows, side="right")))
        yield first, last
        first = last


def _episode(
    piece: dict[str, np.ndarray],
    columns: tuple[str, ...],
    dropped: bool,
    repeated: bool,
    terminated: bool,
    truncated: bool,
    facts: dict[str, Any],
) -> Episode:
    count = len(piece["action"]) - dropped
    final = piece["observation"][-1:] if dropped or repeated else piece["next_observation"][-1:]
    ends = np.zeros((2, count), bool)
    ends[:, -1] = terminated, truncated
    return Episode(
        observation=np.concatenate([piece["observation"][:count], final]),
        action=piece["action"][:count],
        reward=piece["reward"][:count],
        terminated=ends[0],
        truncated=ends[1],
        columns={name: piece[name][:count] for name in columns},
        facts=facts,
    )


@dataclass
class Notes:
    """Findings gathered while a file is read."""

    found: list[Finding] = field(default_factory=list)

    def add(self, code: str, severity: Any, message: str, **detail: Any) -> None:
        self.found.append(Finding(code, severity, message, detail))

    def about_final(self, cuts: Cuts) -> None:
        """Says what was done to make final observations."""
        dropped, repeated, lost = int(cuts.dropped.sum()), int(cuts.repeated.sum()), int((~cuts.kept).sum())
        if dropped:
            self.add(
                "final-from-last-row",
                "note",
                f"the file holds no successor of an episode's last row, so in {dropped} truncated episodes the last "
                "transition was given up "
                "and its observation became the final one (D4RL's own convention); give next_observations to keep it.",
                episodes=dropped,
            )
        if repeated:
            self.add(
                "final-repeated",
                "note",
                f"the file holds no successor of an episode's last row, so in {repeated} episodes the last "
                "observation was repeated as the final "
                "one: no action is lost, but do not learn the last step's dynamics or bootstrap from it; give "
                "next_observations to have the true one.",
                episodes=repeated,
            )
        if lost:
            self.add(
                "too-short",
                "warning",
                f"{lost} truncated episodes of a single row were left out: nothing remains of them without a "
                "successor.",
                episodes=lost,
            )


def per_row(values: np.ndarray, name: str, where: str) -> np.ndarray:
    """(N,) from (N,) or (N, 1); anything else is refused."""
    if values.ndim == 2 and values.shape[1] == 1:
        return values[:, 0]
    if values.ndim != 1:
        raise DataError(f"{where}: {name!r} needs one number per row, got shape {values.shape}")
    return values


def flags(values: np.ndarray, name: str, where: str) -> np.ndarray:
    """(N,) bool from booleans or from numbers that are all 0 or 1."""
    values = per_row(values, name, where)
    if values.dtype != bool and not np.isin(values, (0, 1)).all():
        raise DataError(f"{where}: {name!r} must hold 0 and 1 only, got values from {values.min()} to {values.max()}")
    return values.astype(bool)


def same_rows(shapes: Mapping[str, tuple[int, ...]], where: str) -> int:
    """The one number of rows that all arrays share."""
    counts = {name: shape[0] if shape else 0 for name, shape in shapes.items()}
    if len(set(counts.values())) != 1:
        raise DataError(
            f"{where}: all arrays need one row per transition, got unequal lengths {counts}; the file is broken or of "
            "another layout"
        )
    count = next(iter(counts.values()))
    if not count:
        raise DataError(f"{where} holds no transitions (its arrays are empty); import a file with at least one episode")
    return count


def observation_space(shape: tuple[int, ...], dtype: np.dtype) -> Space:
    """The space of stored observations: whole-number images keep their bounds, everything else is unbounded."""
    if dtype == np.uint8 and len(shape) == 3:
        return Box(shape=shape, dtype="uint8", low=(0.0,), high=(255.0,))
    return Box(shape=shape, dtype=str(dtype))


def action_space(
    shape: tuple[int, ...],
    dtype: np.dtype,
    low: np.ndarray,
    high: np.ndarray,
    bounds: tuple[float, float] | None,
    where: str,
    notes: Notes,
) -> Space:
    """The space of stored actions, from their lowest and highest values per dimension.

    Continuous actions get `bounds` if given, -1..1 (as in D4RL) if all lie within, and otherwise none, with a finding.
    """
    if dtype.kind != "f":
        return _choices(shape, low, high, where)
    if bounds is None and low.min() >= -1 and high.max() <= 1:
        bounds = (-1.0, 1.0)
    if bounds is None:
        notes.add(
            "action-bounds-unknown",
            "warning",
            f"actions reach from {low.min():.3g} to {high.max():.3g} and the file does not say their bounds, so none "
            "are set; give --action-bounds LOW,HIGH, usually the environment's.",
            low=float(low.min()),
            high=float(high.max()),
        )
        return Box(shape=shape, dtype=str(dtype))
    return Box(shape=shape, dtype=str(dtype), low=(float(bounds[0]),), high=(float(bounds[1]),))


def _choices(shape: tuple[int, ...], low: np.ndarray, high: np.ndarray, where: str) -> Space:
    if low.min() < 0:
        raise DataError(
            f"{where}: whole-number actions must count from 0, got {low.min()}; shift them or store them as floats"
        )
    if shape in ((), (1,)):
        return Discrete(n=int(high.max()) + 1)
    if len(shape) == 1:
        return MultiDiscrete(nvec=tuple(int(top) + 1 for top in high))
    raise DataError(f"{where}: whole-number actions need shape (N,) or (N, K), got (N, {', '.join(map(str, shape))})")
