"""GRU: the gated recurrent unit, in the form and with the weights of `torch.nn.GRU`.

    r_t = sigmoid(W_r x_t + U_r h_(t-1) + b_r)        z_t = sigmoid(W_z x_t + U_z h_(t-1) + b_z)
    n_t = tanh(W_n x_t + b_n + r_t (U_n h_(t-1) + c_n))
    h_t = (1 - z_t) n_t + z_t h_(t-1)

Cho et al. 2014 (arXiv 1406.1078); the reset gate acts after the recurrent product, as in torch and cuDNN. The gates read the
state, so training goes token by token; what does not, the inputs' and the weights' products, is done once for all tokens.
Not in torch: hidden states wider or narrower than the tokens are brought back by a linear layer.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from foretoken.core.config import configures
from foretoken.core.errors import ConfigError
from foretoken.core.state import State
from foretoken.nn.mixer import Facts, Mixed, Mixer, MixerConfig, Tokens
from foretoken.nn.scan import in_full_precision, wide


@dataclass(frozen=True, kw_only=True)
class GRUConfig(MixerConfig):
    """
    Args:
        expansion: hidden width H over width; where they differ, a linear layer follows.
    """

    expansion: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expansion <= 0:
            raise ConfigError(f"expansion must be positive, got {self.expansion}")


@configures(GRUConfig)
class GRU(Mixer):
    """`cell` holds the weights of `torch.nn.GRU`, there called `weight_ih_l0`, and so on."""

    def __init__(self, config: GRUConfig, width: int) -> None:
        super().__init__()
        self.hidden = max(1, round(width * config.expansion))
        self.cell = nn.GRUCell(width, self.hidden)
        self.out = None if self.hidden == width else nn.Linear(self.hidden, width)
        self.facts = Facts(state_bytes=4 * self.hidden, parallel="sequential")

    def start(self) -> None:
        """Uniform in +-1/sqrt(H), as torch."""
        self.cell.reset_parameters()

    def initial_state(self, rows: int) -> State:
        weight = self.cell.weight_hh
        return {"h": weight.new_zeros(rows, self.hidden, dtype=wide(weight.dtype))}

    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None, read: slice | None = None
    ) -> Mixed:
        valid, fresh = (None, None) if tokens is None else tokens[:2]
        start = (self.initial_state(len(x_BLD)) if state is None else state)["h"]
        cell = self.cell
        h = _run(x_BLD, start, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh, valid, fresh)
        after = None if state is None else {"h": h[:, -1] if h.shape[1] else start}
        y = (h if read is None else h[:, read]).to(x_BLD.dtype)
        y = y if self.out is None else self.out(y)
        if valid is not None:
            y = y * (valid if read is None else valid[:, read])[..., None]
        return Mixed(y, after)


@in_full_precision
def _run(
    x: Tensor, h: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor,
    valid: Tensor | None, fresh: Tensor | None,
) -> Tensor:  # fmt: skip
    """The states after all tokens, (B, L, H)."""
    if x.shape[1] == 1:
        h = h if fresh is None else torch.where(fresh, 0, h)
        new = torch.gru_cell(x[:, 0], h, w_ih, w_hh, b_ih, b_hh)
        return (new if valid is None else torch.where(valid, new, h))[:, None]
    fused = x.is_cuda or not torch.is_grad_enabled()
    if fused and valid is None and fresh is None and x.numel():
        return torch.gru(x, h[None], (w_ih, w_hh, b_ih, b_hh), True, 1, 0.0, False, False, True)[0]
    return _Run.apply(F.linear(x, w_ih, b_ih), h, w_hh, b_hh, valid, fresh)


class _Run(torch.autograd.Function):
    """The recurrence from the inputs' share of the gates; on a CPU its gradient is faster than that of torch's own loop."""

    @staticmethod
    def forward(
        ctx: Any, given_BLG: Tensor, start: Tensor, weight: Tensor, bias: Tensor,
        valid: Tensor | None, fresh: Tensor | None,
    ) -> Tensor:  # fmt: skip
        H = start.shape[-1]
        given = given_BLG.transpose(0, 1).clone(memory_format=torch.contiguous_format)
        if valid is not None:  # z = 1 leaves the state as it is, and takes no gradient
            given[..., H : 2 * H].masked_fill_(~valid.t()[..., None], torch.inf)
        lives = None if fresh is None else (~fresh).t()[..., None].to(given.dtype)
        heard, gates = torch.empty_like(given), torch.empty_like(given)  # heard from the state: U h + b
        after = given.new_empty(len(given) + 1, *start.shape)
        after[0] = h = start
        back, rz, new = weight.t().contiguous(), slice(2 * H), slice(2 * H, None)
        parts = (
            given[..., rz], given[..., new], heard, heard[..., rz], heard[..., new],
            gates[..., rz], gates[..., :H], gates[..., H : 2 * H], gates[..., new], after[1:],
        )  # fmt: skip
        steps = zip(*(part.unbind(0) for part in parts), strict=True)
        for t, (x_rz, x_n, u, u_rz, u_n, both, r, z, n, h_t) in enumerate(steps):
            h = h if lives is None else h * lives[t]
            torch.addmm(bias, h, back, out=u)
            torch.add(x_rz, u_rz, out=both).sigmoid_()
            torch.addcmul(x_n, r, u_n, out=n).tanh_()
            h = torch.lerp(n, h, z, out=h_t)
        ctx.save_for_backward(heard[..., new], gates, after, weight, lives)
        return after[1:].transpose(0, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        heard, gates, after, weight, lives = ctx.saved_tensors
        r, z, n = gates.chunk(3, dim=-1)
        before = after[:-1] if lives is None else after[:-1] * lives
        of_n = (1 - z) * (1 - n * n)
        # What r, z, U_n h + c_n and W_n x + b_n take of a gradient g of h_t; z g goes straight to h_(t-1).
        takes = torch.stack((of_n * heard * r * (1 - r), (before - n) * z * (1 - z), of_n * r, of_n), dim=2)
        taken = torch.empty_like(takes)
        by_state = taken.flatten(2)[..., : weight.shape[0]]
        parts = (gradients[0].transpose(0, 1), takes, taken, by_state, z)
        g = torch.zeros_like(after[0])
        steps = zip(*(part.unbind(0) for part in parts), strict=True)
        for t, (dy, takes_t, taken_t, by_state_t, z_t) in reversed(list(enumerate(steps))):
            g = g + dy
            torch.mul(g[:, None], takes_t, out=taken_t)
            g = (g * z_t).addmm_(by_state_t, weight)
            g = g if lives is None else g.mul_(lives[t])
        of_given = taken[:, :, [0, 1, 3]].flatten(2).transpose(0, 1)
        flat = by_state.flatten(0, 1)
        return of_given, g, flat.t() @ before.flatten(0, 1), flat.sum(0), None, None


def reference(mixer: GRU, x_LD: Tensor, tokens: Tokens) -> Tensor:
    """The same layer for one row, token by token in plain loops; slow, for tests."""
    cell, h, outputs = mixer.cell, x_LD.new_zeros(mixer.hidden), []
    for t, x in enumerate(x_LD):
        if tokens.fresh is not None and tokens.fresh[t]:
            h = torch.zeros_like(h)
        if tokens.valid is not None and not tokens.valid[t]:
            outputs.append(torch.zeros_like(x))
            continue
        xr, xz, xn = (cell.weight_ih @ x + cell.bias_ih).chunk(3)
        hr, hz, hn = (cell.weight_hh @ h + cell.bias_hh).chunk(3)
        r, z = torch.sigmoid(xr + hr), torch.sigmoid(xz + hz)
        h = (1 - z) * torch.tanh(xn + r * hn) + z * h
        outputs.append(h if mixer.out is None else mixer.out(h))
    return torch.stack(outputs)


VARIANTS = (GRUConfig(expansion=1.5),)  # settings that take other paths, for the laws
