"""A star graph as edges, hub and target; the answer is the arm's nodes from the hub to the target. See `methods.scripts.graph`.

Bachmann and Nagarajan, ICML 2024, arXiv 2403.06963, write edges from inside out; here each goes either way round.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.core.spec import Discrete, MultiBinary, Spec
from foretoken.methods.scripts.base import ScriptConfig
from foretoken.methods.scripts.graph import GraphScript


@dataclass(frozen=True, kw_only=True)
class StarGraphScriptConfig(ScriptConfig):
    """
    Args:
        compact: one token for an edge, for the origin and for the target.
    """

    compact: bool = False


@configures(StarGraphScriptConfig)
class StarGraphScript(GraphScript):
    """Reads the observations of `foretoken.envs.diagnostic.star_graph`; nodes go by their labels."""

    def __init__(self, config: StarGraphScriptConfig, spec: Spec) -> None:
        labels = spec.action.n if isinstance(spec.action, Discrete) else 0
        if not labels or spec.observation != MultiBinary(n=labels * (labels + 3) // 2):
            raise ConfigError(
                "star graphs are written for observations MultiBinary(C (C + 3) / 2) and Discrete(C) actions, C labels, as "
                f"foretoken/StarGraph-2x4-16-v0 has them, got {spec.observation} and {spec.action}"
            )
        pairs = np.stack(np.triu_indices(labels, 1), axis=1)
        super().__init__(pairs, labels, spec.max_episode_steps, config.compact)

    def move(self, answer_BN: Tensor, timestep_B: Tensor, previous_B: Tensor) -> Tensor:
        """Where no node follows, the label that was named before: the agent stays, which no exact path does."""
        there_B = answer_BN.gather(1, (timestep_B[:, None] + 1).clamp(max=answer_BN.shape[1] - 1)).squeeze(1)
        return torch.where(there_B < self.nodes, there_B, previous_B)
