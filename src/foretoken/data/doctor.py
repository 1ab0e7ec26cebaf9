"""The doctor: looks through a store for what commonly spoils training, and says what to do about it.

One pass over the data in chunks gathers a `Survey` (counts and a few lists); each check is then a small function of it.
Nothing is changed. A finding is a hint from fixed rules of thumb, given here as constants; where a rule does not fit an
environment, the message says what was seen, so that it can be judged.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foretoken.core.spec import Box, Discrete, MultiDiscrete, Space, leaves
from foretoken.core.store import EpisodeStore
from foretoken.data.findings import Finding

__all__ = ["Finding", "Survey", "examine"]

CHUNK_BYTES = 32 * 2**20
# Steps sampled to learn how far an observation usually moves
SAMPLED_STEPS = 20_000
# A step this many times longer than 99 % of steps, and longer than one standard deviation, is no motion. Measured on
# locomotion and hand data: true steps reach 2.9 times, two episodes joined by mistake 5 to 6 times.
JUMP_FACTOR, JUMP_LEAST = 4.0, 1.0
# A step from outside this many start radii into one radius around the usual start looks like an unmarked reset
RESET_FACTOR, RESET_EPISODES = 5.0, 5
LARGE, SMALL, RANGES = 10.0, 0.01, 1e3
OUTSIDE_TOLERANCE = 1e-4
SATURATED_WITHIN, SATURATED_SHARE = 1e-3, 0.5
SAME_LENGTH_SHARE, SAME_LENGTH_LEAST = 0.2, 5
SHORT_SHARE = 0.1
SPREAD_LEAST = 0.02
REPEATED_SHARE = 0.01
LISTED = 10


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


def examine(store: EpisodeStore) -> list[Finding]:
    """All findings about a store, errors first; an empty list means that nothing was noticed.

    Memory stays within a few chunks of `CHUNK_BYTES`, however large the store.
    """
    if not store.num_episodes:
        return [Finding("empty", "error", "the store holds no episodes; collect or import some.")]
    survey = _survey(store)
    found = [finding for check in _CHECKS for finding in check(store, survey)]
    return sorted(found, key=lambda one: ("error", "warning", "note").index(one.severity))


# The pass over the data


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

    def length(self, before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> np.ndarray:
        """(S,) root mean square difference over all dimensions of all leaves."""
        total, size = 0.0, 0
        for name, scale in self.scale.items():
            with np.errstate(invalid="ignore", over="ignore"):
                moved = (
                    after[name].reshape(len(after[name]), -1).astype(np.float64)
                    - before[name].reshape(len(before[name]), -1)
                ) / scale
                total, size = total + np.square(moved).sum(1), size + scale.size
        return np.sqrt(total / max(size, 1))


def _columns(store: EpisodeStore) -> dict[str, Any]:
    """Leaf columns by name with their spaces: "observation", "observation/goal", "action", ..."""
    return {
        f"{part}{path}": leaf
        for part in ("observation", "action")
        for path, leaf in leaves(getattr(store.spec, part)).items()
    }


def _vectors(spec_columns: Mapping[str, Any], part: str) -> dict[str, Box]:
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
            for leaf in _columns(store).values()
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


def _survey(store: EpisodeStore) -> Survey:
    survey, columns, motion = (
        Survey(terminated=np.zeros(store.num_episodes, bool)),
        _columns(store),
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
    names = list(_vectors(_columns(store), "observation"))
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
    motion = _Motion(scale, np.inf, middle, 0.0)
    steps = motion.length(before, after)
    usual = np.quantile(steps, 0.99, method="lower") if np.isfinite(steps).all() else np.inf
    apart = motion.length(middle, begin) if len(start) >= RESET_EPISODES else np.zeros(1)
    return _Motion(scale, max(JUMP_FACTOR * usual, JUMP_LEAST), middle, float(apart.max()))


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
    moved = motion.length(
        {name: part[:-1] for name, part in values.items()}, {name: part[1:] for name, part in values.items()}
    )
    jumps = within & (moved > motion.longest)
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


# The checks


def _some(numbers: list[int]) -> list[int]:
    return sorted(set(numbers))[:LISTED]


def _check_boundaries(store: EpisodeStore, survey: Survey) -> Iterator[Finding]:
    if survey.open_ends:
        yield Finding(
            "open-ends",
            "error",
            f"{len(survey.open_ends)} episodes end without a terminated or truncated flag at their last action; set "
            "truncated "
            "where a limit or the recording cut them, terminated where the environment ended.",
            {"episodes": _some(survey.open_ends)},
        )
    if survey.middle_flags:
        yield Finding(
            "flags-inside",
            "error",
            f"{len(set(survey.middle_flags))} episodes have an end flag before their last action; they are several "
            "episodes "
            "in one: cut them at the flags and import again.",
            {"episodes": _some(survey.middle_flags)},
        )
    for code, numbers, seen in (
        ("observation-jumps", survey.jumps, "moves further in one step than ever otherwise"),
        ("unmarked-resets", survey.resets, "returns to the usual start state in one step"),
    ):
        if numbers:
            yield Finding(
                code,
                "warning",
                f"in {len(set(numbers))} episodes the observation {seen} ({len(numbers)} steps), as if two episodes "
                "were joined; "
                "check the episode boundaries of the source (timeouts, max_episode_steps).",
                {"episodes": _some(numbers), "steps": len(numbers)},
            )


def _check_timeouts(store: EpisodeStore, survey: Survey) -> Iterator[Finding]:
    lengths, limit = np.asarray(store.episodes["length"]), store.spec.max_episode_steps
    at_limit = survey.terminated & (lengths == limit)
    if limit and at_limit.any():
        yield Finding(
            "timeouts-as-terminals",
            "warning",
            f"{int(at_limit.sum())} episodes are terminated at exactly max_episode_steps={limit}; a time limit is a "
            "truncation: mark them truncated, or values learn that the world ends there.",
            {"episodes": int(at_limit.sum()), "length": limit},
        )
        return
    ended = lengths[survey.terminated]
    longest = int(lengths.max())
    count = int((ended == longest).sum())
    varied = len(np.unique(lengths)) > 1 or longest > 1
    if varied and count >= SAME_LENGTH_LEAST and count >= SAME_LENGTH_SHARE * len(ended):
        yield Finding(
            "timeouts-as-terminals",
            "warning",
            f"{count} of {len(ended)} terminated episodes have the same, greatest length {longest}, which looks like a "
            f"time limit; if it is one, import again with max_episode_steps={longest} and mark them truncated.",
            {"episodes": count, "length": longest},
        )


def _check_observations(store: EpisodeStore, survey: Survey) -> Iterator[Finding]:
    for name, values in survey.not_finite.items():
        yield Finding(
            "not-finite",
            "error",
            f"{name} holds NaN or infinity in {len(set(values))} episodes; remove these episodes or repair their "
            "source.",
            {"column": name, "episodes": _some(values)},
        )
    for name in _vectors(_columns(store), "observation"):
        if name not in survey.not_finite:
            yield from _check_scale(store, name)


def _check_scale(store: EpisodeStore, name: str) -> Iterator[Finding]:
    part, _, path = name.partition("/")
    found = store.statistics(part)[f"/{path}" if path else ""]
    mean, std, span = (
        np.asarray(values, np.float64).reshape(-1) for values in (found.mean, found.std, found.high - found.low)
    )
    constant = span <= 1e-8 * (1 + np.abs(mean))
    if constant.any():
        dims = np.flatnonzero(constant)
        yield Finding(
            "constant-dimensions",
            "note",
            f"{len(dims)} of {len(mean)} dimensions of {name} never change ({_list(dims)}); normalisation must not "
            "divide by "
            "their spread (ours does not), and they may be left out.",
            {"column": name, "dimensions": dims.tolist()},
        )
    moving = ~constant
    odd = moving & ((np.abs(mean) > LARGE) | (std > LARGE) | (std < SMALL))
    wide = moving.any() and span[moving].max() > RANGES * span[moving].min()
    if odd.any() or wide:
        dims = (
            np.flatnonzero(odd) if odd.any() else np.flatnonzero(moving)[[span[moving].argmin(), span[moving].argmax()]]
        )
        yield Finding(
            "unscaled-dimensions",
            "note",
            f"{name} is far from unit scale in dimensions {_list(dims)} (means to {np.abs(mean[moving]).max():.3g}, "
            "standard deviations "
            f"{std[moving].min():.3g} to {std[moving].max():.3g}); keep normalisation of observations on.",
            {"column": name, "dimensions": dims.tolist()},
        )


def _list(dims: np.ndarray) -> str:
    shown = ", ".join(map(str, dims[:LISTED].tolist()))
    return f"{shown}, ..." if len(dims) > LISTED else shown


def _check_actions(store: EpisodeStore, survey: Survey) -> Iterator[Finding]:
    for name, space in _columns(store).items():
        if name.split("/")[0] != "action":
            continue
        if isinstance(space, Box) and name not in survey.outside:
            yield Finding(
                "actions-unbounded",
                "note",
                f"{name} has no bounds, so nothing says whether its values are allowed; import again with "
                "action_bounds=(low, high) "
                "if the environment has them.",
                {"column": name},
            )
        if name in survey.outside and survey.outside[name].sum():
            yield _outside(name, space, survey)
        elif isinstance(space, Box) and name in survey.at_bound:
            yield from _saturated(name, survey)


def _outside(name: str, space: Any, survey: Survey) -> Finding:
    share, (low, high) = (
        survey.outside[name].sum() / (survey.actions * survey.outside[name].size),
        survey.extremes[name],
    )
    dims = np.flatnonzero(survey.outside[name])
    if not isinstance(space, Box):
        return Finding(
            "actions-outside",
            "error",
            f"{name} takes values from {low:g} to {high:g}, which its space does not have; import again with the "
            "right space.",
            {"column": name, "low": low, "high": high},
        )
    return Finding(
        "actions-outside",
        "warning",
        f"{share:.1%} of the entries of {name} lie outside its bounds (values from {low:.3g} to {high:.3g}, bounds "
        f"from {min(space.low):.3g} to "
        f"{max(space.high):.3g}); the environment will clip them: clip or rescale them before training.",
        {"column": name, "low": low, "high": high, "share": float(share), "dimensions": dims.tolist()},
    )


def _saturated(name: str, survey: Survey) -> Iterator[Finding]:
    share = survey.at_bound[name] / survey.actions
    dims = np.flatnonzero(share > SATURATED_SHARE)
    if len(dims):
        yield Finding(
            "actions-saturated",
            "note",
            f"in dimensions {_list(dims)} of {name} more than {SATURATED_SHARE:.0%} of the values lie at a bound (up "
            f"to {share.max():.0%}); a Gaussian "
            "head fits such actions badly: prefer bins, or a mean squared error.",
            {"column": name, "dimensions": dims.tolist(), "share": float(share.max())},
        )


def _check_rewards(store: EpisodeStore, survey: Survey) -> Iterator[Finding]:
    returns = np.asarray(store.episodes["return"], np.float64)
    if "reward" in survey.not_finite:
        return
    usual = survey.reward_sum / survey.reward_count if survey.reward_count else 0.0
    if not usual:
        yield Finding(
            "no-reward",
            "warning",
            "every reward is zero; methods that ask for a return have nothing to ask for: use imitation or goals.",
        )
        return
    if not 1e-3 <= usual <= 1e2:
        yield Finding(
            "reward-scale",
            "warning",
            f"rewards have a usual size of {usual:.3g}, far from 1; rescale them, or set the method's return scale.",
            {"mean_size": usual},
        )
    largest = float(np.abs(returns).max())
    if largest > LARGE:
        scale = float(10 ** np.floor(np.log10(largest)))
        yield Finding(
            "return-scale",
            "note",
            f"returns reach {largest:.4g} in size; give return-conditioned methods a return scale of about {scale:g}.",
            {"scale": scale},
        )
    if len(returns) > 1 and returns.std() <= SPREAD_LEAST * max(abs(returns.mean()), 1e-12):
        yield Finding(
            "narrow-returns",
            "warning",
            f"returns differ by {returns.std():.3g} around {returns.mean():.4g} only; asking for other returns cannot "
            "be learned from this: "
            "use behaviour cloning, or add data of other quality.",
            {"std": float(returns.std()), "mean": float(returns.mean())},
        )


def _check_episodes(store: EpisodeStore, survey: Survey) -> Iterator[Finding]:
    twins = [numbers for numbers in survey.twins.values() if len(numbers) > 1]
    if twins:
        extra = sum(len(numbers) - 1 for numbers in twins)
        yield Finding(
            "duplicate-episodes",
            "warning",
            f"{extra} episodes are exact copies of others (for example {twins[0][:3]}); they weigh double and leak "
            "from training into held-out "
            "data: keep one of each.",
            {"episodes": extra, "groups": [numbers[:LISTED] for numbers in twins[:LISTED]]},
        )
    if survey.repeated > REPEATED_SHARE * survey.actions:
        yield Finding(
            "duplicate-steps",
            "note",
            f"{survey.repeated / survey.actions:.1%} of the steps equal the step before in observation, action and "
            "reward; if the recording wrote "
            "frames twice, remove them.",
            {"steps": survey.repeated},
        )
    if survey.repeated_finals > 0.5 * store.num_episodes:
        yield Finding(
            "final-repeated",
            "note",
            f"in {survey.repeated_finals} of {store.num_episodes} episodes the final observation equals the last one, "
            "as where a source has no final "
            "observation; do not learn dynamics of, or bootstrap from, last steps.",
            {"episodes": survey.repeated_finals},
        )
    yield from _check_lengths(np.asarray(store.episodes["length"]))


def _check_lengths(lengths: np.ndarray) -> Iterator[Finding]:
    short = lengths < SHORT_SHARE * np.median(lengths)
    if short.any():
        yield Finding(
            "short-episodes",
            "note",
            f"{int(short.sum())} episodes are shorter than a tenth of the median length {np.median(lengths):g} (the "
            f"shortest has {int(lengths.min())} "
            "actions); make sure that they are failures and no fragments, which are best left out.",
            {"episodes": int(short.sum()), "shortest": int(lengths.min())},
        )


_CHECKS: tuple[Callable[[EpisodeStore, Survey], Iterator[Finding]], ...] = (
    _check_boundaries,
    _check_timeouts,
    _check_observations,
    _check_actions,
    _check_rewards,
    _check_episodes,
)
