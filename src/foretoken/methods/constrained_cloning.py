"""Constrained cloning: a return and a limit of cost are asked for; where both cannot be had, the limit is kept.

    a_(t-1)  R_t  C_t  s_t  ->  a_t at s_t,  and at a_t whether the step costs anything

Data hold no trajectory that earns much for little cost, so they do not say which of two such wishes to give up. Infeasible
pairs are therefore drawn above the Pareto front and given to trajectories that cost no more than the pair allows, whose returns
and costs to go are shifted to start at the pair (`foretoken.methods.pareto`). A trajectory with k pairs stands k + 1
times in the data, once as recorded: windows come from trajectories drawn evenly, each window takes one of its trajectory's
k + 1 labels by chance, and its loss counts k + 1 times. Liu et al., ICML 2023, arXiv 2302.07351.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core.batch import Batch, Loss, masked_mean
from foretoken.core.config import Config, configures
from foretoken.core.errors import ConfigError, DataError
from foretoken.core.method import Method, Objective, Policy
from foretoken.core.spec import Box, Spec
from foretoken.core.store import EpisodeStore
from foretoken.methods.conditioned_cloning import ConditionedCloning, ConditionedCloningConfig, shifted
from foretoken.methods.conditions.both import BothConfig
from foretoken.methods.conditions.cost_to_go import CostToGoConfig
from foretoken.methods.conditions.return_to_go import ReturnToGoConfig
from foretoken.methods.pareto import InfeasibleConfig, relabel
from foretoken.nn.heads.base import Prediction
from foretoken.nn.heads.gaussian import GaussianConfig

APART, NOBODY = 1 << 40, (1 << 63) - 1  # between addresses of two stores, and beyond all


def asked(returns: float, costs: float) -> BothConfig:
    """A return and a cost, each with a token of its own, over these scales; 0 takes one from the data."""
    return BothConfig(of=(ReturnToGoConfig(scale=returns), CostToGoConfig(scale=costs)))


READER = ConditionedCloningConfig(
    context=10, condition=asked(0.0, 0.0), head=GaussianConfig(squash=False), acting="mode"
)


@dataclass(frozen=True, kw_only=True)
class ConstrainedCloningConfig(Config):
    """
    Args:
        cloning: the sequence network, what it is asked for, and the Gaussian over actions.
        cost_weight: of the loss of the cost's class, beside the action's 1.
        temperature: the entropy's weight at first. It is learned: it rises while the entropy, of actions scaled to [-1, 1],
            is below minus the number of their entries.
        pairs: which infeasible pairs are drawn, and who stands for them; None trains on the data as they are.
        room: for how many pairs there is room in a checkpoint.
    """

    cloning: ConditionedCloningConfig = READER
    cost_weight: float = 0.02
    temperature: float = 0.1
    pairs: InfeasibleConfig | None = InfeasibleConfig()
    room: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        cloning = self.cloning
        if not isinstance(cloning.head, GaussianConfig):
            raise ConfigError(f"head must be a Gaussian, for likelihood and entropy, got {type(cloning.head).__name__}")
        if cloning.layout == "joined" or cloning.across or cloning.context < 2:
            raise ConfigError(
                "cloning needs a token for the previous action, windows inside episodes and at least 2 steps of context, got "
                f"layout={cloning.layout!r}, across={cloning.across!r} and context={cloning.context}"
            )
        if self.temperature <= 0:
            raise ConfigError(f"temperature must be positive, got {self.temperature}")


@configures(ConstrainedCloningConfig)
class ConstrainedCloning(Method):
    """Minimises -[log pi(a_t) + temperature * entropy] + cost_weight * cross-entropy of the cost's class; see the module."""

    owner: Tensor
    shift: Tensor
    copies: Tensor
    entropy: Tensor

    def __init__(self, config: ConstrainedCloningConfig, spec: Spec) -> None:
        super().__init__()
        self.config = config
        self.cloning = ConditionedCloning(config.cloning, spec)
        self.asks = self.cloning.asks
        if "target_cost" not in self.asks or "target_return" not in self.asks:
            raise ConfigError(f"the condition must ask for a target_return and a target_cost, got {self.asks}")
        assert isinstance(spec.action, Box)  # or there were no Gaussian
        self.least_entropy = -spec.action.size
        self.cost_class = nn.Linear(config.cloning.backbone.width, 2)
        self.temperature = nn.ParameterList([torch.tensor(math.log(config.temperature))])
        self.register_buffer("owner", torch.full((config.room,), NOBODY))
        self.register_buffer("shift", torch.zeros(config.room, 2))
        self.register_buffer("copies", torch.ones(()))
        self.register_buffer("entropy", torch.zeros(()))
        self.window = self.cloning.window.replace(columns=(*self.cloning.window.columns, "cost"), weights="episodes")

    def fit(self, stores: Mapping[str, EpisodeStore], stage: str) -> None:
        self.cloning.fit(stores, stage)
        if self.config.pairs is None or not stores:
            return
        found = [_outcomes(number * APART, *named) for number, named in enumerate(stores.items())]
        start, returns, costs = (np.concatenate(part) for part in zip(*found, strict=True))
        generator = np.random.default_rng(int(torch.randint(NOBODY, ())))
        pairs = relabel(returns, costs, self.config.pairs, generator)
        owner, count = start[pairs.episode], len(pairs.episode)
        if count > self.config.room:
            raise ConfigError(f"room must be at least the number of infeasible pairs, {count}, got {self.config.room}")
        order = np.argsort(owner, kind="stable")
        self.owner.fill_(NOBODY)
        self.owner[:count] = torch.from_numpy(owner[order])
        self.shift[:count] = torch.from_numpy(np.stack((pairs.return_shift, pairs.cost_shift), axis=1)[order])
        self.copies.fill_(1 + count / len(start))

    def relabelled(self, batch: Batch) -> tuple[Batch, Tensor]:
        """The windows with one of their trajectory's labels each, and the weights (B, 1) of their losses, 1 in the mean."""
        owner_B = torch.where(batch.valid, batch.at - batch.timestep, -1).amax(1)
        if "store" in batch:
            owner_B = owner_B + batch.store * APART
        first_B, last_B = (torch.searchsorted(self.owner, owner_B, right=right) for right in (False, True))
        pairs_B = last_B - first_B
        label_B = first_B + (torch.rand(len(owner_B), device=owner_B.device) * (pairs_B + 1)).long()
        shift_B2 = self.shift[label_B.clamp(max=self.config.room - 1)] * (label_B < last_B)[:, None]
        names = ("return_to_go", "cost_to_go")
        moved = {name: batch[name] + part for name, part in zip(names, shift_B2.split(1, dim=1), strict=True)}
        return batch.replace(**moved), (1 + pairs_B[:, None]) / self.copies

    def forward(self, batch: Batch, read: slice = slice(None)) -> Prediction:
        """Predictions of the actions of recorded windows at the steps that `read` picks."""
        return self.cloning(batch, read)

    def predict(self, batch: Batch) -> tuple[Prediction, Tensor, Mapping[str, Tensor]]:
        """Of windows of T steps the predictions of actions, the logits (B, T - 1, 2) of what all but the last cost, and `aux`."""
        cloning, steps = self.cloning, batch.valid.shape[1]
        assert cloning.condition is not None
        told = cloning.condition.hindsight(batch)
        x, tokens = cloning.encode(batch.observation, shifted(batch.action), told, batch.timestep, batch.valid, None)
        y, _, aux = cloning.backbone(x, tokens=tokens)
        state, action = cloning.places(slice(None), steps), cloning.places(slice(1, None), steps, token=0)
        return cloning.head(y[:, state]), self.cost_class(y[:, action]), aux

    def loss(self, *batches: Batch) -> Loss:
        """See the class; a mean over scored steps. While training, windows are relabelled."""
        (batch,) = batches
        weight: Tensor | float = 1.0
        if self.training and self.config.pairs is not None:
            batch, weight = self.relabelled(batch)
        policy, classes, aux = self.predict(batch)
        likelihood, entropy = policy.log_prob(batch.action).float(), policy.entropy().float()
        costly = (batch.cost > 0).long()
        missed = F.cross_entropy(classes.float().mT, costly[:, :-1], reduction="none") * batch.valid[:, 1:]
        missed = F.pad(missed, (0, 1))
        errors = self.config.cost_weight * missed - likelihood - self.temperature[0].exp().detach() * entropy
        total, count = masked_mean(errors * weight, batch.scored)
        means = {
            name: masked_mean(values * weight, batch.scored)[0].detach()
            for name, values in {"likelihood": likelihood, "entropy": entropy, "cost_loss": missed}.items()
        }
        own = {name: value for name, value in aux.items() if name.endswith("loss")}
        notes = {"entropy": means["entropy"] * count, "count": count}
        return Loss(sum(own.values(), total), {**means, **own}, notes, count)

    def temper(self) -> Loss:
        """Temperature times how far the last update's entropy lay above its least."""
        temperature = self.temperature[0].exp()
        return Loss(temperature * (self.entropy - self.least_entropy), {"temperature": temperature.detach()})

    def objectives(self) -> tuple[Objective, ...]:
        return (
            Objective("policy", self.loss, trains=(self.cloning, self.cost_class), reads={"data": self.window}),
            Objective("temperature", self.temper, trains=(self.temperature,), reads={}),
        )

    def after_update(self, objective: str, notes: Mapping[str, Tensor]) -> None:
        if objective == "policy":
            self.entropy.copy_(notes["entropy"] / notes["count"].clamp(min=1))

    @property
    def policy(self) -> Policy:
        return self.cloning.policy


def _outcomes(apart: int, name: str, store: EpisodeStore) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First addresses, that far beyond those of the first store, returns and costs of a store's episodes."""
    episodes = store.episodes
    if "cost" not in episodes or not np.isfinite(episodes["cost"]).all():
        raise DataError(
            f'infeasible pairs need the episode fact "cost" of every trajectory, which {name!r} lacks; record costs as a step '
            'column and as that fact (environments report them as info["cost"]), or train without pairs (pairs=None)'
        )
    return episodes["start"] + apart, episodes["return"], episodes["cost"]
