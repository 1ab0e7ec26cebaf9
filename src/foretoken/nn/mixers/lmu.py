"""Legendre memory unit: a fixed linear memory of the last theta steps of a signal (Voelker et al. 2019), as in LMUFormer.

    u_t = relu(w_u x_t)    m_t = A m_(t-1) + B u_t    h_t = relu(W_m m_t + W_x x_t)    out = W_o h_t

m holds the coefficients of the signal's last theta steps on N Legendre polynomials: u_(t-s) is about sum_n P_n(2 s/theta - 1) m_n.
A and B are the zero-order hold of  A_ij = (2i+1)/theta (-1 if i < j else (-1)^(i-j+1)),  B_i = (2i+1)/theta (-1)^i;  they are
not learned. What is older than theta is forgotten by construction: choose theta from the task. LMUFormer: Liu et al. 2024
(ICLR); its one written signal is a bottleneck, which `channels` widens.
Sequences go C tokens at a time: what the inputs of a chunk and the memory before it have become at each of its tokens, by
matrix products with powers of A. A is far from normal (condition of its eigenvectors 1e8 at N = 16, 3e15 at N = 32), so
there is no scan in its eigenbasis; nor is there an FFT, whose rounding reaches back in time.
Differs from the paper: no batch normalisation, which would mix rows, padding and time; several written signals are possible.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core.config import configures
from foretoken.core.state import State
from foretoken.nn.mixer import Facts, Mixed, Mixer, MixerConfig, Tokens
from foretoken.nn.scan import in_full_precision, wide
from foretoken.nn.state_space import FEW, Closed, close_up


@dataclass(frozen=True, kw_only=True)
class LMUConfig(MixerConfig):
    """
    Args:
        order: N, Legendre polynomials per channel; 0 takes the width, as published.
        theta: steps of the signal that are remembered.
        channels: M, signals written and remembered.
        rectify: whether the written signals pass a ReLU, as in LMUFormer; without it they are linear, as in the first LMU.
        chunk: C, tokens that are handled as one matrix product.
    """

    order: int = 0
    theta: float = 128.0
    channels: int = 1
    rectify: bool = True
    chunk: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(order=0, theta=1, channels=1, chunk=1)


@configures(LMUConfig)
class LMU(Mixer):
    """A Legendre memory of `channels` signals, read with the token by one rectified layer."""

    def __init__(self, config: LMUConfig, width: int) -> None:
        super().__init__()
        self.config, self.order = config, config.order or width
        self.enter = nn.Linear(width, config.channels + width)  # the written signals and W_x x
        self.read = nn.Linear(config.channels * self.order, width, bias=False)
        self.out = nn.Linear(width, width)
        self.facts = Facts(state_bytes=4 * config.channels * self.order, parallel="chunk")

    def initial_state(self, rows: int) -> State:
        weight = self.read.weight
        return {"m": weight.new_zeros(rows, self.config.channels, self.order, dtype=wide(weight.dtype))}

    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None, read: slice | None = None
    ) -> Mixed:
        tokens = tokens or Tokens()
        u_BLM, seen_BLD = self.enter(x_BLD).split((self.config.channels, x_BLD.shape[-1]), dim=-1)
        if self.config.rectify:
            u_BLM = u_BLM.relu()
        table = tables(self.order, self.config.theta, self.config.chunk, wide(x_BLD.dtype), x_BLD.device)
        start = None if state is None else state["m"]
        if x_BLD.shape[1] <= FEW:
            m_BLX, m = _few(u_BLM, table[0], table[3][:, 0], start, tokens)  # X: all channels' polynomials
        else:
            closed = tokens.once("closed up", lambda: close_up(tokens))
            m_BLX, m = _many(closed.close(u_BLM), *table[1:], start=start, closed=closed)
            m_BLX = closed.open(m_BLX)
        valid_BL = tokens.valid
        if read is not None:
            m_BLX, seen_BLD = m_BLX[:, read], seen_BLD[:, read]
            valid_BL = None if valid_BL is None else valid_BL[:, read]
        y_BLD = self.out(F.relu(seen_BLD + self.read(m_BLX.to(x_BLD.dtype))))
        return Mixed(y_BLD if valid_BL is None else y_BLD * valid_BL[..., None], None if state is None else {"m": m})


def legendre(order: int, theta: float) -> tuple[Tensor, Tensor]:
    """A (N, N) and B (N,) of one step, float64: exact for a signal that is constant within steps."""
    i = torch.arange(order, dtype=torch.float64)
    sign = torch.where(i[:, None] < i, -1.0, (-1.0) ** (i[:, None] - i + 1))
    both = torch.zeros(order + 1, order + 1, dtype=torch.float64)
    both[:order, :order] = sign * (2 * i + 1)[:, None] / theta
    both[:order, order] = (-1.0) ** i * (2 * i + 1) / theta
    both = torch.linalg.matrix_exp(both)
    return both[:order, :order], both[:order, order]


@cache
def tables(
    order: int, theta: float, chunk: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a chunk needs, from float64 rounded once. Memories are rows, so matrices are transposed.

    Returns:
        B (N,) and then, for steps 0 to C - 1: inputs as they are l steps later, A^l B, (C, N); inputs j as they are at
        token i of their chunk, (C, C, N), 0 for j > i; memories before a chunk as they are at token i, (A^T)^(i+1), (N, C, N).
    """
    with torch.inference_mode(False):
        a, b = legendre(order, theta)
        powers = [a]
        for _ in range(chunk - 1):
            powers.append(powers[-1] @ a)
        impulse = torch.stack([b, *(power @ b for power in powers[:-1])])
        inside = torch.stack([F.pad(impulse[: chunk - j], (0, 0, j, 0)) for j in range(chunk)])
        carried = torch.stack(powers).permute(2, 0, 1).contiguous()
        b, impulse, inside, carried = (part.to(device, dtype) for part in (b, impulse, inside, carried))
        return b, impulse, inside, carried


@in_full_precision
def _few(u_BLM: Tensor, b: Tensor, a: Tensor, start: Tensor | None, tokens: Tokens) -> tuple[Tensor, Tensor | None]:
    m = u_BLM.new_zeros(len(u_BLM), u_BLM.shape[2], len(b)) if start is None else start
    memories = []
    for t in range(u_BLM.shape[1]):
        if tokens.fresh is not None:
            m = torch.where(tokens.fresh[:, t, None, None], 0, m)
        new = torch.addmm(u_BLM[:, t].reshape(-1, 1) * b, m.flatten(0, 1), a).view_as(m)
        m = new if tokens.valid is None else torch.where(tokens.valid[:, t, None, None], new, m)
        memories.append(m.flatten(1))
    return torch.stack(memories, 1) if memories else u_BLM.new_zeros(*u_BLM.shape[:2], m.flatten(1).shape[1]), m


@in_full_precision
def _many(
    u_BLM: Tensor, impulse: Tensor, inside: Tensor, carried: Tensor, *, start: Tensor | None, closed: Closed
) -> tuple[Tensor, Tensor | None]:
    """The memory at each closed-up token, (B, L, M N), and after the last one if it started from one, (B, M, N)."""
    rows, length, channels = u_BLM.shape
    size, order = min(len(impulse), length), impulse.shape[1]
    count, into = -(-length // size), impulse[:size].flip(0)
    u = F.pad(u_BLM, (0, 0, 0, count * size - length)).unflatten(1, (count, size)).transpose(2, 3)  # (B, n, M, C)
    memory = ends = None
    if closed.memory is None:
        m_BnMCN = (u.reshape(-1, size) @ inside[:size, :size].flatten(1)).view(*u.shape, order)
        added = u @ into
    else:
        memory = F.pad(closed.memory, (0, count * size - length)).unflatten(1, (count, size))
        ends = F.pad(memory[..., -1], (1, 0))  # of the memory before each chunk and after the last
        same = F.pad(memory, (size - 1, 0), value=-1).unfold(2, size, 1) == memory[..., None]
        m_BnMCN = torch.where(same[:, :, None], F.pad(u, (size - 1, 0)).unfold(3, size, 1), 0) @ into
        added = m_BnMCN[..., -1, :]
    if count > 1 or start is not None:
        m, starts = u.new_zeros(rows, channels, order) if start is None else start, []
        for i in range(count):
            starts.append(m)
            m = m if ends is None else torch.where((ends[:, i + 1] == ends[:, i])[:, None, None], m, 0)
            m = m @ carried[:, size - 1] + added[:, i]
        before = torch.stack(starts, 1).view(-1, order) @ carried[:, :size].flatten(1)
        before = before.view_as(m_BnMCN)
        if memory is not None and ends is not None:
            before = torch.where((memory == ends[:, :-1, None])[:, :, None, :, None], before, 0)
        m_BnMCN = m_BnMCN + before
    m_BLX = m_BnMCN.transpose(2, 3).flatten(3).flatten(1, 2)[:, :length]
    if start is None:
        return m_BLX, None
    if closed.place is None and closed.memory is None:
        return m_BLX, m_BLX[:, -1].view_as(start)
    last = torch.full((rows,), length, device=start.device) if closed.place is None else closed.place[:, -1]
    row, at = torch.arange(rows, device=start.device), (last - 1).clamp(min=0)
    m = torch.where((last > 0)[:, None, None], m_BLX[row, at].view_as(start), start)
    if closed.memory is not None and closed.begun is not None:
        present = torch.where(last > 0, closed.memory[row, at], 0) == closed.begun
        m = torch.where(present[:, None, None], m, 0)
    return m_BLX, m


def reference(mixer: LMU, x_LD: Tensor, tokens: Tokens) -> Tensor:
    """The same layer for one row, token by token; slow, for tests."""
    a, b = (part.to(x_LD.dtype) for part in legendre(mixer.order, mixer.config.theta))
    m, outputs = x_LD.new_zeros(mixer.config.channels, mixer.order), []
    for t, x in enumerate(x_LD):
        if tokens.fresh is not None and tokens.fresh[t]:
            m = torch.zeros_like(m)
        if tokens.valid is not None and not tokens.valid[t]:
            outputs.append(torch.zeros_like(x))
            continue
        written, seen = mixer.enter(x).tensor_split((mixer.config.channels,))
        u = written.relu() if mixer.config.rectify else written
        m = torch.stack([a @ row + b * u_c for row, u_c in zip(m, u, strict=True)])
        outputs.append(mixer.out((seen + mixer.read(m.flatten())).relu()))
    return torch.stack(outputs)


VARIANTS = (LMUConfig(order=5, theta=9.0, channels=3, chunk=5), LMUConfig(order=4, theta=20.0, rectify=False, chunk=1))
