"""Decision pretraining: from transitions of a task, name the best action at a query state of the same task.

    s_q  (s a s' r)_1 ... (s a s' r)_n  ->  after every token the best action at s_q

The query comes first, then one token for each transition of the context; every length of context is trained in one pass. The
label belongs to the query and not to the context, whose actions may be anyone's. Lee et al., NeurIPS 2023, arXiv 2306.14892.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from foretoken.core.batch import Batch, Decision, Loss, Step, masked_mean
from foretoken.core.config import Config, configures
from foretoken.core.errors import ConfigError
from foretoken.core.method import Context, Method
from foretoken.core.spec import Spec, Window
from foretoken.core.state import State, where_rows
from foretoken.core.store import EpisodeStore, joint_statistics
from foretoken.methods import history
from foretoken.nn.embed.actions import ActionEmbedding
from foretoken.nn.embed.observations import ObservationConfig
from foretoken.nn.heads.base import BySpaceConfig, HeadConfig, Prediction
from foretoken.nn.mixer import Tokens
from foretoken.nn.stack import StackConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DecisionPretrainingConfig(Config):
    """
    Args:
        context: transitions that are seen, H; of more, the newest.
        backbone: the sequence network.
        observation: how observations are read.
        head: the distribution over actions; the usual one of the action space by default.
        shuffle: puts each context in a random order in training. Only for data whose actions do not follow from the rewards
            before: the order of an adaptive learner's data says something.
        empty: trains the prediction before any context as well.
        memory: when transitions enter the context while acting: after every "step" (bandits), after every "episode" (the context
            is fixed within one, as published), or "never" (a given dataset is all there is).
        reading: "window" reads the whole context at every decision; "stream" reads each transition once and carries the
            backbone's state, which is the same where the query never changes, as in bandits, up to H transitions.
        acting: "sample" draws from the head, as published online; "mode" takes the likeliest, as published offline.
    """

    context: int = 100
    backbone: StackConfig = StackConfig(width=32, num_layers=4)
    observation: ObservationConfig = ObservationConfig(standardise=False)
    head: HeadConfig = BySpaceConfig()
    shuffle: bool = True
    empty: bool = True
    memory: Literal["step", "episode", "never"] = "episode"
    reading: Literal["window", "stream"] = "window"
    acting: Literal["sample", "mode"] = "sample"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.context < 1:
            raise ConfigError(f"context must be at least 1 transition, got {self.context}")
        if self.reading == "stream" and self.memory != "step":
            raise ConfigError(f'reading="stream" needs memory="step", got {self.memory!r}')


@configures(DecisionPretrainingConfig)
class DecisionPretraining(Method):
    """See the module. Asks for steps with `optimal_action` and `next_observation`; windows stay within a task."""

    def __init__(self, config: DecisionPretrainingConfig, spec: Spec) -> None:
        super().__init__()
        self.config, self.spec, width = config, spec, config.backbone.width
        self.embed_observation = config.observation.build(spec.observation, width)
        self.embed_next = config.observation.build(spec.observation, width)
        self.embed_action = ActionEmbedding(spec.action, width)
        self.embed_reward = nn.Linear(1, width)
        self.positions = nn.Embedding(config.context + 1, width)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.backbone = config.backbone.build()
        self.head = config.head.build(spec.action, width)
        columns = ("observation", "action", "reward", "next_observation", "optimal_action")
        self.window = Window(length=config.context + 1, columns=columns, anchor="full", across="task")

    def fit(self, stores: Mapping[str, EpisodeStore], stage: str) -> None:
        if not stores:
            return
        if self.config.shuffle and any(getattr(store, "about", {}).get("adaptive") for store in stores.values()):
            raise ConfigError(
                "these roll-ins were made by a learner, whose order matters: shuffle must be False, got True"
            )
        for name, store in stores.items():
            if follow_each_other(store):
                log.warning(
                    "states of %r follow each other, so that the state asked about says where its context begins, of which it should be "
                    "independent; record transitions from anywhere (roll-ins of kind='uniform'), or read results with that in mind",
                    name,
                )
        observed, acted = joint_statistics(stores, "observation"), joint_statistics(stores, "action")
        self.embed_observation.fit(observed)
        self.embed_next.fit(observed)
        self.embed_action.fit(acted)
        self.head.fit(acted)

    def transition(self, observation: Any, action: Tensor, reward: Tensor, successor: Any) -> Tensor:
        """The token (..., D) of a transition: one linear map of its parts beside each other."""
        seen = self.embed_observation(observation) + self.embed_next(successor)
        return seen + self.embed_action(action) + self.embed_reward(reward.unsqueeze(-1).to(seen.dtype))

    def predict(self, query: Any, context_BHD: Tensor, valid_BH: Tensor, *, last: bool = False) -> Prediction:
        """The best action at `query` (B, ...) after it and after each token of the context, (B, 1 + H), or after the `last` alone."""
        x_BLD = torch.cat((self.embed_observation(query).unsqueeze(1), context_BHD), dim=1)
        valid = torch.cat((valid_BH.new_ones(len(valid_BH), 1), valid_BH), dim=1)
        place = (valid.cumsum(1) - 1).clamp(max=self.config.context)
        y_BLD = self.backbone(x_BLD + self.positions(place), tokens=Tokens(valid=None if valid.all() else valid)).y
        if last:
            newest = place.argmax(1)[:, None, None]  # of equal ones the first: padding after it counts no further
            y_BLD = y_BLD.gather(1, newest.expand(-1, 1, y_BLD.shape[2]))
        return self.head(y_BLD)

    def loss(self, *batches: Batch) -> Loss:
        """Mean over all lengths of context of the head's loss of the best action at the query."""
        (batch,) = batches
        here = batch.valid.any(0).nonzero()[[0, -1], 0].tolist()  # short tasks need no long windows
        batch = batch.map(lambda leaf: leaf[:, here[0] : here[1] + 1])
        rows = torch.arange(len(batch.valid), device=batch.valid.device)
        begin = batch.valid.long().argmax(1)  # the window's first step lends its state as the query
        query, label = (
            tree_map(lambda leaf: leaf[rows, begin], batch[name]) for name in ("observation", "optimal_action")
        )
        context_BTD = self.transition(batch.observation, batch.action, batch.reward, batch.next_observation)
        valid_BT = batch.valid & (torch.arange(batch.valid.shape[1], device=begin.device) > begin[:, None])
        if not begin.any():  # attention over whole windows needs no mask
            context_BTD, valid_BT = context_BTD[:, 1:], valid_BT[:, 1:]
        if self.training and self.config.shuffle:
            order = torch.rand(valid_BT.shape, device=begin.device).argsort(1)
            context_BTD, valid_BT = (
                context_BTD.gather(1, order[..., None].expand_as(context_BTD)),
                valid_BT.gather(1, order),
            )
        prediction = self.predict(query, context_BTD, valid_BT)
        losses_BL = prediction.loss(label[:, None].expand(-1, 1 + valid_BT.shape[1], *label.shape[1:])).float()
        scored_BL = torch.cat((torch.full_like(valid_BT[:, :1], self.config.empty), valid_BT), dim=1)
        loss, count = masked_mean(losses_BL, scored_BL)
        return Loss(loss, metrics={"loss": loss}, weight=count)

    def choose(self, prediction: Prediction, step: Step, explore: bool) -> Tensor:
        """The action (B, ...) taken on a prediction (B, 1)."""
        draw = explore or self.config.acting == "sample"
        return (prediction.sample(step.seed) if draw else prediction.mode()).squeeze(1)

    @property
    def policy(self) -> "ContextPolicy | StreamedPolicy":
        return StreamedPolicy(self) if self.config.reading == "stream" else ContextPolicy(self)


def follow_each_other(store: EpisodeStore, sampled: int = 256) -> bool:
    """Whether most steps begin where the one before ended, in states that change: trajectories. In bandits there is but one state."""
    start, length = (np.asarray(store.episodes[name]) for name in ("start", "length"))
    ends = np.cumsum(length - 1)  # of the pairs of steps that both have an action
    if not len(ends) or not ends[-1]:
        return False
    picked = np.unique(np.linspace(0, ends[-1] - 1, sampled).astype(np.int64))
    episode = np.searchsorted(ends, picked, side="right")
    at = start[episode] + picked - (ends - length + 1)[episode]
    before, after = (store.gather(at + more, ("observation", "next_observation")) for more in (0, 1))

    def equal(one: Any, other: Any) -> Tensor:
        pairs = zip(tree_leaves(one), tree_leaves(other), strict=True)
        return torch.stack([(a == b).flatten(1).all(1) for a, b in pairs]).all(0)

    moves = ~equal(before.observation, after.observation)
    return bool(moves.any()) and bool(equal(before.next_observation, after.observation)[moves].float().mean() > 0.5)


class ContextPolicy:
    """Keeps the last transitions of each row, whatever episode they come from, and reads them with the present state as query.

    `begin` takes a dataset where the context has `prompt_observation`, `prompt_action`, `prompt_reward` and
    `prompt_next_observation`, each (B, n, ...).
    """

    def __init__(self, method: DecisionPretraining) -> None:
        self.method, config = method, method.config
        aside = method.spec.max_episode_steps or config.context  # transitions of an episode that must wait for its end
        self.length = config.context + (aside if config.memory == "episode" else 0)

    def begin(self, rows: int, context: Context) -> State:
        spec, device = self.method.spec, next(self.method.parameters()).device
        spaces = {"observation": spec.observation, "action": spec.action, "next_observation": spec.observation}
        kept = history.begin(rows, self.length, device, **spaces, reward=torch.float32)
        if "prompt_reward" in context:
            given = {name: context[f"prompt_{name}"] for name in (*spaces, "reward")}
            for t in range(given["reward"].shape[1]):
                now = {name: tree_map(lambda leaf: leaf[:, t], values) for name, values in given.items()}  # noqa: B023
                kept = history.push(kept, timestep=torch.zeros_like(kept["seen"]), **now)
        seen = history.zeros_like_space(spec.observation, (rows,), device)
        return {"kept": kept, "before": seen, "waiting": torch.zeros_like(kept["seen"])}

    def act(self, step: Step, state: State, *, explore: bool = False) -> Decision:
        method, kept, waiting = self.method, state["kept"], state["waiting"]
        if method.config.memory != "never":
            moved = step.valid & ~step.first  # a transition has been completed
            pushed = history.push(
                kept, observation=state["before"], action=step.previous_action, reward=step.previous_reward,
                next_observation=step.observation, timestep=step.timestep,
            )  # fmt: skip
            kept = where_rows(moved, pushed, kept)
            waiting = torch.where(step.first, 0, waiting + moved.long())
        held = waiting if method.config.memory == "episode" else torch.zeros_like(waiting)
        columns, exists = history.window(kept)
        age = torch.arange(exists.shape[1], 0, -1, device=exists.device) - held[:, None]  # 1 is the newest that is seen
        parts = (columns[name] for name in ("observation", "action", "reward", "next_observation"))
        seen = exists & (age >= 1) & (age <= method.config.context)
        prediction = method.predict(step.observation, method.transition(*parts), seen, last=True)
        return Decision(
            method.choose(prediction, step, explore), {"kept": kept, "before": step.observation, "waiting": waiting}
        )


class StreamedPolicy:
    """Reads the query once, where a memory begins, and then each transition as it is completed."""

    def __init__(self, method: DecisionPretraining) -> None:
        self.method = method

    def begin(self, rows: int, context: Context) -> State:
        method, device = self.method, next(self.method.parameters()).device
        seen = history.zeros_like_space(method.spec.observation, (rows,), device)
        count = torch.full((rows,), -1, dtype=torch.int64, device=device)  # place of the last token read
        return {"backbone": method.backbone.initial_state(rows), "before": seen, "count": count}

    def act(self, step: Step, state: State, *, explore: bool = False) -> Decision:
        method, begins = self.method, state["count"] < 0
        token = method.transition(state["before"], step.previous_action, step.previous_reward, step.observation)
        token = torch.where(begins[:, None], method.embed_observation(step.observation), token)
        reads = step.valid & (begins | ~step.first)
        count = state["count"] + reads.long()
        x_B1D = (token + method.positions(count.clamp(0, method.config.context))).unsqueeze(1)
        mixed = method.backbone(x_B1D, state["backbone"], tokens=Tokens(valid=None if reads.all() else reads[:, None]))
        after = {"backbone": mixed.state, "before": step.observation, "count": count}
        return Decision(method.choose(method.head(mixed.y), step, explore), after)
