"""A maze as the edges of its graph in random order, origin and target; the answer is the way's cells, both ends included.

    <ADJLIST_START> (0,0) (1,0) ; (2,1) (1,1) ; ... <ADJLIST_END> <ORIGIN_START> (1,3) <ORIGIN_END> <TARGET_START> (2,0)
    <TARGET_END> <PATH_START>   ->   (1,3) (1,2) ... (2,0) <PATH_END>

A cell is one word. The package maze-dataset writes it so (Ivanitskiy et al. 2023, arXiv 2309.10498), with a connector in each
edge that Nolte et al. 2024, arXiv 2412.05117, drop. Compact, an edge is one token, the sum of its cells; so are origin and target
with their cells, and an answer's cell with <PATH_START>: a third of the tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foretoken.core import random
from foretoken.core.batch import Batch
from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.core.exhibit import Grid, Path
from foretoken.core.grid import passages
from foretoken.core.spec import Discrete, MultiBinary, Spec
from foretoken.methods.scripts.base import Script, ScriptConfig

WORDS = (
    ";", "<ADJLIST_START>", "<ADJLIST_END>", "<ORIGIN_START>", "<ORIGIN_END>", "<TARGET_START>", "<TARGET_END>",
    "<PATH_START>", "<PATH_END>",
)  # fmt: skip
_BACK = (1, 0, 3, 2)  # up, down, left, right


@dataclass(frozen=True, kw_only=True)
class MazeScriptConfig(ScriptConfig):
    """
    Args:
        compact: one token for an edge, for the origin and for the target.
    """

    compact: bool = False


@configures(MazeScriptConfig)
class MazeScript(Script):
    """Reads the observations of `foretoken.envs.diagnostic.maze`. The cells are the first words, then come WORDS."""

    def __init__(self, config: MazeScriptConfig, spec: Spec) -> None:
        bits = spec.observation.n if isinstance(spec.observation, MultiBinary) else 0
        size = next((size for size in range(2, 100) if 4 * size * size - 2 * size == bits), 0)
        if not size or spec.action != Discrete(n=4):
            raise ConfigError(
                "mazes are written for observations MultiBinary(4 S^2 - 2 S), S cells a side, and Discrete(4) actions, as "
                f"foretoken/Maze5x5-v0 has them, got {spec.observation} and {spec.action}"
            )
        self.config, self.size, self.cells = config, size, size * size
        self.pairs = torch.from_numpy(passages(size))
        self.word = {word: self.cells + number for number, word in enumerate(WORDS)}
        self.vocabulary, self.end = self.cells + len(WORDS), self.word["<PATH_END>"]
        self.steps = max(spec.max_episode_steps, self.cells) + 1
        self.longest = self.cells + 1

    def prompt(self, observation: Tensor, seed_B: Tensor) -> tuple[Tensor, Tensor]:
        edges_BE2, valid_BE = self._edges(observation, seed_B)
        origin_B, target_B = (self._cell(observation, part) for part in (0, 1))
        word = lambda name: torch.full_like(origin_B, self.word[name])  # noqa: E731
        if self.config.compact:
            ends = (("<ORIGIN_START>", origin_B), ("<TARGET_START>", target_B), ("<PATH_START>", word("<PATH_START>")))
            rest_BLW = torch.stack([torch.stack((word(name), cell_B), dim=1) for name, cell_B in ends], dim=1)
            tokens_BLW, lead = torch.cat((edges_BE2, rest_BLW), dim=1), 0
        else:
            apart = edges_BE2.new_full((*edges_BE2.shape[:2], 1), self.word[";"])
            names = ("<ADJLIST_END>", "<ORIGIN_START>", origin_B, "<ORIGIN_END>", "<TARGET_START>", target_B)
            rest = [word(part) if isinstance(part, str) else part for part in (*names, "<TARGET_END>", "<PATH_START>")]
            start_B1, lead = word("<ADJLIST_START>")[:, None], 1
            body_BL = torch.cat((edges_BE2, apart), dim=2).flatten(1)
            tokens_BLW = torch.cat((start_B1, body_BL, torch.stack(rest, dim=1)), dim=1)[..., None]
            valid_BE = valid_BE.repeat_interleave(3, dim=1)
        there = valid_BE.new_ones(len(valid_BE), tokens_BLW.shape[1] - valid_BE.shape[1])
        return tokens_BLW, torch.cat((there[:, :lead], valid_BE, there[:, lead:]), dim=1)

    def answer(self, batch: Batch) -> tuple[Tensor, Tensor]:
        order_BT = torch.argsort(~batch.valid, dim=1, stable=True)  # whichever side is padded
        cell_BT = self._cell(batch.observation, 0).gather(1, order_BT)
        length_B1 = batch.valid.sum(1, keepdim=True)
        cell_BN = torch.cat((cell_BT, cell_BT[:, :1]), dim=1)[:, : int(length_B1.max()) + 1]
        place_N = torch.arange(cell_BN.shape[1], device=cell_BN.device)
        return torch.where(place_N < length_B1, cell_BN, self.end), place_N <= length_B1

    def enter(self, answer_BN: Tensor) -> Tensor:
        if not self.config.compact:
            return answer_BN[..., None]
        return torch.stack((torch.full_like(answer_BN, self.word["<PATH_START>"]), answer_BN), dim=-1)

    def move(self, answer_BN: Tensor, timestep_B: Tensor, previous_B: Tensor) -> Tensor:
        """Where two cells that follow one another are no neighbours, or there are none, a step back, which no exact path has."""
        at_B1 = timestep_B[:, None].clamp(max=answer_BN.shape[1] - 2)
        here_B, there_B = answer_BN.gather(1, at_B1).squeeze(1), answer_BN.gather(1, at_B1 + 1).squeeze(1)
        (row, column), (onward, across) = (
            (torch.div(cell, self.size, rounding_mode="floor"), cell % self.size) for cell in (here_B, there_B)
        )
        down, right = onward - row, across - column
        back_B = torch.tensor(_BACK, device=at_B1.device)[previous_B] * (timestep_B > 0)
        named_B = (down.abs() + right.abs() == 1) & (torch.maximum(here_B, there_B) < self.cells)
        return torch.where(named_B, torch.where(down != 0, (down + 1) // 2, 2 + (right + 1) // 2), back_B)

    def pictures(self, episodes: Sequence[Batch], answers: Sequence[Tensor]) -> Sequence[Grid]:
        grids = []
        for episode, answer_N in zip(episodes, answers, strict=True):
            first = episode.observation[0, 0]
            apart = self.pairs[first[: len(self.pairs)].cpu() == 0]
            cells = [cell for cell in answer_N.tolist() if cell < self.cells]
            walked = self._cell(episode.observation[0], 0).tolist()
            ways = (
                Path(label="walked", cells=self._places(walked)),
                Path(label="decoded", cells=self._places(cells), look="dashed"),
            )
            ends = {name: self._places([int(self._cell(first, part))])[0] for part, name in ((0, "start"), (1, "goal"))}
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

    def _cell(self, observation: Tensor, part: int) -> Tensor:
        """The agent's cell (part 0) or the target's (1)."""
        begin = len(self.pairs) + part * self.cells
        return observation[..., begin : begin + self.cells].argmax(-1)

    def _edges(self, observation: Tensor, seed_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, E, 2) pairs of joined cells, in a random order and each either way round, and which there are, (B, E)."""
        pairs_P2 = self.pairs.to(observation.device)
        joined_BP = observation[:, : len(pairs_P2)] > 0
        u_2BP = torch.stack([random.uniform(random.split(seed_B, key), len(pairs_P2)) for key in (2, 3)])
        count_B1 = joined_BP.sum(1, keepdim=True)
        order_BE = torch.where(joined_BP, u_2BP[0], 2.0).argsort(1)[:, : int(count_B1.max())]
        turned_BE = u_2BP[1].gather(1, order_BE) < 0.5
        edges_BE2 = pairs_P2[order_BE]
        edges_BE2 = torch.where(turned_BE[..., None], edges_BE2.flip(-1), edges_BE2)
        return edges_BE2, torch.arange(order_BE.shape[1], device=order_BE.device) < count_B1
