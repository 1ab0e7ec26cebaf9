"""S4D: one diagonal linear state space per feature (Gu et al. 2022, arXiv 2206.11893), the mixer of Decision S4.

    h_t = exp(dt A) h_(t-1) + x_t    y_t = 2 Re(W h_t) + D x_t    W = C (exp(dt A) - 1) / A    out = GLU(Linear(gelu(y_t)))

A (N/2 complex numbers, the other half being their conjugates), C and the time step dt belong to a feature and do not depend
on the token, so a sequence is one long convolution with K_l = 2 Re(W exp(dt A)^l), and a stream carries N numbers a feature.
Decision S4 (Bar-David et al. 2023, arXiv 2306.05167) trains the first way on whole trajectories and acts the second way.
The engine "chunked" convolves inside chunks by real matrix products and hands complex states on between them; it is causal
to the bit. "fft" convolves the sequence at once, in L log L, but its rounding (measured: 1e-7 of the largest input in float32,
1e-16 in float64) reaches earlier outputs too, so it breaks the law of causality by that much; where memory begins inside a
call it steps back to chunks. Padding is closed up first.
Differs from the paper: B is 1, its product with C being all that matters; GELU by its tanh form; no dropout after it.
A, C and dt want a smaller learning rate and no weight decay.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.core.state import State
from foretoken.nn.mixer import Facts, Mixed, Mixer, MixerConfig, Tokens
from foretoken.nn.scan import in_full_precision, linear_scan, wide
from foretoken.nn.state_space import FEW, Closed, Remembered, close_up, hippo, power_less_one, powers


@dataclass(frozen=True, kw_only=True)
class S4DConfig(MixerConfig):
    """
    Args:
        state_size: N, real numbers of state per feature; even.
        init: imaginary parts of A at the start: "legs" the eigenvalues of HiPPO-LegS, "lin" pi n, "inv" N/pi (N/(2n+1) - 1);
            real parts are -1/2.
        dt_min, dt_max: the time steps start log-uniform between them.
        engine: "chunked" or "fft".
        chunk: tokens that are handled as one matrix product.
    """

    state_size: int = 64
    init: Literal["legs", "lin", "inv"] = "legs"
    dt_min: float = 0.001
    dt_max: float = 0.1
    engine: Literal["chunked", "fft"] = "chunked"
    chunk: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.state_size < 2 or self.state_size % 2:
            raise ConfigError(f"state_size must be even and at least 2, got {self.state_size}")
        if not 0 < self.dt_min <= self.dt_max:
            raise ConfigError(f"time steps need 0 < dt_min <= dt_max, got {self.dt_min} and {self.dt_max}")
        self.at_least(chunk=1)


@configures(S4DConfig)
class S4D(Mixer):
    """A diagonal state space per feature, then a gated linear layer. P = N/2 complex states, stored as pairs of reals."""

    def __init__(self, config: S4DConfig, width: int) -> None:
        super().__init__()
        self.config, size = config, config.state_size // 2
        self.log_dt = nn.Parameter(torch.empty(width))
        self.log_decay = nn.Parameter(torch.empty(width, size))  # of -Re A, so that no training makes it grow
        self.frequency = nn.Parameter(torch.empty(width, size))
        self.c = nn.Parameter(torch.empty(width, size, 2))
        self.skip = nn.Parameter(torch.empty(width))
        self.out = nn.Linear(width, 2 * width)
        self.step_form = Remembered()
        self.facts = Facts(state_bytes=4 * width * config.state_size, parallel="chunk")
        self.start()

    @torch.no_grad()
    def start(self) -> None:
        size = self.config.state_size
        n = torch.arange(size // 2)
        frequencies = {"legs": hippo(size)[0], "lin": math.pi * n, "inv": size / math.pi * (size / (2 * n + 1) - 1)}
        self.log_dt.uniform_(math.log(self.config.dt_min), math.log(self.config.dt_max))
        self.log_decay.fill_(math.log(0.5))
        self.frequency.copy_(frequencies[self.config.init])
        self.c.normal_(std=0.5**0.5)
        self.skip.normal_()

    def initial_state(self, rows: int) -> State:
        return {"h": self.c.new_zeros(rows, *self.c.shape, dtype=wide(self.c.dtype))}

    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None, read: slice | None = None
    ) -> Mixed:
        if x_BLD.shape[-1] != len(self.skip):  # a width of 1 would be broadcast
            raise ValueError(f"inputs must have width {len(self.skip)}, got {x_BLD.shape[-1]}")
        tokens = tokens or Tokens()
        start = None if state is None else state["h"]
        u_BLD = x_BLD.to(wide(x_BLD.dtype))
        y_BLD, h = (self._few if x_BLD.shape[1] <= FEW else self._many)(u_BLD, start, tokens)
        valid_BL = tokens.valid
        if read is not None:
            y_BLD, u_BLD, valid_BL = y_BLD[:, read], u_BLD[:, read], None if valid_BL is None else valid_BL[:, read]
        y_BLD = torch.addcmul(y_BLD, u_BLD, self.skip).to(x_BLD.dtype)
        y_BLD = F.glu(self.out(F.gelu(y_BLD, approximate="tanh")), dim=-1)
        return Mixed(y_BLD if valid_BL is None else y_BLD * valid_BL[..., None], None if state is None else {"h": h})

    def _rates(self) -> tuple[Tensor, Tensor]:
        """Real and imaginary part of dt A, (D, P)."""
        dtype = wide(self.c.dtype)
        dt = self.log_dt.to(dtype).exp()[:, None]
        return -self.log_decay.to(dtype).exp() * dt, self.frequency.to(dtype) * dt

    def _weight(self, rate: Tensor, angle: Tensor) -> Tensor:
        """What reads a state: 2 W, conjugated, so that 2 Re(W h) is a product of reals, (D, P, 2)."""
        dtype = wide(self.c.dtype)
        a = torch.complex(-self.log_decay.to(dtype).exp(), self.frequency.to(dtype))
        w = torch.view_as_complex(self.c.to(dtype)) * (power_less_one(rate, angle) / a)
        return 2 * torch.view_as_real(torch.conj_physical(w))

    def _few(self, u_BLD: Tensor, start: Tensor | None, tokens: Tokens) -> tuple[Tensor, Tensor]:
        a, weight = self.step_form(self._step_form, self.log_dt, self.log_decay, self.frequency, self.c)
        h = torch.view_as_complex(self.initial_state(len(u_BLD))["h"] if start is None else start)
        outputs = []
        for t in range(u_BLD.shape[1]):
            if tokens.fresh is not None:
                h = torch.where(tokens.fresh[:, t, None, None], 0, h)
            new = h * a + u_BLD[:, t, :, None]
            h = new if tokens.valid is None else torch.where(tokens.valid[:, t, None, None], new, h)
            outputs.append((torch.view_as_real(h) * weight).sum((-2, -1)))
        return torch.stack(outputs, 1) if outputs else u_BLD, torch.view_as_real(h)

    def _step_form(self) -> tuple[Tensor, Tensor]:
        rate, angle = self._rates()
        return torch.view_as_complex(powers(rate, angle)), self._weight(rate, angle)

    def _many(self, u_BLD: Tensor, start: Tensor | None, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
        closed = tokens.once("closed up", lambda: close_up(tokens))
        fft = self.config.engine == "fft" and closed.memory is None and len(u_BLD) > 0
        chunk = u_BLD.shape[1] if fft else self.config.chunk
        rate, angle = self._rates()
        weight = self._weight(rate, angle).flatten(-2)
        y_BLD, h = convolve(closed.close(u_BLD), rate, angle, weight, start, closed=closed, chunk=chunk, fft=fft)
        return closed.open(y_BLD), h


@in_full_precision
def convolve(
    u_BLD: Tensor, rate: Tensor, angle: Tensor, weight: Tensor, start: Tensor | None, *,
    closed: Closed, chunk: int, fft: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """y_t = weight . h_t and the last h, with h_t = exp(rate + i angle) h_(t-1) + u_t, over more than no closed-up tokens.

    Args:
        u_BLD: inputs; rate, angle: (D, P); weight: (D, 2P); start: (B, D, P, 2) or None, which returns no state.
        closed: of the tokens.
        chunk: C, tokens per chunk.
        fft: whether to convolve inside chunks by FFT; without memories that begin.
    """
    rows, length = u_BLD.shape[:2]
    size = min(chunk, length)
    count = -(-length // size)
    steps = torch.arange(size + 1, device=u_BLD.device)[:, None, None]
    power = powers(rate, angle, steps)  # (C + 1, D, P, 2)
    kernel_CD = (power[:-1].flatten(2) * weight).sum(-1)
    u = F.pad(u_BLD, (0, 0, 0, count * size - length)).unflatten(1, (count, size))
    memory = ends = None
    if closed.memory is not None:
        memory = F.pad(closed.memory, (0, count * size - length)).unflatten(1, (count, size))
        ends = F.pad(memory[..., -1], (1, 0))  # of the state before each chunk and after the last
    y = _inside(u, kernel_CD, memory, fft)
    if count == 1 and start is None:
        return y.flatten(1, 2)[:, :length], None

    into = power[:-1].flip(0).flatten(2)  # a token's share in the state at the end of its chunk
    heard = u if memory is None else torch.where((memory == memory[..., -1:])[..., None], u, 0)
    added = torch.view_as_complex(torch.einsum("bncd,cdk->bndk", heard, into).unflatten(-1, (-1, 2)))
    decay = torch.view_as_complex(power[-1])[None, None]
    if ends is not None:
        decay = decay * (ends[:, 1:] == ends[:, :-1])[..., None, None]
    first = torch.zeros_like(added[:, 0]) if start is None else torch.view_as_complex(start.contiguous())
    states = torch.cat((first[:, None], linear_scan(decay, added, first)), dim=1)  # (B, n + 1, D, P)
    out = torch.view_as_complex(power[1:]).conj() * torch.view_as_complex(weight.unflatten(-1, (-1, 2)))
    from_start = torch.einsum(
        "bndk,cdk->bncd", torch.view_as_real(states[:, :-1]).flatten(-2), torch.view_as_real(out).flatten(-2)
    )
    if memory is not None and ends is not None:
        from_start = torch.where((memory == ends[:, :-1, None])[..., None], from_start, 0)
    y = (y + from_start).flatten(1, 2)[:, :length]
    if start is None:
        return y, None

    # The state after the last token of each row, which lies anywhere in a chunk.
    valid = torch.full((rows,), length, device=u.device) if closed.place is None else closed.place[:, -1]
    full, rest = valid // size, valid % size
    row = torch.arange(rows, device=u.device)
    place = (valid - size)[:, None] + torch.arange(size, device=u.device)
    share = place >= (full * size)[:, None]
    held, place = states[row, full], place.clamp(min=0)
    if closed.memory is not None and closed.begun is not None and ends is not None:
        share = share & (closed.memory.gather(1, place) == closed.begun[:, None])
        held = held * (ends[row, full] == closed.begun)[:, None, None]
    tail = torch.where(share[..., None], u_BLD[row[:, None], place], 0)
    turned = torch.view_as_complex(powers(rate, angle, rest[:, None, None]))
    own = torch.einsum("bcd,cdk->bdk", tail, into).unflatten(-1, (-1, 2))
    return y, torch.view_as_real(turned * held) + own


def _inside(u: Tensor, kernel_CD: Tensor, memory: Tensor | None, fft: bool) -> Tensor:
    """The causal convolution of each chunk (B, n, C, D) with the kernel, within memories (B, n, C)."""
    size = u.shape[2]
    if fft:
        product = torch.fft.rfft(u, 2 * size, dim=2) * torch.fft.rfft(kernel_CD, 2 * size, dim=0)
        return torch.fft.irfft(product, 2 * size, dim=2)[:, :, :size]
    if memory is None:
        lags = F.pad(kernel_CD.T, (size - 1, 0)).unfold(-1, size, 1).flip(-1)  # (D, C, C): the kernel at i - j, else 0
        return torch.einsum("bnjd,dij->bnid", u, lags)
    y = u * kernel_CD[0]
    for lag in range(1, size):
        same = (memory[..., lag:] == memory[..., :-lag])[..., None]
        y = y + F.pad(torch.where(same, u[:, :, :-lag], 0) * kernel_CD[lag], (0, 0, lag, 0))
    return y


def reference(mixer: S4D, x_LD: Tensor, tokens: Tokens) -> Tensor:
    """The same layer for one row, token by token; slow, for tests."""
    a = torch.complex(-mixer.log_decay.exp(), mixer.frequency)
    a_bar = (mixer.log_dt.exp()[:, None] * a).exp()
    b_bar, c = (a_bar - 1) / a, torch.view_as_complex(mixer.c)
    h, outputs = torch.zeros_like(a), []
    for t, x in enumerate(x_LD):
        if tokens.fresh is not None and tokens.fresh[t]:
            h = torch.zeros_like(a)
        if tokens.valid is not None and not tokens.valid[t]:
            outputs.append(torch.zeros_like(x))
            continue
        h = a_bar * h + b_bar * x[:, None]
        value, gate = mixer.out(F.gelu(2 * (c * h).sum(-1).real + mixer.skip * x, approximate="tanh")).chunk(2)
        outputs.append(value * gate.sigmoid())
    return torch.stack(outputs)


VARIANTS = (
    S4DConfig(state_size=4, init="lin", chunk=5),
    S4DConfig(state_size=6, init="inv", chunk=2, dt_min=0.05, dt_max=0.5),
)
