"""Script: a problem written as tokens, the prompt, its solution as further tokens, the answer, and moves read from an answer.

A token is a sum of W words, which are numbers below `vocabulary`; an answer is made of single words, that `enter` turns into
tokens. L counts tokens of a prompt, N those of an answer.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from foretoken.core.batch import Batch
from foretoken.core.config import Config
from foretoken.core.exhibit import Grid


class Script(ABC):
    """Abstract; constructed as `Owner(config, spec)`. Pure: what is random follows from seeds per row.

    Attributes:
        vocabulary: number of words.
        end: the word that ends an answer.
        longest: tokens of the longest answer, its end included.
        steps: steps of the longest recorded episode, the final one included.
    """

    vocabulary: int
    end: int
    longest: int
    steps: int

    @abstractmethod
    def prompt(self, observation: Any, seed_B: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, W) int64 for first observations (B, ...), and which of them there are, (B, L) bool."""

    @abstractmethod
    def answer(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Words (B, N) int64 of the solutions that whole recorded episodes show, padded on the right, and which there are."""

    @abstractmethod
    def enter(self, answer_BN: Tensor) -> Tensor:
        """(B, N, W): an answer's words as tokens."""

    @abstractmethod
    def move(self, answer_BN: Tensor, timestep_B: Tensor, previous_B: Tensor) -> Tensor:
        """(B,) the actions that answers name for these steps; where they name none, what makes the attempt fail for sure if there is
        such an action. `previous_B` are the actions before."""

    def pictures(self, episodes: Sequence[Batch], answers: Sequence[Tensor]) -> Sequence[Grid]:
        """Of played episodes, each a Batch of one row, and the answers (N,) they followed; () where there is nothing to draw."""
        return ()


class ScriptConfig(Config):
    """Base of the scripts' configs; `build(spec)` makes the script."""
