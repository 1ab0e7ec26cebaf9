"""S5: one diagonal linear state space over all features, whose state can be reset inside a scan.

    h_t = exp(dt A) h_(t-1) + (exp(dt A) - 1) / A B x_t    y_t = 2 Re(C h_t) + D x_t    out = gate(gelu(y_t))

A holds N/2 complex numbers, the other half of the N being their conjugates; it starts at the eigenvalues of HiPPO-LegS, with
B and C turned into its eigenvectors (Smith et al. 2023, arXiv 2208.04933). Where memory begins the transition is zero and the
input stays, which is all a scan needs to reset (Lu et al. 2023, arXiv 2303.03982, in-context reinforcement learning).
Differs from the paper: Re A is minus an exponential, so that no training makes it grow, where the published code offers to
clip it; B and C start normal. A, B and dt want a smaller learning rate and no weight decay.
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
from foretoken.nn.scan import ScanEngine, linear_scan, passed, wide
from foretoken.nn.state_space import FEW, Remembered, hippo, power_less_one, powers


@dataclass(frozen=True, kw_only=True)
class S5Config(MixerConfig):
    """
    Args:
        state_size: N, real numbers of state; even. 0 takes the width, as published for reinforcement learning.
        num_blocks: HiPPO matrices that A starts from, each of N / num_blocks states, an even number.
        dt_min, dt_max: the time steps, one per complex state, start log-uniform between them.
        gate: "full" W gelu(y) * sigmoid(V gelu(y)), as in the reinforcement-learning code; "half" gelu(y) * sigmoid(V gelu(y)),
            as in the S5 paper; "none" gelu(y).
        engine: of the scan.
    """

    state_size: int = 0
    num_blocks: int = 1
    dt_min: float = 0.001
    dt_max: float = 0.1
    gate: Literal["full", "half", "none"] = "full"
    engine: ScanEngine = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.state_size < 0 or self.num_blocks < 1:
            raise ConfigError(
                f"state_size must be at least 0 and num_blocks at least 1, got {self.state_size} and {self.num_blocks}"
            )
        if not 0 < self.dt_min <= self.dt_max:
            raise ConfigError(f"time steps need 0 < dt_min <= dt_max, got {self.dt_min} and {self.dt_max}")


@configures(S5Config)
class S5(Mixer):
    """A state space of P = N/2 complex states, stored as pairs of reals, then a gate."""

    def __init__(self, config: S5Config, width: int) -> None:
        super().__init__()
        states = config.state_size or width
        if states % (2 * config.num_blocks):
            raise ConfigError(
                f"state_size must be a multiple of 2 * num_blocks, got state_size={states} and num_blocks={config.num_blocks}"
            )
        self.config, size = config, states // 2
        self.log_dt = nn.Parameter(torch.empty(size))
        self.log_decay = nn.Parameter(torch.empty(size))  # of -Re A
        self.frequency = nn.Parameter(torch.empty(size))
        self.b = nn.Parameter(torch.empty(size, 2, width))
        self.c = nn.Parameter(torch.empty(width, size, 2))  # 2 Re C and -2 Im C: 2 Re(C h) is a product of reals
        self.skip = nn.Parameter(torch.empty(width))
        gates = {"full": 2 * width, "half": width, "none": 0}[config.gate]
        self.out = nn.Linear(width, gates) if gates else None
        self.discretised = Remembered()
        self.facts = Facts(state_bytes=4 * states, parallel="scan")
        self.start()

    @torch.no_grad()
    def start(self) -> None:
        blocks, width = self.config.num_blocks, len(self.skip)
        frequencies, vectors = hippo(2 * len(self.log_dt) // blocks)
        v = torch.block_diag(*[vectors] * blocks)  # (N, P)
        b = torch.randn(len(v), width, dtype=torch.float64) / width**0.5
        c = torch.randn(width, len(v), dtype=torch.complex128) * (2 / len(v)) ** 0.5
        self.log_dt.uniform_(math.log(self.config.dt_min), math.log(self.config.dt_max))
        self.log_decay.fill_(math.log(0.5))
        self.frequency.copy_(frequencies.repeat(blocks))
        self.b.copy_(torch.view_as_real(v.mH @ b.to(v.dtype)).transpose(1, 2))
        self.c.copy_(2 * torch.view_as_real((c @ v).conj().resolve_conj()))
        self.skip.normal_()

    def initial_state(self, rows: int) -> State:
        return {"h": self.c.new_zeros(rows, len(self.log_dt), 2, dtype=wide(self.c.dtype))}

    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None, read: slice | None = None
    ) -> Mixed:
        tokens = tokens or Tokens()
        a, held = self.discretised(self._discretise, self.log_dt, self.log_decay, self.frequency)
        added = F.linear(x_BLD, self.b.flatten(0, 1)).to(wide(x_BLD.dtype))
        added = torch.view_as_complex(added.view(*added.shape[:2], len(held), 2)) * held
        h = None if state is None else torch.view_as_complex(state["h"])
        h_BLP = (self._few if x_BLD.shape[1] <= FEW else self._many)(a, added, h, tokens)
        if state is not None and h_BLP.shape[1]:
            state = {"h": torch.view_as_real(h_BLP[:, -1])}
        valid_BL = tokens.valid
        if read is not None:
            h_BLP, x_BLD = h_BLP[:, read], x_BLD[:, read]
            valid_BL = None if valid_BL is None else valid_BL[:, read]
        y_BLD = F.linear(torch.view_as_real(h_BLP).flatten(-2).to(x_BLD.dtype), self.c.flatten(1))
        y_BLD = F.gelu(torch.addcmul(y_BLD, x_BLD, self.skip), approximate="tanh")
        if self.out is not None:
            gated = self.out(y_BLD)
            y_BLD = F.glu(gated, dim=-1) if self.config.gate == "full" else y_BLD * gated.sigmoid()
        return Mixed(y_BLD if valid_BL is None else y_BLD * valid_BL[..., None], state)

    def _discretise(self) -> tuple[Tensor, Tensor]:
        """exp(dt A) and (exp(dt A) - 1) / A, (P,)."""
        dtype = wide(self.log_dt.dtype)
        dt, decay, frequency = self.log_dt.to(dtype).exp(), self.log_decay.to(dtype).exp(), self.frequency.to(dtype)
        rate, angle = -decay * dt, frequency * dt
        return torch.view_as_complex(powers(rate, angle)), power_less_one(rate, angle) / torch.complex(
            -decay, frequency
        )

    def _few(self, a: Tensor, added: Tensor, h: Tensor | None, tokens: Tokens) -> Tensor:
        h = torch.zeros_like(a) if h is None else h
        states = []
        for t in range(added.shape[1]):
            if tokens.fresh is not None:
                h = torch.where(tokens.fresh[:, t, None], 0, h)
            new = h * a + added[:, t]
            h = new if tokens.valid is None else torch.where(tokens.valid[:, t, None], new, h)
            states.append(h)
        return h[:, None] if len(states) == 1 else torch.stack(states, 1) if states else added

    def _many(self, a: Tensor, added: Tensor, h: Tensor | None, tokens: Tokens) -> Tensor:
        return linear_scan(*passed(a[None, None], added, tokens.valid, tokens.fresh), h, engine=self.config.engine)


def reference(mixer: S5, x_LD: Tensor, tokens: Tokens) -> Tensor:
    """The same layer for one row, token by token; slow, for tests."""
    a = torch.complex(-mixer.log_decay.exp(), mixer.frequency)
    a_bar = (mixer.log_dt.exp() * a).exp()
    b, c = torch.complex(mixer.b[:, 0], mixer.b[:, 1]), torch.view_as_complex(mixer.c).conj() / 2
    h, outputs = torch.zeros_like(a), []
    for t, x in enumerate(x_LD):
        if tokens.fresh is not None and tokens.fresh[t]:
            h = torch.zeros_like(a)
        if tokens.valid is not None and not tokens.valid[t]:
            outputs.append(torch.zeros_like(x))
            continue
        h = a_bar * h + (a_bar - 1) / a * (b @ x.to(b.dtype))
        y = F.gelu(2 * (c @ h).real + mixer.skip * x, approximate="tanh")
        if mixer.config.gate == "full" and mixer.out is not None:
            value, gate = mixer.out(y).chunk(2)
            y = value * gate.sigmoid()
        elif mixer.out is not None:
            y = y * mixer.out(y).sigmoid()
        outputs.append(y)
    return torch.stack(outputs)


VARIANTS = (
    S5Config(state_size=8, num_blocks=2, gate="half", engine="associative"),
    S5Config(state_size=4, gate="none", engine="chunked", dt_min=0.05, dt_max=0.5),
)
