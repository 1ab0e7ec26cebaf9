"""Linear attention: softmax replaced by a product of positive features, so that the past is one matrix per head.

    S_t = S_(t-1) + phi(k_t) v_t^T,   z_t = z_(t-1) + phi(k_t),   y_t = S_t^T phi(q_t) / (z_t . phi(q_t) + eps)

Katharopoulos et al. 2020, "Transformers are RNNs" (arXiv 2006.16236), phi(x) = elu(x) + 1. Nothing is ever forgotten: every
token keeps its weight, which makes this the plain baseline of the delta rule and of the decaying recurrences. The normaliser z
is the last column of S (values carry a constant 1). Beyond the paper: other positive feature maps.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.core.state import State
from foretoken.nn.mixer import Facts, Mixed, Mixer, MixerConfig, Tokens
from foretoken.nn.scan import ChunkEngine, decayed, wide


@dataclass(frozen=True, kw_only=True)
class LinearAttentionConfig(MixerConfig):
    """
    Args:
        num_heads: must divide the width.
        features: phi, all of them >= 0: "elu" is elu(x) + 1, "relu", or "softmax" over a head's features.
        eps: added to the normaliser.
        bias: whether projections have biases.
        chunk: tokens that training handles as one matrix product; changes no result.
        engine: "auto", "sequential" or "chunked".
    """

    num_heads: int = 1
    features: Literal["elu", "relu", "softmax"] = "elu"
    eps: float = 1e-6
    bias: bool = True
    chunk: int = 64
    engine: ChunkEngine = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_heads", "chunk"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.eps <= 0:
            raise ConfigError(f"eps must be positive, got {self.eps}")


@configures(LinearAttentionConfig)
class LinearAttention(Mixer):
    """Multi-head attention with weights phi(q) . phi(k), in time linear in L and a state of fixed size."""

    def __init__(self, config: LinearAttentionConfig, width: int) -> None:
        super().__init__()
        if width % config.num_heads:
            raise ConfigError(f"num_heads must divide width, got width={width} and num_heads={config.num_heads}")
        self.config, self.heads = config, (config.num_heads, width // config.num_heads)
        self.qkv = nn.Linear(width, 3 * width, bias=config.bias)
        self.out = nn.Linear(width, width, bias=config.bias)
        self.facts = Facts(state_bytes=4 * width * (self.heads[1] + 1), parallel="chunk")

    def initial_state(self, rows: int) -> State:
        weight = self.qkv.weight
        return {"memory": weight.new_zeros(rows, *self.heads, self.heads[1] + 1, dtype=wide(weight.dtype))}

    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None, read: slice | None = None
    ) -> Mixed:
        tokens, config = tokens or Tokens(), self.config
        qkv = self.qkv(x_BLD).unflatten(-1, (3, *self.heads))
        q, k = feature_map(qkv[:, :, :2].to(wide(qkv.dtype)), config.features).unbind(2)
        y, memory = decayed(
            q, k, F.pad(qkv[:, :, 2], (0, 1), value=1.0), state=None if state is None else state["memory"],
            valid=tokens.valid, fresh=tokens.fresh, chunk=config.chunk, engine=config.engine,
        )  # fmt: skip
        valid = tokens.valid
        if read is not None:
            y, valid = y[:, read], None if valid is None else valid[:, read]
        y = y[..., :-1] / (y[..., -1:] + config.eps)
        y_BLD = self.out(y.flatten(2).to(x_BLD.dtype))
        if valid is not None:
            y_BLD = torch.where(valid[..., None], y_BLD, 0)
        return Mixed(y_BLD, None if state is None else {"memory": memory})


def feature_map(x: Tensor, name: Literal["elu", "relu", "softmax"]) -> Tensor:
    """phi(x) >= 0, over the last axis where it is not elementwise."""
    match name:
        case "elu":  # elu(x) + 1 without the cancellation that would round it to 0 from about x = -17 on
            return x.clamp(max=0).exp() + x.relu()
        case "relu":
            return x.relu()
        case "softmax":
            return x.softmax(-1)


def reference(mixer: LinearAttention, x_LD: Tensor, tokens: Tokens) -> Tensor:
    """The same layer for one row as attention over all earlier tokens, in plain loops; slow, for tests."""
    outputs: list[Tensor] = []
    near: list[tuple[Tensor, Tensor]] = []
    phi = {"elu": lambda x: F.elu(x) + 1, "relu": F.relu, "softmax": lambda x: x.exp() / x.exp().sum()}
    feature = phi[mixer.config.features]
    for i, x in enumerate(x_LD):
        if tokens.fresh is not None and tokens.fresh[i]:
            near = []
        if tokens.valid is not None and not tokens.valid[i]:
            outputs.append(torch.zeros_like(x))
            continue
        q_HE, k_HE, v_HE = mixer.qkv(x).view(3, *mixer.heads)
        near.append((k_HE, v_HE))
        parts = []
        for head, q in enumerate(q_HE):
            weights = [(feature(q) * feature(k[head])).sum() for k, _ in near]
            total = torch.stack(weights).sum() + mixer.config.eps
            parts.append(torch.stack([w * v[head] for w, (_, v) in zip(weights, near, strict=True)]).sum(0) / total)
        outputs.append(mixer.out(torch.cat(parts)))
    return torch.stack(outputs)


VARIANTS = (  # settings that take other paths, for the laws
    LinearAttentionConfig(num_heads=3, features="softmax", chunk=8, bias=False),
    LinearAttentionConfig(num_heads=2, features="relu", engine="sequential"),
)
