"""Softmax attention by blocks of queries and keys: exact, and no L x L matrix is ever formed.

    m' = max(m, max_j s_j)    z' = e^(m - m') z + sum_j e^(s_j - m')    o' = e^(m - m') o + sum_j e^(s_j - m') v_j    y = o / z

where j runs over the keys of one block: the running maximum m, normaliser z and sum o of a block of queries are all that passes
from block to block. The backward pass keeps one number per query, m + log z, and makes each block of weights anew, so training
memory grows with L, not with L^2.

Liu and Abbeel 2023 (Blockwise Parallel Transformer), arXiv 2305.19370; the recurrence is that of Rabe and Staats 2021, arXiv
2112.05682. This is the paper's attention; the paper also runs each block of queries through the feed-forward in the same
loop, which belongs to the Block around a mixer. While streaming it is `Attention` itself, whose weights and state it has.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.core.state import State
from foretoken.nn.embed.rotary import rotate, turn
from foretoken.nn.mixer import Mixed, Mixer, MixerConfig, Tokens, Visible
from foretoken.nn.mixers.attention import Attention, AttentionConfig
from foretoken.nn.mixers.attention import reference as attention_reference
from foretoken.nn.scan import NEVER, wide

Pair: TypeAlias = tuple[slice, slice, Tensor | None]
"""A block of queries and a block of keys: their places, and who sees whom, (B, Cq, Ck) bool, None for everybody."""


@dataclass(frozen=True, kw_only=True)
class BlockwiseAttentionConfig(MixerConfig):
    """
    Args:
        attention: what is computed.
        query_block: queries in a block.
        key_block: keys in a block.
    """

    attention: AttentionConfig = AttentionConfig()
    query_block: int = 256
    key_block: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("query_block", "key_block"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


@configures(BlockwiseAttentionConfig)
class BlockwiseAttention(Mixer):
    """`Attention` whose pass over whole sequences goes block by block."""

    def __init__(self, config: BlockwiseAttentionConfig, width: int, visible: Visible | None = None) -> None:
        super().__init__()
        self.config, self.visible = config, visible
        self.attention = Attention(config.attention, width, visible)
        self.facts = replace(self.attention.facts, parallel="chunk")

    def initial_state(self, rows: int) -> State:
        return self.attention.initial_state(rows)

    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None, read: slice | None = None
    ) -> Mixed:
        if state is not None:
            return self.attention(x_BLD, state, tokens=tokens, read=read)
        inner, tokens = self.config.attention, tokens or Tokens()
        told = tokens.once(("told by block",), lambda: _Told(tokens, x_BLD))
        qkv = self.attention.qkv(x_BLD).unflatten(-1, (3, inner.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind()  # (B, H, L, E)
        if inner.positions == "rotary":
            cos, sin = (part.transpose(1, 2) for part in turn(told.position, q.shape[-1], inner.rotary_base, q.dtype))
            q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        wanted = range(x_BLD.shape[1])[read or slice(None)]
        drop = inner.dropout if self.training else 0.0
        seed = int(torch.empty((), dtype=torch.int64).random_()) if drop else 0
        y_BHLE = _Blockwise.apply(q[:, :, read or slice(None)], k, v, lambda: self._pairs(told, wanted), drop, seed)
        y_BLD = self.attention.out(y_BHLE.transpose(1, 2).flatten(2))
        return Mixed(y_BLD if told.valid is None else y_BLD * told.valid[:, read or slice(None), None])

    def _pairs(self, told: "_Told", wanted: range) -> Iterator[Pair]:
        """The pairs of blocks in which anything may be seen; `wanted` are the tokens that the queries are."""
        window, length = self.config.attention.window, told.clock.shape[1]
        ordered, packed = self.visible is None, told.valid is None
        for begin in range(0, len(wanted), self.config.query_block):
            at = wanted[begin : begin + self.config.query_block]
            for first in range(0, length, self.config.key_block):
                last = min(first + self.config.key_block, length) - 1
                if ordered and (first > at[-1] or (packed and window and last <= at[0] - window)):
                    continue
                inside = last <= at[0] and not (window and first <= at[-1] - window)
                everybody = ordered and packed and told.fresh is None and inside
                seen = None if everybody else told.seen(at, slice(first, last + 1), window, self.visible)
                yield slice(begin, begin + len(at)), slice(first, last + 1), seen


class _Told:
    """What tells who sees whom: valid tokens before each token, and how many there were where its memory began."""

    def __init__(self, tokens: Tokens, x_BLD: Tensor) -> None:
        self.valid, self.fresh, self.step, self.group = tokens.valid, tokens.fresh, tokens.step, tokens.group
        count = torch.ones_like(x_BLD[..., 0], dtype=torch.int64) if tokens.valid is None else tokens.valid.long()
        self.exists, self.clock = count > 0, count.cumsum(1) - 1
        before, none = self.clock + 1 - count, torch.zeros_like(count)
        self.born = none if tokens.fresh is None else torch.where(tokens.fresh, before, 0).cummax(1).values
        self.position = self.clock - self.born if tokens.position is None else tokens.position

    def seen(self, query: range, key: slice, window: int, visible: Visible | None) -> Tensor:
        at = slice(query.start, query.stop, query.step)
        clock, born = self.clock[:, at, None], self.born[:, at, None]
        theirs = self.clock[:, None, key]
        seen = self.exists[:, None, key] & (theirs >= born)
        if window:
            seen = seen & (theirs > clock - window)
        if visible is None:
            return seen & (theirs <= clock)
        return seen & (self.born[:, None, key] <= born) & visible(self._tokens(at), self._tokens(key))

    def _tokens(self, at: slice) -> Tokens:
        step, group = (None if part is None else part[:, at] for part in (self.step, self.group))
        return Tokens(valid=self.exists[:, at], step=step, group=group, position=self.position[:, at])


class _Blockwise(torch.autograd.Function):
    """Softmax attention over the given pairs of blocks; q, k, v are (B, H, L, E). Queries that see nobody get zero."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, pairs: Callable[[], Iterator[Pair]], drop: float, seed: int
    ) -> Tensor:
        out = q.new_zeros(q.shape, dtype=wide(q.dtype))
        top = out.new_full(q.shape[:-1], NEVER)
        total = torch.zeros_like(top)
        for number, (rows, keys, seen) in enumerate(pairs()):
            scores = _scores(q[:, :, rows], k[:, :, keys], seen)
            new = torch.maximum(top[:, :, rows], scores.amax(-1))
            weights, fade = scores.sub_(new[..., None]).exp_(), (top[:, :, rows] - new).exp_()
            top[:, :, rows] = new
            total[:, :, rows] = total[:, :, rows] * fade + weights.sum(-1)
            weights = weights if not drop else weights * _kept(weights, drop, seed + number)
            out[:, :, rows] = out[:, :, rows] * fade[..., None] + (weights.to(v.dtype) @ v[:, :, keys])
        nobody = total == 0
        out = (out / total.masked_fill(nobody, 1)[..., None]).to(q.dtype)
        ctx.save_for_backward(q, k, v, out, (top + total.log()).masked_fill(nobody, 0))
        ctx.rest = pairs, drop, seed
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, d_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, top = ctx.saved_tensors
        pairs, drop, seed = ctx.rest
        d_q, d_k, d_v = (torch.zeros_like(part, dtype=top.dtype) for part in (q, k, v))
        mean = (d_out.to(top.dtype) * out).sum(-1, keepdim=True)
        for number, (rows, keys, seen) in enumerate(pairs()):
            weights = _scores(q[:, :, rows], k[:, :, keys], seen).sub_(top[:, :, rows, None]).exp_()
            d_weights = (d_out[:, :, rows] @ v[:, :, keys].mT).to(top.dtype)
            used = weights
            if drop:
                kept = _kept(weights, drop, seed + number)
                d_weights, used = d_weights * kept, weights * kept
            d_v[:, :, keys] += used.to(v.dtype).mT @ d_out[:, :, rows]
            d_scores = weights.mul_(d_weights.sub_(mean[:, :, rows])).mul_(q.shape[-1] ** -0.5).to(q.dtype)
            d_q[:, :, rows] += d_scores @ k[:, :, keys]
            d_k[:, :, keys] += d_scores.mT @ q[:, :, rows]
        return d_q.to(q.dtype), d_k.to(k.dtype), d_v.to(v.dtype), None, None, None


def _scores(q: Tensor, k: Tensor, seen: Tensor | None) -> Tensor:
    scores = ((q * q.shape[-1] ** -0.5) @ k.mT).to(wide(q.dtype))
    return scores if seen is None else scores.masked_fill_(~seen[:, None], float("-inf"))


def _kept(weights: Tensor, drop: float, seed: int) -> Tensor:
    """A dropout mask that can be drawn again, scaled to keep the mean."""
    generator = torch.Generator(weights.device).manual_seed(seed % 2**63)
    return (torch.rand(weights.shape, generator=generator, device=weights.device) >= drop).to(weights.dtype) / (
        1 - drop
    )


def reference(mixer: BlockwiseAttention, x_LD: Tensor, tokens: Tokens) -> Tensor:
    """The same layer for one row: blocks change nothing, so this is plain attention."""
    return attention_reference(mixer.attention, x_LD, tokens)


VARIANTS = (  # settings that take other paths, for the laws
    BlockwiseAttentionConfig(
        attention=AttentionConfig(num_heads=2, positions="rotary", window=9), query_block=4, key_block=5
    ),
    BlockwiseAttentionConfig(attention=AttentionConfig(num_heads=3, capacity=20), query_block=7, key_block=3),
)
