"""The mLSTM layers of xLSTM: a matrix memory with exponential input gates, in parallel over tokens.

    C_t = f_t C_(t-1) + i_t k_t v_t^T     n_t = f_t n_(t-1) + i_t k_t     h_t = C_t^T q_t / max(|n_t . q_t|, 1)

with f = sigmoid and i = exp of a head's gate, and q divided by the square root of its width. n is kept as one more column of C,
and both divided by e^m, m the largest exponent so far, so nothing overflows. Every head's h is normalised on its own. Two layers:

- MLSTM, the block of the paper that projects up first (Beck et al. 2024, arXiv 2405.04517); it needs no feed-forward:
    u, z = W x     c = silu(conv u)     q, k from c, v from u, gates from q, k, v     y = W_out((norm(h) + skip * c) * silu(z))
- MLSTM7B, that of xLSTM 7B (Beck et al. 2025, arXiv 2503.13427); it wants a feed-forward after it:
    q, k, v, z, gates = W x, the gates capped softly     y = W_out(norm(h) * sigmoid(z))

Differs from the papers: no epsilon is added to the denominator, because its weight would depend on m; the output projection
starts as the whole stack's do.
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
from foretoken.nn.scan import NEVER, ChunkEngine, exponential, wide
from foretoken.nn.taps import ShortConv


@dataclass(frozen=True, kw_only=True)
class _MemoryConfig(MixerConfig):
    """
    Args:
        num_heads: memories side by side; must divide the widths of keys and values.
        gate_cap: gates are capped softly as cap * tanh(gate / cap); 0 = not at all.
        input_bias: mean of the input gates' biases at the start (normal, deviation 0.1).
        norm_eps: added to the variance of each head's output.
        chunk: tokens that are handled as one matrix product.
        engine: "sequential", "chunked" or, by length, "auto"; they agree.
    """

    num_heads: int = 4
    gate_cap: float = 0.0
    input_bias: float = 0.0
    norm_eps: float = 1e-5
    chunk: int = 32
    engine: ChunkEngine = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_heads < 1 or self.chunk < 1 or self.gate_cap < 0 or self.norm_eps <= 0:
            raise ConfigError(
                f"an mLSTM needs num_heads >= 1, chunk >= 1, gate_cap >= 0 and norm_eps > 0, got {self.num_heads}, "
                f"{self.chunk}, {self.gate_cap} and {self.norm_eps}"
            )


@dataclass(frozen=True, kw_only=True)
class MLSTMConfig(_MemoryConfig):
    """As the other mLSTM, and

    Args:
        expansion: inner width over width.
        conv: taps of the short convolution, >= 1.
        block: width of the diagonal blocks that project q, k and v; must divide the inner width, 0 = one block of all.
    """

    expansion: float = 2.0
    conv: int = 4
    block: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expansion <= 0 or self.conv < 1 or self.block < 0:
            raise ConfigError(
                f"an mLSTM needs expansion > 0, conv >= 1 and block >= 0, got {self.expansion}, {self.conv} and {self.block}"
            )


@dataclass(frozen=True, kw_only=True)
class MLSTM7BConfig(_MemoryConfig):
    """As the other mLSTM, and

    Args:
        key_factor: width of queries and keys over width.
    """

    num_heads: int = 2
    gate_cap: float = 15.0
    input_bias: float = -10.0
    norm_eps: float = 1e-6
    key_factor: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.key_factor <= 0:
            raise ConfigError(f"key_factor must be positive, got {self.key_factor}")


class _Memory(nn.Module):
    """The heads' memories, the biases of their gates, and the norm of what is read from them."""

    def __init__(self, config: _MemoryConfig, key_width: int, value_width: int) -> None:
        super().__init__()
        for name, width in (("keys", key_width), ("values", value_width)):
            if width < 1 or width % config.num_heads:
                raise ConfigError(f"num_heads must divide the width of {name}, got {width} and {config.num_heads}")
        self.config = config
        self.shape = (config.num_heads, key_width // config.num_heads, value_width // config.num_heads + 1)
        self.bias = nn.Parameter(torch.empty(2 * config.num_heads))  # of input gates, then of forget gates
        self.scale = nn.Parameter(torch.ones(value_width))
        self.bytes = 4 * config.num_heads * (self.shape[1] * self.shape[2] + 1)

    def start(self) -> None:
        """The longest memory in the last head."""
        heads = self.config.num_heads
        with torch.no_grad():
            self.bias[:heads].normal_(self.config.input_bias, 0.1)
            self.bias[heads:] = torch.linspace(3, 6, heads)
            self.scale.fill_(1)

    def initial_state(self, rows: int) -> State:
        dtype = wide(self.bias.dtype)
        return {
            "memory": self.bias.new_zeros(rows, *self.shape, dtype=dtype),  # C and, as its last column, n; both e^-m
            "largest": self.bias.new_full((rows, self.shape[0]), NEVER, dtype=dtype),  # m
        }

    def forward(
        self, qk: Tensor, v: Tensor, gates: Tensor, state: State | None, tokens: Tokens, read: slice | None
    ) -> tuple[Tensor, State]:
        """Queries and keys (B, L, 2 keys), values (B, L, values), gates (B, L, 2 heads) without biases -> what is read."""
        (rows, length, _), (heads, keys, columns), cap = v.shape, self.shape, self.config.gate_cap
        q, k = qk.view(rows, length, 2, heads, keys).unbind(2)
        v = F.pad(v.view(rows, length, heads, columns - 1), (0, 1), value=1.0)
        gates = gates + self.bias
        gates = torch.tanh(gates.to(wide(gates.dtype)) / cap) * cap if cap else gates.to(wide(gates.dtype))
        i, f = gates[..., :heads], F.logsigmoid(gates[..., heads:])
        before = None if state is None else (state["memory"], state["largest"])
        y, m, after = exponential(
            q, k, v, i, f, state=before,
            valid=tokens.valid, fresh=tokens.fresh, chunk=self.config.chunk, engine=self.config.engine,
        )  # fmt: skip
        if read is not None:
            y, m = y[:, read], m[:, read]
        h, n = y.split((columns - 1, 1), dim=-1)
        least = (math.log(keys) / 2 - m).clamp_min(-60).exp()  # sqrt(keys) e^-m, but not 0, as n . q could be 0 as well
        h = h / torch.maximum(n.abs(), least[..., None])
        h = F.layer_norm(h, h.shape[-1:], eps=self.config.norm_eps).flatten(2)
        return h.to(qk.dtype) * self.scale, {"memory": after[0], "largest": after[1]}


@configures(MLSTMConfig)
class MLSTM(Mixer):
    """The block that projects up first, with a short convolution, a learned skip and an output gate."""

    def __init__(self, config: MLSTMConfig, width: int) -> None:
        super().__init__()
        self.config, inner = config, round(config.expansion * width)
        block = config.block or inner
        if inner % block:
            raise ConfigError(f"block must divide the inner width, got block={block} and an inner width of {inner}")
        self.memory = _Memory(config, inner, inner)
        self.up, self.out = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)
        self.conv = ShortConv(inner, config.conv)
        self.qk = nn.Parameter(torch.empty(2, inner // block, block, block))
        self.v = nn.Parameter(torch.empty(1, inner // block, block, block))
        self.gates = nn.Linear(3 * inner, 2 * config.num_heads, bias=False)
        self.skip = nn.Parameter(torch.ones(inner))
        self.facts = Facts(state_bytes=self.memory.bytes + 4 * (config.conv - 1) * inner, parallel="chunk")
        self.start()

    def start(self) -> None:
        """Gates that do not depend on the input yet; small projections (Nguyen and Salazar 2019, arXiv 1910.05895)."""
        for weight in (self.up.weight, self.qk, self.v):
            nn.init.normal_(weight, std=(0.4 / self.up.in_features) ** 0.5)
        nn.init.zeros_(self.gates.weight)
        nn.init.ones_(self.skip)
        self.conv.reset_parameters()
        self.memory.start()

    def initial_state(self, rows: int) -> State:
        conv = self.conv.initial_state(rows)
        return {"conv": conv.to(wide(conv.dtype)), **self.memory.initial_state(rows)}

    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None, read: slice | None = None
    ) -> Mixed:
        tokens, at = tokens or Tokens(), slice(None) if read is None else read
        if not x_BLD.shape[1]:
            return Mixed(x_BLD, state)
        u, z = self.up(x_BLD).chunk(2, dim=-1)
        c, conv = self.conv(u, None if state is None else state["conv"], tokens)
        c = F.silu(c)
        qk, v = _blockwise(c, self.qk), _blockwise(u, self.v)
        h, after = self.memory(qk, v, self.gates(torch.cat((qk, v), dim=-1)), state, tokens, read)
        y = self.out(torch.addcmul(h, self.skip, c[:, at]) * F.silu(z[:, at]))
        return _finished(y, tokens, at, None if state is None else {"conv": conv.to(state["conv"].dtype), **after})


@configures(MLSTM7BConfig)
class MLSTM7B(Mixer):
    """The layer that reads its input directly, with capped gates and a sigmoid output gate."""

    def __init__(self, config: MLSTM7BConfig, width: int) -> None:
        super().__init__()
        self.config, keys = config, round(config.key_factor * width)
        self.memory = _Memory(config, keys, width)
        self.parts = [2 * keys, width, width, 2 * config.num_heads]  # q and k, v, z, gates
        self.into, self.out = nn.Linear(width, sum(self.parts), bias=False), nn.Linear(width, width, bias=False)
        self.facts = Facts(state_bytes=self.memory.bytes, parallel="chunk")
        self.start()

    def start(self) -> None:
        """As in the other mLSTM."""
        nn.init.normal_(self.into.weight, std=(0.4 / self.into.in_features) ** 0.5)
        nn.init.zeros_(self.into.weight[-self.parts[-1] :])
        self.memory.start()

    def initial_state(self, rows: int) -> State:
        return self.memory.initial_state(rows)

    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None, read: slice | None = None
    ) -> Mixed:
        tokens, at = tokens or Tokens(), slice(None) if read is None else read
        if not x_BLD.shape[1]:
            return Mixed(x_BLD, state)
        qk, v, z, gates = self.into(x_BLD).split(self.parts, dim=-1)
        h, after = self.memory(qk, v, gates, state, tokens, read)
        return _finished(self.out(h * z[:, at].sigmoid()), tokens, at, None if state is None else after)


def _blockwise(x_BLD: Tensor, weight: Tensor) -> Tensor:
    """Several block-diagonal projections (J, blocks, out, in) of the same input, side by side: (B, L, J D)."""
    x = x_BLD.view(*x_BLD.shape[:2], weight.shape[1], weight.shape[3])
    if x.shape[1] <= 4:  # fewer and smaller operations, but more memory
        return (x[:, :, None, :, None] * weight).sum(-1).flatten(2)
    return torch.einsum("blni,jnoi->bljno", x, weight).flatten(2)


def _finished(y_BLD: Tensor, tokens: Tokens, at: slice, state: State | None) -> Mixed:
    return Mixed(y_BLD if tokens.valid is None else y_BLD * tokens.valid[:, at, None], state)


def reference(mixer: MLSTM | MLSTM7B, x_LD: Tensor, tokens: Tokens) -> Tensor:
    """The same layers for one row, token by token, with plain exponentials."""
    config, memory, width = mixer.config, mixer.memory, x_LD.shape[1]
    heads, keys, values = memory.shape[0], memory.shape[1], memory.shape[2] - 1
    outputs: list[Tensor] = []
    seen: list[Tensor] = []
    C, n = x_LD.new_zeros(heads, keys, values), x_LD.new_zeros(heads, keys)
    for t, x in enumerate(x_LD):
        if tokens.fresh is not None and tokens.fresh[t]:
            seen, C, n = [], torch.zeros_like(C), torch.zeros_like(n)
        if tokens.valid is not None and not tokens.valid[t]:
            outputs.append(torch.zeros(width, dtype=x.dtype))
            continue
        if isinstance(mixer, MLSTM):
            u, z = (mixer.up.weight @ x).chunk(2)
            seen.append(u)
            bias, taps = mixer.conv.bias, mixer.conv.weight.T.flip(0)  # the present token's tap first
            assert bias is not None
            c = F.silu(torch.stack([bias, *(w * old for w, old in zip(taps, seen[::-1], strict=False))]).sum(0))
            q, k = (torch.block_diag(*blocks) @ c for blocks in mixer.qk)
            v = torch.block_diag(*mixer.v[0]) @ u
            gates = mixer.gates.weight @ torch.cat((q, k, v))
        else:
            qk, v, z, gates = (mixer.into.weight @ x).split(mixer.parts)
            q, k = qk.chunk(2)
        gates = gates + memory.bias
        gates = config.gate_cap * torch.tanh(gates / config.gate_cap) if config.gate_cap else gates
        i, f = gates[:heads].exp()[:, None], gates[heads:].sigmoid()[:, None]
        q, k, v = q.view(heads, keys) / keys**0.5, k.view(heads, keys), v.view(heads, values)
        C = f[..., None] * C + i[..., None] * k[:, :, None] * v[:, None, :]
        n = f * n + i * k
        h = (C * q[:, :, None]).sum(1) / (n * q).sum(1, keepdim=True).abs().clamp(min=1)
        h = (h - h.mean(1, keepdim=True)) / (h.var(1, keepdim=True, unbiased=False) + config.norm_eps).sqrt()
        h = h.flatten() * memory.scale
        h = (h + mixer.skip * c) * F.silu(z) if isinstance(mixer, MLSTM) else h * z.sigmoid()
        outputs.append(mixer.out.weight @ h)
    return torch.stack(outputs)


VARIANTS = (
    MLSTMConfig(num_heads=2, chunk=5, gate_cap=4.0, expansion=1.0, block=0, conv=2),
    MLSTMConfig(engine="sequential", conv=1),
    MLSTM7BConfig(chunk=5, num_heads=3, key_factor=1.0, input_bias=0.0),
)
