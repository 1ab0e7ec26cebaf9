"""One pass over a store, which gathers what the doctor judges: counts and a few lists."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foretoken.core.spec import Box, Discrete, MultiDiscrete, Space, leaves
from foretoken.core.store import EpisodeStore

CHUNK_BYTES = 32 * 2**20
# Steps sampled to learn how far an observation usually moves
SAMPLED_STEPS = 20_000
# A step this many times longer than 99 % of steps, and longer than one standard deviation, is no motion. Measured on
# locomotion and hand data: true steps reach 2.9 times, two episodes joined by mistake 5 to 6 times.
JUMP_FACTOR, JUMP_LEAST = 4.0, 1.0
# Entries that move less than this in 99 % of steps, such as a place, are also looked at alone: restless joints would hide their jumps
SLOW = 0.15
# A step from outside this many start radii into one radius around the usual start looks like an unmarked reset
RESET_FACTOR, RESET_EPISODES = 5.0, 5
OUTSIDE_TOLERANCE = 1e-4
SATURATED_WITHIN = 1e-3


@dataclass
class Survey:
    """What one pass over a store gathers. Episode lists hold numbers; per-dimension arrays are in C order."""

    open_ends: list[int] = field(default_factory=list)
    middle_flags: list[int] = field(default_factory=list)
    terminated: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))  # (E,) at the last action
    not_finite: dict[str, list[int]] = field(default_factory=dict)
    jumps: list[int] = field(default_factory=list)
    resets: list[int] = field(default_factory=list)
    outside: dict[str, np.ndarray] = field(default_factory=dict)
    at_bound: dict[str, np.ndarray] = field(default_factory=dict)
    extremes: dict[str, tuple[float, float]] = field(default_factory=dict)
    reward_sum: float = 0.0
    reward_count: int = 0
    repeated: int = 0
    repeated_finals: int = 0
    twins: dict[bytes, list[int]] = field(default_factory=dict)
    actions: int = 0


@dataclass(frozen=True)
class _Chunk:
    """S consecutive steps; the first one may be the last of the chunk before, to compare with (`fresh` false there)."""

    values: Mapping[str, np.ndarray]
    episode: np.ndarray  # (S,) int64
    step: np.ndarray  # (S,) int64
    is_final: np.ndarray  # (S,) bool
    fresh: np.ndarray  # (S,) bool: not seen in an earlier chunk


@dataclass(frozen=True)
class _Motion:
    """How observations usually move, in standard deviations per leaf."""

    scale: Mapping[str, np.ndarray]
    longest: float
    start: Mapping[str, np.ndarray]
    radius: float
    slow: np.ndarray  # (D,) bool: entries that hardly move
    slow_longest: float

    def length(self, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> np.ndarray:
        """(S,) root mean square difference over all dimensions of all leaves."""
        return _root_mean_square(_differences(self.scale, before, after))


def columns_of(store: EpisodeStore) -> dict[str, Any]:
    """Leaf columns by name with their spaces: "observation", "observation/goal", "action", ..."""
    return {
        f"{part}{path}": leaf
        for part in ("observation", "action")
        for path, leaf in leaves(getattr(store.spec, part)).items()
    }


def vectors(spec_columns: Mapping[str, Any], part: str) -> dict[str, Box]:
    """The leaves whose entries are quantities: Boxes of floats that are no pictures."""
    return {
        name: leaf
        for name, leaf in spec_columns.items()
        if name.split("/")[0] == part and isinstance(leaf, Box) and leaf.dtype.startswith("float")
    }


def _read(store: EpisodeStore, at: np.ndarray) -> dict[str, np.ndarray]:
    batch = store.gather(at, ("observation", "action", "reward", "terminated", "truncated"))
    flat: dict[str, np.ndarray] = {}

    def spread(name: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for key, part in value.items():
                spread(f"{name}/{key}", part)
        else:
            flat[name] = value.numpy()

    for name in ("observation", "action", "reward", "terminated", "truncated"):
        spread(name, batch[name])
    return flat


def _chunk_rows(store: EpisodeStore) -> int:
    width = (
        sum(
            leaf.size * np.dtype(leaf.dtype).itemsize if isinstance(leaf, Box) else 8
            for leaf in columns_of(store).values()
        )
        + 8
    )
    return int(np.clip(CHUNK_BYTES // width, 64, 65_536))


def _chunks(store: EpisodeStore) -> Iterator[_Chunk]:
    start, length = (np.asarray(store.episodes[name], np.int64) for name in ("start", "length"))
    offset = np.concatenate([[0], np.cumsum(length + 1)])
    rows = _chunk_rows(store)
    for begin in range(0, int(offset[-1]), rows):
        first = max(begin - 1, 0)
        place = np.arange(first, min(begin + rows, int(offset[-1])))
        episode = np.searchsorted(offset, place, side="right") - 1
        step = place - offset[episode]
        yield _Chunk(_read(store, start[episode] + step), episode, step, step == length[episode], place >= begin)


def take_survey(store: EpisodeStore) -> Survey:
    survey, columns, motion = (
        Survey(terminated=np.zeros(store.num_episodes, bool)),
        columns_of(store),
        _learn_motion(store),
    )
    hashes: dict[int, Any] = {}
    for chunk in _chunks(store):
        _count_flags(survey, chunk)
        _count_not_finite(survey, chunk)
        _count_motion(survey, chunk, motion)
        _count_actions(survey, chunk, columns)
        _count_repeats(survey, chunk, columns)
        _hash_episodes(survey, chunk, columns, hashes)
    return survey


def _learn_motion(store: EpisodeStore) -> _Motion | None:
    """Typical step lengths and start states, from evenly spread samples; None where observations are no vectors."""
    names = list(vectors(columns_of(store), "observation"))
    start, length = (np.asarray(store.episodes[name], np.int64) for name in ("start", "length"))
    if not names:
        return None
    ends = np.cumsum(length)
    sampled = min(SAMPLED_STEPS, _chunk_rows(store))
    picked = np.unique(np.linspace(0, ends[-1] - 1, min(sampled, int(ends[-1]))).astype(np.int64))
    episode = np.searchsorted(ends, picked, side="right")
    at = start[episode] + picked - (ends - length)[episode]
    before, after = _read(store, at), _read(store, at + 1)
    begin = _read(store, start[:: -(-len(start) // sampled)])
    scale = {name: _scale(before[name]) for name in names}
    middle = {name: np.median(begin[name], axis=0, keepdims=True) for name in names}
    steps = _differences(scale, before, after)
    apart = _root_mean_square(_differences(scale, middle, begin)) if len(start) >= RESET_EPISODES else np.zeros(1)
    with np.errstate(invalid="ignore"):
        slow = (steps != 0).any(0) & (np.quantile(np.abs(steps), 0.99, axis=0) < SLOW)
    return _Motion(scale, _longest(steps), middle, float(apart.max()), slow, _longest(steps[:, slow]))


def _longest(steps_SD: np.ndarray) -> float:
    """How long a step may be; infinite where it cannot be said."""
    steps = _root_mean_square(steps_SD)
    usual = np.quantile(steps, 0.99, method="lower") if np.isfinite(steps).all() else np.inf
    return max(JUMP_FACTOR * float(usual), JUMP_LEAST)


def _differences(
    scale: Mapping[str, np.ndarray], before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]
) -> np.ndarray:
    """(S, D) of all leaves, in standard deviations."""
    with np.errstate(invalid="ignore", over="ignore"):
        parts = [
            (after[name].reshape(len(after[name]), -1).astype(np.float64) - before[name].reshape(len(before[name]), -1))
            / one
            for name, one in scale.items()
        ]
    return np.concatenate(parts, axis=1)


def _root_mean_square(steps_SD: np.ndarray) -> np.ndarray:
    """(S,), 0 where there are no dimensions."""
    with np.errstate(over="ignore"):
        return np.sqrt(np.square(steps_SD).sum(1) / max(steps_SD.shape[1], 1))


def _scale(values: np.ndarray) -> np.ndarray:
    """(D,) standard deviations, infinite where a dimension does not vary."""
    with np.errstate(invalid="ignore", over="ignore"):
        spread = values.reshape(len(values), -1).astype(np.float64).std(0)
    return np.where(spread > 1e-8, spread, np.inf)


def _count_flags(survey: Survey, chunk: _Chunk) -> None:
    terminated, truncated = chunk.values["terminated"], chunk.values["truncated"]
    ended = (terminated | truncated) & ~chunk.is_final
    # The last action's step is the one before the final step
    last = np.flatnonzero(chunk.is_final[1:])
    survey.terminated[chunk.episode[last]] = terminated[last]
    survey.open_ends += chunk.episode[last[~ended[last]]].tolist()
    middle = np.flatnonzero(ended[:-1] & ~chunk.is_final[1:])
    survey.middle_flags += np.unique(chunk.episode[middle]).tolist()


def _count_not_finite(survey: Survey, chunk: _Chunk) -> None:
    for name, values in chunk.values.items():
        if values.dtype.kind != "f":
            continue
        bad = ~np.isfinite(values.reshape(len(values), -1)).all(1) & chunk.fresh
        # The final step has no action or reward of its own
        if not name.startswith("observation"):
            bad &= ~chunk.is_final
        if bad.any():
            survey.not_finite.setdefault(name, []).extend(np.unique(chunk.episode[bad]).tolist())


def _count_motion(survey: Survey, chunk: _Chunk, motion: _Motion | None) -> None:
    if motion is None or len(chunk.step) < 2:
        return
    values = {name: chunk.values[name] for name in motion.scale}
    within = chunk.episode[1:] == chunk.episode[:-1]
    steps = _differences(
        motion.scale,
        {name: part[:-1] for name, part in values.items()},
        {name: part[1:] for name, part in values.items()},
    )
    moved = _root_mean_square(steps)
    leaps = _root_mean_square(steps[:, motion.slow]) > motion.slow_longest
    jumps = within & ((moved > motion.longest) | leaps)
    survey.jumps += chunk.episode[1:][jumps].tolist()
    if motion.radius > 0:
        away = motion.length(motion.start, values)
        back = (
            within
            & (away[1:] <= motion.radius)
            & (away[:-1] > RESET_FACTOR * motion.radius)
            & (moved > 0.5 * away[:-1])
        )
        survey.resets += chunk.episode[1:][back & ~jumps].tolist()


def _count_actions(survey: Survey, chunk: _Chunk, columns: Mapping[str, Any]) -> None:
    acting = chunk.fresh & ~chunk.is_final
    survey.actions += int(acting.sum())
    reward = chunk.values["reward"][acting].astype(np.float64)
    nonzero = reward[np.isfinite(reward) & (reward != 0)]
    survey.reward_sum, survey.reward_count = (
        survey.reward_sum + float(np.abs(nonzero).sum()),
        survey.reward_count + len(nonzero),
    )
    for name, space in columns.items():
        if name.split("/")[0] == "action" and acting.any():
            _count_bounds(survey, name, space, chunk.values[name][acting])


def _count_bounds(survey: Survey, name: str, space: Space, values: np.ndarray) -> None:
    low, high, tolerance = _bounds(space)
    if low is None:
        return
    values = values.reshape(len(values), -1).astype(np.float64)
    span = high - low
    outside = ((values < low - tolerance * span) | (values > high + tolerance * span)).sum(0)
    touching = ((values <= low + SATURATED_WITHIN * span) | (values >= high - SATURATED_WITHIN * span)).sum(0)
    survey.outside[name] = survey.outside.get(name, 0) + outside
    survey.at_bound[name] = survey.at_bound.get(name, 0) + touching
    before = survey.extremes.get(name, (np.inf, -np.inf))
    survey.extremes[name] = min(before[0], float(values.min())), max(before[1], float(values.max()))


def _bounds(space: Space) -> tuple[Any, Any, float]:
    """Lowest and highest allowed values per entry and the relative tolerance; None where there are none."""
    if isinstance(space, Box) and np.isfinite(space.low).all() and np.isfinite(space.high).all():
        return np.asarray(space.low), np.asarray(space.high), OUTSIDE_TOLERANCE
    if isinstance(space, Discrete):
        return np.asarray([space.start]), np.asarray([space.start + space.n - 1]), 0.0
    if isinstance(space, MultiDiscrete):
        return np.zeros(len(space.nvec)), np.asarray(space.nvec) - 1, 0.0
    return None, None, 0.0


def _count_repeats(survey: Survey, chunk: _Chunk, columns: Mapping[str, Any]) -> None:
    """Steps equal to the one before, and final observations equal to the last."""
    if len(chunk.step) < 2:
        return

    def same(names: list[str]) -> np.ndarray:
        equal = chunk.episode[1:] == chunk.episode[:-1]
        for name in names:
            values = chunk.values[name].reshape(len(chunk.step), -1)
            equal &= (values[1:] == values[:-1]).all(1)
        return equal

    seen = same([name for name in columns if name.startswith("observation")])
    survey.repeated_finals += int((seen & chunk.is_final[1:]).sum())
    if seen.any():
        survey.repeated += int(
            (
                seen & same([name for name in columns if name.startswith("action")] + ["reward"]) & ~chunk.is_final[1:]
            ).sum()
        )


def _hash_episodes(survey: Survey, chunk: _Chunk, columns: Mapping[str, Any], hashes: dict[int, Any]) -> None:
    seen = np.flatnonzero(chunk.fresh)
    numbers, begins = np.unique(chunk.episode[seen], return_index=True)
    for number, begin, end in zip(numbers.tolist(), begins, [*begins[1:], len(seen)], strict=True):
        rows = slice(seen[begin], seen[end - 1] + 1)
        digest = hashes.setdefault(number, hashlib.blake2b(digest_size=16))
        _update(digest, chunk, columns, rows)
        if chunk.is_final[rows.stop - 1]:
            survey.twins.setdefault(hashes.pop(number).digest(), []).append(number)


def _update(digest: Any, chunk: _Chunk, columns: Mapping[str, Any], rows: slice) -> None:
    """Hashes step by step, all columns of a step together, so that it does not matter where chunks begin."""
    parts = [chunk.values[name][rows] for name in columns]
    packed = [np.ascontiguousarray(part).view(np.uint8).reshape(rows.stop - rows.start, -1) for part in parts]
    digest.update(np.concatenate(packed, axis=1))
