"""GaLiTe and AGaLiTe: gated linear attention, exactly with a matrix as memory or approximately with a few vectors.

    phi(k) = relu(k) x relu(p1),  phi(q) = relu(q) x relu(p2),  g = sigmoid(c) x sigmoid(p3),  b = sigmoid(e)   per head
    s_t = (1 - g) s_(t-1) + g phi(k)
    GaLiTe    C_t = (1 - b)(1 - g)^T * C_(t-1) + (b v)(g phi(k))^T                     y = C phi(q) / (s . phi(q) + eps)
    AGaLiTe   K_i = (1 - g) K_i + cos(w_i t) g phi(k),  V_i = (1 - b) V_i + cos(w_i t) b v
              y = sum_i V_i (K_i . phi(q)) / (2 r (s . phi(q)) + eps)

`x` is an outer product laid out as a vector of eta E features; b gates values, g keys and normaliser. The cosines make the
product of two sums over time about the sum of the products (terms of different times cancel), up to a constant factor.
Paper: Pramanik, Elelimy, Machado, White, TMLR 2024, arXiv 2310.15719. Its residual stream passes through a ReLU and GRU
gates, which belong to the stack.
Differs from the published code: 1. the clock t of the oscillations restarts with memory; there it runs on, so that what is
remembered depends on how long earlier episodes were. 2. frequencies="half" spreads the w_i over (0, pi): over (-pi, pi) all
but one come twice, cosines being even. 3. GaLiTe uses the feature maps and eps of AGaLiTe.
"""

from abc import abstractmethod
from dataclasses import dataclass
from math import pi
from typing import Literal

import torch
from torch import Tensor, nn

from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.core.state import State
from foretoken.nn.mixer import Facts, Mixed, Mixer, MixerConfig, Tokens
from foretoken.nn.scan import ScanEngine, in_full_precision, linear_scan, passed, wide


@dataclass(frozen=True, kw_only=True)
class _GatedConfig(MixerConfig):
    num_heads: int = 4
    head_width: int = 0
    eta: int = 4
    eps: float = 1e-5
    engine: ScanEngine = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(num_heads=1, head_width=0, eta=1)
        if self.eps <= 0:
            raise ConfigError(f"eps must be positive, got {self.eps}")


@dataclass(frozen=True, kw_only=True)
class AGaLiTeConfig(_GatedConfig):
    """
    Args:
        num_heads: heads.
        head_width: E; 0 = width / num_heads, which must then be whole.
        eta: feature maps have eta E features.
        eps: added to the normaliser, which is zero where no feature is on.
        engine: how the recurrence runs over a sequence; see `nn.scan.linear_scan`.
        rank: r, oscillating copies of the memory.
        frequencies: the r frequencies lie evenly in [-pi, pi] ("full", as published) or in [0, pi] ("half").
    """

    rank: int = 2
    frequencies: Literal["full", "half"] = "full"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(rank=1)


@dataclass(frozen=True, kw_only=True)
class GaLiTeConfig(_GatedConfig):
    """
    Args:
        num_heads, head_width, eta, eps, engine: as in AGaLiTeConfig.
        forget: the memory decays by (1 - b)(1 - g)^T ("separate", the paper) or by 1 - b g^T ("joint", the published code).
    """

    forget: Literal["separate", "joint"] = "separate"


class _Gated(Mixer):
    """What the two share: projections, gates and feature maps. `_remember` is the memory."""

    def __init__(self, config: _GatedConfig, width: int) -> None:
        super().__init__()
        if not config.head_width and width % config.num_heads:
            raise ConfigError(
                f"num_heads must divide width, or give head_width; got width={width} and num_heads={config.num_heads}"
            )
        head_width = config.head_width or width // config.num_heads
        self.shape = (config.num_heads, head_width, config.eta)
        self.inner, self.small = config.num_heads * head_width, config.num_heads * config.eta
        self.input = nn.Linear(width, 5 * self.inner + 3 * self.small)  # k q p1 p2 | v | e c p3
        self.out = nn.Linear(self.inner, width)
        self.start()

    def start(self) -> None:
        """Orthogonal of gain sqrt 2, as published: k q v e c as one matrix, p1 p2 p3 as another."""
        columns, kq, p12 = self.input.in_features, 2 * self.inner, 2 * self.small
        large = nn.init.orthogonal_(torch.empty(5 * self.inner, columns), 2**0.5)
        small = nn.init.orthogonal_(torch.empty(3 * self.small, columns), 2**0.5)
        with torch.no_grad():
            self.input.weight.copy_(torch.cat((large[:kq], small[:p12], large[kq:], small[p12:])))
        nn.init.orthogonal_(self.out.weight, 2**0.5)
        for layer in (self.input, self.out):
            nn.init.zeros_(layer.bias)

    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None, read: slice | None = None
    ) -> Mixed:
        if not x_BLD.shape[1]:
            return Mixed(x_BLD, state)
        tokens, at = tokens or Tokens(), slice(None) if read is None else read
        y_BLHE, after = self._recur(self.input(x_BLD), tokens, at, state)
        y_BLD = self.out(y_BLHE.flatten(2).to(x_BLD.dtype))
        if tokens.valid is not None:
            y_BLD = y_BLD * tokens.valid[:, at, None]
        return Mixed(y_BLD, None if state is None else after)

    @in_full_precision
    def _recur(self, projected: Tensor, tokens: Tokens, at: slice, state: State | None) -> tuple[Tensor, State]:
        (heads, head_width, eta), inner, small = self.shape, self.inner, self.small
        on, v, gates = projected.split((2 * inner + 2 * small, inner, 2 * inner + small), dim=-1)
        kq, p12 = on.relu().split((2 * inner, 2 * small), dim=-1)
        b, c, p3 = gates.sigmoid().split((inner, inner, small), dim=-1)

        def features(x: Tensor, p: Tensor) -> Tensor:
            """Outer products per head, (B, L, 2 or 1, H, N = eta E)."""
            return (p.unflatten(-1, (-1, heads, eta, 1)) * x.unflatten(-1, (-1, heads, 1, head_width))).flatten(-2)

        (k, q), g = features(kq, p12).unbind(2), features(c, p3).squeeze(2)
        b, v = b.unflatten(-1, (heads, head_width)), v.unflatten(-1, (heads, head_width))
        return self._remember(q[:, at], g * k, b * v, g, b, tokens, at, state)

    @abstractmethod
    def _remember(
        self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, tokens: Tokens, at: slice, state: State | None
    ) -> tuple[Tensor, State]:
        """Outputs (B, L, H, E) and the state, of gated keys k (B, L, H, N) and values v (B, L, H, E); q only where it is read."""


@configures(AGaLiTeConfig)
class AGaLiTe(_Gated):
    """r + 1 vectors of keys, the first without oscillation (the normaliser s), and r of values per head."""

    cosines: Tensor

    def __init__(self, config: AGaLiTeConfig, width: int) -> None:
        super().__init__(config, width)
        self.config = config
        heads, head_width, eta = self.shape
        numbers = heads * head_width * ((config.rank + 1) * eta + config.rank)
        self.facts = Facts(state_bytes=4 * numbers + 8, parallel="scan")
        # All w_i t repeat after 2 (r - 1) tokens; the column before them is for s.
        clock = torch.arange(2 * max(1, config.rank - 1))[:, None]
        w = torch.linspace(-pi if config.frequencies == "full" else 0.0, pi, config.rank, dtype=torch.float64)
        self.register_buffer("cosines", torch.cat((0 * w[:1], w)).mul(clock).cos(), persistent=False)

    def initial_state(self, rows: int) -> State:
        (heads, head_width, eta), weight = self.shape, self.input.weight
        return {
            "keys": weight.new_zeros(rows, self.config.rank + 1, heads, eta * head_width, dtype=wide(weight.dtype)),
            "values": weight.new_zeros(rows, self.config.rank, heads, head_width, dtype=wide(weight.dtype)),
            "clock": weight.new_zeros(rows, dtype=torch.int64),  # valid tokens since memory began
        }

    def _remember(
        self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, tokens: Tokens, at: slice, state: State | None
    ) -> tuple[Tensor, State]:
        clock = _clock(tokens, k, None if state is None else state["clock"])
        # The published clock shows 2 at the first token.
        cosines = self.cosines[(clock + 1) % len(self.cosines)].to(k.dtype)[..., None, None]
        masks = tokens.valid, tokens.fresh
        engine, before = self.config.engine, (None, None) if state is None else (state["keys"], state["values"])
        keys = linear_scan(*passed(1 - g[:, :, None], cosines * k[:, :, None], *masks), before[0], engine=engine)
        values = linear_scan(
            *passed(1 - b[:, :, None], cosines[:, :, 1:] * v[:, :, None], *masks), before[1], engine=engine
        )
        likeness = (keys[:, at] * q[:, :, None]).sum(-1, keepdim=True)  # (B, L, r + 1, H, 1)
        y = (likeness[:, :, 1:] * values[:, at]).sum(2) / (2 * self.config.rank * likeness[:, :, 0] + self.config.eps)
        return y, {"keys": keys[:, -1], "values": values[:, -1], "clock": clock[:, -1]}


def _clock(tokens: Tokens, like: Tensor, start: Tensor | None) -> Tensor:
    """Valid tokens since memory began, the token itself included, (B or 1, L)."""
    if tokens.valid is None:
        clock = torch.arange(1, like.shape[1] + 1, device=like.device)[None]
    else:
        clock = tokens.valid.cumsum(1)
    if start is not None:
        clock = clock + start[:, None]
    if tokens.fresh is not None:
        before = clock - (1 if tokens.valid is None else tokens.valid.long())
        clock = clock - torch.where(tokens.fresh, before, 0).cummax(1).values
    return clock


@configures(GaLiTeConfig)
class GaLiTe(_Gated):
    """The matrix C and, as its last row, the normaliser s. Training holds the matrix of every token: for small widths."""

    def __init__(self, config: GaLiTeConfig, width: int) -> None:
        super().__init__(config, width)
        self.config = config
        heads, head_width, eta = self.shape
        self.facts = Facts(state_bytes=4 * heads * (head_width + 1) * eta * head_width, parallel="scan")

    def initial_state(self, rows: int) -> State:
        (heads, head_width, eta), weight = self.shape, self.input.weight
        return {"memory": weight.new_zeros(rows, heads, head_width + 1, eta * head_width, dtype=wide(weight.dtype))}

    def _remember(
        self, q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, tokens: Tokens, at: slice, state: State | None
    ) -> tuple[Tensor, State]:
        one, g, k = torch.ones_like(b[..., :1]), g[..., None, :], k[..., None, :]
        if self.config.forget == "separate":
            decay = torch.cat((1 - b, one), -1)[..., None] * (1 - g)
        else:
            decay = 1 - torch.cat((b, one), -1)[..., None] * g
        decay, written = passed(decay, torch.cat((v, one), -1)[..., None] * k, tokens.valid, tokens.fresh)
        memory = linear_scan(decay, written, None if state is None else state["memory"], engine=self.config.engine)
        y = (memory[:, at] @ q[..., None]).squeeze(-1)
        return y[..., :-1] / (y[..., -1:] + self.config.eps), {"memory": memory[:, -1]}


def reference(mixer: AGaLiTe | GaLiTe, x_LD: Tensor, tokens: Tokens) -> Tensor:
    """The same layer for one row, token by token and head by head; slow, for tests."""
    config = mixer.config
    heads, head_width, eta = mixer.shape
    outputs: list[Tensor] = []
    empty = x_LD.new_zeros(heads, head_width, eta * head_width)
    C, s, t = empty, empty[:, 0], 0
    rank, frequencies = 0, x_LD.new_zeros(0)
    if isinstance(config, AGaLiTeConfig):
        rank = config.rank
        frequencies = torch.linspace(-pi if config.frequencies == "full" else 0, pi, rank, dtype=x_LD.dtype)
    K, V = empty.new_zeros(rank, *s.shape), empty.new_zeros(rank, heads, head_width)
    sizes = (mixer.inner,) * 2 + (mixer.small,) * 2 + (mixer.inner,) * 3 + (mixer.small,)
    for i, x_D in enumerate(x_LD):
        if tokens.fresh is not None and tokens.fresh[i]:
            C, s, t, K, V = empty, empty[:, 0], 0, torch.zeros_like(K), torch.zeros_like(V)
        if tokens.valid is not None and not tokens.valid[i]:
            outputs.append(torch.zeros_like(x_D))
            continue
        t = t + 1
        k, q, p1, p2, v, e, c, p3 = (part.view(heads, -1) for part in mixer.input(x_D).split(sizes))
        b = e.sigmoid()
        phi_k, phi_q, g = (
            torch.stack([torch.outer(n[h], w[h]).flatten() for h in range(heads)])
            for w, n in ((k.relu(), p1.relu()), (q.relu(), p2.relu()), (c.sigmoid(), p3.sigmoid()))
        )
        s = (1 - g) * s + g * phi_k
        normaliser = (s * phi_q).sum(-1, keepdim=True)
        if isinstance(config, AGaLiTeConfig):
            cosines = (frequencies * (t + 1)).cos()[:, None, None]
            K, V = (1 - g) * K + cosines * g * phi_k, (1 - b) * V + cosines * b * v
            y = (V * (K * phi_q).sum(-1, keepdim=True)).sum(0) / (2 * rank * normaliser + config.eps)
        else:
            bg = b[:, :, None] * g[:, None]
            kept = (1 - b)[:, :, None] * (1 - g)[:, None] if config.forget == "separate" else 1 - bg
            C = kept * C + bg * v[:, :, None] * phi_k[:, None]
            y = (C * phi_q[:, None]).sum(-1) / (normaliser + config.eps)
        outputs.append(mixer.out(y.flatten()))
    return torch.stack(outputs)


VARIANTS = (  # settings that take other paths, for the laws
    AGaLiTeConfig(num_heads=1, head_width=5, eta=2, rank=4, frequencies="half", engine="sequential"),
    AGaLiTeConfig(num_heads=2, rank=1, engine="associative"),
    GaLiTeConfig(num_heads=3, head_width=2, eta=1, forget="joint"),
)
