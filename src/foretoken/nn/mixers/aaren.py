"""Aaren: softmax attention whose query is learned and the same for every token, so that it is a recurrence.

    c_t = q . k_t / sqrt(E),    m_t = max(m_(t-1), c_t)
    u_t = u_(t-1) e^(m_(t-1) - m_t) + e^(c_t - m_t)
    w_t = w_(t-1) e^(m_(t-1) - m_t) + e^(c_t - m_t) v_t,    y_t = w_t / u_t

Paper: Feng, Tung, Hajimirsadeghi, Ahmed, Bengio, Mori 2024, arXiv 2405.13956. One vector q per layer and head: a token cannot
ask for anything, it only weighs what has been since memory began; depth restores part of that. No exponent is above zero.
Differs from the paper: 1. its triples (m, u, w) are scanned as one; here the running maximum comes first and carries no
gradient, since y does not depend on it, which leaves a plain linear recurrence. 2. q is a parameter, not a learned token
through a projection, and keys have no bias (it would move all scores alike); the functions are the same.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.core.state import State
from foretoken.nn.mixer import Facts, Mixed, Mixer, MixerConfig, Tokens
from foretoken.nn.scan import NEVER, ScanEngine, in_full_precision, linear_scan, passed, wide


@dataclass(frozen=True, kw_only=True)
class AarenConfig(MixerConfig):
    """
    Args:
        num_heads: must divide the width.
        engine: how the recurrence runs over a sequence; see `nn.scan.linear_scan`.
    """

    num_heads: int = 1
    engine: ScanEngine = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(num_heads=1)


@configures(AarenConfig)
class Aaren(Mixer):
    """Cumulative softmax averages of the values, one learned query per head."""

    def __init__(self, config: AarenConfig, width: int) -> None:
        super().__init__()
        if width % config.num_heads:
            raise ConfigError(f"num_heads must divide width, got width={width} and num_heads={config.num_heads}")
        self.config, self.width = config, width
        self.query = nn.Parameter(torch.empty(config.num_heads, width // config.num_heads))
        self.key, self.value = nn.Linear(width, width, bias=False), nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.facts = Facts(state_bytes=4 * (width + 2 * config.num_heads), parallel="scan")
        self.start()

    def start(self) -> None:
        """Queries of unit variance: scores begin as small as the keys."""
        nn.init.normal_(self.query)

    def initial_state(self, rows: int) -> State:
        heads, head_width = self.query.shape
        empty = self.query.new_zeros(rows, heads, head_width + 1, dtype=wide(self.query.dtype))
        return {"memory": empty, "top": empty.new_full((rows, heads), NEVER)}  # (w, u) and m

    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None, read: slice | None = None
    ) -> Mixed:
        if not x_BLD.shape[1]:
            return Mixed(x_BLD, state)
        tokens, at = tokens or Tokens(), slice(None) if read is None else read
        average_BLHE, after = self._average(x_BLD, self.value(x_BLD), tokens, at, state)
        y_BLD = self.out(average_BLHE.flatten(2).to(x_BLD.dtype))
        if tokens.valid is not None:
            y_BLD = y_BLD * tokens.valid[:, at, None]
        return Mixed(y_BLD, None if state is None else after)

    @in_full_precision
    def _average(self, x: Tensor, v: Tensor, tokens: Tokens, at: slice, state: State | None) -> tuple[Tensor, State]:
        heads, head_width = self.query.shape
        # q . (W x) = (q W) . x: no keys are made
        asked = self.query[:, None] @ self.key.weight.unflatten(0, (heads, head_width)) * head_width**-0.5
        score = F.linear(x, asked.squeeze(1).to(x.dtype))
        if tokens.valid is not None:
            score = torch.where(tokens.valid[..., None], score, NEVER)
        start = self.initial_state(len(x)) if state is None else state
        top = _running_maximum(score.detach(), start["top"], tokens.fresh)
        before = torch.cat((start["top"][:, None], top[:, :-1]), dim=1)
        one_and_v = F.pad(v.unflatten(-1, (heads, head_width)), (0, 1), value=1.0)
        a, b = (before - top).exp()[..., None], (score - top).exp()[..., None] * one_and_v
        a, b = passed(a, b, tokens.valid, tokens.fresh)
        memory = linear_scan(a, b, None if state is None else start["memory"], engine=self.config.engine)
        total = memory[:, at, :, -1:]
        if tokens.valid is not None:  # at least 1 once there was a token
            total = total.clamp(min=1)
        return memory[:, at, :, :-1] / total, {"memory": memory[:, -1], "top": top[:, -1]}


def _running_maximum(score_BLH: Tensor, start_BH: Tensor, fresh_BL: Tensor | None) -> Tensor:
    """The largest score since memory began."""
    if fresh_BL is None:
        return torch.maximum(score_BLH.cummax(1).values, start_BH[:, None])
    # One running maximum serves all memories of a row when a later memory outranks every score of an earlier one.
    memory = fresh_BL.cumsum(1)[..., None]
    rank = score_BLH.argsort(1).argsort(1) + memory * score_BLH.shape[1]
    top = score_BLH.gather(1, rank.cummax(1).indices)
    return torch.where(memory == 0, torch.maximum(top, start_BH[:, None]), top)


def reference(mixer: Aaren, x_LD: Tensor, tokens: Tokens) -> Tensor:
    """The same layer for one row: a softmax over all that is remembered, token by token; slow, for tests."""
    heads, head_width = mixer.query.shape
    outputs: list[Tensor] = []
    memory: list[tuple[Tensor, Tensor]] = []
    for t, x_D in enumerate(x_LD):
        if tokens.fresh is not None and tokens.fresh[t]:
            memory = []
        if tokens.valid is not None and not tokens.valid[t]:
            outputs.append(torch.zeros_like(x_D))
            continue
        key, value = mixer.key(x_D).view(heads, head_width), mixer.value(x_D).view(heads, head_width)
        memory.append(((mixer.query * key).sum(-1) / head_width**0.5, value))
        weights = torch.stack([score for score, _ in memory]).softmax(0)
        averages = sum(w[:, None] * v for w, (_, v) in zip(weights, memory, strict=True))
        outputs.append(mixer.out(averages.flatten()))
    return torch.stack(outputs)


VARIANTS = (  # settings that take other paths, for the laws
    AarenConfig(num_heads=3, engine="associative"),
    AarenConfig(num_heads=4, engine="sequential"),
)
