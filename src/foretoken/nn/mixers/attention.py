"""Softmax attention: whole context or a sliding window, with a ring of keys and values while streaming.

    y_i = sum_j softmax_j(q_i . k_j / sqrt(E)) v_j    over tokens j <= i of the same memory, fewer than `window` tokens back

Positions are none (the embeddings carry them), or rotary (Su et al. 2021, arXiv 2104.09864). Distances count valid tokens, so
padding never moves anything. Training uses one pass over the sequence; the streaming state keeps the last `capacity` tokens
with what each of them is, so one rule of visibility serves both.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.core.state import State
from foretoken.nn.dropout import dropout
from foretoken.nn.embed.rotary import rotate, turn
from foretoken.nn.mixer import Facts, Mixed, Mixer, MixerConfig, Tokens, Visible, may_write_in_place
from foretoken.nn.scan import wide

_FEW = 8  # up to so many tokens, one larger product costs less than two


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(MixerConfig):
    """
    Args:
        num_heads: must divide the width.
        window: how many tokens back a token sees, itself included; 0 sees everything.
        capacity: tokens kept while streaming when there is no window; past it the oldest are forgotten.
        slack: provisional tokens that may be tried and dropped while streaming, beyond one.
        positions: "none" or "rotary".
        rotary_base: wave-length base of the rotary positions.
        dropout: of attention weights, in [0, 1).
        bias: whether projections have biases.
    """

    num_heads: int = 1
    window: int = 0
    capacity: int = 1024
    slack: int = 0
    positions: Literal["none", "rotary"] = "none"
    rotary_base: float = 10_000.0
    dropout: float = 0.0
    bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(num_heads=1, window=0, capacity=1, slack=0)
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.rotary_base <= 0:
            raise ConfigError(f"rotary_base must be positive, got {self.rotary_base}")


@configures(AttentionConfig)
class Attention(Mixer):
    """Multi-head self-attention over `width` features; `visible` replaces the causal order where given."""

    def __init__(self, config: AttentionConfig, width: int, visible: Visible | None = None) -> None:
        super().__init__()
        if width % config.num_heads:
            raise ConfigError(f"num_heads must divide width, got width={width} and num_heads={config.num_heads}")
        if config.positions == "rotary" and (width // config.num_heads) % 2:
            raise ConfigError(f"rotary positions need an even head width, got {width // config.num_heads}")
        self.config, self.width, self.visible = config, width, visible
        self.qkv = nn.Linear(width, 3 * width, bias=config.bias)
        self.out = nn.Linear(width, width, bias=config.bias)
        self.reach = config.window or config.capacity
        self.slots = self.reach + config.slack
        self.facts = Facts(
            streaming="exact" if config.window else "within_window",
            takes_visibility=True,
            max_context=self.reach,
            state_bytes=self.slots * 8 * (width + (3 if visible else 0)) + 2 * 8,
        )

    def initial_state(self, rows: int) -> State:
        weight, heads = self.qkv.weight, self.config.num_heads
        ring = weight.new_zeros(rows, self.slots, heads, self.width // heads)
        state = {  # the token of clock c lies at slot c mod S
            "keys": ring,
            "values": ring.clone(),
            "count": weight.new_zeros(rows, dtype=torch.int64),  # valid tokens since the state began
            "born": weight.new_zeros(rows, dtype=torch.int64),  # the count at which the present memory began
        }
        if self.visible is not None:  # what a rule of visibility may ask of kept tokens
            told = weight.new_zeros(rows, self.slots, dtype=torch.int64)
            state |= {"step": told, "group": told.clone(), "position": told.clone()}
        return state

    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None, read: slice | None = None
    ) -> Mixed:
        if not x_BLD.shape[1]:
            return Mixed(x_BLD, state)
        tokens = tokens or Tokens()
        heads, head_width = self.config.num_heads, self.width // self.config.num_heads
        if read is not None and state is None and self._folds(len(range(x_BLD.shape[1])[read])):
            y_BLD = self._folded(x_BLD, tokens, read)
            return Mixed(y_BLD if tokens.valid is None else y_BLD * tokens.valid[:, read, None], None)
        if state is None and self._merges(x_BLD.shape[0] * x_BLD.shape[1]):
            y_BLD = self._merged(x_BLD, tokens, read)
            return Mixed(y_BLD if tokens.valid is None else y_BLD * _at(tokens.valid, read)[..., None], None)
        if read is not None and x_BLD.shape[1] > _FEW:  # queries only where they are read
            weight, bias = self.qkv.weight, self.qkv.bias
            at, rest = slice(None, self.width), slice(self.width, None)
            q = F.linear(x_BLD[:, read], weight[at], None if bias is None else bias[at]).unflatten(-1, (heads, -1))
            kv = F.linear(x_BLD, weight[rest], None if bias is None else bias[rest])
            k, v = kv.view(*x_BLD.shape[:2], 2, heads, head_width).unbind(2)
            qk = None
        else:
            qkv = self.qkv(x_BLD).view(*x_BLD.shape[:2], 3, heads, head_width)
            q, k, v = qkv.unbind(2)
            qk = qkv[:, :, :2]
        new = tokens.once(("told", state is None), lambda: _tell(tokens, x_BLD, state))
        if self.config.positions == "rotary":
            key = ("rotary", state is None, head_width, self.config.rotary_base, q.dtype)
            cos, sin = tokens.once(key, lambda: turn(new.position, head_width, self.config.rotary_base, q.dtype))
            if qk is None:
                q, k = rotate(q, _at(cos, read), _at(sin, read)), rotate(k, cos, sin)
            else:
                q, k = rotate(qk, cos[:, :, None], sin[:, :, None]).unbind(2)
        if qk is not None:
            q = _at(q, read)
        if state is None:
            y_BLHE = self._attend(q, k, v, self._whole_mask(x_BLD, tokens, read, q.dtype))
        else:
            y_BLHE, state = self._stream(q, k, v, new, tokens, read, state)
        y_BLD = self.out(y_BLHE.flatten(2))
        if tokens.valid is not None:
            y_BLD = y_BLD * _at(tokens.valid, read)[..., None]
        return Mixed(y_BLD, state)

    def _folds(self, queries: int) -> bool:
        dropped = self.training and self.config.dropout
        return queries * self.config.num_heads * 4 <= self.width and self.config.positions == "none" and not dropped

    def _folded(self, x_BLD: Tensor, tokens: Tokens, read: slice) -> Tensor:
        """Attention of few queries without keys and values: q.(W x) = (W'q).x, and a mean of values is the value of a mean.

        What a bias of keys adds to a query's scores is the same for all, and softmax does not see it.
        """
        weight, bias = self.qkv.weight, self.qkv.bias
        _, wk_HED, wv_HED = weight.unflatten(0, (3, self.config.num_heads, -1))
        scale = wk_HED.shape[1] ** -0.5
        bq, _, bv = (None, None, None) if bias is None else bias.chunk(3)
        q_BRHE = (F.linear(x_BLD[:, read], weight[: self.width], bq) * scale).unflatten(-1, wk_HED.shape[:2])
        scores = torch.einsum("brhe,hed->brhd", q_BRHE, wk_HED).flatten(1, 2) @ x_BLD.transpose(1, 2)
        mask = self._whole_mask(x_BLD, tokens, read, scores.dtype)
        if mask is not None:
            scores = scores + mask[:, 0].repeat_interleave(len(wk_HED), 1)
        means = scores.softmax(-1, dtype=wide(scores.dtype)).to(scores.dtype) @ x_BLD
        y = torch.einsum("brhd,hed->brhe", means.unflatten(1, (-1, len(wk_HED))), wv_HED).flatten(2)
        return self.out(y if bv is None else y + bv)

    def _merges(self, tokens: int) -> bool:
        return self.config.num_heads == 1 and tokens >= 2 * self.width and self.config.positions == "none"

    def _merged(self, x_BLD: Tensor, tokens: Tokens, read: slice | None) -> Tensor:
        """One head without keys: q.(W x) = (W'q).x with both matrices made one, and those of values and output likewise.

        That saves two of four products with tokens for two of matrices, where tokens are many more than features.
        """
        weight, bias = self.qkv.weight, self.qkv.bias
        wq, wk, wv = weight.chunk(3)
        bq, _, bv = (None, None, None) if bias is None else bias.chunk(3)
        dropped = self.training and self.config.dropout and bias is not None
        if bv is not None:  # a bias of the output passes through a mean, if nothing is dropped from it
            bv = F.linear(bv, self.out.weight) if dropped else self.out(bv)
        q = F.linear(_at(x_BLD, read), wk.T @ wq, None if bq is None else bq @ wk)
        v = F.linear(x_BLD, self.out.weight @ wv, bv)
        mask = self._whole_mask(x_BLD, tokens, read, q.dtype)
        y = self._attend(q[:, :, None], x_BLD[:, :, None], v[:, :, None], mask).squeeze(2)
        return y + self.out.bias if dropped else y

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Softmax attention; `mask` (B, 1, Lq, Lk) is added to the scores, None is plain causal order."""
        q, k, v = _turned(q), _turned(k), _turned(v)
        if not (self.training and self.config.dropout):
            return _turned(F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None))
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask is None:
            mask = torch.full(scores.shape[-2:], float("-inf"), dtype=scores.dtype, device=scores.device).triu_(1)
        weights = (scores + mask).softmax(-1, dtype=torch.float32).to(v.dtype)
        return _turned(dropout(weights, self.config.dropout, True) @ v)

    def _whole_mask(self, x_BLD: Tensor, tokens: Tokens, read: slice | None, dtype: torch.dtype) -> Tensor | None:
        """For a whole sequence: None where plain causal order will do."""
        plain = tokens.valid is None and tokens.fresh is None and read is None
        if plain and not self.config.window and self.visible is None:
            return None

        def make() -> Tensor:
            new = tokens.once(("told", True), lambda: _tell(tokens, x_BLD, None))
            seen = self._seen(new, new, self.config.window)
            if tokens.valid is not None:  # a padded query sees itself, so that its softmax is finite
                itself = torch.eye(new.clock.shape[1], dtype=torch.bool, device=seen.device)
                seen = seen | (itself & ~tokens.valid[:, :, None])
            return _added(seen, dtype)

        return _at(tokens.once(("whole", self.config.window, self.visible, dtype), make), read, 2)

    def _seen(self, query: "_Told", key: "_Told", reach: int) -> Tensor:
        """(B or 1, Lq, Lk) bool: same memory, near enough, and not later or as `visible` says. Memories are told apart by clocks."""
        at, clock = query.clock[:, :, None], key.clock[:, None, :]
        first = query.born[:, :, None]
        seen = clock >= (torch.maximum(first, at - (reach - 1)) if reach else first)
        if key.valid is not None:
            seen = seen & key.valid[:, None, :]
        if self.visible is None:
            return seen & (clock <= at)
        return seen & (key.born[:, None, :] <= query.born[:, :, None]) & self.visible(query.tokens(), key.tokens())

    def _stream(
        self, q: Tensor, k: Tensor, v: Tensor, new: "_Told", tokens: Tokens, read: slice | None, state: State
    ) -> tuple[Tensor, State]:
        # Tokens see back as far as the ring is sure to reach, however the stream is cut.
        key = ("ring", self.reach, self.slots, self.visible, q.dtype)
        known = self.visible is None or tokens.fresh is None  # else memories must be told apart by more than clocks
        if known and may_write_in_place() and k.shape[1] <= self.config.slack + 1:
            after = self._write(k, v, new, tokens, state)  # what the new tokens push out is out of everybody's reach
            mask = tokens.once(key, lambda: self._ring_mask(new, self._held(after), tokens, q.dtype))
            return self._attend(q, after["keys"], after["values"], _at(mask, read, 2)), after
        both = self._held(state).then(new)
        mask = _at(tokens.once(key, lambda: self._ring_mask(new, both, tokens, q.dtype)), read, 2)
        y = self._attend(q, torch.cat((state["keys"], k), 1), torch.cat((state["values"], v), 1), mask)
        return y, self._write(k, v, new, tokens, state)

    def _ring_mask(self, query: "_Told", key: "_Told", tokens: Tokens, dtype: torch.dtype) -> Tensor:
        seen = self._seen(query, key, self.reach)
        if tokens.valid is not None:
            seen = seen | ~seen.any(-1, keepdim=True)  # a query that sees nobody is padding; its output is dropped
        return _added(seen, dtype)

    def _held(self, state: State) -> "_Told":
        """The ring's tokens: slot s holds the latest clock of the state that is s modulo S; below zero there was none.

        What a dropped continuation wrote lies where tokens out of reach would be.
        """
        last = state["count"][:, None] - 1
        clock = last - (last - torch.arange(self.slots, device=last.device)) % self.slots
        step, group, position = (state.get(name, clock) for name in ("step", "group", "position"))
        return _Told(None, clock, clock if self.visible is None else torch.zeros_like(clock), step, group, position)

    def _write(self, k: Tensor, v: Tensor, new: "_Told", tokens: Tokens, state: State) -> State:
        """The last `slots` valid tokens of each row, at slots counted per row."""

        def make() -> tuple[tuple[Tensor, Tensor], tuple[Any, Any]]:
            if tokens.valid is None:
                clock = new.clock[:, -self.slots :]
                rows = torch.arange(len(clock), device=clock.device)[:, None]
                return (rows, clock % self.slots), (slice(None), slice(-self.slots, None))
            kept = tokens.valid & (new.clock > new.clock[:, -1:] - self.slots)
            rows, columns = kept.nonzero(as_tuple=True)
            return (rows, new.clock[rows, columns] % self.slots), (rows, columns)

        target, place = tokens.once(("slots", self.slots), make)
        fields = {"keys": k, "values": v}
        if self.visible is not None:
            fields |= {"step": new.step, "group": new.group, "position": new.position}
        written = {}
        for name, values in fields.items():
            put = state[name].index_put_ if may_write_in_place() else state[name].index_put
            written[name] = put(target, values[place].to(state[name].dtype))
        return {**state, **written, "count": new.clock[:, -1] + 1, "born": new.born[:, -1]}


class _Told(NamedTuple):
    """What attention knows of each token, all (B, L) or (1, L)."""

    valid: Tensor | None
    clock: Tensor  # valid tokens before it since the state began
    born: Tensor  # the clock at which its memory began
    step: Tensor
    group: Tensor
    position: Tensor

    def tokens(self) -> Tokens:
        return Tokens(valid=self.valid, step=self.step, group=self.group, position=self.position)

    def then(self, new: "_Told") -> "_Told":
        valid = (
            None if new.valid is None else torch.cat((torch.ones_like(self.clock, dtype=torch.bool), new.valid), dim=1)
        )
        return _Told(valid, *(torch.cat(pair, dim=1) for pair in zip(self[1:], new[1:], strict=True)))


def _turned(part: Tensor) -> Tensor:
    """(B, H, L, E) of (B, L, H, E), and back; of one head without a transposition, which a graph would carry out."""
    if part.shape[1] == 1:
        return part.squeeze(1).unsqueeze(2)
    return part.transpose(1, 2) if part.shape[2] > 1 else part.squeeze(2).unsqueeze(1)


def _at(part: Tensor, read: slice | None, dim: int = 1) -> Tensor:
    return part if read is None else part[(slice(None),) * dim + (read,)]


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """(B or 1, 1, Lq, Lk): 0 where seen, -inf elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))[:, None]


def _tell(tokens: Tokens, x_BLD: Tensor, state: State | None) -> _Told:
    """What each new token is; one row of it for all where rows do not differ."""
    if tokens.valid is None:
        clock = torch.arange(x_BLD.shape[1], device=x_BLD.device)[None]
    else:
        clock = tokens.valid.cumsum(1) - 1
    if state is None:
        born = torch.zeros_like(clock)
    else:
        clock, born = clock + state["count"][:, None], state["born"][:, None].expand(-1, x_BLD.shape[1])
    if tokens.fresh is not None:
        here = clock if tokens.valid is None else clock + 1 - tokens.valid.long()
        born = torch.where(tokens.fresh, here, born).cummax(1).values
    position = clock - born if tokens.position is None else tokens.position
    step, group = (clock if part is None else part for part in (tokens.step, tokens.group))
    return _Told(tokens.valid, clock, born, step, group, position)


def reference(mixer: Attention, x_LD: Tensor, tokens: Tokens) -> Tensor:
    """The same layer for one row, token by token in plain loops; slow, for tests."""
    length, heads = x_LD.shape[0], mixer.config.num_heads
    told = _tell(tokens.map(lambda part: part[None]), x_LD[None], None)
    valid = [True] * length if tokens.valid is None else tokens.valid
    clock, born, position = told.clock[0], told.born[0], told.position[0]
    outputs = []
    for i in range(length):
        if not valid[i]:
            outputs.append(torch.zeros_like(x_LD[0]))
            continue
        parts = []
        near = [
            j for j in range(i + 1)
            if valid[j] and born[j] == born[i] and not (mixer.config.window and clock[i] - clock[j] >= mixer.config.window)
        ]  # fmt: skip
        for head in range(heads):
            rows = [mixer.qkv(x_LD[j]).view(3, heads, -1)[:, head] for j in near]
            q = mixer.qkv(x_LD[i]).view(3, heads, -1)[0, head]
            keys, values = [row[1] for row in rows], [row[2] for row in rows]
            if mixer.config.positions == "rotary":
                cos, sin = (part[0, :, 0] for part in turn(position[None], len(q), mixer.config.rotary_base, q.dtype))
                q = rotate(q, cos[i], sin[i])
                keys = [rotate(key, cos[j], sin[j]) for key, j in zip(keys, near, strict=True)]
            scores = torch.stack([(q * key).sum() / q.shape[0] ** 0.5 for key in keys])
            weights = (scores - scores.max()).exp()
            parts.append(sum(w * value for w, value in zip(weights / weights.sum(), values, strict=True)))
        outputs.append(mixer.out(torch.cat(parts)))
    return torch.stack(outputs)


VARIANTS = (  # settings that take other paths, for the laws
    AttentionConfig(num_heads=3, window=5),
    AttentionConfig(num_heads=2, positions="rotary", window=4, slack=3),
    AttentionConfig(positions="rotary", capacity=6),
    AttentionConfig(num_heads=4, capacity=5, slack=2, bias=False),
    AttentionConfig(window=1),
)
