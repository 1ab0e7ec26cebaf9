"""Mamba-2: a state space per head with one decay for the whole head, which makes it attention with decays (SSD).

    (z, x B C, dt) = W_in x;  (x, B, C) = silu(conv(x B C));  dt = softplus(dt + b)
    S_t = exp(dt_t A) S_(t-1) + B_t (dt_t x_t)^T,   y_t = S_t^T C_t + D x_t     for each head, A < 0 a number
    out = W_out rmsnorm(y silu(z))

Dao and Gu 2024 (arXiv 2405.21060). Beside Mamba, B, C and dt come straight from the input, a head of 64 features shares one
decay, and so a chunk of tokens is a few matrix products: the state may be larger and training is faster. B plays the part of keys,
C that of queries; heads of one group share them, as in grouped-query attention.

Differs from the paper: biases of the convolution begin at zero; `out_proj` is not scaled down by the number of layers.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.core.state import State
from foretoken.nn.mixer import Facts, Mixed, Mixer, MixerConfig, Tokens
from foretoken.nn.mixers.mamba import start_time_steps
from foretoken.nn.scan import ChunkEngine, decayed, wide
from foretoken.nn.taps import ShortConv


@dataclass(frozen=True, kw_only=True)
class Mamba2Config(MixerConfig):
    """
    Args:
        num_heads: must divide expand * width; the paper has 64 features a head.
        state_size: N, states per feature; the paper takes 64 to 256.
        num_groups: heads / num_groups heads share one B and C, and each group is normalised by itself.
        expand: inner features over width.
        kernel: tokens that the convolution sees.
        dt_min, dt_max: step sizes at the start, log-uniform in between.
        norm_eps: added to the mean square before the root.
        bias: whether the projections in and out have biases.
        chunk: tokens that are handled as one matrix product.
        engine: how the recurrence is computed; results do not depend on it.
    """

    num_heads: int = 4
    state_size: int = 64
    num_groups: int = 1
    expand: int = 2
    kernel: int = 4
    dt_min: float = 1e-3
    dt_max: float = 0.1
    norm_eps: float = 1e-5
    bias: bool = False
    chunk: int = 64
    engine: ChunkEngine = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_heads", "state_size", "num_groups", "expand", "kernel", "chunk"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.num_heads % self.num_groups:
            raise ConfigError(f"num_groups must divide num_heads, got {self.num_groups} and {self.num_heads}")
        if self.norm_eps <= 0:
            raise ConfigError(f"norm_eps must be positive, got {self.norm_eps}")
        if not 0 < self.dt_min <= self.dt_max:
            raise ConfigError(f"0 < dt_min <= dt_max is needed, got {self.dt_min} and {self.dt_max}")


@configures(Mamba2Config)
class Mamba2(Mixer):
    """The Mamba-2 layer without its norm before and its residual; parameters are named as in the published code."""

    def __init__(self, config: Mamba2Config, width: int) -> None:
        super().__init__()
        heads, inner, shared = config.num_heads, config.expand * width, config.num_groups * config.state_size
        if inner % heads:
            raise ConfigError(f"num_heads must divide expand * width, got {inner} features and num_heads={heads}")
        self.config, self.memory = config, (heads, config.state_size, inner // heads)
        self.sizes = (inner, shared, shared)
        self.in_proj = nn.Linear(width, inner + sum(self.sizes) + heads, bias=config.bias)
        self.conv = ShortConv(sum(self.sizes), config.kernel)
        self.dt_bias, self.A_log, self.D = (nn.Parameter(torch.empty(heads)) for _ in range(3))
        self.norm = nn.Parameter(torch.empty(inner))
        self.out_proj = nn.Linear(inner, width, bias=config.bias)
        state = math.prod(self.memory) + (config.kernel - 1) * sum(self.sizes)
        self.facts = Facts(state_bytes=4 * state, parallel="chunk")
        self.start()

    @torch.no_grad()
    def start(self) -> None:
        """A uniform in [-16, -1], dt in [dt_min, dt_max], D = 1; the projections as PyTorch starts them, as published."""
        for linear in (self.in_proj, self.out_proj):
            linear.reset_parameters()
            if linear.bias is not None:
                linear.bias.zero_()
        self.conv.reset_parameters()
        start_time_steps(self.dt_bias, self.config.dt_min, self.config.dt_max)
        self.A_log.uniform_(1, 16).log_()
        self.D.fill_(1)
        self.norm.fill_(1)

    def initial_state(self, rows: int) -> State:
        dtype = wide(self.A_log.dtype)
        return {
            "inputs": self.conv.initial_state(rows).to(dtype),
            "memory": self.A_log.new_zeros(rows, *self.memory, dtype=dtype),
        }

    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None, read: slice | None = None
    ) -> Mixed:
        tokens = tokens or Tokens()
        given = state or self.initial_state(len(x_BLD))
        dtype, inner = given["memory"].dtype, self.sizes[0]
        z, u, dt = self.in_proj(x_BLD).split((inner, sum(self.sizes), self.config.num_heads), dim=-1)
        u, inputs = self.conv(u, given["inputs"], tokens)
        u, b, c = F.silu(u).split(self.sizes, dim=-1)
        dt_BLH = F.softplus(dt.to(dtype) + self.dt_bias)
        u_BLHE = u.unflatten(-1, (self.config.num_heads, -1))
        y_BLHE, memory = decayed(
            self._shared(c), self._shared(b), u_BLHE * dt_BLH[..., None], -dt_BLH * self.A_log.to(dtype).exp(),
            state=given["memory"], valid=tokens.valid, fresh=tokens.fresh, chunk=self.config.chunk, engine=self.config.engine,
        )  # fmt: skip
        valid = tokens.valid
        if read is not None:
            y_BLHE, u_BLHE, z = y_BLHE[:, read], u_BLHE[:, read], z[:, read]
            valid = None if valid is None else valid[:, read]
        y = torch.addcmul(y_BLHE, self.D[:, None], u_BLHE).flatten(2) * F.silu(z)
        y = y.view(*y.shape[:2], self.config.num_groups, inner // self.config.num_groups)
        y = F.rms_norm(y, y.shape[-1:], eps=self.config.norm_eps).flatten(2) * self.norm
        y_BLD = self.out_proj(y.to(z.dtype))
        if valid is not None:
            y_BLD = torch.where(valid[..., None], y_BLD, 0)
        return Mixed(y_BLD, None if state is None else {"inputs": inputs.to(dtype), "memory": memory})

    def _shared(self, x_BLG: Tensor) -> Tensor:
        """(B, L, groups * N) -> (B, L, H, N), or (B, L, 1, N) where all heads share it, which `decayed` broadcasts."""
        groups, heads = self.config.num_groups, self.config.num_heads
        x_BLGN = x_BLG.unflatten(-1, (groups, -1))
        return x_BLGN if groups == 1 else x_BLGN.repeat_interleave(heads // groups, dim=2)


def reference(mixer: Mamba2, x_LD: Tensor, tokens: Tokens) -> Tensor:
    """The same layer for one row, token by token and head by head; slow, for tests."""
    config, A, outputs = mixer.config, -mixer.A_log.exp(), []
    heads, groups, inner = config.num_heads, config.num_groups, mixer.sizes[0]
    for t, x in enumerate(x_LD):
        if t == 0 or (tokens.fresh is not None and tokens.fresh[t]):
            S, recent = [x.new_zeros(mixer.memory[1:])] * heads, [x.new_zeros(sum(mixer.sizes))] * config.kernel
        if tokens.valid is not None and not tokens.valid[t]:
            outputs.append(torch.zeros_like(x))
            continue
        z, u, dt = mixer.in_proj(x).split((inner, sum(mixer.sizes), heads))
        recent = [*recent[1:], u]
        u = F.silu(mixer.conv.bias + sum(w * past for w, past in zip(mixer.conv.weight.T, recent, strict=True)))
        u, b, c = u.split(mixer.sizes)
        u, b, c, dt = u.view(heads, -1), b.view(groups, -1), c.view(groups, -1), (1 + (dt + mixer.dt_bias).exp()).log()
        y = []
        for h in range(heads):
            g = h * groups // heads
            S[h : h + 1] = [(dt[h] * A[h]).exp() * S[h] + torch.outer(b[g], dt[h] * u[h])]
            y.append(c[g] @ S[h] + mixer.D[h] * u[h])
        gated = (torch.cat(y) * F.silu(z)).view(groups, -1)
        normed = [part / (part.square().mean() + config.norm_eps).sqrt() for part in gated]
        outputs.append(mixer.out_proj(torch.cat(normed) * mixer.norm))
    return torch.stack(outputs)


VARIANTS = (  # settings that take other paths, for the laws
    Mamba2Config(num_heads=6, num_groups=2, state_size=3, kernel=2, chunk=8, bias=True),
    Mamba2Config(num_heads=2, num_groups=2, state_size=5, expand=1, kernel=1, engine="sequential"),
)
