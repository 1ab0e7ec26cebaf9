"""A model of one step: an MLP from an observation and an action to the change of the observation, and the reward.

    (o_t, a_t)  ->  o_(t+1) - o_t,  r_t        squared errors of what is standardised

It remembers nothing. The usual rival of a sequence model; deterministic, as in Nagabandi et al. 2018, arXiv 1708.02596.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from foretoken.core.batch import Batch, Loss, masked_mean
from foretoken.core.config import configures
from foretoken.core.spec import Spec
from foretoken.core.state import State
from foretoken.core.store import EpisodeStore, Statistics, joint_statistics
from foretoken.methods.dynamics.base import Dynamics, DynamicsConfig, box
from foretoken.nn.embed.normalise import Standardise
from foretoken.nn.feed_forward import Activation, activate

_SAMPLE = 20_000  # transitions, at most, from which the size of a change is taken


@dataclass(frozen=True, kw_only=True)
class MLPDynamicsConfig(DynamicsConfig):
    """
    Args:
        width: of the hidden layers.
        num_layers: hidden layers.
        activation: between them.
    """

    width: int = 200
    num_layers: int = 3
    activation: Activation = "silu"


@configures(MLPDynamicsConfig)
class MLPDynamics(Dynamics):
    """See the module."""

    def __init__(self, config: MLPDynamicsConfig, spec: Spec, steps: int) -> None:
        super().__init__()
        size, dims, width = box(spec, "observation").size, box(spec, "action").size, config.width
        self.activation: Activation = config.activation
        self.seen, self.change, self.reward = Standardise((size,)), Standardise((size,)), Standardise(())
        sizes = [size + dims, *[width] * config.num_layers]
        self.hidden = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.out = nn.Linear(sizes[-1], size + 1)

    def fit(self, stores: Mapping[str, EpisodeStore]) -> None:
        self.seen.fit(_flat(joint_statistics(stores, "observation")[""]))
        self.reward.fit(joint_statistics(stores, "reward")[""])
        changes = np.concatenate([_changes(store) for store in stores.values()])
        parts = (changes.mean(0), changes.std(0), changes.min(0), changes.max(0))
        self.change.fit(Statistics(len(changes), *parts))

    def forward(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Standardised changes (..., O) and rewards (...)."""
        x = torch.cat((self.seen(observation), action), dim=-1)
        for layer in self.hidden:
            x = activate(layer(x), self.activation)
        y = self.out(x)
        return y[..., :-1], y[..., -1]

    def loss(self, batch: Batch, observation_BTO: Tensor, action_BTA: Tensor) -> Loss:
        change, reward = self(observation_BTO[:, :-1], action_BTA[:, :-1])
        wanted = self.change(observation_BTO[:, 1:] - observation_BTO[:, :-1])
        scored = batch.scored[:, :-1] & batch.valid[:, 1:]
        of_change, count = masked_mean((change - wanted).square().mean(-1), scored)
        of_reward, _ = masked_mean((reward - self.reward(batch.reward[:, :-1])).square(), scored)
        return Loss(of_change + of_reward, {"observation": of_change, "reward": of_reward}, weight=count)

    def begin(
        self, observation_BTO: Tensor, action_BTA: Tensor, valid_BT: Tensor, seed_B: Tensor | None = None
    ) -> State:
        return {"observation": observation_BTO[:, -1]}

    def step(self, state: State, action_RA: Tensor) -> tuple[Tensor, State]:
        now = state["observation"]
        change, reward = self(now, action_RA)
        after = now + change * self.change.std + self.change.mean
        return reward * self.reward.std + self.reward.mean, {"observation": after}

    def observation(self, state: State) -> Tensor:
        seen: Tensor = state["observation"]
        return seen


def _flat(found: Statistics) -> Statistics:
    return Statistics(found.count, *(np.reshape(part, -1) for part in (found.mean, found.std, found.low, found.high)))


def _changes(store: EpisodeStore) -> np.ndarray:
    """(N, O) changes of the observation over steps that are spread evenly over a store."""
    at = np.unique(np.linspace(0, store.num_steps - 2, min(_SAMPLE, store.num_steps - 1)).astype(np.int64))
    pairs = store.gather(np.stack((at, at + 1), axis=1), ("observation", "final"))
    seen = pairs.observation[~pairs.final[:, 0]].double().flatten(2)
    return np.asarray(seen[:, 1] - seen[:, 0])
