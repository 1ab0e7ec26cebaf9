"""A transformer over the scalars of steps, as a model of dynamics: every entry of observations and actions is a token.

    o_1 .. o_n  a_1 .. a_m   o_1 .. o_n  a_1 .. a_m   ...      G = n + m tokens a step

The next observation is predicted token by token: its first one at the last action, which also tells the reward, the others at
the one before. Actions are read and never predicted. Imagined steps feed back the likeliest tokens, for planning, or tokens
drawn by seeds, which show how unsure the model is; rewards are expectations.
Many sequences of actions after one history cost one reading of it: rows of the state are copied (`core.state.gather`).

The same tokens with the loss on the actions alone are a policy, `methods.token_cloning`. Schubert et al. 2023, arXiv 2305.10912.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core import random
from foretoken.core.batch import Batch, Loss, masked_mean
from foretoken.core.config import Config, configures
from foretoken.core.spec import Box, Spec
from foretoken.core.state import State
from foretoken.methods.dynamics.base import Dynamics, DynamicsConfig, box
from foretoken.nn.mixer import Tokens
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.stack import StackConfig
from foretoken.nn.tokenizers.mu_law import MuLawConfig
from foretoken.nn.tokenizers.uniform import UniformConfig


@dataclass(frozen=True, kw_only=True)
class TokenStreamConfig(Config):
    """
    Args:
        backbone: the sequence network, causal; positions are its own (rotary attention, recurrences). Attention keeps as many
            tokens as are asked for, whatever its `capacity`.
        observation: bins of an observation's entries, fixed for all data.
        action: bins of an action's entries in [-1, 1].
    """

    backbone: StackConfig = StackConfig()
    observation: MuLawConfig = MuLawConfig()
    action: UniformConfig = UniformConfig(bins=1024)


@configures(TokenStreamConfig)
class TokenStream(nn.Module):
    """Steps as tokens, and the network that reads them."""

    slots: Tensor

    def __init__(self, config: TokenStreamConfig, spec: Spec, steps: int) -> None:
        super().__init__()
        seen, done = box(spec, "observation"), box(spec, "action")
        self.n, self.m, width = seen.size, done.size, config.backbone.width
        self.group = self.n + self.m
        self.observation = config.observation.build(Box(shape=(self.n,)))
        self.action = config.action.build(Box(shape=(self.m,), low=(-1.0,), high=(1.0,)))
        self.embed_observation = nn.Embedding(config.observation.bins, width)
        self.embed_action = nn.Embedding(config.action.bins, width)
        self.embed_slot = nn.Embedding(self.group, width)
        for table in (self.embed_observation, self.embed_action):
            start_smooth(table.weight, config.backbone.init_std)
        nn.init.normal_(self.embed_slot.weight, std=config.backbone.init_std)
        self.backbone = _with_room(config.backbone, steps * self.group, self.m).build()
        self.register_buffer("slots", torch.arange(self.group), persistent=False)

    def encode(self, observation_BTO: Tensor, action_BTA: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, n) and (B, T, m) of vectors."""
        return self.observation.encode(observation_BTO), self.action.encode(action_BTA)

    def embed(self, seen_BTn: Tensor, done_BTm: Tensor) -> Tensor:
        """(B, T * G, D) of tokens of observations (B, T, n) and actions (B, T, m)."""
        parts = (self.embed_observation(seen_BTn), self.embed_action(done_BTm))
        return (torch.cat(parts, dim=2) + self.embed_slot(self.slots)).flatten(1, 2)

    def forward(self, seen_BTn: Tensor, done_BTm: Tensor, valid_BT: Tensor) -> Tensor:
        """(B, T, G, D): what the network makes of every token."""
        tokens = Tokens(valid=valid_BT.repeat_interleave(self.group, 1))
        y_BLD: Tensor = self.backbone(self.embed(seen_BTn, done_BTm), tokens=tokens).y
        return y_BLD.unflatten(1, (-1, self.group))

    def begin(self, seen_BTn: Tensor, done_BTm: Tensor, valid_BT: Tensor) -> State:
        """The network's state before the last token of the last observation, and that token."""
        rest = self.m + 1
        valid_BL = valid_BT.repeat_interleave(self.group, 1)[:, :-rest]
        x_BLD, state = self.embed(seen_BTn, done_BTm)[:, :-rest], self.backbone.initial_state(len(seen_BTn))
        if x_BLD.shape[1]:
            tokens = Tokens(valid=None if bool(valid_BL.all()) else valid_BL)
            state = self.backbone(x_BLD, state, tokens=tokens, read=slice(-1, None)).state
        return {"network": state, "seen": seen_BTn[:, -1]}

    def read(self, x_RLD: Tensor, state: State) -> tuple[Tensor, State]:
        """What the network makes of the last of a few more tokens, (R, D), and its state."""
        mixed = self.backbone(x_RLD, state, read=slice(-1, None))
        assert mixed.state is not None
        return mixed.y[:, -1], mixed.state

    def of_observation(self, token_R: Tensor, entry: int) -> Tensor:
        """(R, 1, D) of one entry's token."""
        x_RD: Tensor = self.embed_observation(token_R) + self.embed_slot.weight[entry]
        return x_RD[:, None]

    def of_action(self, token_RK: Tensor, first: int = 0) -> Tensor:
        """(R, K, D) of the tokens of an action's entries from `first` on."""
        slots = self.n + first + torch.arange(token_RK.shape[1], device=token_RK.device)
        x_RKD: Tensor = self.embed_action(token_RK) + self.embed_slot(slots)
        return x_RKD


@torch.no_grad()
def start_smooth(weight_VD: Tensor, std: float) -> None:
    """Waves over the bins, each feature's of another length and phase, so that near bins begin alike and learn together."""
    bins, width = weight_VD.shape
    place_V1 = torch.linspace(0, torch.pi, bins)[:, None]
    pace_D = 0.5 * (bins / 8) ** torch.linspace(0, 1, width)
    weight_VD.copy_(std * 2**0.5 * torch.cos(pace_D * place_V1 + 2 * torch.pi * torch.rand(width)))


def _with_room(backbone: StackConfig, tokens: int, slack: int) -> StackConfig:
    """The same network whose attention, as a stream, keeps so many tokens."""
    pattern = tuple(
        block.replace(mixer=block.mixer.replace(capacity=tokens, slack=slack))
        if isinstance(block.mixer, AttentionConfig)
        else block
        for block in backbone.pattern
    )
    return backbone.replace(pattern=pattern)


@dataclass(frozen=True, kw_only=True)
class TokenDynamicsConfig(DynamicsConfig):
    """
    Args:
        stream: the tokens and their network.
        reward: bins of rewards.
    """

    stream: TokenStreamConfig = TokenStreamConfig()
    reward: MuLawConfig = MuLawConfig()


@configures(TokenDynamicsConfig)
class TokenDynamics(Dynamics):
    """See the module. Nothing is fitted: companding is the same for all bodies."""

    def __init__(self, config: TokenDynamicsConfig, spec: Spec, steps: int) -> None:
        super().__init__()
        width, std = config.stream.backbone.width, config.stream.backbone.init_std
        self.stream = config.stream.build(spec, steps)
        self.reward = config.reward.build(Box(shape=(1,)))
        self.next_token, self.next_reward = (
            nn.Linear(width, bins.bins) for bins in (config.stream.observation, config.reward)
        )
        for head in (self.next_token, self.next_reward):
            start_smooth(head.weight, std)
            nn.init.zeros_(head.bias)

    def loss(self, batch: Batch, observation_BTO: Tensor, action_BTA: Tensor) -> Loss:
        stream = self.stream
        seen_BTn, done_BTm = stream.encode(observation_BTO, action_BTA)
        y_BTGD = stream(seen_BTn, done_BTm, batch.valid)
        acted_BTD = y_BTGD[:, :-1, -1]
        before_BTnD = torch.cat((acted_BTD[:, :, None], y_BTGD[:, 1:, : stream.n - 1]), dim=2)
        errors_BTn = F.cross_entropy(self.next_token(before_BTnD).movedim(-1, 1), seen_BTn[:, 1:], reduction="none")
        earned_BT = self.reward.encode(batch.reward[:, :-1, None])[..., 0]
        scored_BT = batch.scored[:, :-1] & batch.valid[:, 1:]
        of_reward_BT = F.cross_entropy(self.next_reward(acted_BTD).movedim(-1, 1), earned_BT, reduction="none")
        of_observation, count = masked_mean(errors_BTn.mean(-1), scored_BT)
        of_reward, _ = masked_mean(of_reward_BT, scored_BT)
        total = of_observation + of_reward / stream.n
        return Loss(total, {"observation": of_observation, "reward": of_reward}, weight=count)

    def begin(
        self, observation_BTO: Tensor, action_BTA: Tensor, valid_BT: Tensor, seed_B: Tensor | None = None
    ) -> State:
        state = self.stream.begin(*self.stream.encode(observation_BTO, action_BTA), valid_BT)
        return state if seed_B is None else {**state, "seed": seed_B}

    def step(self, state: State, action_RA: Tensor) -> tuple[Tensor, State]:
        stream, network, seed_R = self.stream, state["network"], state.get("seed")
        last_R1D = stream.of_observation(state["seen"][:, -1], stream.n - 1)
        done_RmD = stream.of_action(stream.action.encode(action_RA))
        y_RD, network = stream.read(torch.cat((last_R1D, done_RmD), dim=1), network)
        reward_R = self.reward.expectation(self.next_reward(y_RD).softmax(-1)[:, None])[:, 0]
        seen: list[Tensor] = []
        for entry in range(stream.n):
            if seen:
                y_RD, network = stream.read(stream.of_observation(seen[-1], entry - 1), network)
            logits_RV = self.next_token(y_RD)
            best_R = logits_RV.argmax(-1)
            seen.append(best_R if seed_R is None else random.categorical(logits_RV, random.split(seed_R, entry)))
        after = {"network": network, "seen": torch.stack(seen, dim=1)}
        return reward_R, after if seed_R is None else {**after, "seed": random.split(seed_R, stream.n)}

    def observation(self, state: State) -> Tensor:
        values: Tensor = self.stream.observation.decode(state["seen"])
        return values
