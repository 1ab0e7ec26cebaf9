"""A diffusion transformer in two parts: an encoder that reads the observations once, and a decoder over the noisy chunk.

    e_l = encoder layer l of the observation tokens                  c_l = mean over tokens of e_l + time(level)
    x  += g(c_l) * part(norm(x) * (1 + s(c_l)) + b(c_l))             for self-attention and MLP of decoder block l   (adaLN-zero)
    out = Linear(x * (1 + s(c)) + b(c))                              c the last c_l

g, s, b and the output layer start at zero, so an untrained block is the identity and the untrained network answers 0. Decoder
block l reads encoder layer l. With cross-attention in place of the condition the blocks attend to [time(level), e_last] instead:
the plain transformer that adaLN-zero was found to be steadier than.

Peebles and Xie 2023 (DiT), arXiv 2212.09748; Dasari et al. 2024 (DiT-Block Policy), arXiv 2410.10088. H is the length of a chunk.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.core.spec import Space
from foretoken.core.state import State
from foretoken.core.store import Statistics
from foretoken.nn.denoiser import Denoiser, DenoiserConfig
from foretoken.nn.embed.tokens import ObservationTokensConfig
from foretoken.nn.feed_forward import MLPConfig
from foretoken.nn.mixer import Tokens
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.stack import BlockConfig, CrossAttentionConfig, Seen, StackConfig


@dataclass(frozen=True, kw_only=True)
class DiffusionTransformerConfig(DenoiserConfig):
    """
    Args:
        observation: how observations become tokens.
        encoder: reads the observation tokens.
        decoder: reads the noisy chunk; its blocks have a condition of the width, or cross-attention.
        paired: decoder block l is conditioned on encoder layer l; otherwise every block on the last.
        zero_init: gates, scales, shifts and the output layer start at zero; otherwise as other layers do (Xavier).
        time_features: sines and cosines of the noise level.
    """

    observation: ObservationTokensConfig = ObservationTokensConfig()
    encoder: StackConfig = StackConfig()
    decoder: StackConfig = StackConfig()
    paired: bool = True
    zero_init: bool = True
    time_features: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        width, layers = self.decoder.width, self.decoder.num_layers
        if self.encoder.width != width or (self.paired and self.encoder.num_layers != layers):
            raise ConfigError(
                f"encoder and decoder must have one width, and for paired=True one depth, got {self.encoder.width} x "
                f"{self.encoder.num_layers} and {width} x {layers}"
            )
        wrong = [b for b in self.decoder.pattern if (b.cross is None) == (not b.condition_width)]
        if wrong or any(block.condition_width not in (0, width) for block in self.decoder.pattern):
            raise ConfigError(
                f"decoder blocks need either cross-attention or condition_width={width}, got {self.decoder.pattern}"
            )
        if self.time_features < 2 or self.time_features % 2:
            raise ConfigError(f"time_features must be even and positive, got {self.time_features}")


def adaln_transformer(
    width: int, num_layers: int, num_heads: int, *, dropout: float = 0.1, cross: bool = False, **more: Any
) -> DiffusionTransformerConfig:
    """Encoder and decoder of equal size as the DiT-Block Policy has them: a post-norm encoder that knows places by rotary
    positions, a pre-norm decoder, MLPs of four times the width with GELU. `cross` puts cross-attention in place of adaLN, `more`
    are further fields of the config.
    """
    feed_forward = MLPConfig(activation="gelu_tanh", dropout=dropout)
    heads = AttentionConfig(num_heads=num_heads, dropout=dropout)
    common = BlockConfig(mixer=heads, feed_forward=feed_forward, dropout=dropout)
    reads = common.replace(mixer=heads.replace(positions="rotary"), order="post")
    writes = (
        common.replace(cross=CrossAttentionConfig(num_heads=num_heads))
        if cross
        else common.replace(condition_width=width)
    )
    size = StackConfig(width=width, num_layers=num_layers, init_std=width**-0.5, final_norm=False)
    decoder = size.replace(pattern=(writes,), final_norm=cross)
    return DiffusionTransformerConfig(encoder=size.replace(pattern=(reads,)), decoder=decoder, **more)


def everyone(query: Tokens, key: Tokens) -> Tensor:
    """Visibility without order: all tokens see all."""
    assert query.step is not None and key.step is not None
    return query.step.new_ones(len(query.step), query.step.shape[1], key.step.shape[1], dtype=torch.bool)


class LevelEmbedding(nn.Module):
    """Noise levels (B,) in [0, 1] to (B, D): sines and cosines of a hundred times the level, then an MLP."""

    rates: Tensor

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        rates = 100 * torch.exp(-math.log(10_000) * torch.arange(features // 2) / (features // 2))
        self.register_buffer("rates", rates, persistent=False)
        self.layers = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, level_B: Tensor) -> Tensor:
        angle = level_B[:, None] * self.rates
        return self.layers(torch.cat((angle.cos(), angle.sin()), dim=-1))


@configures(DiffusionTransformerConfig)
class DiffusionTransformer(Denoiser):
    """See the module."""

    def __init__(self, config: DiffusionTransformerConfig, space: Space, context: int, horizon: int, dims: int) -> None:
        super().__init__()
        self.config, width = config, config.decoder.width
        self.observation = config.observation.build(space, width)
        self.encoder, self.decoder = config.encoder.build(everyone), config.decoder.build(everyone)
        self.level = LevelEmbedding(config.time_features, width)
        self.enter = nn.Sequential(nn.Linear(dims, width), nn.GELU("tanh"), nn.Linear(width, width))
        self.place = nn.Parameter(0.02 * torch.randn(horizon, width))
        self.crosses = any(block.cross is not None for block in config.decoder.pattern)
        self.modulation = None if self.crosses else nn.Linear(width, 2 * width)
        self.leave = nn.Linear(width, dims)
        modulated = [part for name, part in self.named_modules() if name.endswith("modulation")]
        for linear in (*modulated, self.leave):
            assert isinstance(linear, nn.Linear)
            nn.init.zeros_(linear.bias)
            nn.init.zeros_(linear.weight) if config.zero_init else nn.init.xavier_uniform_(linear.weight)

    def fit(self, statistics: Mapping[str, Statistics]) -> None:
        self.observation.fit(statistics)

    def encode(self, observation: Any) -> State:
        """`mean` (B, layers, D) of the encoder's layers, and the last one's `tokens` (B, L, D) where blocks attend to them."""
        x_BLD, tokens, means = self.observation(observation), Tokens(shared={}), []
        for block in self.encoder.layers():
            x_BLD = block(x_BLD, tokens=tokens).y
            means.append(x_BLD.mean(1))
        return {"tokens": x_BLD} if self.crosses else {"mean": torch.stack(means, dim=1)}

    def forward(self, sample_BHA: Tensor, level_B: Tensor, known: State) -> Tensor:
        time_BD, tokens = self.level(level_B), Tokens(shared={})
        condition, context = None, None
        if self.crosses:
            context = Seen(torch.cat((time_BD[:, None], known["tokens"]), dim=1))
        x_BHD = self.enter(sample_BHA) + self.place
        for number, block in enumerate(self.decoder.layers()):
            if not self.crosses:
                condition = known["mean"][:, number if self.config.paired else -1] + time_BD
            x_BHD = block(x_BHD, tokens=tokens, condition=condition, context=context).y
        x_BHD = self.decoder.norm(x_BHD)
        if self.modulation is not None and condition is not None:
            shift, scale = self.modulation(F.silu(condition))[:, None].chunk(2, dim=-1)
            x_BHD = x_BHD * (1 + scale) + shift
        return self.leave(x_BHD)
