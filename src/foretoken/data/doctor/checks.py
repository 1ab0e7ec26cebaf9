"""What the doctor thinks of a survey: one small function for each kind of illness."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from foretoken.core.spec import Box
from foretoken.core.store import EpisodeStore
from foretoken.data.doctor.survey import Survey, columns_of, take_survey, vectors
from foretoken.data.findings import Finding

LARGE, SMALL, RANGES = 10.0, 0.01, 1e3
SATURATED_SHARE = 0.5
SAME_LENGTH_SHARE, SAME_LENGTH_LEAST = 0.2, 5
SHORT_SHARE = 0.1
SPREAD_LEAST = 0.02
REPEATED_SHARE = 0.01
LISTED = 10


def examine(store: EpisodeStore) -> list[Finding]:
    """All findings about a store, errors first; an empty list means that nothing was noticed.

    Memory stays within a few chunks of `CHUNK_BYTES`, however large the store.
    """
    if not store.num_episodes:
        return [Finding("empty", "error", "the store holds no episodes; collect or import some.")]
    survey = take_survey(store)
    found = [finding for check in _CHECKS for finding in check(store, survey)]
    return sorted(found, key=lambda one: ("error", "warning", "note").index(one.severity))


def _episodes(count: int) -> str:
    return f"{count} episode{'' if count == 1 else 's'}"


def _some(numbers: list[int]) -> list[int]:
    return sorted(set(numbers))[:LISTED]


def _check_boundaries(store: EpisodeStore, survey: Survey) -> Iterator[Finding]:
    if survey.open_ends:
        yield Finding(
            "open-ends",
            "error",
            f"{_episodes(len(survey.open_ends))} without a terminated or truncated flag at the last action; set "
            "truncated where a limit or the recording cut them, terminated where the environment ended.",
            {"episodes": _some(survey.open_ends)},
        )
    if survey.middle_flags:
        yield Finding(
            "flags-inside",
            "error",
            f"{_episodes(len(set(survey.middle_flags)))} with an end flag before the last action: several episodes in one; "
            "cut them at the flags and import again.",
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
                f"in {_episodes(len(set(numbers)))} the observation {seen} ({len(numbers)} steps), as if two episodes "
                "were joined; check the episode boundaries of the source (timeouts, max_episode_steps; D4RL's "
                "AntMaze: --ends timeouts,jumps).",
                {"episodes": _some(numbers), "steps": len(numbers)},
            )


def _check_timeouts(store: EpisodeStore, survey: Survey) -> Iterator[Finding]:
    lengths, limit = np.asarray(store.episodes["length"]), store.spec.max_episode_steps
    at_limit = survey.terminated & (lengths == limit)
    if limit and at_limit.any():
        yield Finding(
            "timeouts-as-terminals",
            "warning",
            f"{_episodes(int(at_limit.sum()))} terminated at exactly max_episode_steps={limit}; a time limit is a "
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
            f"{count} of {len(ended)} terminated episodes have the same, greatest length {longest}, which looks like "
            f"a time limit; if it is one, import again with --max-episode-steps {longest} and mark them truncated.",
            {"episodes": count, "length": longest},
        )


def _check_observations(store: EpisodeStore, survey: Survey) -> Iterator[Finding]:
    for name, values in survey.not_finite.items():
        yield Finding(
            "not-finite",
            "error",
            f"{name} holds NaN or infinity in {_episodes(len(set(values)))}; remove them or repair their source.",
            {"column": name, "episodes": _some(values)},
        )
    for name in vectors(columns_of(store), "observation"):
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
            "divide by their spread (ours does not), and they may be left out.",
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
            f"standard deviations {std[moving].min():.3g} to {std[moving].max():.3g}); keep normalisation of "
            "observations on.",
            {"column": name, "dimensions": dims.tolist()},
        )


def _list(dims: np.ndarray) -> str:
    """As "0, 3-5, 9": neighbours are joined, and after some it ends with dots."""
    runs = np.split(dims, np.flatnonzero(np.diff(dims) > 1) + 1)
    shown = [f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs[:LISTED]]
    return ", ".join([*shown, "..."] if len(runs) > LISTED else shown)


def _check_actions(store: EpisodeStore, survey: Survey) -> Iterator[Finding]:
    for name, space in columns_of(store).items():
        if name.split("/")[0] != "action":
            continue
        if isinstance(space, Box) and name not in survey.outside:
            yield Finding(
                "actions-unbounded",
                "note",
                f"{name} has no bounds, so nothing says whether its values are allowed; import again with "
                "--action-bounds LOW,HIGH if the environment has them.",
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
        f"from {min(space.low):.3g} to {max(space.high):.3g}); the environment will clip them: clip or rescale them "
        "before training.",
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
            f"to {share.max():.0%}); a Gaussian head fits such actions badly: prefer bins, or a mean squared error.",
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
            "be learned from this: use behaviour cloning, or add data of other quality.",
            {"std": float(returns.std()), "mean": float(returns.mean())},
        )


def _check_episodes(store: EpisodeStore, survey: Survey) -> Iterator[Finding]:
    twins = [numbers for numbers in survey.twins.values() if len(numbers) > 1]
    if twins:
        extra = sum(len(numbers) - 1 for numbers in twins)
        yield Finding(
            "duplicate-episodes",
            "warning",
            f"{_episodes(extra)} exactly like others (for example {twins[0][:3]}); such copies weigh double and leak "
            "from training into held-out data: keep one of each.",
            {"episodes": extra, "groups": [numbers[:LISTED] for numbers in twins[:LISTED]]},
        )
    if survey.repeated > REPEATED_SHARE * survey.actions:
        yield Finding(
            "duplicate-steps",
            "note",
            f"{survey.repeated / survey.actions:.1%} of the steps equal the step before in observation, action and "
            "reward; if the recording wrote frames twice, remove them.",
            {"steps": survey.repeated},
        )
    if survey.repeated_finals > 0.5 * store.num_episodes:
        yield Finding(
            "final-repeated",
            "note",
            f"in {survey.repeated_finals} of {store.num_episodes} episodes the final observation equals the last one, "
            "as where a source has no final observation; do not learn dynamics of, or bootstrap from, last steps.",
            {"episodes": survey.repeated_finals},
        )
    yield from _check_lengths(np.asarray(store.episodes["length"]))


def _check_lengths(lengths: np.ndarray) -> Iterator[Finding]:
    short = lengths < SHORT_SHARE * np.median(lengths)
    if short.any():
        yield Finding(
            "short-episodes",
            "note",
            f"{_episodes(int(short.sum()))} shorter than a tenth of the median length {np.median(lengths):g} (the "
            f"shortest has {int(lengths.min())} actions); make sure that they are failures and no fragments, which "
            "are best left out.",
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
