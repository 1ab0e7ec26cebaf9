"""The beginnings of recorded episodes: demonstrations so short that what a policy makes of them shows how it generalises."""

from dataclasses import dataclass, replace
from pathlib import Path

from foretoken.data.embedded import open_embedded
from foretoken.data.store import Store
from foretoken.envs.recipes.base import RecipeConfig


@dataclass(frozen=True, kw_only=True)
class Excerpts(RecipeConfig):
    """Episodes cut after some actions, as by a time limit; their returns are those of what is left.

    Args:
        of: an embedded dataset.
        steps: actions that are kept of each episode; shorter ones stay as they are.
    """

    of: str = "halfcheetah-expert-10"
    steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(steps=1)

    def write(self, out: Path) -> None:
        whole = open_embedded(self.of)
        store = Store.create(out, whole.spec, about={"recipe": "excerpts", "version": self.version, "of": self.of})
        for number in range(whole.num_episodes):
            episode, n = whole.episode(number), self.steps
            if episode.length > n:
                truncated = episode.truncated[:n].copy()
                truncated[-1] = True
                episode = replace(
                    episode,
                    observation=episode.observation[: n + 1],
                    action=episode.action[:n],
                    reward=episode.reward[:n],
                    terminated=episode.terminated[:n],
                    truncated=truncated,
                    columns={name: values[:n] for name, values in episode.columns.items()},
                )
            store.append(episode)


RECIPE = Excerpts
