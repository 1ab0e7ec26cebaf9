"""A graph as its edges in random order, origin and target; the answer is the way's nodes, both ends included.

    <ADJLIST_START> (0,0) (1,0) ; (2,1) (1,1) ; ... <ADJLIST_END> <ORIGIN_START> (1,3) <ORIGIN_END> <TARGET_START> (2,0)
    <TARGET_END> <PATH_START>   ->   (1,3) (1,2) ... (2,0) <PATH_END>

A node is one word. The package maze-dataset writes mazes so (Ivanitskiy et al. 2023, arXiv 2309.10498), with a connector in each
edge that Nolte et al. 2024, arXiv 2412.05117, drop. Compact, an edge is one token, the sum of its nodes; so are origin and target
with their nodes, and an answer's node with <PATH_START>: a third of the tokens.
"""

import numpy as np
import torch
from torch import Tensor

from foretoken.core import random
from foretoken.core.batch import Batch
from foretoken.methods.scripts.base import Script

WORDS = (
    ";", "<ADJLIST_START>", "<ADJLIST_END>", "<ORIGIN_START>", "<ORIGIN_END>", "<TARGET_START>", "<TARGET_END>",
    "<PATH_START>", "<PATH_END>",
)  # fmt: skip


class GraphScript(Script):
    """Abstract. Observations are bits: which pairs of nodes are joined, the agent's node, the target's. The nodes are the first
    words, then come WORDS. A subclass says what moves answers name.

    Args:
        pairs_P2: (P, 2) int64, the pairs of nodes that may be joined, in the observation's order.
        nodes: how many.
        steps: of the longest episode, without the final one; a way needs no more than there are nodes.
        compact: one token for an edge, for the origin and for the target.
    """

    def __init__(self, pairs_P2: np.ndarray, nodes: int, steps: int, compact: bool) -> None:
        self.pairs, self.nodes, self.compact = torch.from_numpy(pairs_P2), nodes, compact
        self.word = {word: nodes + number for number, word in enumerate(WORDS)}
        self.vocabulary, self.end = nodes + len(WORDS), self.word["<PATH_END>"]
        self.steps, self.longest = max(steps, nodes) + 1, nodes + 1

    def prompt(self, observation: Tensor, seed_B: Tensor) -> tuple[Tensor, Tensor]:
        edges_BE2, valid_BE = self._edges(observation, seed_B)
        origin_B, target_B = (self.node(observation, part) for part in (0, 1))
        word = lambda name: torch.full_like(origin_B, self.word[name])  # noqa: E731
        if self.compact:
            ends = (("<ORIGIN_START>", origin_B), ("<TARGET_START>", target_B), ("<PATH_START>", word("<PATH_START>")))
            rest_BLW = torch.stack([torch.stack((word(name), node_B), dim=1) for name, node_B in ends], dim=1)
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
        node_BT = self.node(batch.observation, 0).gather(1, order_BT)
        length_B1 = batch.valid.sum(1, keepdim=True)
        node_BN = torch.cat((node_BT, node_BT[:, :1]), dim=1)[:, : int(length_B1.max()) + 1]
        place_N = torch.arange(node_BN.shape[1], device=node_BN.device)
        return torch.where(place_N < length_B1, node_BN, self.end), place_N <= length_B1

    def enter(self, answer_BN: Tensor) -> Tensor:
        if not self.compact:
            return answer_BN[..., None]
        return torch.stack((torch.full_like(answer_BN, self.word["<PATH_START>"]), answer_BN), dim=-1)

    def node(self, observation: Tensor, part: int) -> Tensor:
        """The agent's node (part 0) or the target's (1)."""
        begin = len(self.pairs) + part * self.nodes
        return observation[..., begin : begin + self.nodes].argmax(-1)

    def _edges(self, observation: Tensor, seed_B: Tensor) -> tuple[Tensor, Tensor]:
        """(B, E, 2) pairs of joined nodes, in a random order and each either way round, and which there are, (B, E)."""
        pairs_P2 = self.pairs.to(observation.device)
        joined_BP = observation[:, : len(pairs_P2)] > 0
        u_2BP = torch.stack([random.uniform(random.split(seed_B, key), len(pairs_P2)) for key in (2, 3)])
        count_B1 = joined_BP.sum(1, keepdim=True)
        order_BE = torch.where(joined_BP, u_2BP[0], 2.0).argsort(1)[:, : int(count_B1.max())]
        turned_BE = u_2BP[1].gather(1, order_BE) < 0.5
        edges_BE2 = pairs_P2[order_BE]
        edges_BE2 = torch.where(turned_BE[..., None], edges_BE2.flip(-1), edges_BE2)
        return edges_BE2, torch.arange(order_BE.shape[1], device=order_BE.device) < count_B1
