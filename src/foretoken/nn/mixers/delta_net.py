"""DeltaNet: a matrix memory that is edited rather than added to, plain or with a gate that forgets.

    S_t = a_t (I - b_t k_t k_t^T) S_(t-1) + b_t k_t v_t^T,   y_t = S_t^T q_t / sqrt(N)

What is stored under a key is read and corrected before the new value goes in, which recalls keys far better than linear
attention does. q and k are L2-normalised, so that no step ever expands the memory (b <= 1, or <= 2 with negative eigenvalues).
Plain (a = 1): Yang et al. 2024 (arXiv 2406.06484). With `decay`, a_t = exp(-exp(r) softplus(w x_t + c)) per head: Gated
DeltaNet, Yang et al. 2025 (arXiv 2412.06464), published with output_gate=True, expand_k=0.75, expand_v=1.5.
Negative eigenvalues: Grazzi et al. 2025 (arXiv 2411.12537). Differs from the papers: nothing but that all inputs are one projection.
"""

import math
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.core.state import State
from foretoken.nn.mixer import Facts, Mixed, Mixer, MixerConfig, Tokens
from foretoken.nn.scan import ChunkEngine, delta_rule, wide
from foretoken.nn.taps import ShortConv


@dataclass(frozen=True, kw_only=True)
class DeltaNetConfig(MixerConfig):
    """
    Args:
        num_heads: must divide the widths of keys and values.
        expand_k: width of all keys over the width.
        expand_v: width of all values over the width.
        conv: taps of the short convolution on q, k and v; 0 leaves it out, which the authors advise against.
        decay: forget by a learned factor per head and token (Gated DeltaNet).
        output_gate: multiply the normalised output by SiLU of a projection of the input.
        negative_eigenvalues: b in (0, 2) instead of (0, 1), for tracking of states.
        norm_eps: of the output's RMS norm per head.
        chunk: tokens that training handles as one triangular system; changes no result.
        engine: "auto", "sequential" or "chunked".
    """

    num_heads: int = 4
    expand_k: float = 1.0
    expand_v: float = 1.0
    conv: int = 4
    decay: bool = False
    output_gate: bool = False
    negative_eigenvalues: bool = False
    norm_eps: float = 1e-5
    chunk: int = 32
    engine: ChunkEngine = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(num_heads=1, conv=0, chunk=1)
        for name in ("expand_k", "expand_v", "norm_eps"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")


@configures(DeltaNetConfig)
class DeltaNet(Mixer):
    """One projection to q, k, v, output gate, b and a; short convolution and SiLU; the delta rule; RMS norm; projection."""

    def __init__(self, config: DeltaNetConfig, width: int) -> None:
        super().__init__()
        keys, values, heads = width * config.expand_k, width * config.expand_v, config.num_heads
        for name, size in (("expand_k", keys), ("expand_v", values)):
            if size % heads:
                raise ConfigError(
                    f"num_heads must divide width * {name}, got width={width}, {name}={getattr(config, name)} and num_heads={heads}"
                )
        if not config.conv:
            warnings.warn(
                "DeltaNet without its short convolution is much weaker; the usual setting is conv=4", stacklevel=2
            )
        self.config, self.keys, self.values = config, int(keys), int(values)
        self.key_width, value_width = self.keys // heads, self.values // heads
        convolved = 2 * self.keys + self.values
        self.sizes = (convolved, self.values * config.output_gate, heads, heads * config.decay)
        self.project = nn.Linear(width, sum(self.sizes), bias=False)
        self.conv = ShortConv(convolved, config.conv, bias=False) if config.conv else None
        self.decay_log_rate = nn.Parameter(torch.empty(heads)) if config.decay else None
        self.decay_bias = nn.Parameter(torch.empty(heads)) if config.decay else None
        self.norm = nn.Parameter(torch.ones(value_width))
        self.out = nn.Linear(self.values, width, bias=False)
        self.facts = Facts(
            state_bytes=4 * (self.key_width * self.values + max(config.conv - 1, 0) * convolved), parallel="chunk"
        )
        self.start()

    def start(self) -> None:
        """Decay as in Mamba2: rates uniform up to 16, the softplus of the bias log-uniform in [0.001, 0.1]."""
        if self.decay_log_rate is not None and self.decay_bias is not None:
            with torch.no_grad():
                self.decay_log_rate.uniform_(0.01, 16).log_()
                step = self.decay_bias.uniform_(math.log(1e-3), math.log(1e-1)).exp()
                self.decay_bias.copy_(step + (-torch.expm1(-step)).log())

    def initial_state(self, rows: int) -> State:
        weight = self.project.weight
        shapes: dict[str, tuple[int, ...]] = {}
        if self.conv is not None:
            shapes["inputs"] = (self.config.conv - 1, self.sizes[0])
        shapes["memory"] = (self.config.num_heads, self.key_width, self.values // self.config.num_heads)
        return {name: weight.new_zeros(rows, *shape, dtype=wide(weight.dtype)) for name, shape in shapes.items()}

    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None, read: slice | None = None
    ) -> Mixed:
        tokens, config, after = tokens or Tokens(), self.config, {}
        qkv, gate, beta, decay = self.project(x_BLD).split(self.sizes, dim=-1)
        if self.conv is not None:
            qkv, inputs = self.conv(qkv, None if state is None else state["inputs"], tokens)
            if state is not None:
                after["inputs"] = inputs.to(state["inputs"].dtype)
        qk, v = F.silu(qkv).split((2 * self.keys, self.values), dim=-1)
        qk = qk.unflatten(-1, (2, config.num_heads, self.key_width)).to(wide(qk.dtype))
        q, k = (qk * (qk.square().sum(-1, keepdim=True) + 1e-6).rsqrt()).unbind(2)
        beta = beta.to(k.dtype).sigmoid()
        y, memory = delta_rule(
            q, k, v.unflatten(-1, (config.num_heads, -1)), 2 * beta if config.negative_eigenvalues else beta,
            self._log_decay(decay.to(k.dtype)), state=None if state is None else state["memory"],
            valid=tokens.valid, fresh=tokens.fresh, chunk=config.chunk, engine=config.engine,
        )  # fmt: skip
        after["memory"] = memory
        valid = tokens.valid
        if read is not None:
            y, gate, valid = y[:, read], gate[:, read], None if valid is None else valid[:, read]
        # dividing by sqrt(N) before this norm is multiplying its eps by N
        y = F.rms_norm(y, y.shape[-1:], self.norm.to(y.dtype), config.norm_eps * self.key_width).flatten(2)
        if config.output_gate:
            y = y * F.silu(gate)
        y_BLD = self.out(y.to(x_BLD.dtype))
        if valid is not None:
            y_BLD = torch.where(valid[..., None], y_BLD, 0)
        return Mixed(y_BLD, None if state is None else after)

    def _log_decay(self, x_BLH: Tensor) -> Tensor | None:
        if self.decay_log_rate is None or self.decay_bias is None:
            return None
        return -self.decay_log_rate.to(x_BLH.dtype).exp() * F.softplus(x_BLH + self.decay_bias)


def reference(mixer: DeltaNet, x_LD: Tensor, tokens: Tokens) -> Tensor:
    """The same layer for one row, token by token in plain loops; slow, for tests."""
    config, outputs = mixer.config, []
    heads, size = config.num_heads, mixer.key_width
    empty = [x_LD.new_zeros(size, mixer.values // heads)] * heads
    inputs: list[Tensor] = []
    memories = list(empty)
    unit = lambda x: x / (x @ x + 1e-6).sqrt()  # noqa: E731
    for i, x in enumerate(x_LD):
        if tokens.fresh is not None and tokens.fresh[i]:
            inputs, memories = [], list(empty)
        if tokens.valid is not None and not tokens.valid[i]:
            outputs.append(torch.zeros_like(x))
            continue
        qkv, gate, beta, decay = mixer.project(x).split(mixer.sizes)
        inputs.append(qkv)
        if mixer.conv is not None:
            newest_first = zip(mixer.conv.weight.T.flip(0), reversed(inputs), strict=False)
            qkv = torch.stack([weight * given for weight, given in newest_first]).sum(0)
        q, k, v = F.silu(qkv).split((mixer.keys, mixer.keys, mixer.values))
        parts = []
        for h in range(heads):
            q_N, k_N, v_E = unit(q.view(heads, -1)[h]), unit(k.view(heads, -1)[h]), v.view(heads, -1)[h]
            b, a = beta[h].sigmoid() * (1 + config.negative_eigenvalues), x.new_ones(())
            if mixer.decay_log_rate is not None and mixer.decay_bias is not None:
                a = (-mixer.decay_log_rate[h].exp() * F.softplus(decay[h] + mixer.decay_bias[h])).exp()
            kept = torch.eye(size, dtype=x.dtype) - b * torch.outer(k_N, k_N)
            memories[h] = a * kept @ memories[h] + b * torch.outer(k_N, v_E)
            y = memories[h].T @ q_N / size**0.5
            parts.append(mixer.norm * y / (y.square().mean() + config.norm_eps).sqrt())
        y = torch.cat(parts)
        outputs.append(mixer.out(y * F.silu(gate) if config.output_gate else y))
    return torch.stack(outputs)


VARIANTS = (  # settings that take other paths, for the laws
    DeltaNetConfig(num_heads=3, expand_k=0.75, expand_v=1.5, decay=True, output_gate=True, chunk=8),
    DeltaNetConfig(num_heads=2, conv=2, negative_eigenvalues=True, engine="sequential"),
)
