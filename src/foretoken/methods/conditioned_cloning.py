"""Cloning of actions by a sequence network, conditioned on what the episode turned out to achieve.

Step t is the tokens  a_(t-1)  c_t  s_t, laid out as what is known when acting; the action is read at s_t. It is the paper's
stream  R_t s_t a_t  shifted by one token, with each token keeping its own time, and the window's first previous action hidden.
Without a condition it is behaviour cloning with the stream  a_(t-1)  s_t; a condition of several parts has a token for each.
Conditioned on the reward before and read across the episodes of a task, it is algorithm distillation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from foretoken.core.batch import Batch, Decision, Loss, Step, masked_mean
from foretoken.core.config import Config, configures
from foretoken.core.errors import ConfigError
from foretoken.core.method import Condition, Context, Method, Policy
from foretoken.core.spec import Dict, Spec, Window
from foretoken.core.state import State
from foretoken.core.store import EpisodeStore, all_values, joint_statistics
from foretoken.methods import history
from foretoken.methods.conditions.base import ConditionConfig
from foretoken.methods.conditions.return_to_go import ReturnToGoConfig
from foretoken.nn.dropout import Dropout
from foretoken.nn.embed.actions import ActionEmbedding
from foretoken.nn.embed.observations import ObservationConfig
from foretoken.nn.embed.time import EpisodeTimeConfig, WindowTimeConfig
from foretoken.nn.heads.base import BySpaceConfig, HeadConfig, Prediction
from foretoken.nn.heads.cluster_offset import ClusterOffset
from foretoken.nn.mixer import Tokens
from foretoken.nn.recurrent_memory import RecurrentMemoryConfig
from foretoken.nn.stack import StackConfig


@dataclass(frozen=True, kw_only=True)
class ConditionedCloningConfig(Config):
    """
    Args:
        context: steps of a window, K.
        backbone: the sequence network; with recurrent memory, `context` holds several of its segments.
        condition: what actions are conditioned on; None clones behaviour.
        observation: how observations are read.
        time: where a step's position comes from; None leaves it to the backbone.
        head: the distribution over actions; the usual one of the action space by default.
        dropout: on the embedded tokens.
        embedding_norm: normalise the embedded tokens by a LayerNorm.
        embedding_tanh: pass every embedding through tanh (Decision Transformer on Atari).
        layout: "separate" gives every part of a step its own token; "prompted" joins condition and state in one token,
            a_(t-1)  [c_t s_t];  "joined" makes one token of a step, [a_(t-1) c_t s_t], and "transition" tells it the state
            before as well, [s_(t-1) a_(t-1) c_t s_t], so that a look at one token shows what came of an action; "observed"
            leaves the action before out, [c_t s_t]. To join is to add the embeddings.
        anchor: which windows are trained on; see `Window`.
        across: "" keeps windows and memory inside an episode; otherwise an episode column (for example "task"): windows run on
            through consecutive episodes of equal value, as the policy's memory does in a trial of several episodes.
        reading: "window" re-reads the last `context` steps at every decision; "stream" reads each step once and carries the
            backbone's state, so what it sees must not end with the window: attention needs a `window` of its own.
        acting: "sample" draws from the head (a deterministic head has one outcome), "mode" takes the likeliest action.
        look_back: with reading="window", how many steps are re-read; 0 takes all of `context`.
    """

    context: int = 20
    backbone: StackConfig | RecurrentMemoryConfig = StackConfig()
    condition: ConditionConfig | None = ReturnToGoConfig()
    observation: ObservationConfig = ObservationConfig()
    time: EpisodeTimeConfig | WindowTimeConfig | None = EpisodeTimeConfig()
    head: HeadConfig = BySpaceConfig()
    dropout: float = 0.1
    embedding_norm: bool = True
    embedding_tanh: bool = False
    layout: Literal["separate", "prompted", "joined", "transition", "observed"] = "separate"
    anchor: Literal["start", "end", "full", "episode"] = "start"
    across: str = ""
    reading: Literal["window", "stream"] = "window"
    acting: Literal["sample", "mode"] = "sample"
    look_back: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(context=1)
        if not 0 <= self.look_back <= self.context:
            raise ConfigError(f"look_back must lie in 0 .. context, got {self.look_back} and context={self.context}")
        if self.reading == "stream" and isinstance(self.time, WindowTimeConfig):
            raise ConfigError('reading="stream" has no window to count from: time must be EpisodeTimeConfig')


@configures(ConditionedCloningConfig)
class ConditionedCloning(Method):
    """See the module. By default the policy re-reads its last K steps at every decision, exactly as it was trained."""

    groups: Tensor

    def __init__(self, config: ConditionedCloningConfig, spec: Spec, condition: Condition | None = None) -> None:
        """`condition` takes the place of the configured one, for a method that makes its own."""
        super().__init__()
        if isinstance(spec.action, Dict):
            raise ConfigError(
                "actions of a Dict space are not supported here; give Box, Discrete, MultiDiscrete or MultiBinary"
            )
        self.config, self.spec = config, spec
        width = config.backbone.width
        self.condition = condition or (config.condition.build() if config.condition else None)
        parts = self.condition.parts if self.condition else ()
        self.embed_action = ActionEmbedding(spec.action, width) if config.layout != "observed" else None
        self.embed_condition = nn.ModuleList(nn.Linear(part.width, width) for part in parts)
        self.embed_observation = config.observation.build(spec.observation, width)
        self.embed_before = config.observation.build(spec.observation, width) if config.layout == "transition" else None
        self.embed_time = config.time.build(width, config.context) if config.time else None
        self.squash = nn.Tanh() if config.embedding_tanh else nn.Identity()
        self.norm = nn.LayerNorm(width) if config.embedding_norm else nn.Identity()
        self.dropout = Dropout(config.dropout)
        self.head = config.head.build(spec.action, width)
        self.backbone = config.backbone.build()
        self.group = {"separate": 2 + len(parts), "prompted": 2}.get(config.layout, 1)
        self.is_static = not any(getattr(part, "data_dependent", False) for part in self.modules())
        self.asks = self.condition.asks if self.condition else ()
        columns = ("observation", "action", *(self.condition.columns if self.condition else ()))
        self.register_buffer("groups", torch.arange(self.group), persistent=False)
        if config.reading == "stream":
            self._check_streaming(spec)
        across = config.across  # between episodes their final observations are seen too, with the last reward
        self.window = Window(
            length=config.context, columns=columns, anchor=config.anchor, across=across, final=bool(across)
        )

    def _check_streaming(self, spec: Spec) -> None:
        for facts in (block.mixer.facts for block in self.backbone.layers()):
            if facts.grain > 1:
                raise ConfigError(f'reading="stream" reads single steps; a mixer streams by {facts.grain} tokens only')
            longest = self.group * (spec.max_episode_steps or 0)
            if facts.streaming == "within_window" and facts.max_context is not None and longest > facts.max_context:
                raise ConfigError(
                    f'reading="stream" must reach back over an episode of {longest} tokens, a mixer keeps {facts.max_context}: '
                    "give attention a window, or a larger capacity"
                )

    def fit(self, stores: Mapping[str, EpisodeStore], stage: str) -> None:
        if stores:
            observations = joint_statistics(stores, "observation")
            self.embed_observation.fit(observations)
            if self.embed_before is not None:
                self.embed_before.fit(observations)
            actions = joint_statistics(stores, "action")
            if self.embed_action is not None:
                self.embed_action.fit(actions)
            self.head.fit(actions)
            if isinstance(self.head, ClusterOffset):
                self.head.fit_actions(all_values(stores, "action"))
        if self.condition is not None:
            self.condition.fit(stores)

    def tokens(
        self,
        observation: Any,
        before: Any,
        previous_action: Tensor,
        condition: Tensor | None,
        known: Tensor,
        times: tuple[Tensor | None, Tensor | None],
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The embedded tokens (B, T, G, D) of steps, and for each of the G which steps have it, (B, T) or None for all.

        `before` are the observations of the steps before, None unless the layout tells them; `times` the embedded times
        (B, T, D) of the steps before and of the steps; `known` (B, T) says where there is an action before. What speaks of it
        is left out elsewhere: its token does not exist, or it adds nothing to the joined one.
        """
        earlier, now = times
        parts: list[tuple[Tensor, Tensor | None]] = []
        if self.embed_action is not None:
            parts.append((self.embed_action(previous_action), known))
        if self.condition is not None and condition is not None:
            widths = [part.width for part in self.condition.parts]
            for part, embed, values in zip(
                self.condition.parts, self.embed_condition, condition.split(widths, dim=-1), strict=True
            ):
                parts.append((embed(values), known if part.looks_back else None))
        if self.embed_before is not None:
            parts.append((self.embed_before(before), known))
        parts.append((self.embed_observation(observation), None))
        parts = [(self.squash(x), exists) for x, exists in parts]
        if self.config.layout == "separate":
            joined = parts
        else:
            lone, rest = (parts[:1], parts[1:]) if self.config.layout == "prompted" else ([], parts)
            added = [x if exists is None else x * exists[..., None] for x, exists in rest]
            joined = [*lone, (torch.stack(added).sum(0), None)]
        times_of = [now if i or self.group == 1 else earlier for i in range(self.group)]
        timed = [x if time is None else x + time for (x, _), time in zip(joined, times_of, strict=True)]
        return self.dropout(self.norm(torch.stack(timed, dim=2))), [exists for _, exists in joined]

    def encode(
        self,
        observation: Any,
        previous_action: Tensor,
        condition: Tensor | None,
        timestep: Tensor,
        valid: Tensor,
        first: Tensor | None,
    ) -> tuple[Tensor, Tokens]:
        """The embedded tokens of steps (B, T, ...) in the order of the stream, (B, L, D), and what they are.

        The window's first previous action is hidden, and where it has a token of its own the first token of all windows is
        that or padding: it is left out, so that L = T * G - 1.
        """
        time = before = None
        if self.embed_time is not None:
            time = self.embed_time(timestep, valid)
            before = torch.cat((time[:, :1], time[:, :-1]), dim=1)
        known = valid & shifted(valid)
        if first is not None:
            known = known & ~first
        told = None if self.embed_before is None else tree_map(shifted, observation)
        x_BTGD, having = self.tokens(observation, told, previous_action, condition, known, (before, time))
        dropped, exists = int(self.group > 1), None
        whole = all(part is None for part in having[1:])
        if valid.device.type == "cpu" and whole:  # asking costs a synchronisation elsewhere
            whole = bool(valid.all()) and (first is None or self.group == 1 or bool(known[:, 1:].all()))
        if valid.device.type != "cpu" or not whole:
            here = [valid if part is None else part & valid for part in having]
            exists = torch.stack(here, dim=2).flatten(1)[:, dropped:]
        group = self.groups.repeat(valid.shape[1])[dropped:].expand(len(valid), -1)
        return x_BTGD.flatten(1, 2)[:, dropped:], Tokens(valid=exists, group=group)

    def predict(
        self,
        observation: Any,
        previous_action: Tensor,
        condition: Tensor | None,
        timestep: Tensor,
        valid: Tensor,
        read: slice,
        first: Tensor | None = None,
    ) -> tuple[Prediction, Mapping[str, Tensor]]:
        """Predictions of actions at the state tokens that `read` (a slice of steps) picks, and the backbone's `aux`.

        Args:
            observation: (B, T, ...); previous_action: (B, T, ...), the action before each step.
            condition: (B, T, C) or None; timestep: (B, T) int64; valid: (B, T) bool.
            first: (B, T) bool, an episode begins; None where windows hold one episode.
        """
        x_BLD, tokens = self.encode(observation, previous_action, condition, timestep, valid, first)
        mixed = self.backbone(x_BLD, tokens=tokens, read=self.places(read, valid.shape[1]))
        return self.head(mixed.y), mixed.aux

    def places(self, read: slice, steps: int, token: int = -1) -> slice:
        """Where in the stream of `encode` the steps that `read` picks, of so many, have one of their G tokens (the last by default)."""
        picked = range(*read.indices(steps))
        offset = self.group - 1 if token == -1 else token
        first = picked.start * self.group + offset - int(self.group > 1)
        return slice(first, first + (len(picked) - 1) * picked.step * self.group + 1, picked.step * self.group)

    def advance(
        self, step: Step, condition: Tensor | None, state: State, before: Any = None
    ) -> tuple[Prediction, State]:
        """The prediction (B, 1, ...) at one step, given the backbone's state before it, and the state after it.

        `before` (B, ...) is the observation of the step before, where the layout tells it.
        """
        later = lambda tree: tree_map(  # noqa: E731
            lambda part: part.unsqueeze(1), dict(tree) if isinstance(tree, Mapping) else tree
        )
        times: tuple[Tensor | None, Tensor | None] = (None, None)
        if self.embed_time is not None:
            time = self.embed_time(torch.stack((step.timestep - 1, step.timestep), dim=1), step.valid[:, None])
            times = time[:, :1], time[:, 1:]
        known = step.valid & ~step.first  # where an episode begins there was no action before
        x_BTGD, having = self.tokens(
            later(step.observation),
            None if before is None else later(before),
            later(step.previous_action),
            None if condition is None else later(condition),
            later(known),
            times,
        )
        exists = None
        if not known.all():
            exists = torch.cat([later(step.valid) if part is None else part for part in having], dim=1)
        tokens = Tokens(valid=exists, group=self.groups.expand(len(known), -1))
        mixed = self.backbone(x_BTGD.flatten(1, 2), state, tokens=tokens, read=slice(self.group - 1, None))
        assert mixed.state is not None
        return self.head(mixed.y), mixed.state

    def choose(self, prediction: Prediction, step: Step, explore: bool) -> Tensor:
        """The action (B, ...) taken on a prediction for one step."""
        draw = explore or self.config.acting == "sample"
        return (prediction.sample(step.seed) if draw else prediction.mode()).squeeze(1)

    def _recorded(self, batch: Batch, read: slice) -> tuple[Prediction, Mapping[str, Tensor]]:
        condition = self.condition.hindsight(batch) if self.condition is not None else None
        previous = shifted(batch.action)
        first = batch.first if self.config.across else None
        return self.predict(batch.observation, previous, condition, batch.timestep, batch.valid, read, first)

    def forward(self, batch: Batch, read: slice = slice(None)) -> Prediction:
        """Predictions of the actions of recorded windows, as in training, at the steps that `read` picks."""
        return self._recorded(batch, read)[0]

    def loss(self, *batches: Batch, weight: Tensor | None = None) -> Loss:
        """Mean over scored steps of the head's loss: squared error for continuous actions, cross-entropy for choices.

        What the backbone's `aux` calls a loss (a mixture of experts has such) is added to the total. `weight` (B, T) weighs
        steps, for methods that favour some.
        """
        (batch,) = batches
        prediction, aux = self._recorded(batch, slice(None))
        errors = prediction.loss(batch.action).float()
        loss, count = masked_mean(errors if weight is None else errors * weight, batch.scored)
        own = {name: value for name, value in aux.items() if name.endswith("loss")}
        metrics = {"loss": loss, "scored": batch.scored.float().mean(), **own}
        return Loss(sum(own.values(), loss), metrics=metrics, weight=count)

    @property
    def policy(self) -> Policy:
        return StreamPolicy(self) if self.config.reading == "stream" else WindowPolicy(self)


def shifted(values_BT: Tensor) -> Tensor:
    """(B, T, ...) what stood a step before, zeros at the window's first step."""
    return torch.cat((torch.zeros_like(values_BT[:, :1]), values_BT[:, :-1]), dim=1)


class WindowPolicy:
    """Keeps the last K steps of each row and re-reads them; a step that slid out of the window has no effect any more."""

    def __init__(self, method: ConditionedCloning) -> None:
        self.method, self.length = method, method.config.look_back or method.config.context

    def steady(self, step: Step, state: State) -> bool:
        """Whether `act` does the same operations as at every other such step: all windows are full and hold one episode."""
        kept = state["history"]
        same = (kept["seen"] >= self.length - 1) & step.valid
        if "first" in kept:
            same = same & ~step.first & ~kept["first"][:, 2:].any(1)
        return self.method.is_static and bool(same.all())

    def begin(self, rows: int, context: Context) -> State:
        method, device = self.method, next(self.method.parameters()).device
        columns: dict[str, Any] = {"observation": method.spec.observation, "previous_action": method.spec.action}
        if method.config.across:
            columns["first"] = torch.bool
        if method.condition is None:
            return {"history": history.begin(rows, self.length, device, **columns)}
        kept = history.begin(rows, self.length, device, **columns, condition=method.condition.width)
        return {"history": kept, "condition": method.condition.begin(rows, context)}

    def act(self, step: Step, state: State, *, explore: bool = False) -> Decision:
        method, carried = self.method, {}
        new: dict[str, Any] = {"first": step.first} if method.config.across else {}
        if method.condition is not None:
            new["condition"], carried["condition"] = method.condition.carry(step, state["condition"])
        kept = history.push(
            state["history"],
            observation=step.observation,
            previous_action=step.previous_action,
            timestep=step.timestep,
            **new,
        )
        columns, valid = history.window(kept)
        prediction, _ = method.predict(
            columns["observation"],
            columns["previous_action"],
            columns.get("condition"),
            columns["timestep"],
            valid,
            slice(-1, None),
            columns.get("first"),
        )
        return Decision(method.choose(prediction, step, explore), {"history": kept, **carried})


class StreamPolicy:
    """Reads every step once and carries the backbone's state: a decision costs the same however long the episode."""

    def __init__(self, method: ConditionedCloning) -> None:
        self.method = method

    def steady(self, step: Step, state: State) -> bool:
        """Whether `act` does the same operations as at every other such step: no row begins or is idle."""
        return self.method.is_static and bool((step.valid & ~step.first).all())

    def begin(self, rows: int, context: Context) -> State:
        method = self.method
        kept: dict[str, Any] = {} if method.condition is None else {"condition": method.condition.begin(rows, context)}
        if method.embed_before is not None:
            device = next(method.parameters()).device
            kept["before"] = history.zeros_like_space(method.spec.observation, (rows,), device)
        return {"backbone": method.backbone.initial_state(rows), **kept}

    def act(self, step: Step, state: State, *, explore: bool = False) -> Decision:
        method, condition = self.method, None
        carried: dict[str, Any] = {} if method.embed_before is None else {"before": step.observation}
        if method.condition is not None:
            condition, carried["condition"] = method.condition.carry(step, state["condition"])
        prediction, carried["backbone"] = method.advance(step, condition, state["backbone"], state.get("before"))
        return Decision(method.choose(prediction, step, explore), carried)
