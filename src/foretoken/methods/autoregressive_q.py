"""Autoregressive Q-learning: every dimension of an action is a step of its own, whose bins have values.

    s_(t-K+1) ... s_t  b_1 ... b_(d-1)  ->  Q of every bin of b_1 ... b_d

A causal transformer reads off Q at s_t for every bin of dimension 1, at b_i for every bin of dimension i + 1. Inside an action
a bin is worth what the best next bin is worth; reward and discount come with the last dimension only:

    target_i = max_b Q'(s, b_1 .. b_i, b)                    i < d, with Q' a slow copy of Q
    target_d = r + discount max_b Q'(s', b)                  no Q' where the episode terminated; a truncated one goes on
    target_i <- max(target_i, return of the episode)         the Monte-Carlo bound, for all dimensions
    loss     = mean_i [ loss(Q_i(taken), target_i) + conservative * mean over the other bins of loss(Q_i(other), 0) ]

loss is that of the value head: (1/2) squared error, or cross-entropy with a histogram around the target (HL-Gauss, two-hot).
The conservative term draws what the data do not hold towards the lowest possible return. That is 0 because rewards are shifted
up until none is negative; what terminated goes on earning the shift for ever, so no policy gains on another by it.
Chebotar et al., CoRL 2023, arXiv 2309.10150; heads: Farebrother et al., ICML 2024, arXiv 2403.03950.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from foretoken.core import random
from foretoken.core.batch import Batch, Decision, Loss, Step, masked_mean
from foretoken.core.config import Config, configures
from foretoken.core.errors import ConfigError
from foretoken.core.method import Context, Method, Policy
from foretoken.core.spec import Box, Discrete, Space, Spec, Window
from foretoken.core.state import State
from foretoken.core.store import EpisodeStore, joint_statistics
from foretoken.methods import history
from foretoken.nn.embed.observations import ObservationConfig
from foretoken.nn.fitted import Fitted, once
from foretoken.nn.heads.base import Prediction
from foretoken.nn.heads.value import ScalarValueConfig, ValueHeadConfig, ValuePrediction
from foretoken.nn.stack import StackConfig
from foretoken.nn.target import Target
from foretoken.nn.tokenizers.base import Bins, BinsConfig
from foretoken.nn.tokenizers.uniform import UniformConfig
from foretoken.objectives.conservative import mean_of_others, monte_carlo_bound


@dataclass(frozen=True, kw_only=True)
class QLearningConfig(Config):
    """
    Args:
        discount: of a step's reward beside that of the step before, in [0, 1).
        conservative: weight of the conservative term, the paper's alpha.
        steps: rewards summed before the target bootstraps.
        horizon: rewards summed for the Monte-Carlo bound; 0 leaves it out.
        tau: share by which the slow copy follows at each update.
        value: the head, for rewards shifted to be at least 0; the open range of a histogram is taken from the data.
        epsilon: how likely a dimension's bin is drawn at random while exploring.
    """

    discount: float = 0.98
    conservative: float = 1.0
    steps: int = 1
    horizon: int = 100
    tau: float = 0.01
    value: ValueHeadConfig = ScalarValueConfig(low=0.0, high=1.0, start=0.0)
    epsilon: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 <= self.discount < 1 and 0 <= self.tau <= 1 and 0 <= self.epsilon <= 1):
            raise ConfigError(
                f"discount must lie in [0, 1), tau and epsilon in [0, 1], got {self.discount}, {self.tau}, {self.epsilon}"
            )
        if self.steps < 1 or self.horizon < 0 or self.conservative < 0:
            raise ConfigError(
                f"steps must be at least 1, horizon and conservative not negative, got {self.steps}, {self.horizon}, {self.conservative}"
            )


class CloningConfig(Config):
    """Behaviour cloning by the same network: outputs are logits of bins. Exploring draws bins by them."""


@dataclass(frozen=True, kw_only=True)
class AutoregressiveQConfig(Config):
    """
    Args:
        context: states of a decision, K.
        backbone: the sequence network, causal.
        observation: how observations are read.
        bins: of the dimensions of continuous actions; a discrete action is one dimension with a bin per choice.
        order: the dimensions in the order in which they are decided; () takes them as they come.
        objective: what is learned.
    """

    context: int = 2
    backbone: StackConfig = StackConfig()
    observation: ObservationConfig = ObservationConfig()
    bins: BinsConfig = UniformConfig(bins=256)
    order: tuple[int, ...] = ()
    objective: QLearningConfig | CloningConfig = QLearningConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(context=1)


class ActionTokens(nn.Module):
    """Actions (..., *shape) as tokens (..., A), one per dimension in the order of decisions, and back."""

    def __init__(self, config: AutoregressiveQConfig, space: Space) -> None:
        super().__init__()
        self.bins: Bins | None = None
        match space:
            case Box(is_image=False):
                self.bins = config.bins.build(space)
                self.shape, self.vocabulary, dims = space.shape, config.bins.bins, space.size
            case Discrete():
                self.start, self.vocabulary, dims = space.start, space.n, 1
            case _:
                raise ConfigError(f"Q-Transformer decides on Box or Discrete actions, got {type(space).__name__}")
        self.order = list(config.order or range(dims))
        if sorted(self.order) != list(range(dims)):
            raise ConfigError(f"order must name each of the {dims} dimensions of actions once, got {config.order}")
        self.back = sorted(range(dims), key=self.order.__getitem__)

    def fit(self, stores: Mapping[str, EpisodeStore]) -> None:
        if self.bins is not None:
            data = joint_statistics(stores, "action")[""]
            self.bins.fit(torch.from_numpy(np.stack((data.low, data.high))).reshape(2, -1))

    def encode(self, action: Tensor) -> Tensor:
        if self.bins is None:
            return (action - self.start).unsqueeze(-1)
        lead = action.shape[: action.dim() - len(self.shape)]
        return self.bins.encode(action.reshape(*lead, -1))[..., self.order]

    def decode(self, tokens: Tensor) -> Tensor:
        if self.bins is None:
            return tokens.squeeze(-1) + self.start
        return self.bins.decode(tokens[..., self.back]).reshape(*tokens.shape[:-1], *self.shape)


class Values(nn.Module):
    """Q of every bin of the next dimension, after K states and after each of the bins chosen so far."""

    def __init__(self, config: AutoregressiveQConfig, spec: Spec, dims: int, vocabulary: int) -> None:
        super().__init__()
        width, learning = config.backbone.width, config.objective
        self.embed_observation = config.observation.build(spec.observation, width)
        self.embed_bins = nn.ModuleList(nn.Embedding(vocabulary, width) for _ in range(dims - 1))
        self.place = nn.Parameter(0.02 * torch.randn(config.context + dims - 1, width))
        self.backbone = config.backbone.build()
        value = learning.value if isinstance(learning, QLearningConfig) else ScalarValueConfig()
        self.head = value.build(width, vocabulary)

    def forward(self, states_BK: Any, chosen_BN: Tensor) -> ValuePrediction:
        """Predictions (B, N + 1, V) for states (B, K, ...) and the bins of the first N dimensions."""
        states_BKD = self.embed_observation(states_BK)
        bins = [table(bin_B)[:, None] for table, bin_B in zip(self.embed_bins, chosen_BN.unbind(1), strict=False)]
        x_BLD = torch.cat((states_BKD, *bins), dim=1)
        y_BLD = self.backbone(x_BLD + self.place[: x_BLD.shape[1]], read=slice(states_BKD.shape[1] - 1, None)).y
        return self.head(y_BLD)


@dataclass(frozen=True)
class Greedy(Prediction):
    """The action of the best bins, one after another, and the values (..., A, V) they were chosen by."""

    action: Tensor
    values: Tensor

    def mode(self) -> Tensor:
        return self.action

    def sample(self, seed_B: Tensor) -> Tensor:
        return self.action

    def loss(self, action: Tensor) -> Tensor:
        """Squared distance to another action; it has no gradient, training minimises the method's own loss."""
        return (self.action - action).float().square().reshape(*self.values.shape[:-2], -1).sum(-1)


@configures(AutoregressiveQConfig)
class AutoregressiveQ(Fitted, Method):
    """See the module. A window teaches its first scored step; the steps after it tell its successor and what was earned from it.

    So the Monte-Carlo bound needs no column of the store: the shift and the discount are this method's, and such a column, added
    by `fit`, would be missing when a run resumes.
    """

    shift: Tensor
    target: Target

    def __init__(self, config: AutoregressiveQConfig, spec: Spec) -> None:
        super().__init__()
        self.config, self.spec, self.actions = config, spec, ActionTokens(config, spec.action)
        self.values = Values(config, spec, len(self.actions.order), self.actions.vocabulary)
        self.is_static = not any(getattr(part, "data_dependent", False) for part in self.values.modules())
        self.register_buffer("shift", torch.zeros(()))
        back, ahead, columns = config.context - 1, 0, ["observation", "action"]
        if isinstance(config.objective, QLearningConfig):
            self.target = Target(self.values)
            ahead, columns = max(config.objective.steps, config.objective.horizon), [*columns, "reward", "terminated"]
        self.window = Window(length=back + 1 + ahead, back=back, columns=tuple(columns), final=ahead > 0)

    def fit(self, stores: Mapping[str, EpisodeStore], stage: str) -> None:
        if stores:
            self._fit(stores)

    @once
    def _fit(self, stores: Mapping[str, EpisodeStore]) -> None:
        self.values.embed_observation.fit(joint_statistics(stores, "observation"))
        self.actions.fit(stores)
        if isinstance(self.config.objective, QLearningConfig):
            reward, future = joint_statistics(stores, "reward")[""], 1 / (1 - self.config.objective.discount)
            shift = max(0.0, -float(reward.low))
            totals = [float((s.episodes["return"] + shift * s.episodes["length"]).max()) for s in stores.values()]
            self.shift.fill_(shift)
            self.values.head.fit(0.0, min(max(totals) + shift * future, (float(reward.high) + shift) * future))
            self.target.update(self.values, 1)

    # -- learning

    def loss(self, *batches: Batch) -> Loss:
        (batch,) = batches
        at_B = batch.scored.int().argmax(1)
        states_BK = history.up_to(batch.observation, batch.valid, at_B[:, None], self.config.context)
        taken_BA = self.actions.encode(batch.action[torch.arange(len(at_B), device=at_B.device), at_B])
        predicted, config, metrics = self.values(states_BK, taken_BA[:, :-1]), self.config.objective, {}
        if isinstance(config, QLearningConfig):
            own, target_BA = predicted.select(taken_BA), self.targets(config, batch, at_B, states_BK, taken_BA)
            own_BA = own.loss(target_BA)
            others_BA = mean_of_others(predicted.loss(torch.zeros_like(predicted.value)), taken_BA)
            errors_BA = own_BA + config.conservative * others_BA
            metrics = {
                "td": own_BA.mean(),
                "conservative": others_BA.mean(),
                "best_value": predicted.value[:, 0].amax(-1).mean(),
                "clipped": own.clipped(target_BA).mean(),
            }
        else:
            errors_BA = F.cross_entropy(predicted.value.transpose(1, 2), taken_BA, reduction="none")
        loss, count = masked_mean(errors_BA.mean(1), batch.scored.any(1))
        return Loss(loss, metrics=metrics, weight=count)

    @torch.no_grad()
    def targets(self, config: QLearningConfig, batch: Batch, at_B: Tensor, states_BK: Any, taken_BA: Tensor) -> Tensor:
        """(B, A): for each dimension the slow copy's best next bin; reward and discount in the last one only."""
        inside_BA = self.target(states_BK, taken_BA[:, :-1]).value.amax(-1)[:, 1:]
        earned_B, share_B, count_B = self.ahead(config, batch, at_B, config.steps)
        later_BK = history.up_to(batch.observation, batch.valid, (at_B + count_B)[:, None], self.config.context)
        last_BA = earned_B[:, None] + share_B[:, None] * self.target(later_BK, taken_BA[:, :0]).value.amax(-1)
        target_BA = torch.cat((inside_BA, last_BA), dim=1)
        if not config.horizon:
            return target_BA
        return monte_carlo_bound(target_BA, self.ahead(config, batch, at_B, config.horizon)[0][:, None])

    def ahead(self, config: QLearningConfig, batch: Batch, at_B: Tensor, steps: int) -> tuple[Tensor, Tensor, Tensor]:
        """What the next steps earn if nothing comes after them, the weight of what does come, and how many steps there are."""
        index_BT = at_B[:, None] + torch.arange(steps, device=at_B.device)
        inside_BT, index_BT = index_BT < batch.valid.shape[1], index_BT.clamp(max=batch.valid.shape[1] - 1)
        acts_BT = inside_BT & (batch.valid & ~batch.final).gather(1, index_BT)
        reward_BT = torch.where(acts_BT, batch.reward.gather(1, index_BT) + self.shift, 0.0)
        discount_T = config.discount ** torch.arange(steps, device=at_B.device)
        count_B, over_B = acts_BT.sum(1), (acts_BT & batch.terminated.gather(1, index_BT)).any(1)
        share_B = config.discount**count_B
        earned_B = (reward_BT * discount_T).sum(1) + over_B * share_B * self.shift / (1 - config.discount)
        return earned_B, share_B.masked_fill(over_B, 0.0), count_B

    def after_update(self, objective: str, notes: Mapping[str, Tensor]) -> None:
        if isinstance(self.config.objective, QLearningConfig):
            self.target.update(self.values, self.config.objective.tau)

    # -- acting

    def decide(self, states_BK: Any, seed_B: Tensor | None = None) -> Greedy:
        """Chooses bins one after another for states (B, K, ...): the best ones, or with seeds (B,) exploring."""
        rows, found = len(tree_leaves(states_BK)[0]), []
        chosen_BA = torch.zeros(rows, 0, dtype=torch.int64, device=self.shift.device)
        for i in range(len(self.actions.order)):
            found.append(self.values(states_BK, chosen_BA).value[:, -1])
            bin_B = found[-1].argmax(-1) if seed_B is None else self._explore(found[-1], random.split(seed_B, i))
            chosen_BA = torch.cat((chosen_BA, bin_B[:, None]), dim=1)
        return Greedy(self.actions.decode(chosen_BA), torch.stack(found, dim=1))

    def _explore(self, value_BV: Tensor, seed_B: Tensor) -> Tensor:
        if isinstance(self.config.objective, CloningConfig):
            return random.categorical(value_BV, seed_B)
        chance_B, place_B = random.uniform(seed_B, 2).unbind(1)
        drawn_B = (place_B * value_BV.shape[1]).long()
        return torch.where(chance_B < self.config.objective.epsilon, drawn_B, value_BV.argmax(-1))

    def forward(self, batch: Batch, read: slice = slice(None)) -> Greedy:
        """What is decided at the steps of recorded windows that `read` picks."""
        rows, steps = batch.valid.shape
        index_BR = torch.arange(steps, device=batch.valid.device)[read].expand(rows, -1)
        found = self.decide(history.up_to(batch.observation, batch.valid, index_BR, self.config.context))
        return Greedy(found.action.unflatten(0, (rows, -1)), found.values.unflatten(0, (rows, -1)))

    @property
    def policy(self) -> Policy:
        return WindowPolicy(self)


class WindowPolicy:
    """Keeps the last K observations of each row, and decides as `AutoregressiveQ.decide`."""

    def __init__(self, method: AutoregressiveQ) -> None:
        self.method = method

    def steady(self, step: Step, state: State) -> bool:
        """Whether `act` does the same operations as at every other step."""
        return self.method.is_static

    def begin(self, rows: int, context: Context) -> State:
        method = self.method
        return history.begin(rows, method.config.context, method.shift.device, observation=method.spec.observation)

    def act(self, step: Step, state: State, *, explore: bool = False) -> Decision:
        method = self.method
        kept = history.push(state, observation=step.observation, timestep=step.timestep)
        columns, valid_BK = history.window(kept, trim=False)
        newest_B1 = torch.full_like(kept["timestep"][:, -1:], method.config.context - 1)
        states_BK = history.up_to(columns["observation"], valid_BK, newest_B1, method.config.context)
        return Decision(method.decide(states_BK, step.seed if explore else None).action, kept)
