"""A person's 25 demonstrations of opening a door with the Adroit hand, for AdroitHandDoor-v1 (extra `robotics`).

From hand_dapg (github.com/aravindr93/hand_dapg, dapg/demonstrations/door-v0_demos.pickle, Apache-2.0; Rajeswaran et al., RSS
2018, arXiv 1709.10087). A pickle runs code when it is read, so this takes the same arrays as an npz without pickles:
observations (6729, 39), actions (6729, 28), rewards (6729,), all episodes after one another, and episode_lengths (25,).

The demonstrations take 223 to 300 steps and return 794 in the mean. AdroitHandDoor-v1 ends after 200: by then the person had
opened the door in 6 of the 25 and earned 172, which is what a faithful clone would reach.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from foretoken.core.errors import DataError
from foretoken.core.spec import Box, Spec
from foretoken.data.embedded import cache_folder
from foretoken.data.episode import Episode
from foretoken.data.store import Store
from foretoken.envs.recipes.base import RecipeConfig

OPEN = 1.35  # radians of the hinge from which the environment speaks of success
HINGE = 28  # its place in the observation


@dataclass(frozen=True, kw_only=True)
class AdroitDoorHuman(RecipeConfig):
    """Actions, which reach 1.37, are clipped to the environment's [-1, 1]. The last observation, which has no successor, comes twice.

    Args:
        file: the npz; "" is adroit-door-human.npz in the cache folder's `downloads`.
    """

    file: str = ""

    @property
    def path(self) -> Path:
        return Path(self.file).expanduser() if self.file else cache_folder() / "downloads" / "adroit-door-human.npz"

    def missing(self) -> str:
        """What is not there to learn from it and to play; "" where all is."""
        if not self.path.is_file():
            return f"there is no {self.path.name} in {self.path.parent}"
        return "" if find_spec("gymnasium_robotics") else "gymnasium-robotics is not installed"

    def write(self, out: Path) -> None:
        if not self.path.is_file():
            raise DataError(
                f"{self.path} does not exist; see {__name__} for what it must hold, and where that comes from"
            )
        with np.load(self.path, allow_pickle=False) as found:
            observation, action, reward = (found[name] for name in ("observations", "actions", "rewards"))
            stops = np.cumsum(found["episode_lengths"])
        spec = Spec(
            observation=Box(shape=observation.shape[1:]),
            action=Box(shape=action.shape[1:], low=(-1,), high=(1,)),
            environment="AdroitHandDoor-v1",
            max_episode_steps=200,
        )
        store = Store.create(out, spec, about={"recipe": "adroit-door-human", "version": self.version})
        for start, stop in zip([0, *stops[:-1]], stops, strict=True):
            ends = np.arange(start, stop) == stop - 1
            store.append(
                Episode(
                    observation=observation[[*range(start, stop), stop - 1]].astype(np.float32),
                    action=action[start:stop].clip(-1, 1).astype(np.float32),
                    reward=reward[start:stop],
                    terminated=np.zeros_like(ends),
                    truncated=ends,
                    facts={"success": bool((observation[start:stop, HINGE] >= OPEN).any())},
                )
            )


RECIPE = AdroitDoorHuman
