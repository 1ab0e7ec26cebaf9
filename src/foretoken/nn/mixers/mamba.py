"""Mamba: a state space whose step size, input and output directions are chosen by the token.

    (u, z) = W_in x;  u = silu(conv(u));  (d, B, C) = W_x u;  dt = softplus(W_dt d + b)
    h_t = exp(dt_t A) h_(t-1) + B_t (dt_t u_t)^T,   y_t = h_t^T C_t + D u_t,   out = W_out (y silu(z))

Gu and Dao 2023 (arXiv 2312.00752). A is negative, one number per state and feature, so each feature forgets at N speeds at once,
and dt decides per token whether to keep (small) or to overwrite (large). A state is N x E numbers, so the arithmetic is cheap
beside the memory traffic: `selective_scan` goes token by token, keeps the states of one chunk at a time and computes them anew
when gradients come back.

Differs from the paper: biases of the convolution begin at zero; `out_proj` is not scaled down by the number of layers.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.core.state import State
from foretoken.nn.mixer import Facts, Mixed, Mixer, MixerConfig, Tokens
from foretoken.nn.scan import in_full_precision, wide
from foretoken.nn.taps import ShortConv


@dataclass(frozen=True, kw_only=True)
class MambaConfig(MixerConfig):
    """
    Args:
        state_size: N, states per feature.
        expand: inner features E over width.
        kernel: tokens that the convolution sees.
        rank: features that the step sizes are made of; 0 = width / 16, rounded up.
        dt_min, dt_max: step sizes at the start, log-uniform in between.
        bias: whether the projections in and out have biases.
        chunk: tokens whose states exist at once; results do not depend on it.
    """

    state_size: int = 16
    expand: int = 2
    kernel: int = 4
    rank: int = 0
    dt_min: float = 1e-3
    dt_max: float = 0.1
    bias: bool = False
    chunk: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(state_size=1, expand=1, kernel=1, rank=0, chunk=1)
        if not 0 < self.dt_min <= self.dt_max:
            raise ConfigError(f"0 < dt_min <= dt_max is needed, got {self.dt_min} and {self.dt_max}")


@configures(MambaConfig)
class Mamba(Mixer):
    """The Mamba layer without its norm and residual; parameters are named as in the published code, `A_log` is (N, E)."""

    def __init__(self, config: MambaConfig, width: int) -> None:
        super().__init__()
        self.config, inner, states = config, config.expand * width, config.state_size
        rank = config.rank or -(-width // 16)
        self.sizes = (rank, states, states)
        self.in_proj = nn.Linear(width, 2 * inner, bias=config.bias)
        self.conv = ShortConv(inner, config.kernel)
        self.x_proj = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.empty(states, inner))
        self.D = nn.Parameter(torch.empty(inner))
        self.out_proj = nn.Linear(inner, width, bias=config.bias)
        self.facts = Facts(state_bytes=4 * inner * (states + config.kernel - 1), parallel="scan")
        self.start()

    @torch.no_grad()
    def start(self) -> None:
        """A = -1 ... -N, dt in [dt_min, dt_max], D = 1; the projections as PyTorch starts them, as published."""
        for linear in (self.in_proj, self.x_proj, self.out_proj):
            linear.reset_parameters()
            if linear.bias is not None:
                linear.bias.zero_()
        self.conv.reset_parameters()
        nn.init.uniform_(self.dt_proj.weight, -(self.sizes[0] ** -0.5), self.sizes[0] ** -0.5)
        start_time_steps(self.dt_proj.bias, self.config.dt_min, self.config.dt_max)
        rates = torch.arange(1.0, len(self.A_log) + 1, device=self.A_log.device)
        self.A_log.copy_(rates.log()[:, None].expand_as(self.A_log))
        self.D.fill_(1)

    def initial_state(self, rows: int) -> State:
        dtype = wide(self.A_log.dtype)
        return {
            "inputs": self.conv.initial_state(rows).to(dtype),
            "memory": self.A_log.new_zeros(rows, *self.A_log.shape, dtype=dtype),
        }

    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None, read: slice | None = None
    ) -> Mixed:
        tokens = tokens or Tokens()
        given = state or self.initial_state(len(x_BLD))
        u_BLE, z_BLE = self.in_proj(x_BLD).chunk(2, dim=-1)
        u_BLE, inputs = self.conv(u_BLE, given["inputs"], tokens)
        u_BLE = F.silu(u_BLE)
        d, b_BLN, c_BLN = self.x_proj(u_BLE).split(self.sizes, dim=-1)
        dtype = given["memory"].dtype
        dt_BLE = F.softplus(F.linear(d, self.dt_proj.weight).to(dtype) + self.dt_proj.bias)
        y_BLE, memory = selective_scan(
            u_BLE, dt_BLE, -self.A_log.to(dtype).exp(), b_BLN, c_BLN,
            state=given["memory"], valid=tokens.valid, fresh=tokens.fresh, chunk=self.config.chunk,
        )  # fmt: skip
        valid = tokens.valid
        if read is not None:
            y_BLE, u_BLE, z_BLE = y_BLE[:, read], u_BLE[:, read], z_BLE[:, read]
            valid = None if valid is None else valid[:, read]
        y_BLD = self.out_proj(torch.addcmul(y_BLE, self.D, u_BLE).to(z_BLE.dtype) * F.silu(z_BLE))
        if valid is not None:
            y_BLD = torch.where(valid[..., None], y_BLD, 0)
        return Mixed(y_BLD, None if state is None else {"inputs": inputs.to(dtype), "memory": memory})


def start_time_steps(bias: Tensor, least: float, most: float) -> None:
    """Fills a bias so that softplus(bias) is log-uniform in [least, most]."""
    dt = torch.empty_like(bias).uniform_(math.log(least), math.log(most)).exp()
    bias.copy_(dt + (-torch.expm1(-dt)).log())


def selective_scan(
    u: Tensor, dt: Tensor, A: Tensor, b: Tensor, c: Tensor, *, state: Tensor,
    valid: Tensor | None = None, fresh: Tensor | None = None, chunk: int = 16,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """h_t = exp(dt_t A) h_(t-1) + b_t (dt_t u_t)^T and y_t = h_t^T c_t.

    Args:
        u, dt: (B, L, E), dt >= 0; A: (N, E), < 0; b, c: (B, L, N); state: (B, N, E).
        valid, fresh: (B, L) bool.
        chunk: tokens whose states exist at once.

    Returns:
        y (B, L, E), of no meaning at padded tokens, and the state after the last token.
    """
    if valid is not None:  # no time passes at padding
        dt = torch.where(valid[..., None], dt, 0)
    v = dt * u
    if u.shape[1] == 1 or (1 < u.shape[1] <= 4 and not torch.is_grad_enabled()):
        return _few(v, dt, A, b, c, state, fresh)
    return _over_tokens(v, dt, A, b, c, state, fresh, chunk)


def _few(
    v: Tensor, dt: Tensor, A: Tensor, b: Tensor, c: Tensor, h: Tensor, fresh: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The tokens of one step while streaming; elementwise throughout, so that autocast leaves it alone."""
    decay, written = (dt[:, :, None] * A).exp(), b[..., None] * v[:, :, None]
    if fresh is not None:
        decay = decay.masked_fill(fresh[..., None, None], 0)
    states = []
    for decay_t, written_t in zip(decay.unbind(1), written.unbind(1), strict=True):
        h = torch.addcmul(written_t, decay_t, h)
        states.append(h)
    states_BLNE = h[:, None] if len(states) == 1 else torch.stack(states, 1)
    return (states_BLNE * c[..., None]).sum(2), h


@in_full_precision
def _over_tokens(
    v: Tensor, dt: Tensor, A: Tensor, b: Tensor, c: Tensor, state: Tensor, fresh: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """Time goes first, as (L, B, ...) matrices, so that a step is one block of memory."""
    v, dt, b, c = (x.transpose(0, 1)[:, :, None] for x in (v, dt, b, c))
    fresh = None if fresh is None else fresh.T[..., None, None]
    inputs = (v, dt, A, b.transpose(2, 3), c, state, fresh, chunk)
    y, h = _SelectiveScan.apply(*inputs) if torch.is_grad_enabled() else _scan(*inputs)[:2]
    return y.squeeze(2).transpose(0, 1), h


def _scan(
    v: Tensor, dt: Tensor, A: Tensor, b: Tensor, c: Tensor, h: Tensor, fresh: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Outputs, the last state, and the states before each chunk."""
    y, starts, buffers = v.new_empty(v.shape), [], _buffers(v, A, chunk)
    for at in range(0, len(v), chunk):
        part = slice(at, at + chunk)
        starts.append(h)
        _, states = _states(v[part], dt[part], A, b[part], h, None if fresh is None else fresh[part], *buffers)
        torch.matmul(c[part], states[1:], out=y[part])
        h = states[-1].clone()
    return y, h, starts


def _buffers(v: Tensor, A: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    size = min(chunk, len(v))
    return v.new_empty(size, v.shape[1], *A.shape), v.new_empty(size + 1, v.shape[1], *A.shape)


def _states(
    v: Tensor, dt: Tensor, A: Tensor, b: Tensor, h: Tensor, fresh: Tensor | None, decays: Tensor, states: Tensor
) -> tuple[Tensor, Tensor]:
    """The decays of a chunk's K tokens (K, B, N, E), and the states before the first and after each (K + 1, B, N, E)."""
    decays, states = decays[: len(v)], states[: len(v) + 1]
    torch.mul(dt, A, out=decays).exp_()
    if fresh is not None:
        decays.masked_fill_(fresh, 0)
    torch.mul(b, v, out=states[1:])
    states[0] = h
    steps = states.unbind()
    for decay, before, after in zip(decays.unbind(), steps, steps[1:], strict=False):
        after.addcmul_(decay, before)
    return decays, states


class _SelectiveScan(torch.autograd.Function):
    """The gradient g_t of h_t is c_t dy_t + a_(t+1) g_(t+1), a = exp(dt A); states are computed again chunk by chunk."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        *tensors, ctx.fresh, ctx.chunk = inputs
        y, h, starts = _scan(*inputs)
        ctx.save_for_backward(*tensors[:5], *starts)
        return y, h

    @staticmethod
    @torch.autograd.function.once_differentiable
    @in_full_precision
    def backward(ctx: Any, dy: Tensor, g: Tensor) -> tuple[Tensor | None, ...]:
        v, dt, A, b, c, *starts = ctx.saved_tensors
        dv, ddt, db, dc, dA = (x.new_empty(x.shape) for x in (v, dt, b, c, A))
        dA.zero_()
        buffers = _buffers(v, A, ctx.chunk)
        grads = torch.empty_like(buffers[0])
        for i in reversed(range(len(starts))):
            part = slice(i * ctx.chunk, (i + 1) * ctx.chunk)
            fresh = None if ctx.fresh is None else ctx.fresh[part]
            decays, states = _states(v[part], dt[part], A, b[part], starts[i], fresh, *buffers)
            gs = torch.mul(c[part].transpose(2, 3), dy[part], out=grads[: len(decays)])
            gs[-1] += g
            for t in range(len(gs) - 1, 0, -1):
                gs[t - 1].addcmul_(decays[t], gs[t])
            torch.matmul(dy[part], states[1:].transpose(2, 3), out=dc[part])
            torch.matmul(gs, v[part].transpose(2, 3), out=db[part])
            torch.matmul(b[part].transpose(2, 3), gs, out=dv[part])
            g = decays[0] * gs[0]
            of_exponent = decays.mul_(states[:-1]).mul_(gs)  # the gradient of dt A
            torch.sum(torch.mul(of_exponent, A, out=gs), 2, keepdim=True, out=ddt[part])
            dA += of_exponent.mul_(dt[part]).sum((0, 1))
        return dv, ddt, dA, db, dc, g, None, None


def reference(mixer: Mamba, x_LD: Tensor, tokens: Tokens) -> Tensor:
    """The same layer for one row, token by token in plain loops; slow, for tests."""
    A, outputs = -mixer.A_log.exp(), []
    for t, x in enumerate(x_LD):
        if t == 0 or (tokens.fresh is not None and tokens.fresh[t]):
            h, recent = torch.zeros_like(A), [torch.zeros_like(mixer.D)] * mixer.config.kernel
        if tokens.valid is not None and not tokens.valid[t]:
            outputs.append(torch.zeros_like(x))
            continue
        u, z = mixer.in_proj(x).chunk(2)
        recent = [*recent[1:], u]
        u = F.silu(mixer.conv.bias + sum(w * past for w, past in zip(mixer.conv.weight.T, recent, strict=True)))
        d, b, c = mixer.x_proj(u).split(mixer.sizes)
        dt = (1 + mixer.dt_proj(d).exp()).log()
        h = torch.stack([(dt * A[n]).exp() * h[n] + dt * b[n] * u for n in range(len(A))])
        y = sum(c[n] * h[n] for n in range(len(A))) + mixer.D * u
        outputs.append(mixer.out_proj(y * F.silu(z)))
    return torch.stack(outputs)


VARIANTS = (  # settings that take other paths, for the laws
    MambaConfig(state_size=3, expand=1, kernel=2, rank=5, chunk=4, bias=True),
    MambaConfig(state_size=1, kernel=1, chunk=1),
)
