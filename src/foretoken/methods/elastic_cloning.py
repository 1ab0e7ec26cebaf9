"""Elastic cloning: a return-conditioned policy that chooses at every decision how much of the past to look at.

    a_(t-1)  s_t  R_t      s_t -> the best R_t within reach      R_t -> a_t and s_(t+1)

Two heads at the state token say which return is within reach: a number that regresses a high expectile of the returns in the
data, nearly their maximum, and a histogram. To act, several beginnings of the history are tried as one padded batch, in two
passes: the first estimates the returns, the second is given these and answers with an action and with its estimate at the
present step. The history with the highest estimate acts. Wu et al., NeurIPS 2023, arXiv 2307.02484. Drawing optimistic returns
is from Lee et al., "Multi-Game Decision Transformers", NeurIPS 2022, arXiv 2205.15241.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core import random
from foretoken.core.batch import Batch, Decision, Loss, Step, masked_mean
from foretoken.core.config import Config, configures
from foretoken.core.errors import ConfigError
from foretoken.core.method import Context, Method, Policy
from foretoken.core.spec import Box, Spec, Window
from foretoken.core.state import State
from foretoken.core.store import EpisodeStore, joint_statistics
from foretoken.methods import history
from foretoken.methods.conditioned_cloning import shifted
from foretoken.methods.conditions.return_to_go import ReturnToGoConfig
from foretoken.nn.embed.actions import ActionEmbedding
from foretoken.nn.embed.normalise import Standardise
from foretoken.nn.embed.observations import ObservationConfig
from foretoken.nn.embed.time import EpisodeTimeConfig, WindowTimeConfig
from foretoken.nn.heads.base import BySpaceConfig, Prediction
from foretoken.nn.heads.categorical import Choices
from foretoken.nn.heads.deterministic import Point
from foretoken.nn.mixer import Tokens
from foretoken.nn.stack import StackConfig
from foretoken.nn.tokenizers.uniform import UniformConfig
from foretoken.objectives.expectile import expectile_loss

RETURN = 2  # the place of the return among a step's three tokens


@dataclass(frozen=True, kw_only=True)
class SearchConfig(Config):
    """What is tried at a decision.

    Args:
        step: steps between the beginnings that are tried, the oldest step of the window being the first.
        delta: once windows are full, only lengths at most so far from the last choice are tried; 0 tries all.
        length: always looks back on so many steps, the present one among them; 0 searches.
        asked: the returns that actions are conditioned on: the "estimate" of the expectile; an optimistic "draw" from the
            histogram; or the "target", less what was earned, without a first pass (as Decision Transformer does).
        optimism: of a draw: what is added to the logits of the bins, from nothing at the lowest to this at the highest. The
            official code adds 10, and 15 more.
        dropped: of a draw: the fraction of the bins, the least likely, that is left out.
    """

    step: int = 2
    delta: int = 0
    length: int = 0
    asked: Literal["estimate", "draw", "target"] = "estimate"
    optimism: float = 25.0
    dropped: float = 0.15

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(step=1, delta=0, length=0)
        if not 0 <= self.dropped < 1:
            raise ConfigError(f"search dropped must lie in [0, 1), got {self.dropped}")


@dataclass(frozen=True, kw_only=True)
class ElasticCloningConfig(Config):
    """
    Args:
        context: steps of a window and of the longest history, K.
        backbone: the sequence network.
        seen: the return tokens that later tokens see: the "first" of the window, so that an estimate is not a copy of the
            return before; or "all" of them. Mixers other than attention need "all".
        returns: the scale of returns.
        low, high: the returns between which the bins lie; infinite ones are taken from the data.
        bins: of returns, in which the network reads them and the histogram says them.
        expectile: of the estimate.
        best_weight, bins_weight, state_weight: of the losses of estimate, histogram and next state, beside the action's 1. With
            a state_weight of 0 there is no prediction of the next state; others need vectors as observations.
        search: how it acts.
        observation: how observations are read.
        time: where a step's position comes from; None leaves it to the backbone.
    """

    context: int = 20
    backbone: StackConfig = StackConfig()
    seen: Literal["first", "all"] = "first"
    returns: ReturnToGoConfig = ReturnToGoConfig()
    low: float = float("-inf")
    high: float = float("inf")
    bins: int = 60
    expectile: float = 0.99
    best_weight: float = 0.5
    bins_weight: float = 0.001
    state_weight: float = 1.0
    search: SearchConfig = SearchConfig()
    observation: ObservationConfig = ObservationConfig()
    time: EpisodeTimeConfig | WindowTimeConfig | None = EpisodeTimeConfig()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(context=2)
        if self.search.length > self.context:
            raise ConfigError(f"search length must be at most context, got {self.search.length} and {self.context}")
        if not 0 < self.expectile < 1:
            raise ConfigError(f"expectile must lie in (0, 1), got {self.expectile}")


def first_return_only(query: Tokens, key: Tokens) -> Tensor:
    """(B, Lq, Lk) bool: causal order, but a return is seen by itself alone, save that of the window's first step."""
    assert query.position is not None and key.position is not None and key.group is not None and key.step is not None
    now, then = query.position[:, :, None], key.position[:, None, :]
    shown = (key.group != RETURN) | (key.step == 0)
    return (then == now) | (then < now) & shown[:, None, :]


@configures(ElasticCloningConfig)
class ElasticCloning(Method):
    """See the module. Returns are in units of `returns.scale`."""

    groups: Tensor

    def __init__(self, config: ElasticCloningConfig, spec: Spec) -> None:
        super().__init__()
        self.config, self.spec, width = config, spec, config.backbone.width
        self.returns = config.returns.build()
        self.asks = self.returns.asks
        self.binning = UniformConfig(bins=config.bins).build(Box(shape=(), low=(config.low,), high=(config.high,)))
        self.embed_action = ActionEmbedding(spec.action, width)
        self.embed_observation = config.observation.build(spec.observation, width)
        self.embed_return = nn.Linear(1, width)
        self.embed_time = config.time.build(width, config.context) if config.time else None
        self.norm = nn.LayerNorm(width)
        self.backbone = config.backbone.build(first_return_only if config.seen == "first" else None)
        self.best, self.histogram = nn.Linear(width, 1), nn.Linear(width, config.bins)
        self.head = cast(Any, BySpaceConfig().build(spec.action, width))
        if config.state_weight:
            if not isinstance(spec.observation, Box) or spec.observation.is_image:
                raise ConfigError(
                    f"the next state is predicted for vectors; set state_weight=0, for {spec.observation}"
                )
            self.standardise = Standardise(spec.observation.shape)
            self.successor = nn.Linear(width + self.head.linear.out_features, spec.observation.size)
        self.register_buffer("groups", torch.arange(3), persistent=False)
        columns = ("observation", "action", *self.returns.columns)
        self.window = Window(length=config.context, columns=columns, final=bool(config.state_weight))

    def fit(self, stores: Mapping[str, EpisodeStore], stage: str) -> None:
        if not stores:
            return
        self.returns.fit(stores)
        observations, actions = (joint_statistics(stores, column) for column in ("observation", "action"))
        self.embed_observation.fit(observations)
        if self.config.state_weight:
            self.standardise.fit(observations[""])
        self.embed_action.fit(actions)
        self.head.fit(actions)
        known = joint_statistics(stores, "return_to_go")[""]
        self.binning.fit(torch.tensor([[float(known.low)], [float(known.high)]]))

    def bin_of(self, returns: Tensor) -> Tensor:
        """The bins (...) int64 of returns (...)."""
        return self.binning.encode((returns * self.returns.scale).unsqueeze(-1)).squeeze(-1)

    def features(
        self, action: Tensor, state: Tensor, returns: Tensor, timestep: Tensor, valid: Tensor, *, last: bool = False
    ) -> tuple[Tensor, Tensor]:
        """What the backbone makes of the state tokens and of the return tokens, (B, T, D) each; `last`: of the last step only.

        Args:
            action, state: (B, T, D) embedded previous actions and observations.
            returns: (B, T); timestep: (B, T) int64.
            valid: (B, T) bool: the step exists. A row's first one knows no action before it.
        """
        value = (self.bin_of(returns) + 0.5) * (2 / self.config.bins) - 1
        parts = [action, state, self.embed_return(value.unsqueeze(-1))]
        if self.embed_time is not None:
            time = self.embed_time(timestep, valid)
            parts = [part + when for part, when in zip(parts, (shifted(time), time, time), strict=True)]
        x_BLD = self.norm(torch.stack(parts, dim=2)).flatten(1, 2)
        tokens = Tokens(
            valid=torch.stack((valid & shifted(valid), valid, valid), dim=2).flatten(1),
            step=(valid.cumsum(1) - 1).repeat_interleave(3, dim=1),
            group=self.groups.repeat(valid.shape[1]).expand(len(valid), -1),
        )
        y_BTGD = self.backbone(x_BLD, tokens=tokens, read=slice(-3, None) if last else None).y.unflatten(1, (-1, 3))
        return y_BTGD[:, :, RETURN - 1], y_BTGD[:, :, RETURN]

    def _recorded(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Returns in hindsight (B, T), and the features of states and of returns."""
        returns = self.returns.hindsight(batch).squeeze(-1)
        action, state = self.embed_action(shifted(batch.action)), self.embed_observation(batch.observation)
        return returns, *self.features(action, state, returns, batch.timestep, batch.valid)

    def forward(self, batch: Batch, read: slice = slice(None)) -> Prediction:
        """Predictions of the actions of recorded windows, given their returns, at the steps that `read` picks."""
        return self.head(self._recorded(batch)[2][:, read])

    def loss(self, *batches: Batch) -> Loss:
        """Of action, estimate, histogram and next state, over scored steps. Every step of a window has a history of another length.

        The last step of a window that ends before its episode has no successor in it, and so no error of the next state.
        """
        (batch,), config = batches, self.config
        returns, state, given = self._recorded(batch)
        prediction = self.head(given)
        errors = {
            "action": prediction.loss(batch.action),
            "best": expectile_loss(self.best(state).squeeze(-1), returns, config.expectile),
            "bins": F.cross_entropy(self.histogram(state).mT, self.bin_of(returns), reduction="none"),
        }
        weights = {"action": 1.0, "best": config.best_weight, "bins": config.bins_weight}
        if config.state_weight:
            guess = self.successor(torch.cat((given, _numbers(prediction)), dim=-1))
            true = self.standardise(batch.observation).reshape(guess.shape)
            errors["state"] = F.pad((guess[:, :-1] - true[:, 1:]).square().mean(-1), (0, 1))
            weights["state"] = config.state_weight
        means = {name: masked_mean(error.float(), batch.scored)[0] for name, error in errors.items()}
        total = torch.stack([weights[name] * mean for name, mean in means.items()]).sum()
        metrics = {"loss": total, **{f"{name}_loss": mean for name, mean in means.items()}}
        return Loss(total, metrics=metrics, weight=batch.scored.sum().to(total.dtype))

    @property
    def policy(self) -> Policy:
        return ElasticPolicy(self)


def _numbers(prediction: Prediction) -> Tensor:
    """(B, T, n) a predicted action: itself, scaled to [-1, 1], or the probabilities of choices."""
    assert isinstance(prediction, Point | Choices)
    values = prediction.scaled if isinstance(prediction, Point) else prediction.logits.softmax(-1)
    return values.reshape(*values.shape[:2], -1)


def optimistic(logits: Tensor, optimism: float, dropped: float) -> Tensor:
    """Logits of bins (..., V) raised towards the higher ones, then without the fraction `dropped` that is least likely."""
    raised = logits.float() + optimism * torch.linspace(0, 1, logits.shape[-1], device=logits.device)
    return raised.masked_fill(raised < raised.quantile(dropped, dim=-1, keepdim=True), float("-inf"))


class ElasticPolicy:
    """Keeps the last K steps of each row, and looks for the beginning from which most can be reached.

    Records the "history" looked back on, (B,) int64 steps, and the "estimate" of the return that it was chosen for, (B,).
    """

    def __init__(self, method: ElasticCloning) -> None:
        self.method = method

    def steady(self, step: Step, state: State) -> bool:
        """Whether `act` does the same operations as at every other such step: all windows were full before."""
        return bool(((state["history"]["seen"] >= self.method.config.context) & step.valid).all())

    def begin(self, rows: int, context: Context) -> State:
        method, length = self.method, self.method.config.context
        device = method.returns.scale.device
        columns = {"observation": method.spec.observation, "previous_action": method.spec.action}
        return {
            "history": history.begin(rows, length, device, **columns, returns=torch.float32),
            "returns": method.returns.begin(rows, context),
            "length": torch.full((rows,), length, device=device),
        }

    def act(self, step: Step, state: State, *, explore: bool = False) -> Decision:
        method = self.method
        target, returns = method.returns.carry(step, state["returns"])
        kept = history.push(
            state["history"],
            observation=step.observation,
            previous_action=step.previous_action,
            timestep=step.timestep,
            returns=target.squeeze(-1),
        )
        length_BN = self.lengths(state)
        estimate_BN, given_BND = self.tries(kept, length_BN, step.seed)
        best_B1 = estimate_BN.argmax(1, keepdim=True)
        prediction = method.head(given_BND.take_along_dim(best_B1[..., None], 1))
        action = (prediction.sample(step.seed) if explore else prediction.mode()).squeeze(1)
        length, estimate = (part.take_along_dim(best_B1, 1).squeeze(1) for part in (length_BN, estimate_BN))
        after = {"history": kept, "returns": returns, "length": length}
        return Decision(action, after, {"history": length, "estimate": estimate})

    def lengths(self, state: State) -> Tensor:
        """(B, N) int64 how many steps to look back on in each try, given the state before the step; below 1 is none."""
        search, seen_B1 = self.method.config.search, state["history"]["seen"][:, None]
        context, device = self.method.config.context, seen_B1.device
        now_B1 = (seen_B1 + 1).clamp(max=context)
        if search.length:
            return now_B1.clamp(max=search.length)
        all_BN = now_B1 - torch.arange(0, int(now_B1.max()), search.step, device=device)
        if not search.delta:
            return all_BN
        near_BN = state["length"][:, None] + torch.arange(search.delta, -search.delta - 1, -1, device=device)
        near_BN = torch.where(near_BN <= now_B1, near_BN, 0)
        full_B1 = seen_B1 == context
        if full_B1.all():
            return near_BN
        return torch.cat((torch.where(full_B1, 0, all_BN), torch.where(full_B1, near_BN, 0)), dim=1)

    def tries(self, kept: State, length_BN: Tensor, seed_B: Tensor) -> tuple[Tensor, Tensor]:
        """Each try's estimate at the present step (B, N), and the feature (B, N, D) from which its action is read."""
        method, search = self.method, self.method.config.search
        columns, valid_BT = history.window(kept)
        many = partial(torch.repeat_interleave, repeats=length_BN.shape[1], dim=0)
        state, action = (
            method.embed_observation(columns["observation"]),
            method.embed_action(columns["previous_action"]),
        )
        state, action, returns, timestep = map(many, (state, action, columns["returns"], columns["timestep"]))
        ago_T = torch.arange(valid_BT.shape[1], 0, -1, device=valid_BT.device)
        valid = ago_T <= length_BN.reshape(-1, 1)
        if search.asked != "target":
            seen = method.features(action, state, returns, timestep, valid)[0]
            returns = method.best(seen).squeeze(-1) if search.asked == "estimate" else self.draw(seen, seed_B)
        seen, given = method.features(action, state, returns, timestep, valid, last=True)
        estimate_BN = method.best(seen).view(length_BN.shape).masked_fill(length_BN < 1, float("-inf"))
        return estimate_BN, given.view(*length_BN.shape, -1)

    def draw(self, seen: Tensor, seed_B: Tensor) -> Tensor:
        """(B N, T) optimistic returns, given the features of the state tokens (B N, T, D)."""
        method, search = self.method, self.method.config.search
        logits = optimistic(method.histogram(seen), search.optimism, search.dropped)
        seed = torch.stack([random.split(seed_B, number) for number in range(len(seen) // len(seed_B))], dim=1)
        # drawn from the newest step back: to how many steps windows were trimmed must not matter
        bins = random.categorical(logits.flip(1), seed.flatten()).flip(1)
        return method.binning.decode(bins.unsqueeze(-1)).squeeze(-1).to(seen.dtype) / method.returns.scale
