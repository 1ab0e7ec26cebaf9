"""The laws of stores, and small random stores for the laws of everything else."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_map

from foretoken.core.batch import Batch
from foretoken.core.spec import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Spec, leaves
from foretoken.core.store import EpisodeStore
from foretoken.data.episode import Episode
from foretoken.data.store import Store
from foretoken.testing.agreement import require, require_equal

_VECTOR = Box(shape=(5,))
_HAND = Dict(spaces={"touch": Box(shape=(2, 2)), "mode": MultiDiscrete(nvec=(2, 3))})
SPECS: Mapping[str, Spec] = {
    "continuous": Spec(observation=_VECTOR, action=Box(shape=(3,), low=(-2.0,), high=(1.0,))),
    "unbounded": Spec(observation=_VECTOR, action=Box(shape=(2,))),
    "scalar": Spec(observation=Box(shape=()), action=Box(shape=(), low=(-1.0,), high=(1.0,))),
    "discrete": Spec(observation=_VECTOR, action=Discrete(n=4, start=2)),
    "multi-discrete": Spec(observation=_VECTOR, action=MultiDiscrete(nvec=(3, 2, 4))),
    "multi-binary": Spec(observation=MultiBinary(n=4), action=MultiBinary(n=3)),
    "dict": Spec(
        observation=Dict(spaces={"goal": Discrete(n=3), "hand": _HAND}),
        action=Box(shape=(2,), low=(-1.0, 0.0), high=(1.0, 4.0)),
    ),
    "image": Spec(observation=Box(shape=(3, 36, 36), dtype="uint8", low=(0.0,), high=(255.0,)), action=Discrete(n=3)),
    "maze": Spec(observation=MultiBinary(n=4 * 4 * 4 - 2 * 4), action=Discrete(n=4), max_episode_steps=16),
}
"""One small spec of each kind that a method may meet."""


def random_values(space: Space, count: int, generator: np.random.Generator) -> Any:
    """`count` values of a space: (count, *shape), or a mapping of such for a Dict."""
    match space:
        case Dict():
            return {name: random_values(part, count, generator) for name, part in space.spaces.items()}
        case Discrete():
            return generator.integers(space.start, space.start + space.n, count)
        case MultiDiscrete():
            return generator.integers(0, np.array(space.nvec), (count, *space.shape))
        case MultiBinary():
            return generator.integers(0, 2, (count, space.n), dtype=np.int8)
        case Box(dtype="uint8"):
            return generator.integers(0, 256, (count, *space.shape), dtype=np.uint8)
        case Box():
            low, high = (
                np.broadcast_to(np.array(b), (space.size,)).reshape(space.shape) for b in (space.low, space.high)
            )
            low, high = np.where(np.isfinite(low), low, -1.5), np.where(np.isfinite(high), high, 2.5)
            return generator.uniform(low, high, (count, *space.shape)).astype(space.dtype)
        case _:
            return generator.integers(0, space.vocabulary, (count, space.max_length))


def random_episode(spec: Spec, length: int, generator: np.random.Generator) -> Episode:
    """Random observations, actions and rewards; every other episode is cut by a time limit."""
    end = np.arange(length) == length - 1
    terminated = bool(generator.integers(2))
    return Episode(
        observation=random_values(spec.observation, length + 1, generator),
        action=random_values(spec.action, length, generator),
        reward=generator.normal(1.0, 1.0, length).astype(np.float32),
        terminated=end & terminated,
        truncated=end & ~np.bool_(terminated),
    )


def random_store(
    spec: Spec, *, lengths: tuple[int, ...] = (1, 9, 3, 14, 6, 2, 11), seed: int = 0, rich: bool = False
) -> Store:
    """A store in memory with random episodes of these lengths.

    A rich one has what some systems need besides: the step columns `cost`, `optimal_action` and `next_observation`, and the
    facts `cost`, `success`, `task`, `history` and `order`, three histories of one task each.
    """
    generator = np.random.default_rng(seed)
    columns = {"cost": Box(shape=()), "optimal_action": spec.action, "next_observation": spec.observation}
    store = Store.create(None, spec, columns=columns if rich else None)
    episodes = [random_episode(spec, length, generator) for length in lengths]
    store.extend([_enriched(episode, i, spec, generator) for i, episode in enumerate(episodes)] if rich else episodes)
    return store


def _enriched(episode: Episode, number: int, spec: Spec, generator: np.random.Generator) -> Episode:
    cost, history = generator.integers(0, 2, episode.length).astype(np.float32), number // 3
    columns = {
        "cost": cost,
        "optimal_action": random_values(spec.action, episode.length, generator),
        "next_observation": tree_map(lambda leaf: leaf[1:], episode.observation),
    }
    facts = {"task": 2 * history, "history": history, "order": number % 3, "success": bool(number % 2)}
    return replace(episode, columns=columns, facts={"cost": float(cost.sum()), **facts})


def check_store(store: EpisodeStore) -> None:
    """Checks the laws of addresses, flags, padding, returns and statistics on a store with at least one episode.

    Raises:
        AssertionError: a law does not hold.
    """
    sizes = f"{type(store).__name__} of {store.num_episodes} episodes, {store.num_steps} steps"
    require(store.num_episodes > 0, "a store to check", "has no episodes")
    start, length = (np.asarray(store.episodes[name]) for name in ("start", "length"))
    require(
        int((length + 1).sum()) == store.num_steps,
        "steps",
        f"lengths + 1 add up to {int((length + 1).sum())} ({sizes})",
    )
    at = np.concatenate([np.arange(s, s + n + 1) for s, n in zip(start, length, strict=True)])
    require(len(np.unique(at)) == len(at), "addresses", f"episodes share some ({sizes})")
    flags = ("first", "final", "valid", "timestep", "at", "terminated", "truncated")
    batch = store.gather(at, ("observation", "action", "reward", *flags))
    _check_flags(batch, at, start, length, sizes)
    _check_values(store, batch, start, length, sizes)
    _check_addressing(store, at, sizes)


def _check_flags(batch: Batch, at: np.ndarray, start: np.ndarray, length: np.ndarray, sizes: str) -> None:
    local = np.concatenate([np.arange(n + 1) for n in length])
    last = np.concatenate([np.full(n + 1, n) for n in length])
    expected = {"first": local == 0, "final": local == last, "valid": at >= 0, "timestep": local, "at": at}
    for name, values in expected.items():
        require_equal(batch[name], torch.from_numpy(values), f"column {name!r}", sizes)
    ended = (batch["terminated"] | batch["truncated"]).numpy()
    require(
        not ended[local != last - 1].any(), "episode ends", f"terminated or truncated before the last action ({sizes})"
    )


def _check_values(store: EpisodeStore, batch: Batch, start: np.ndarray, length: np.ndarray, sizes: str) -> None:
    final = batch["final"].numpy()
    rows = np.split(np.arange(len(final)), np.cumsum(length + 1)[:-1])
    require_equal(batch["reward"][final], torch.zeros(int(final.sum())), "reward of final steps is zero", sizes)
    returns = torch.tensor([float(batch["reward"][row].double().sum()) for row in rows])
    require_equal(
        torch.from_numpy(np.asarray(store.episodes["return"])),
        returns,
        "return == sum of rewards",
        sizes,
        tolerance=1e-5,
    )
    for column, space in (("observation", store.spec.observation), ("action", store.spec.action)):
        measured = store.statistics(column)
        paths = sorted(leaves(space))
        require(sorted(measured) == paths, f"statistics of {column!r}", f"by {sorted(measured)}, the space has {paths}")
        for path, found in measured.items():
            values = batch[column]
            for key in path.split("/")[1:]:
                values = values[key]
            kept = values[~batch["final"]].double()
            require(
                found.count == len(kept),
                f"count of {column}{path}",
                f"{found.count} for {len(kept)} steps with an action ({sizes})",
            )
            for name, want in (
                ("mean", kept.mean(0)),
                ("std", kept.std(0, correction=0)),
                ("low", kept.amin(0)),
                ("high", kept.amax(0)),
            ):
                require_equal(
                    torch.as_tensor(getattr(found, name)), want, f"{name} of {column}{path}", sizes, tolerance=1e-6
                )


def _check_addressing(store: EpisodeStore, at: np.ndarray, sizes: str) -> None:
    columns = ("observation", "action", "reward", "first", "final", "valid")
    generator = np.random.default_rng(0)
    mixed = np.where(generator.random((4, 5)) < 0.3, -1, generator.choice(at, (4, 5)))
    together = store.gather(mixed, columns)
    for row in range(4):
        for step in range(5):
            alone = store.gather(mixed[row, step], columns)
            part = tree_map(lambda leaf: leaf[row, step], together)  # noqa: B023
            require_equal(dict(part), dict(alone), "gather of many == gather of one", sizes)
    padded = store.gather(np.array([-1]), columns)
    require_equal(dict(padded), dict(tree_map(torch.zeros_like, padded)), "padding reads zeros", sizes)
