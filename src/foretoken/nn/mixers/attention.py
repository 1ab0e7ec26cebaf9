"""Softmax attention: whole context or a sliding window, with a ring of keys and values while streaming.

    y_i = sum_j softmax_j(q_i . k_j / sqrt(E)) v_j    over tokens j <= i of the same memory, fewer than `window` tokens back

Positions are none (the embeddings carry them), or rotary (Su et al. 2021, arXiv 2104.09864). Distances count valid tokens, so
padding never moves anything. Training uses one pass over the sequence; the streaming state keeps the last `capacity` tokens
with what each of them is, so one rule of visibility serves both.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.core.state import State
from foretoken.nn.dropout import dropout
from foretoken.nn.mixer import Facts, Mixed, Mixer, MixerConfig, Tokens, Visible, may_write_in_place


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
        for name, least in (("num_heads", 1), ("window", 0), ("capacity", 1), ("slack", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout must lie in [0, 1), got {self.dropout}")


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
        self.slots = (config.window or config.capacity) + config.slack
        self.facts = Facts(
            streaming="exact" if config.window else "within_window",
            takes_visibility=True,
            max_context=config.window or config.capacity,
            state_bytes=self.slots * (8 * width + 5 * 8) + 3 * 8,
        )

    def initial_state(self, rows: int) -> State:
        weight = self.qkv.weight
        cache = (rows, self.slots, self.config.num_heads, self.width // self.config.num_heads)
        absent = torch.full((rows, self.slots), -1, device=weight.device)
        return {
            "keys": weight.new_zeros(cache),
            "values": weight.new_zeros(cache),
            "clock": absent,  # (B, S) when each kept token came, in valid tokens since the state began; -1 = empty
            "memory": absent.clone(),  # (B, S) which memory it belongs to
            "step": absent.clone(),
            "group": absent.clone(),
            "position": absent.clone(),
            "count": weight.new_zeros(rows, dtype=torch.int64),  # valid tokens since the state began
            "born": weight.new_zeros(rows, dtype=torch.int64),  # the count at which the present memory began
            "current": weight.new_zeros(rows, dtype=torch.int64),  # number of the present memory
        }

    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None, read: slice | None = None
    ) -> Mixed:
        tokens = tokens or Tokens()
        heads = (*x_BLD.shape[:2], self.config.num_heads, self.width // self.config.num_heads)
        if read is None:
            q, k, v = (part.view(heads) for part in self.qkv(x_BLD).chunk(3, dim=-1))
        else:  # queries only where they are read
            bias = self.qkv.bias
            at, rest = slice(None, self.width), slice(self.width, None)
            q = F.linear(x_BLD[:, read], self.qkv.weight[at], None if bias is None else bias[at])
            q = q.unflatten(-1, heads[2:])
            kv = F.linear(x_BLD, self.qkv.weight[rest], None if bias is None else bias[rest])
            k, v = (part.view(heads) for part in kv.chunk(2, dim=-1))
        new, born = _describe(tokens, x_BLD, state)
        if self.config.positions == "rotary":
            q = _rotate(q, _at(new.position, read), self.config.rotary_base)
            k = _rotate(k, new.position, self.config.rotary_base)
        query = _Kept(*(_at(part, read) for part in new))
        if state is None:
            y_BLHE = self._attend(q, k, v, self._mask(query, new, tokens, own=read or slice(None)))
        else:
            y_BLHE, state = self._stream(q, k, v, query, new, {**state, "born": born})
        y_BLD = self.out(y_BLHE.flatten(2))
        if tokens.valid is not None:
            y_BLD = y_BLD * query.valid[..., None]
        return Mixed(y_BLD, state)

    def _mask(self, query: "_Kept", key: "_Kept", tokens: Tokens | None, own: slice | None = None) -> Tensor | None:
        """(B, Lq, Lk) bool, or None for plain causal order over the whole sequence.

        `own` says where the queries lie among the keys when a whole sequence is read; while streaming it is None, and
        tokens see back as far as the ring is sure to reach, however the stream is cut.
        """
        plain = tokens is not None and tokens.valid is None and tokens.fresh is None
        if plain and not self.config.window and self.visible is None and query.clock.shape == key.clock.shape:
            return None
        seen = key.valid[:, None, :] & (key.memory[:, None, :] == query.memory[:, :, None])
        age = query.clock[:, :, None] - key.clock[:, None, :]
        if self.visible is None:
            seen = seen & (age >= 0)
        else:
            seen = seen & self.visible(query.tokens(), key.tokens())
        reach = self.config.window or (0 if own is not None else self.config.capacity)
        if reach:
            seen = seen & (age < reach)
        if own is not None:  # a padded query sees itself, so that its softmax is finite
            itself = torch.eye(key.clock.shape[1], dtype=torch.bool, device=seen.device)[own]
            seen = seen | (itself & ~query.valid[:, :, None])
        return seen

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        if not (self.training and self.config.dropout):
            y = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None], is_causal=mask is None)
            return y.transpose(1, 2)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if mask is None:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()[None]
        scores = scores.masked_fill(~mask[:, None], float("-inf"))
        weights = dropout(scores.softmax(-1, dtype=torch.float32).to(v.dtype), self.config.dropout, True)
        return (weights @ v).transpose(1, 2)

    def _stream(
        self, q: Tensor, k: Tensor, v: Tensor, query: "_Kept", new: "_Kept", state: State
    ) -> tuple[Tensor, State]:
        length, reach = k.shape[1], self.config.window or self.config.capacity
        if may_write_in_place() and length <= self.slots - reach + 1 and not self.config.slack:
            state = self._write(k, v, new, state)  # what the new tokens push out is out of everybody's reach
            mask = self._mask(query, self._kept(state), None)
            return self._attend(q, state["keys"], state["values"], self._guard(mask)), state
        old = self._kept(state)
        both = _Kept(*(torch.cat(pair, dim=1) for pair in zip(old, new, strict=True)))
        mask = self._guard(self._mask(query, both, None))
        y = self._attend(q, torch.cat((state["keys"], k), 1), torch.cat((state["values"], v), 1), mask)
        return y, self._write(k, v, new, state)

    @staticmethod
    def _guard(mask: Tensor | None) -> Tensor:
        assert mask is not None
        return mask | ~mask.any(-1, keepdim=True)  # a query that sees nobody is padding; its output is dropped

    def _kept(self, state: State) -> "_Kept":
        """The ring's tokens; those at or past the row's own count were written by a continuation that was dropped."""
        memory, clock = state["memory"], state["clock"]
        valid = (clock >= 0) & (clock < state["count"][:, None]) & (memory == state["current"][:, None])
        return _Kept(valid, memory, clock, state["step"], state["group"], state["position"])

    def _write(self, k: Tensor, v: Tensor, new: "_Kept", state: State) -> State:
        """The last `slots` valid tokens of each row, at slots counted per row.

        Tokens of memories that ended are written too: they overwrite what a dropped continuation left in their slots.
        """
        count, current = new.clock[:, -1] + 1, new.memory[:, -1]
        kept = new.valid & (new.clock >= count[:, None] - self.slots)
        rows, columns = kept.nonzero(as_tuple=True)
        slots = new.clock[rows, columns] % self.slots
        fields = {
            "keys": k,
            "values": v,
            "clock": new.clock,
            "memory": new.memory,
            "step": new.step,
            "group": new.group,
            "position": new.position,
        }
        inside = may_write_in_place()
        written = {}
        for name, values in fields.items():
            put = state[name].index_put_ if inside else state[name].index_put
            written[name] = put((rows, slots), values[rows, columns].to(state[name].dtype))
        return {**written, "count": count, "born": state["born"], "current": current}


class _Kept(NamedTuple):
    """What attention knows of each token, all (B, L)."""

    valid: Tensor
    memory: Tensor  # the number of the memory it belongs to
    clock: Tensor  # valid tokens before it since the state began
    step: Tensor
    group: Tensor
    position: Tensor

    def tokens(self) -> Tokens:
        return Tokens(valid=self.valid, step=self.step, group=self.group, position=self.position)


def _at(part: Tensor, read: slice | None) -> Tensor:
    return part if read is None else part[:, read]


def _describe(tokens: Tokens, x_BLD: Tensor, state: State | None) -> tuple[_Kept, Tensor]:
    """What each token is, and at which count of valid tokens the memory of the last one began, (B,)."""
    shape, device = x_BLD.shape[:2], x_BLD.device
    valid = tokens.valid if tokens.valid is not None else torch.ones(shape, dtype=torch.bool, device=device)
    memory = born = torch.zeros(shape, dtype=torch.int64, device=device)
    clock = valid.cumsum(1) - 1
    if state is not None:
        clock = clock + state["count"][:, None]
        born = born + state["born"][:, None]
    if tokens.fresh is not None:
        memory = tokens.fresh.cumsum(1)
        born = torch.where(tokens.fresh, clock + 1 - valid.long(), born).cummax(1).values
    if state is not None:
        memory = memory + state["current"][:, None]
    none = torch.full(shape, -1, device=device)
    kept = _Kept(
        valid, memory, clock,
        none if tokens.step is None else tokens.step,
        none if tokens.group is None else tokens.group,
        clock - born if tokens.position is None else tokens.position,
    )  # fmt: skip
    return kept, born[:, -1]


def _rotate(x_BLHE: Tensor, position_BL: Tensor, base: float) -> Tensor:
    """Rotary positions: pairs (e, e + E/2) turned by position * base^(-2e/E), in float32."""
    half = x_BLHE.shape[-1] // 2
    rate = base ** (-torch.arange(half, device=x_BLHE.device, dtype=torch.float64) / half)
    angle = position_BL[..., None, None].double() * rate
    cos, sin = angle.cos().to(x_BLHE.dtype), angle.sin().to(x_BLHE.dtype)
    a, b = x_BLHE.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


def reference(mixer: Attention, x_LD: Tensor, tokens: Tokens) -> Tensor:
    """The same layer for one row, token by token in plain loops; slow, for tests."""
    length, heads = x_LD.shape[0], mixer.config.num_heads
    kept, _ = _describe(Tokens(*(None if part is None else part[None] for part in tokens)), x_LD[None], None)
    valid, memory, clock, _, _, position = (part[0] for part in kept)
    outputs = []
    for i in range(length):
        if not valid[i]:
            outputs.append(torch.zeros_like(x_LD[0]))
            continue
        parts = []
        near = [
            j for j in range(i + 1)
            if valid[j] and memory[j] == memory[i] and not (mixer.config.window and clock[i] - clock[j] >= mixer.config.window)
        ]  # fmt: skip
        for head in range(heads):
            rows = [mixer.qkv(x_LD[j]).view(3, heads, -1)[:, head] for j in near]
            q = mixer.qkv(x_LD[i]).view(3, heads, -1)[0, head]
            keys, values = [row[1] for row in rows], [row[2] for row in rows]
            if mixer.config.positions == "rotary":
                turn = lambda x, p: _rotate(x[None, None, None], p[None, None], mixer.config.rotary_base)[0, 0, 0]  # noqa: E731
                q, keys = turn(q, position[i]), [turn(key, position[j]) for key, j in zip(keys, near, strict=True)]
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
