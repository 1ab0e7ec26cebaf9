"""A maze as the graph of its cells, which moves up, down, left and right walk; how it is written: `methods.scripts.graph`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foretoken.core.batch import Batch
from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.core.exhibit import Grid, Path
from foretoken.core.grid import passages
from foretoken.core.spec import Discrete, MultiBinary, Spec
from foretoken.methods.scripts.base import ScriptConfig
from foretoken.methods.scripts.graph import GraphScript

_BACK = (1, 0, 3, 2)  # up, down, left, right


@dataclass(frozen=True, kw_only=True)
class MazeScriptConfig(ScriptConfig):
    """
    Args:
        compact: one token for an edge, for the origin and for the target.
    """

    compact: bool = False


@configures(MazeScriptConfig)
class MazeScript(GraphScript):
    """Reads the observations of `foretoken.envs.diagnostic.maze`; nodes are cells, row by row."""

    def __init__(self, config: MazeScriptConfig, spec: Spec) -> None:
        bits = spec.observation.n if isinstance(spec.observation, MultiBinary) else 0
        size = next((size for size in range(2, 100) if 4 * size * size - 2 * size == bits), 0)
        if not size or spec.action != Discrete(n=4):
            raise ConfigError(
                "mazes are written for observations MultiBinary(4 S^2 - 2 S), S cells a side, and Discrete(4) actions, as "
                f"foretoken/Maze5x5-v0 has them, got {spec.observation} and {spec.action}"
            )
        super().__init__(passages(size), size * size, spec.max_episode_steps, config.compact)
        self.size = size

    def move(self, answer_BN: Tensor, timestep_B: Tensor, previous_B: Tensor) -> Tensor:
        """Where two cells that follow one another are no neighbours, or there are none, a step back, which no exact path has."""
        at_B1 = timestep_B[:, None].clamp(max=answer_BN.shape[1] - 2)
        here_B, there_B = answer_BN.gather(1, at_B1).squeeze(1), answer_BN.gather(1, at_B1 + 1).squeeze(1)
        (row, column), (onward, across) = (
            (torch.div(cell, self.size, rounding_mode="floor"), cell % self.size) for cell in (here_B, there_B)
        )
        down, right = onward - row, across - column
        back_B = torch.tensor(_BACK, device=at_B1.device)[previous_B] * (timestep_B > 0)
        named_B = (down.abs() + right.abs() == 1) & (torch.maximum(here_B, there_B) < self.nodes)
        return torch.where(named_B, torch.where(down != 0, (down + 1) // 2, 2 + (right + 1) // 2), back_B)

    def pictures(self, episodes: Sequence[Batch], answers: Sequence[Tensor]) -> Sequence[Grid]:
        grids = []
        for episode, answer_N in zip(episodes, answers, strict=True):
            first = episode.observation[0, 0]
            apart = self.pairs[first[: len(self.pairs)].cpu() == 0]
            cells = [cell for cell in answer_N.tolist() if cell < self.nodes]
            walked = self.node(episode.observation[0], 0).tolist()
            ways = (
                Path(label="walked", cells=self._places(walked)),
                Path(label="decoded", cells=self._places(cells), look="dashed"),
            )
            ends = {name: self._places([int(self.node(first, part))])[0] for part, name in ((0, "start"), (1, "goal"))}
            walls = [(*self._places([one])[0], *self._places([other])[0]) for one, other in apart.tolist()]
            grids.append(
                Grid(
                    rows=self.size,
                    columns=self.size,
                    walls=walls,
                    paths=tuple(way for way in ways if way.cells),
                    marks=ends,
                )
            )
        return grids

    def _places(self, cells: Sequence[int]) -> list[tuple[int, int]]:
        return [divmod(cell, self.size) for cell in cells]
