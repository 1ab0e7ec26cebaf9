"""Attention with relative positions and a memory of past inputs: the layer of Transformer-XL, GTrXL and their kin.

    score_ij = ((q_i + u) . k_j + (q_i + v) . W_r r_(i-j)) / sqrt(E)      j from i - M to i, within the same memory
    y_i      = W_o sum_j softmax_j(score_ij) v_j                          r_d = [sin(d f), cos(d f)],  f_n = 10000^(-2n/D)

Dai et al. 2019, arXiv 1901.02860. The vectors u and v belong to each head of each layer; distances count valid tokens, so
`tokens.position` is not asked. The state holds the last M inputs of the layer, not their keys and values: memories follow
the weights, and gradients reach what wrote them.

Differs from the paper: 1. The paper goes by segments: a segment's first token sees M tokens back, its last one M + segment
- 1, and moving the cuts changes the outputs. Here every token sees itself and the M tokens before it, so any split of a
sequence, down to single steps, gives the same result. 2. Nothing stops gradients inside a call; between calls
`core.state.detach` does what the paper always does.

Long sequences go in blocks of M queries, so their cost grows with L M. Few streamed tokens never form the keys and values of
the memory: (q + u) . W_k x = (W_k^T (q + u)) . x, and likewise for distances and values.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.core.state import State
from foretoken.nn.dropout import dropout
from foretoken.nn.mixer import Facts, Mixed, Mixer, MixerConfig, Tokens
from foretoken.nn.scan import wide

# Letters besides the usual: C queries, S tokens of the window they see, N blocks, R distances, largest first.


@dataclass(frozen=True, kw_only=True)
class TransformerXLConfig(MixerConfig):
    """
    Args:
        num_heads: must divide the width, which must be even.
        memory: tokens before itself that a token sees, M.
        dropout: of attention weights, in [0, 1).
    """

    num_heads: int = 1
    memory: int = 128
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_heads", "memory"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {self.dropout}")


@configures(TransformerXLConfig)
class TransformerXL(Mixer):
    """Relative-position attention over a token and the `memory` tokens before it."""

    def __init__(self, config: TransformerXLConfig, width: int) -> None:
        super().__init__()
        if width % config.num_heads or width % 2:
            raise ConfigError(f"num_heads must divide an even width, got {width=} and num_heads={config.num_heads}")
        self.config, self.width, self.head_width = config, width, width // config.num_heads
        self.query, self.key, self.value, self.distance, self.out = (
            nn.Linear(width, width, bias=False) for _ in range(5)
        )
        self.u = nn.Parameter(torch.empty(config.num_heads, self.head_width))
        self.v = nn.Parameter(torch.empty(config.num_heads, self.head_width))
        self.start()
        size = 4 * config.memory * width + 8
        self.facts = Facts(max_context=config.memory + 1, state_bytes=size, sliding=("inputs",))

    def start(self) -> None:
        """Small random u and v, as published."""
        nn.init.normal_(self.u, std=0.02)
        nn.init.normal_(self.v, std=0.02)

    def initial_state(self, rows: int) -> State:
        weight = self.query.weight
        return {
            "inputs": weight.new_zeros(rows, self.config.memory, self.width, dtype=wide(weight.dtype)),  # newest last
            "held": weight.new_zeros(rows, dtype=torch.int64),  # how many of them belong to the present memory
        }

    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None, read: slice | None = None
    ) -> Mixed:
        tokens, memory, length = tokens or Tokens(), self.config.memory, x_BLD.shape[1]
        if not x_BLD.numel():
            return Mixed(x_BLD[:, read or slice(None)], state)
        held = None if state is None else state["held"]
        pack = tokens.once(("packed", memory, held is None), lambda: _pack(tokens, x_BLD, held, memory))
        new = x_BLD if pack.order is None else _pick(x_BLD, pack.order)
        window = new if state is None else torch.cat((state["inputs"].to(new.dtype), new), dim=1)
        wanted = range(length)[read or slice(None)]
        if pack.place is None or tokens.valid is None:  # queries from the first one that is read
            first = min(wanted.start, length - 1)
            y_BLD = self._attend(window, length - first, pack.begin, tokens)
            part = slice(wanted.start - first, max(wanted.stop - first, 0), wanted.step)
            y_BLD = self.out(y_BLD if read is None else y_BLD[:, part])
        else:
            part = slice(wanted.start, wanted.stop, wanted.step)
            y_BLD = _pick(self._attend(window, length, pack.begin, tokens), pack.place[:, part])
            y_BLD = self.out(y_BLD) * tokens.valid[:, part, None]
        if state is None:
            return Mixed(y_BLD)
        kept = window[:, -memory:] if pack.kept is None else _pick(window, pack.kept)
        return Mixed(y_BLD, {"inputs": kept.to(state["inputs"].dtype), "held": pack.held})

    def _attend(self, window_BSD: Tensor, count: int, begin: Tensor | None, tokens: Tokens) -> Tensor:
        """For the last `count` tokens of a window without padding, before the output projection.

        `begin` (B, S or 1) says where in the window the memory of its last tokens began; None is at its start.
        """
        memory, heads, rows, length = self.config.memory, self.config.num_heads, *window_BSD.shape[:2]
        cut = max(length - count - memory, 0)
        window_BSD, length, past = window_BSD[:, cut:], length - cut, length - cut - count
        reach, blocked = min(memory, length - 1), count > 2 * memory
        r_RD = tokens.once(("distances", reach, self.width, window_BSD.dtype), lambda: _sinusoids(reach, window_BSD))
        key = ("hidden", memory, length, count)
        hidden = tokens.once(key, lambda: _hidden(begin, cut, length, count, memory if blocked else 0, r_RD))
        q_BCHE, scale = self.query(window_BSD[:, past:]).unflatten(-1, (heads, -1)), self.head_width**-0.5
        by_content, by_distance = ((q_BCHE + bias).flatten(0, 1).transpose(0, 1) for bias in (self.u, self.v))

        if past and count * heads < self.width:  # the projections are better applied to the queries
            each = (heads, self.head_width, self.width)
            rejoin = lambda x: x.view(heads, rows, count, -1).transpose(0, 1).flatten(1, 2)  # noqa: E731  (B, H C, .)
            near = rejoin(by_distance @ self.distance.weight.view(each)) @ r_RD.T
            near = _banded(near.view(rows, heads, count, -1), length).reshape(rows, heads * count, -1)
            content = rejoin(by_content @ self.key.weight.view(each))
            scores = torch.baddbmm(near, content, window_BSD.mT, beta=scale, alpha=scale)
            weights = self._weights(scores.view(rows, heads, count, -1), hidden).to(window_BSD.dtype)
            mean = weights.view(rows, heads * count, -1) @ window_BSD
            y = mean.view(rows, heads, count, -1).transpose(0, 1).flatten(1, 2) @ self.value.weight.view(each).mT
            return y.transpose(0, 1).reshape(rows, count, -1)

        near = by_distance @ (self.distance(r_RD) * scale).unflatten(-1, (heads, -1)).permute(1, 2, 0)
        pairs = [part.view(heads, rows, 1, count, -1) for part in (by_content, near)]  # (H, B, N, C, .)
        seen = [part[:, None] for part in (self.key(window_BSD) * scale, self.value(window_BSD))]  # (B, N, S, D)
        if blocked:  # each block of queries sees its own keys and the block before
            pad, shape = -count % memory, (-1, memory)
            pairs = [F.pad(part, (0, 0, 0, pad)).squeeze(2).unflatten(2, shape) for part in pairs]
            seen = [F.pad(part, (0, 0, memory - past, pad)).squeeze(1).unflatten(1, shape) for part in seen]
            seen = [torch.cat((part[:, :-1], part[:, 1:]), dim=2) for part in seen]
        k, v = (part.unflatten(-1, (heads, -1)).permute(3, 0, 1, 2, 4) for part in seen)
        scores = (pairs[0] @ k.mT).add_(_banded(pairs[1], k.shape[-2]))
        y = self._weights(scores, hidden).to(v.dtype) @ v
        return y.permute(1, 2, 3, 0, 4).reshape(rows, -1, self.width)[:, :count]

    def _weights(self, scores: Tensor, hidden: Tensor | None) -> Tensor:
        scores = scores if hidden is None else scores.masked_fill_(hidden, float("-inf"))
        return dropout(scores.softmax(-1, dtype=wide(scores.dtype)), self.config.dropout, self.training)


class _Packed(NamedTuple):
    """How the valid tokens of a call are closed up, and where memories begin among them; None where nothing needs doing."""

    order: Tensor | None  # (B, L): the token at each place, padding last
    place: Tensor | None  # (B, L): the place of each token
    begin: Tensor | None  # (B, L or 1): where in the window the memory of the token at each place began
    kept: Tensor | None  # (B, M): what of the window is kept
    held: Tensor | None  # (B,)


def _pack(tokens: Tokens, x_BLD: Tensor, held: Tensor | None, memory: int) -> _Packed:
    length, device = x_BLD.shape[1], x_BLD.device
    past = 0 if held is None else memory
    begin = None if held is None else past - held[:, None]
    order = place = kept = None
    end: Tensor | int = past + length
    if tokens.valid is not None:
        order = tokens.valid.byte().sort(dim=1, descending=True, stable=True).indices
        place = tokens.valid.cumsum(1) - tokens.valid.long()
        end = past + place[:, -1] + tokens.valid[:, -1].long()
        kept = (end - memory)[:, None] + torch.arange(memory, device=device)
    last = 0 if begin is None else begin[:, 0]
    if tokens.fresh is not None:
        before = torch.arange(length, device=device) if place is None else place
        begin = torch.where(tokens.fresh, past + before, 0 if begin is None else begin).cummax(1).values
        last = begin[:, -1]
        begin = begin if order is None else begin.gather(1, order)
    holds = None if held is None else torch.as_tensor(end - last).clamp(max=memory)
    return _Packed(order, place, begin, kept, holds)


def _pick(x_BLD: Tensor, at: Tensor) -> Tensor:
    return x_BLD.gather(1, at[..., None].expand(-1, -1, x_BLD.shape[-1]))


def _sinusoids(reach: int, like: Tensor) -> Tensor:
    """r of the distances from `reach` down to 0, (R, D)."""
    half = like.shape[-1] // 2
    rate = 10_000.0 ** (-torch.arange(half, device=like.device, dtype=torch.float64) / half)
    angle = torch.arange(reach, -1, -1, device=like.device)[:, None] * rate
    return torch.cat((angle.sin(), angle.cos()), dim=-1).to(like.dtype)


def _banded(near: Tensor, length: int) -> Tensor:
    """(..., C, R) by distance -> (..., C, S) by the token seen, -inf out of reach; the last query is the last token."""
    count = near.shape[-2]
    if count > 1:  # laid out with rows longer by one than they are read, so that each is moved by one more
        near = F.pad(near, (0, count), value=float("-inf")).flatten(-2)[..., :-count].unflatten(-1, (count, -1))
    return near[..., -length:]


def _hidden(begin: Tensor | None, cut: int, length: int, count: int, block: int, like: Tensor) -> Tensor | None:
    """(B, N, C or 1, S) bool: which tokens of the window, `cut` at its start, lie before a query's memory."""
    past = length - count
    if begin is None and (not block or past == block):
        return None
    begin = like.new_zeros(1, 1, dtype=torch.int64) if begin is None else begin[:, -count:] - cut
    column = torch.arange(length, device=like.device)
    if not block:
        return column < begin[:, None, :, None]
    begin = F.pad(begin.expand(-1, count), (0, -count % block)).unflatten(1, (-1, block))
    first = torch.arange(begin.shape[1], device=like.device)[:, None] * block + past - block
    column = first + torch.arange(2 * block, device=like.device)  # (N, S)
    return column[:, None] < begin[..., None]


def reference(mixer: TransformerXL, x_LD: Tensor, tokens: Tokens) -> Tensor:
    """The same layer for one row, pair by pair from the paper's four terms; slow, for tests."""
    config, width = mixer.config, mixer.width
    w_q, w_k, w_v, w_r = (part.weight for part in (mixer.query, mixer.key, mixer.value, mixer.distance))
    seen: list[Tensor] = []
    outputs = []
    for i, x in enumerate(x_LD):
        if tokens.fresh is not None and tokens.fresh[i]:
            seen = []
        if tokens.valid is not None and not tokens.valid[i]:
            outputs.append(torch.zeros_like(x))
            continue
        seen = [*seen, x][-config.memory - 1 :]
        parts = []
        for head in range(config.num_heads):
            at = slice(head * mixer.head_width, (head + 1) * mixer.head_width)
            q, scores = w_q[at] @ x, []
            for distance, key in zip(range(len(seen) - 1, -1, -1), seen, strict=True):
                angles = torch.as_tensor(
                    [distance / 10_000 ** (2 * n / width) for n in range(width // 2)], dtype=x.dtype
                )
                k, r = w_k[at] @ key, w_r[at] @ torch.cat((angles.sin(), angles.cos()))
                scores.append((q @ k + q @ r + mixer.u[head] @ k + mixer.v[head] @ r) / mixer.head_width**0.5)
            weights = torch.stack(scores).exp()
            parts.append(sum(w * (w_v[at] @ value) for w, value in zip(weights / weights.sum(), seen, strict=True)))
        outputs.append(mixer.out.weight @ torch.cat(parts))
    return torch.stack(outputs)


VARIANTS = (  # settings that take other paths, for the laws
    TransformerXLConfig(num_heads=3, memory=4),
    TransformerXLConfig(num_heads=4, memory=1),
    TransformerXLConfig(num_heads=2, memory=30),
)
