"""Proximal policy optimisation with a sequence network as memory.

Step t is one token, what is known when acting: e(s_t) + e(a_(t-1)) + e(r_(t-1)). The network carries its state from step to step;
a policy and a value are read from its output. Training runs the same network over whole segments of the newest experience,
from the state in which the policy entered them: gradients go through a segment and stop at its start.

Two boundaries are kept apart: advantages end where an episode does, memory where `fresh` says so, which in a trial of several
episodes is later. A truncated episode goes on from the value of its true final observation, which is a step of its own.

Paper: Schulman et al. 2017, arXiv 1707.06347; advantages arXiv 1506.02438. Differs from usual code: advantages are normalised
once over a rollout, not in each minibatch, so that a step's weight does not depend on its company.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from foretoken.core.batch import Batch, Decision, Loss, Step, masked_mean
from foretoken.core.config import Config, configures
from foretoken.core.errors import ConfigError
from foretoken.core.method import Context, Method, Policy
from foretoken.core.spec import Box, Dict, Discrete, MultiDiscrete, Space, Spec, Window, leaves
from foretoken.core.state import State, detach
from foretoken.core.store import EpisodeStore, joint_statistics
from foretoken.nn.embed.actions import ActionEmbedding
from foretoken.nn.embed.observations import ObservationConfig
from foretoken.nn.heads.base import BySpaceConfig, HeadConfig, Prediction
from foretoken.nn.heads.gaussian import GaussianConfig
from foretoken.nn.heads.value import ScalarValueConfig, ValueHeadConfig, ValuePrediction
from foretoken.nn.mixer import Tokens
from foretoken.nn.recurrent_memory import RecurrentMemoryConfig
from foretoken.nn.stack import Stack, StackConfig
from foretoken.objectives.policy_gradient import approximate_kl, clipped_surrogate, clipped_value_loss, gae

MASK = "action_mask"
"""The part of a Dict observation that says which choices are possible: a flag for each, those of several choices joined."""


@dataclass(frozen=True, kw_only=True)
class RecurrentPPOConfig(Config):
    """
    Args:
        segment: steps that gradients go through; `Rollouts.steps` is a multiple of it.
        backbone: the network; any mixer that reads step by step.
        observation: how observations are read; they are not standardised, there being no data beforehand.
        previous_action, previous_reward: whether a step is told what was done before it, and what that earned.
        head: the distribution over actions; None takes a Gaussian for numbers (not squashed: what lies outside the bounds is
            clipped by the environment's driver), else the usual one of the space.
        hidden: width of a tanh layer before each of policy and value; 0 = none.
        value: how values are said.
        discount, trace: gamma and lambda of the advantages.
        clip: how far an action's probability may usefully be moved by one rollout.
        value_clip: how far values may be moved by one rollout, in units of their scale; None does not limit it. Only for a
            scalar value.
        value_weight: of the value loss.
        entropy: weight of the policy's entropy.
        final_entropy: what that weight falls to, linearly over `entropy_updates` updates; None keeps it.
        normalise: scale the advantages of a rollout to mean 0 and standard deviation 1.
        acting: "sample" draws from the head outside training too, "mode" takes the likeliest action.
    """

    segment: int = 64
    backbone: StackConfig | RecurrentMemoryConfig = StackConfig()
    observation: ObservationConfig = ObservationConfig(standardise=False)
    previous_action: bool = True
    previous_reward: bool = True
    head: HeadConfig | None = None
    hidden: int = 0
    value: ValueHeadConfig = ScalarValueConfig()
    discount: float = 0.99
    trace: float = 0.95
    clip: float = 0.2
    value_clip: float | None = 0.2
    value_weight: float = 0.5
    entropy: float = 0.01
    final_entropy: float | None = None
    entropy_updates: int = 0
    normalise: bool = True
    acting: Literal["sample", "mode"] = "mode"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(segment=2)
        for name in ("discount", "trace"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in [0, 1], got {getattr(self, name)}")
        for name in ("clip", "value_clip"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("hidden", "value_weight", "entropy", "entropy_updates"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.value_clip is not None and not isinstance(self.value, ScalarValueConfig):
            raise ConfigError(f"value_clip is for a scalar value, got {type(self.value).__name__}; set value_clip=None")
        if (self.final_entropy is None) != (self.entropy_updates == 0):
            raise ConfigError(
                f"final_entropy and entropy_updates go together, got {self.final_entropy} and {self.entropy_updates}"
            )


@configures(RecurrentPPOConfig)
class RecurrentPPO(Method):
    """See the module. Where a batch lacks what the policy recorded, the present weights are taken as those that acted."""

    updates: Tensor

    def __init__(self, config: RecurrentPPOConfig, spec: Spec) -> None:
        super().__init__()
        if isinstance(spec.action, Dict):
            raise ConfigError(
                "actions of a Dict space are not supported here; give Box, Discrete, MultiDiscrete or MultiBinary"
            )
        self.config, self.spec, width = config, spec, config.backbone.width
        self.seen, self.options = _without_mask(spec)
        self.embed_observation = config.observation.build(self.seen, width)
        self.embed_action = ActionEmbedding(spec.action, width) if config.previous_action else None
        self.embed_reward = nn.Linear(1, width, bias=False) if config.previous_reward else None
        self.backbone = config.backbone.build()
        self.is_static = not any(getattr(part, "data_dependent", False) for part in self.modules())
        inner = config.hidden or width
        layer = lambda: nn.Sequential(nn.Linear(width, inner), nn.Tanh()) if config.hidden else nn.Identity()  # noqa: E731
        self.before_head, self.before_value = layer(), layer()
        usual = GaussianConfig(squash=False) if isinstance(spec.action, Box) else BySpaceConfig()
        self.head = (config.head or usual).build(spec.action, inner)
        self.value = config.value.build(inner)
        _start(self)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._check_head(inner)
        self.check_reach(spec.max_episode_steps + 1)
        columns = ("observation", "action", "reward", "terminated")
        self.window = Window(length=config.segment, columns=columns, final=True)

    @torch.no_grad()
    def _check_head(self, width: int) -> None:
        prediction: Prediction = self.head(torch.zeros(1, width))
        try:
            prediction.log_prob(prediction.mode()), prediction.entropy()
        except NotImplementedError as lack:
            raise ConfigError(
                f"{lack}, which a policy gradient needs; choose a Gaussian or a categorical head"
            ) from None

    def check_reach(self, longest: int) -> None:
        """Raises ConfigError where a mixer that must hold a whole memory is too small for one of `longest` steps."""
        for facts in (block.mixer.facts for block in self.backbone.layers()):
            reach = facts.max_context
            if facts.grain > 1 or (facts.streaming == "within_window" and reach is not None and longest > reach):
                raise ConfigError(
                    f"the policy reads single steps of memories of up to {longest}; a mixer streams by {facts.grain} and keeps "
                    f"{reach}: give attention a window, or a larger capacity"
                )

    def fit(self, stores: Mapping[str, EpisodeStore], stage: str) -> None:
        if stores and self.seen == self.spec.observation:
            self.embed_observation.fit(joint_statistics(stores, "observation"))
        if stores:
            actions = joint_statistics(stores, "action")
            self.head.fit(actions)
            if self.embed_action is not None:
                self.embed_action.fit(actions)

    def encode(self, observation: Any, previous_action: Tensor, previous_reward: Tensor, known: Tensor) -> Tensor:
        """Tokens (..., D) of steps (...); `known` (...) bool says where there was an action before."""
        x = self.embed_observation(observation)
        if self.embed_action is not None:
            x = x + self.embed_action(previous_action) * known[..., None]
        if self.embed_reward is not None:
            x = x + self.embed_reward((previous_reward * known)[..., None].to(x.dtype))
        return x

    def answer(self, y: Tensor, observation: Any) -> tuple[Prediction, ValuePrediction]:
        """Policy and value (...) at the network's outputs (..., D) and the observations (...) there."""
        features = self.before_head(y)
        prediction = (
            self.head(features) if self.options is None else self.head(features, self.allowed(observation[MASK]))
        )
        value = self.value(self.before_value(y))
        return prediction, value.select(torch.zeros(y.shape[:-1], dtype=torch.int64, device=y.device))

    def allowed(self, mask: Tensor) -> Tensor:
        """(..., choices, options) bool from the flags (..., all options); where none is set, as in padding, all are allowed."""
        assert self.options is not None
        parts = mask.bool().split(list(self.options), dim=-1)
        longest = max(self.options)
        joined = torch.stack([nn.functional.pad(part, (0, longest - part.shape[-1])) for part in parts], dim=-2)
        return joined | ~joined.any(-1, keepdim=True)

    def run(self, batch: Batch, read: slice | None = None) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The network's outputs (B, T, D) over segments, from their memory where they have one, and its `aux`."""
        previous, earned, known = batch.get("previous_action"), batch.get("previous_reward"), batch.valid & ~batch.first
        if previous is None:
            previous, earned = _shifted(batch.action), _shifted(batch.reward)
            known = known & _shifted(batch.valid)
        x_BTD = self.encode(batch.observation, previous, earned, known)
        tokens = Tokens(
            valid=None if _surely(batch.valid) else batch.valid, fresh=None if _surely(~batch.fresh) else batch.fresh
        )
        memory = batch.get("memory")
        mixed = self.backbone(x_BTD, memory and detach(memory), tokens=tokens, read=read)
        return mixed.y, mixed.aux

    def forward(self, batch: Batch, read: slice = slice(None)) -> Prediction:
        """Predictions of the actions of recorded windows, at the steps that `read` picks."""
        y, _ = self.run(batch, read)
        return self.answer(y, tree_map(lambda leaf: leaf[:, read], batch.observation))[0]

    def annotate(self, batch: Batch) -> Batch:
        """Adds `advantage` and `target` of the value, from the recorded values; what has no successor is not scored."""
        if "value" not in batch:
            prediction, value = self.answer(self.run(batch)[0], batch.observation)
            batch = batch.replace(log_prob=prediction.log_prob(batch.action), value=value.value)
        followed = torch.cat((batch.valid[:, 1:], torch.zeros_like(batch.valid[:, :1])), dim=1)
        acted, config = batch.scored & followed, self.config
        reward = batch.reward.to(batch.value.dtype)
        advantage = gae(reward, batch.value, batch.terminated, acted, discount=config.discount, trace=config.trace)
        target = advantage + batch.value
        if config.normalise:
            mean, _ = masked_mean(advantage, acted)
            variance, _ = masked_mean((advantage - mean).square(), acted)
            advantage = (advantage - mean) / (variance.sqrt() + 1e-8)
        return batch.replace(scored=acted, advantage=advantage, target=target)

    def loss(self, *batches: Batch) -> Loss:
        """Clipped surrogate + value_weight * value loss - entropy weight * entropy, means over scored steps."""
        (batch,), config = batches, self.config
        y, aux = self.run(batch)
        prediction, value = self.answer(y, batch.observation)
        count, ignored = batch.scored.sum(), ~batch.scored
        least = count.clamp(min=1)
        mean = lambda values: values.masked_fill(ignored, 0.0).sum() / least  # noqa: E731
        log_ratio = (prediction.log_prob(batch.action) - batch.log_prob).masked_fill(ignored, 0.0)
        policy_loss = mean(clipped_surrogate(log_ratio, batch.advantage, config.clip))
        if config.value_clip is None:
            value_loss = mean(value.loss(batch.target))
        else:
            assert isinstance(config.value, ScalarValueConfig), "the config says so"
            now, old, target = (part / config.value.scale for part in (value.value, batch.value, batch.target))
            value_loss = mean(clipped_value_loss(now, old, target, config.value_clip))
        entropy = mean(prediction.entropy())
        own = {name: part for name, part in aux.items() if name.endswith("loss")}
        total = policy_loss + config.value_weight * value_loss
        if config.entropy or config.final_entropy:
            total = total - self.entropy_weight() * entropy
        moved = log_ratio.detach()
        metrics = {
            "policy_loss": policy_loss.detach(),
            "value_loss": value_loss.detach(),
            "entropy": entropy.detach(),
            "kl": mean(approximate_kl(moved)),
            "clipped": mean((moved.exp() - 1).abs().gt(config.clip).float()),
            **own,
        }
        return Loss(sum(own.values(), total), metrics=metrics, weight=count.to(total.dtype))

    def entropy_weight(self) -> Tensor | float:
        """The weight after as many updates as there were."""
        if self.config.final_entropy is None:
            return self.config.entropy
        share = (self.updates / self.config.entropy_updates).clamp(max=1.0)
        return self.config.entropy + share * (self.config.final_entropy - self.config.entropy)

    def after_update(self, objective: str, notes: Mapping[str, Tensor]) -> None:
        self.updates.add_(1)

    @property
    def policy(self) -> Policy:
        return RecurrentPolicy(self)


class RecurrentPolicy:
    """Reads every step once and carries the network's state."""

    def __init__(self, method: RecurrentPPO) -> None:
        self.method = method

    def steady(self, step: Step, state: State) -> bool:
        """Whether `act` does the same operations as at every other such step: no row is idle."""
        return self.method.is_static and bool(step.valid.all())

    @property
    def sliding(self) -> list[tuple[str, str]]:
        """Paths of the state's leaves that every step moves by one place; where memory takes tokens too, none does."""
        backbone = self.method.backbone
        return backbone.sliding() if isinstance(backbone, Stack) else []

    def begin(self, rows: int, context: Context) -> State:
        return self.method.backbone.initial_state(rows)

    def act(self, step: Step, state: State, *, explore: bool = False) -> Decision:
        """While exploring, the record holds `log_prob` and `value`, (B,) float32 each."""
        method, valid = self.method, step.valid
        x_BD = method.encode(step.observation, step.previous_action, step.previous_reward, valid & ~step.first)
        mixed = method.backbone(x_BD[:, None], state, tokens=Tokens(valid=None if _surely(valid) else valid[:, None]))
        assert mixed.state is not None
        observation = step.observation
        later = dict(observation) if isinstance(observation, Mapping) else observation
        prediction, value = method.answer(mixed.y, tree_map(lambda leaf: leaf[:, None], later))
        draw = explore or method.config.acting == "sample"
        action = prediction.sample(step.seed) if draw else prediction.mode()
        record = {"log_prob": prediction.log_prob(action)[:, 0], "value": value.value[:, 0]} if explore else {}
        return Decision(action.squeeze(1), mixed.state, record)


def _without_mask(spec: Spec) -> tuple[Space, tuple[int, ...] | None]:
    """The observation without its action mask, and how many options each choice has where there is one.

    Raises:
        ConfigError: there is a mask, but the actions are no choices, or it has another number of flags.
    """
    seen, action = spec.observation, spec.action
    if not isinstance(seen, Dict) or MASK not in seen.spaces:
        return seen, None
    options = (action.n,) if isinstance(action, Discrete) else action.nvec if isinstance(action, MultiDiscrete) else ()
    flags = [math.prod(leaf.shape) for leaf in leaves(seen.spaces[MASK]).values()]
    if not options or flags != [sum(options)]:
        raise ConfigError(
            f"{MASK} must have a flag for each option of a Discrete or MultiDiscrete action, got {flags} for {action}"
        )
    return Dict(spaces={name: part for name, part in seen.spaces.items() if name != MASK}), tuple(options)


def _start(method: RecurrentPPO) -> None:
    """A policy near to even: its last layer starts orthogonal with gain 0.01, the layers before the heads with sqrt 2."""
    for part, gain in ((method.before_head, 2**0.5), (method.before_value, 2**0.5), (method.head, 0.01)):
        for layer in (layer for layer in part.modules() if isinstance(layer, nn.Linear)):
            nn.init.orthogonal_(layer.weight, gain)
            nn.init.zeros_(layer.bias)


def _shifted(values_BT: Tensor) -> Tensor:
    return torch.cat((torch.zeros_like(values_BT[:, :1]), values_BT[:, :-1]), dim=1)


def _surely(flags: Tensor) -> bool:
    """Whether all are true; not asked where that costs a synchronisation."""
    return flags.device.type == "cpu" and bool(flags.all())
