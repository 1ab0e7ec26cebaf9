"""StarGraph: arms of nodes around a hub, wholly in sight; one arm ends at the target, and only its first step is a choice.

Nodes carry labels drawn anew for every graph. The agent sees three groups of bits: which pairs of labels are joined (in the order
of `numpy.triu_indices`), its own and the target's. An action is a label: the agent goes there if it is joined to its own, else
it stays. It begins at the hub. Arriving ends the episode and earns 1, and is a *success* if every move before went one node on.
A task is the labels; an episode's seed draws the arm. Episodes are cut after as many moves as labels.

Who is shown the way so far reads all but the first step off the graph; that step alone must be searched for, to the end of an
arm. Bachmann and Nagarajan, ICML 2024, arXiv 2403.06963.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from foretoken.core import splitmix
from foretoken.core.errors import ConfigError
from foretoken.core.spec import Discrete, MultiBinary, Spec
from foretoken.envs.diagnostic.world import World

_LABELS, _ARM = 7, 8  # streams of random numbers: a task's, an episode's


class StarGraph(World):
    """
    Args:
        rows: copies.
        id: registered name.
        arms: of the star.
        length: nodes of an arm, the hub not counted.
        labels: of which each node has one of its own.

    Attributes:
        label: (B, nodes) int64; node 0 is the hub, arm k has the nodes 1 + k length .. (k + 1) length from inside out.
        place, target: (B,) int64 nodes; exact: (B,) bool, every move so far went one node on.
    """

    arrays = ("label", "place", "target", "exact")

    def __init__(self, rows: int, id: str, *, arms: int, length: int, labels: int) -> None:
        super().__init__(rows)
        self.arms, self.length, self.labels, nodes = arms, length, labels, 1 + arms * length
        if arms < 1 or length < 1 or labels < nodes:
            raise ConfigError(
                f"a star needs arms and length of at least 1 and a label for each node, got {arms}, {length} and {labels}"
            )
        outer = np.arange(1, nodes)
        self.inner = np.append(0, np.where(outer % length == 1 % length, 0, outer - 1))  # each node's neighbour inwards
        self.bit = np.zeros((labels, labels), np.int64)
        one, other = np.triu_indices(labels, 1)
        self.bit[one, other] = self.bit[other, one] = np.arange(len(one))
        self.spec = Spec(
            observation=MultiBinary(n=len(one) + 2 * labels),
            action=Discrete(n=labels),
            environment=id,
            max_episode_steps=labels,
        )
        self.label = np.tile(np.arange(nodes), (rows, 1))
        self.place, self.target, self.exact = np.zeros(rows, np.int64), np.ones(rows, np.int64), np.ones(rows, bool)

    def observe(self) -> np.ndarray:
        rows, pairs = np.arange(self.rows), self.labels * (self.labels - 1) // 2
        seen = np.zeros((self.rows, pairs + 2 * self.labels), np.int8)
        seen[rows[:, None], self.bit[self.label[:, 1:], self.label[:, self.inner[1:]]]] = 1
        for part, node in enumerate((self.place, self.target)):
            seen[rows, pairs + part * self.labels + self.label[rows, node]] = 1
        return seen

    def expert(self) -> np.ndarray:
        """The label of the next node on the only way: outwards on the target's arm, inwards on others."""
        arm = self.target // self.length - 1  # targets are the last nodes of their arms
        first = 1 + arm * self.length
        outwards = (self.place >= first) & (self.place < self.target)
        going = np.where(outwards, self.place + 1, np.where(self.place == 0, first, self.inner[self.place]))
        return self.label[np.arange(self.rows), going]

    def best_return(self, task: np.ndarray) -> np.ndarray:
        return np.ones(len(task))

    def _begin(self, rows: np.ndarray) -> None:
        u = splitmix.uniform(splitmix.split(self.task[rows], _LABELS), self.labels)
        self.label[rows] = u.argsort(1)[:, : self.label.shape[1]]
        arm = np.floor(splitmix.uniform(splitmix.split(self.seed[rows], _ARM), 1)[:, 0] * self.arms).astype(np.int64)
        self.place[rows], self.target[rows], self.exact[rows] = 0, (arm + 1) * self.length, True

    def _move(self, action: np.ndarray) -> tuple[np.ndarray, np.ndarray, Mapping[str, np.ndarray]]:
        named = self.label == np.asarray(action)[:, None]
        there = np.where(named.any(1), named.argmax(1), self.place)
        onwards = (there != self.place) & (self.inner[there] == self.place)
        joined = onwards | (self.inner[self.place] == there)
        self.exact = self.exact & onwards
        self.place = np.where(joined, there, self.place)
        arrived = self.place == self.target
        return arrived.astype(np.float64), arrived, {"success": arrived & self.exact}


IDS: dict[str, dict[str, Any]] = {
    f"foretoken/StarGraph-{arms}x{length}-{labels}-v0": {"arms": arms, "length": length, "labels": labels}
    for arms, length, labels in ((2, 2, 16), (2, 4, 16), (2, 4, 50), (5, 4, 50))
}
"""Registered names and their settings."""

WORLD = StarGraph
