"""Short causal convolutions over tokens, one filter per kind of token: the token mixing of Decision ConvFormer.

    y_t = bias[g] + sum_w weight[g, w] * x_(t - window + 1 + w),    g = the group of token t, modulo the number of filters

Paper: Kim, Lee, Kim, Sung, ICLR 2024, arXiv 2310.03022. The kind of the token that is written chooses the filter, which
slides over tokens of all kinds; features never mix here. Taps count valid tokens of the same memory.
Differs from the paper: 1. padding is skipped, where the published code convolves over the embeddings of padded steps.
2. A token says itself which filter it takes (`tokens.group`, filter 0 for all where it is None), so any order of the tokens
of a step, and steps cut apart while streaming, are served.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.core.state import State
from foretoken.nn.mixer import Facts, Mixed, Mixer, MixerConfig, Tokens
from foretoken.nn.scan import wide
from foretoken.nn.taps import taps


@dataclass(frozen=True, kw_only=True)
class ConvConfig(MixerConfig):
    """
    Args:
        window: tokens that a filter spans, the token itself included; 6 is this step and the one before, of three tokens each.
        groups: filters; 3 for action, return and observation, 1 shares one among all tokens.
        project: a linear layer on the outputs, as published for some Atari games.
    """

    window: int = 6
    groups: int = 3
    project: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("window", "groups"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


@configures(ConvConfig)
class Conv(Mixer):
    """Depthwise causal convolution over `width` features with a filter per group of tokens."""

    def __init__(self, config: ConvConfig, width: int) -> None:
        super().__init__()
        self.config, self.width = config, width
        self.weight = nn.Parameter(torch.empty(config.groups, config.window, width))
        self.bias = nn.Parameter(torch.empty(config.groups, width))
        self.out = nn.Linear(width, width) if config.project else nn.Identity()
        self.facts = Facts(state_bytes=4 * (config.window - 1) * width)
        self.start()

    def start(self) -> None:
        """As PyTorch's depthwise convolutions: uniform in +-1/sqrt(window)."""
        for part in (self.weight, self.bias):
            nn.init.uniform_(part, -(self.config.window**-0.5), self.config.window**-0.5)

    def initial_state(self, rows: int) -> State:
        shape = (rows, self.config.window - 1, self.width)
        return {"before": self.weight.new_zeros(shape, dtype=wide(self.weight.dtype))}

    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None, read: slice | None = None
    ) -> Mixed:
        if x_BLD.shape[-1] != self.width:  # a width of 1 would be broadcast
            raise ValueError(f"inputs must have width {self.width}, got {x_BLD.shape[-1]}")
        if not x_BLD.shape[1]:
            return Mixed(x_BLD, state)
        tokens, at = tokens or Tokens(), slice(None) if read is None else read
        picked, before = taps(x_BLD, None if state is None else state["before"], tokens, self.config.window)
        y_BLD = self._filtered(picked[:, at], None if tokens.group is None else tokens.group[:, at])
        y_BLD = self.out(y_BLD)
        if tokens.valid is not None:
            y_BLD = y_BLD * tokens.valid[:, at, None]
        return Mixed(y_BLD, None if state is None else {"before": before.to(state["before"].dtype)})

    def _filtered(self, picked_BLWD: Tensor, group_BL: Tensor | None) -> Tensor:
        weight, bias = self.weight.to(picked_BLWD.dtype), self.bias.to(picked_BLWD.dtype)
        if group_BL is None or self.config.groups == 1:
            group_BL, weight, bias = None, weight[0], bias[0]
        else:
            group_BL = group_BL % self.config.groups
        if picked_BLWD.shape[1] <= 8:  # streaming: few calls
            if group_BL is not None:
                weight, bias = weight[group_BL], bias[group_BL]
            return (picked_BLWD * weight).sum(2) + bias
        # Tap by tap nothing of size L W D is made; in training on a CPU several times faster than a depthwise convolution.
        y = bias if group_BL is None else F.embedding(group_BL, bias)
        for tap, filters in zip(picked_BLWD.unbind(2), weight.unbind(-2), strict=True):
            y = torch.addcmul(y, tap, filters if group_BL is None else F.embedding(group_BL, filters))
        return y


def reference(mixer: Conv, x_LD: Tensor, tokens: Tokens) -> Tensor:
    """The same layer for one row, token by token in plain loops; slow, for tests."""
    outputs: list[Tensor] = []
    memory: list[Tensor] = []
    for t, x_D in enumerate(x_LD):
        if tokens.fresh is not None and tokens.fresh[t]:
            memory = []
        if tokens.valid is not None and not tokens.valid[t]:
            outputs.append(torch.zeros_like(x_D))
            continue
        memory.append(x_D)
        g = 0 if tokens.group is None else int(tokens.group[t]) % mixer.config.groups
        y = mixer.bias[g]
        for back, earlier in enumerate(memory[: -mixer.config.window - 1 : -1]):
            y = y + mixer.weight[g, mixer.config.window - 1 - back] * earlier
        outputs.append(mixer.out(y))
    return torch.stack(outputs)


VARIANTS = (  # settings that take other paths, for the laws
    ConvConfig(groups=1, window=3),
    ConvConfig(groups=2, window=1, project=True),
)
