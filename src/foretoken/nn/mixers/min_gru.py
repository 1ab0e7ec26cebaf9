"""minGRU: a GRU whose gate and candidate do not read the state, so that training is a scan.

    z_t = sigmoid(W_z x_t + b_z)        c_t = g(W_c x_t + b_c)        h_t = (1 - z_t) h_(t-1) + z_t c_t

Feng et al. 2024, "Were RNNs All We Needed?", arXiv 2410.01201. Their g is the identity, or, so that the scan can run on
logarithms, x + 0.5 for x >= 0 and sigmoid(x) below ("positive").
Differs from the paper: 1. the scan runs on h itself in float32, which needs no positive c. 2. An empty memory is h = 0 with any
g, where the paper's logarithmic form starts at g(0) = 0.5.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.core.state import State
from foretoken.nn.mixer import Facts, Mixed, Mixer, MixerConfig, Tokens
from foretoken.nn.scan import ScanEngine, linear_scan, passed, wide


@dataclass(frozen=True, kw_only=True)
class MinGRUConfig(MixerConfig):
    """
    Args:
        expansion: hidden width H over width; where they differ, a linear layer follows.
        candidate: g: "positive" or "identity" as in the paper, or "tanh" as in a GRU.
        bias: whether projections have biases.
        engine: how the scan runs; see `linear_scan`.
    """

    expansion: float = 1.0
    candidate: Literal["positive", "identity", "tanh"] = "positive"
    bias: bool = True
    engine: ScanEngine = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expansion <= 0:
            raise ConfigError(f"expansion must be positive, got {self.expansion}")


@configures(MinGRUConfig)
class MinGRU(Mixer):
    """One matrix for gate and candidate, a scan, and an output layer where the hidden width is another."""

    def __init__(self, config: MinGRUConfig, width: int) -> None:
        super().__init__()
        self.config, self.hidden = config, max(1, round(width * config.expansion))
        self.gate_candidate = nn.Linear(width, 2 * self.hidden, bias=config.bias)
        self.out = None if self.hidden == width else nn.Linear(self.hidden, width, bias=config.bias)
        self.facts = Facts(state_bytes=4 * self.hidden, parallel="scan")

    def initial_state(self, rows: int) -> State:
        weight = self.gate_candidate.weight
        return {"h": weight.new_zeros(rows, self.hidden, dtype=wide(weight.dtype))}

    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None, read: slice | None = None
    ) -> Mixed:
        valid, fresh = (None, None) if tokens is None else tokens[:2]
        start = None if state is None or not x_BLD.shape[1] else state["h"]
        both = self.gate_candidate(x_BLD)
        gate, candidate = both.to(wide(both.dtype)).chunk(2, dim=-1)
        z, c = gate.sigmoid(), _candidate(candidate, self.config.candidate)
        if x_BLD.shape[1] == 1 and start is not None and valid is None and fresh is None:
            h = torch.lerp(start[:, None], c, z)
        else:
            h = linear_scan(*passed(1 - z, z * c, valid, fresh), start, engine=self.config.engine)
        after = state if start is None else {"h": h[:, -1]}
        y = (h if read is None else h[:, read]).to(x_BLD.dtype)
        y = y if self.out is None else self.out(y)
        if valid is not None:
            y = y * (valid if read is None else valid[:, read])[..., None]
        return Mixed(y, after)


def _candidate(x: Tensor, kind: str) -> Tensor:
    match kind:
        case "positive":
            return x.relu() + x.clamp(max=0).sigmoid()
        case "tanh":
            return x.tanh()
        case _:
            return x


def reference(mixer: MinGRU, x_LD: Tensor, tokens: Tokens) -> Tensor:
    """The same layer for one row, token by token in plain loops; slow, for tests."""
    h, outputs = x_LD.new_zeros(mixer.hidden), []
    for t, x in enumerate(x_LD):
        if tokens.fresh is not None and tokens.fresh[t]:
            h = torch.zeros_like(h)
        if tokens.valid is not None and not tokens.valid[t]:
            outputs.append(torch.zeros_like(x))
            continue
        gate, c = mixer.gate_candidate(x).chunk(2)
        z = 1 / (1 + torch.exp(-gate))
        if mixer.config.candidate == "positive":
            c = torch.where(c >= 0, c + 0.5, 1 / (1 + torch.exp(-c)))
        elif mixer.config.candidate == "tanh":
            c = torch.tanh(c)
        h = (1 - z) * h + z * c
        outputs.append(h if mixer.out is None else mixer.out(h))
    return torch.stack(outputs)


VARIANTS = (  # settings that take other paths, for the laws
    MinGRUConfig(expansion=1.5, candidate="identity", engine="chunked"),
    MinGRUConfig(candidate="tanh", bias=False, engine="sequential"),
)
