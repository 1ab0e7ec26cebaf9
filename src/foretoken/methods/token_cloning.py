"""Cloning of actions by a transformer over the scalars of steps: the tokens of `dynamics.tokens`, the loss on actions alone.

    o_1 .. o_n  a_1 .. a_m   o_1 .. o_n  a_1 .. a_m   ...   ->  a_1 at o_n, a_2 at a_1, ...

What a generalist policy such as Gato is (Reed et al. 2022, arXiv 2205.06175), and the rival of the same network as a model.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core import random
from foretoken.core.batch import Batch, Decision, Loss, Step, masked_mean
from foretoken.core.config import Config, configures
from foretoken.core.method import Context, Method, Policy
from foretoken.core.spec import Spec, Window
from foretoken.core.state import State
from foretoken.core.store import EpisodeStore, joint_statistics
from foretoken.methods import history
from foretoken.methods.dynamics.base import Vectors
from foretoken.methods.dynamics.tokens import TokenStreamConfig, start_smooth


@dataclass(frozen=True, kw_only=True)
class TokenCloningConfig(Config):
    """
    Args:
        stream: the tokens and their network.
        context: steps of a window.
    """

    stream: TokenStreamConfig = TokenStreamConfig()
    context: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(context=1)


@configures(TokenCloningConfig)
class TokenCloning(Method):
    """See the module. Serves vectors of observations and of actions. It takes the likeliest tokens, and draws them to explore."""

    def __init__(self, config: TokenCloningConfig, spec: Spec) -> None:
        super().__init__()
        self.config, self.spec = config, spec
        self.vectors = Vectors(spec)
        self.stream = config.stream.build(spec, config.context)
        self.next_token = nn.Linear(config.stream.backbone.width, config.stream.action.bins)
        start_smooth(self.next_token.weight, config.stream.backbone.init_std)
        nn.init.zeros_(self.next_token.bias)
        self.window = Window(length=config.context, columns=("observation", "action"))

    def fit(self, stores: Mapping[str, EpisodeStore], stage: str) -> None:
        if stores:
            self.vectors.scale.fit(joint_statistics(stores, "action")[""])

    def loss(self, *batches: Batch) -> Loss:
        (batch,) = batches
        stream = self.stream
        seen_BTn, done_BTm = stream.encode(*self.vectors(batch.observation, batch.action))
        y_BTGD = stream(seen_BTn, done_BTm, batch.valid)[:, :, stream.n - 1 : -1]
        errors_BTm = F.cross_entropy(self.next_token(y_BTGD).movedim(-1, 1), done_BTm, reduction="none")
        total, count = masked_mean(errors_BTm.mean(-1), batch.scored)
        return Loss(total, weight=count)

    def decide(self, observation: Tensor, action: Tensor, valid_BT: Tensor, seed_B: Tensor | None = None) -> Tensor:
        """The action after a left-padded history, whose last action is still to be chosen; drawn where there are seeds (B,)."""
        stream = self.stream
        seen_BTn, done_BTm = stream.encode(*self.vectors(observation, action))
        state = stream.begin(seen_BTn, done_BTm, valid_BT)["network"]
        y_BD, state = stream.read(stream.of_observation(seen_BTn[:, -1, -1], stream.n - 1), state)
        chosen: list[Tensor] = []
        for entry in range(stream.m):
            if chosen:
                y_BD, state = stream.read(stream.of_action(chosen[-1][:, None], entry - 1), state)
            logits_BV = self.next_token(y_BD)
            best_B = logits_BV.argmax(-1)
            chosen.append(best_B if seed_B is None else random.categorical(logits_BV, random.split(seed_B, entry)))
        return self.vectors.action(stream.action.decode(torch.stack(chosen, dim=1)))

    @property
    def policy(self) -> Policy:
        return TokenPolicy(self)


class TokenPolicy:
    """Re-reads the last steps at every decision, as trained."""

    def __init__(self, method: TokenCloning) -> None:
        self.method = method

    def begin(self, rows: int, context: Context) -> State:
        spec, device = self.method.spec, self.method.vectors.scale.middle.device
        return history.begin(rows, self.method.config.context, device, observation=spec.observation, before=spec.action)

    def act(self, step: Step, state: State, *, explore: bool = False) -> Decision:
        kept = history.push(state, observation=step.observation, before=step.previous_action, timestep=step.timestep)
        columns, valid_BT = history.window(kept)
        action = torch.roll(columns["before"], -1, dims=1)  # the last one is not read
        chosen = self.method.decide(columns["observation"], action, valid_BT, step.seed if explore else None)
        return Decision(chosen.to(step.previous_action.dtype), kept)
