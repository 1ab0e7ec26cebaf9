"""The data that everything is measured on: synthetic episodes of Hopper's shape, the same for all libraries."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from foretoken.core.spec import Box, Spec
from foretoken.data import Episode, Store, open_store

OBSERVATION, ACTION = 11, 3
SPEC = Spec(
    observation=Box(shape=(OBSERVATION,)), action=Box(shape=(ACTION,), low=(-1.0,), high=(1.0,)), max_episode_steps=1000
)


@dataclass(frozen=True)
class Data:
    """Episodes of 200 to 1000 steps with about `transitions` steps in all; files made from them lie in `folder`."""

    folder: Path
    transitions: int = 1_000_000

    @cached_property
    def lengths(self) -> np.ndarray:
        rng = np.random.default_rng(0)
        return rng.integers(200, 1001, size=round(self.transitions / 600))

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """observation (M, 11), next_observation, action (M, 3), reward, return_to_go, timestep, done (M,), flat over episodes."""
        rng, total = np.random.default_rng(1), int(self.lengths.sum())
        observation = rng.standard_normal((total + 1, OBSERVATION), dtype=np.float32)
        reward = rng.standard_normal(total, dtype=np.float32) + 1
        done = np.zeros(total, bool)
        done[np.cumsum(self.lengths) - 1] = True
        togo = [
            np.cumsum(part[::-1], dtype=np.float64)[::-1] for part in np.split(reward, np.cumsum(self.lengths)[:-1])
        ]
        return {
            "observation": observation[:-1],
            "next_observation": observation[1:],
            "action": rng.uniform(-1, 1, (total, ACTION)).astype(np.float32),
            "reward": reward,
            "return_to_go": np.concatenate(togo).astype(np.float32),
            "timestep": np.concatenate([np.arange(length) for length in self.lengths]),
            "done": done,
        }

    def episodes(self) -> list[Episode]:
        """The same as episodes, each with its final observation."""
        ends = np.cumsum(self.lengths)
        flat, made = self.arrays, []
        for end, length in zip(ends, self.lengths, strict=True):
            steps = slice(end - length, end)
            observation = np.concatenate((flat["observation"][steps], flat["next_observation"][end - 1 : end]))
            truncated = np.zeros(length, bool)
            made.append(
                Episode(
                    observation=observation,
                    action=flat["action"][steps],
                    reward=flat["reward"][steps],
                    terminated=flat["done"][steps],
                    truncated=truncated,
                )
            )
        return made

    @cached_property
    def store(self) -> Store:
        """Our store of them, on the disk and memory-mapped; made by whoever asks first."""
        path = self.folder / "store"
        if path.exists():
            return open_store(path)
        store = Store.create(path, SPEC)
        store.extend(self.episodes())
        return store


def repeated(path: Path, episodes: int, length: int, *, different: int = 32) -> Path:
    """A store of equally long episodes, `different` of them over and over, each at its own place in the file; made once."""
    if path.exists():
        return path
    ended = np.arange(length) == length - 1
    pool = []
    for rng in np.random.default_rng(0).spawn(different):
        pool.append(
            Episode(
                observation=rng.standard_normal((length + 1, OBSERVATION), dtype=np.float32),
                action=rng.uniform(-1, 1, (length, ACTION)).astype(np.float32),
                reward=rng.standard_normal(length, dtype=np.float32) + 1,
                terminated=ended,
                truncated=np.zeros(length, bool),
            )
        )
    store = Store.create(path, replace(SPEC, max_episode_steps=length))
    store.extend(pool[number % different] for number in range(episodes))
    store.close()
    return path
