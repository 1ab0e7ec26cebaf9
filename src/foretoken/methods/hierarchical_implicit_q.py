"""The critics of hierarchical implicit Q-learning as a part: how far it is to a goal, and where to be some steps from now.

    V(s, g)     learns the expectile tau of  -1 + gamma V'(s', g),  and 0 where s is the goal; V' is a slow copy
    high(s, g)  learns the difference from s to the state w steps later, weighted by exp(beta (V(s_w, g) - V(s, g)))

Goals are states: the present one, later ones of the same trajectory, or any of the data. Neither rewards nor actions are read,
and a trajectory ends where its episode does: whether it was terminated plays no part. States are vectors.

Paper: Park, Ghosh, Eysenbach, Levine, "HIQL: Offline Goal-Conditioned RL with Latent States as Actions", NeurIPS 2023,
arXiv 2307.11949, without its latent states and its low level, which whoever owns this part replaces.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from foretoken.core.batch import Batch, Loss
from foretoken.core.config import Config, configures
from foretoken.core.errors import ConfigError
from foretoken.core.method import Objective
from foretoken.core.spec import Box, Spec, Window
from foretoken.core.store import EpisodeStore, joint_statistics
from foretoken.methods.implicit_q import perceptron
from foretoken.nn.embed.normalise import Standardise
from foretoken.nn.fitted import Fitted, once
from foretoken.nn.target import Target
from foretoken.objectives.expectile import expectile_weight
from foretoken.objectives.implicit_q import advantage_weights


@dataclass(frozen=True, kw_only=True)
class HierarchicalImplicitQConfig(Config):
    """
    Args:
        width, num_layers: hidden layers of the two networks of V, and of the high actor.
        way_steps: how far ahead sub-goals are, w.
        reach: how far ahead goals are sought in a trajectory, in steps.
        current, other: shares of V's goals that are the state itself, and a state drawn from all data; the rest lie ahead in
            the trajectory, at distances that are geometric with the discount.
        distant: share of the high actor's goals that are drawn from all data; the rest lie ahead, evenly.
        expectile, discount, tau: as in `ImplicitQConfig`.
        beta: inverse temperature of the high actor's weights, which are at most 100.
        standardise: centre and scale states by the data of the stage that trains the critics; the paper does not.
    """

    width: int = 512
    num_layers: int = 3
    way_steps: int = 25
    reach: int = 500
    current: float = 0.2
    other: float = 0.1
    distant: float = 0.1
    expectile: float = 0.7
    discount: float = 0.99
    tau: float = 0.005
    beta: float = 1.0
    standardise: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("width", "num_layers", "way_steps", "reach"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("expectile", "discount", "tau"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} must lie in (0, 1), got {getattr(self, name)}")
        if min(self.current, self.other, self.distant) < 0 or max(self.current + self.other, self.distant) > 1:
            shares = f"current={self.current}, other={self.other} and distant={self.distant}"
            raise ConfigError(f"shares of goals must lie in [0, 1], current and other together too, got {shares}")


class _Values(nn.Module):
    """V(s, g) by two networks, (..., 2)."""

    def __init__(self, config: HierarchicalImplicitQConfig, size: int) -> None:
        super().__init__()
        sizes = (2 * size, config.width, config.num_layers, 1)
        self.each = nn.ModuleList(perceptron(*sizes, norm=True) for _ in range(2))

    def forward(self, state: Tensor, goal: Tensor) -> Tensor:
        x = torch.cat((state, goal), dim=-1)
        return torch.cat([network(x) for network in self.each], dim=-1)


@configures(HierarchicalImplicitQConfig)
class HierarchicalImplicitQ(Fitted):
    """See the module. States and goals given to its functions are those that `standardise` answers."""

    goal: Tensor
    """(O,) the mean state in which the highest reward of the data was earned: what to reach where nothing else is said."""

    def __init__(self, config: HierarchicalImplicitQConfig, spec: Spec) -> None:
        super().__init__()
        if not isinstance(spec.observation, Box) or len(spec.observation.shape) != 1:
            raise ConfigError(f"sub-goals need observations that are vectors, got {spec.observation}")
        self.config, self.size = config, spec.observation.size
        self.standardise = Standardise(spec.observation.shape)
        self.both = _Values(config, self.size)
        self.slow = Target(self.both)
        self.high = perceptron(2 * self.size, config.width, config.num_layers, self.size)
        self.register_buffer("goal", torch.zeros(self.size))

    def fit(self, stores: Mapping[str, EpisodeStore]) -> None:
        """Takes scales and goal from the data, once; call it in the stage that trains the critics only."""
        if stores:
            self._fit(stores)

    @once
    def _fit(self, stores: Mapping[str, EpisodeStore]) -> None:
        if self.config.standardise:
            self.standardise.fit(joint_statistics(stores, "observation")[""])
        best = max(float(store.statistics("reward")[""].high) for store in stores.values())
        self.goal.copy_(self.standardise(torch.cat([_after(store, best) for store in stores.values()]).mean(0)))

    def values(self, state: Tensor, goal: Tensor) -> Tensor:
        """V(s, g), (...): minus the discounted number of steps."""
        return self.both(state, goal).mean(-1)

    def advantage(self, state: Tensor, later: Tensor, goal: Tensor) -> Tensor:
        """V(s', g) - V(s, g), (...)."""
        return self.values(later, goal) - self.values(state, goal)

    def subgoal(self, state: Tensor, goal: Tensor) -> Tensor:
        """s + high(s, g) (..., O): where to be `way_steps` from now."""
        return state + self.high(torch.cat((state, goal), dim=-1))

    def objective(self, name: str = "critic", view: str = "data") -> Objective:
        """The objective that trains V and the high actor, on what follows a state and on other states, drawn from `view`."""
        ahead = Window(length=self.config.reach + 1, columns=("observation",), final=True)
        reads = {view: ahead, f"{view}/goal": Window(length=1, columns=("observation",))}
        return Objective(name, self.loss, trains=(self.both, self.high), reads=reads)

    def loss(self, ahead: Batch, others: Batch) -> Loss:
        """Both losses for the first step of each window of `ahead` (B, T); `others` (B, 1) are states of all data."""
        states, other = self.standardise(ahead.observation), self.standardise(others.observation[:, 0])
        first, last = ends(ahead.valid)
        value = self._value_loss(states, first, last, other)
        high = self._high_loss(states, first, last, other)
        with torch.no_grad():
            mean = self.values(pick(states, first), pick(states, last)).mean()
        metrics = {"value_loss": value.detach(), "high_loss": high.detach(), "value": mean}
        return Loss(value + high, metrics, weight=float(len(first)))

    def _value_loss(self, states: Tensor, first: Tensor, last: Tensor, other: Tensor) -> Tensor:
        config, (kind, chance) = self.config, torch.rand(2, len(first), device=first.device)
        steps = (torch.log1p(-chance) / np.log(config.discount)).ceil().long()
        arrived = kind < config.current
        goal = pick(states, torch.where(arrived, first, torch.minimum(first + steps, last)))
        goal = torch.where((kind >= 1 - config.other)[:, None], other, goal)
        state, ahead = pick(states, first), ~arrived[:, None]
        targets = ahead * (config.discount * self.slow(pick(states, first + 1), goal) - 1)
        weight = expectile_weight(self.slow(state, goal).mean(-1), targets.amin(-1), config.expectile)
        return (weight * (self.both(state, goal) - targets).square().sum(-1)).mean()

    def _high_loss(self, states: Tensor, first: Tensor, last: Tensor, other: Tensor) -> Tensor:
        config, (kind, chance) = self.config, torch.rand(2, len(first), device=first.device)
        distant, at = kind < config.distant, first + 1 + (chance * (last - first)).long()
        goal = torch.where(distant[:, None], other, pick(states, at))
        way = pick(states, torch.minimum(first + config.way_steps, torch.where(distant, last, at)))
        state = pick(states, first)
        with torch.no_grad():
            weight = advantage_weights(self.advantage(state, way, goal), config.beta)
        return (weight * (self.subgoal(state, goal) - way).square().mean(-1)).mean()

    def after_update(self) -> None:
        """After each update of the objective: the slow copy follows."""
        self.slow.update(self.both, self.config.tau)


def ends(valid_BT: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) int64 each: where the steps of a window begin and end, on whichever side it is padded."""
    first = valid_BT.int().argmax(1)
    return first, first + valid_BT.sum(1) - 1


def pick(values_BT: Tensor, index: Tensor) -> Tensor:
    """The values (B, ...) or (B, N, ...) at places (B,) or (B, N) of windows (B, T, ...)."""
    rows = torch.arange(len(index), device=index.device)
    return values_BT[rows.reshape(-1, *[1] * (index.dim() - 1)), index]


def _after(store: EpisodeStore, reward: float) -> Tensor:
    """(N, O) the observations that followed rewards as high as this."""
    start, length = store.episodes["start"], store.episodes["length"]
    at = np.concatenate([np.arange(begin, begin + count) for begin, count in zip(start, length, strict=True)])
    found = store.gather(at, ("reward",)).reward.numpy() >= np.float32(reward)
    return store.gather(at[found] + 1, ("observation",)).observation
