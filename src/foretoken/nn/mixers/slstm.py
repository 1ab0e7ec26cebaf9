"""The sLSTM layer of xLSTM: an LSTM with exponential input gates and a normaliser; heads mix by their recurrent weights.

    c_t = f_t c_(t-1) + i_t tanh(z_t)     n_t = f_t n_(t-1) + i_t     h_t = sigmoid(o_t) c_t / n_t     y = norm(h) by heads

(i, f, z, o)_t = W u_t + R h_(t-1) + b with i = exp and f = sigmoid of theirs; W and R are block-diagonal, one block per head; u is
the input, for i and f after a short convolution. c and n are kept divided by e^m, m the largest exponent so far, which cancels
in h. As h feeds the gates, tokens go one by one: everything but R h is computed for all of them beforehand, and the gradient is
written out below, since a loop that records itself is several times slower.

Paper: Beck et al. 2024, arXiv 2405.04517 (xLSTM); it wants a feed-forward after it, of expansion 4/3.
Differs from the paper: the forget gates' biases do not depend on the layer's depth (they are the first layer's). Differs from
the published code: each row, not the batch, knows whether it has seen anything yet.
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
from foretoken.nn.scan import NEVER, in_full_precision, wide
from foretoken.nn.taps import ShortConv


@dataclass(frozen=True, kw_only=True)
class SLSTMConfig(MixerConfig):
    """
    Args:
        num_heads: must divide the width; units of different heads do not hear each other's past.
        conv: taps of the short convolution before the input and forget gates; 0 = none.
        norm_eps: added to the variance of each head's output.
    """

    num_heads: int = 4
    conv: int = 4
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_heads < 1 or self.conv < 0 or self.norm_eps <= 0:
            raise ConfigError(
                f"an sLSTM needs num_heads >= 1, conv >= 0 and norm_eps > 0, got {self.num_heads}, {self.conv} and {self.norm_eps}"
            )


@configures(SLSTMConfig)
class SLSTM(Mixer):
    """See the module; weights map from the left, (H, in, out), the gates in the order i, f, z, o."""

    def __init__(self, config: SLSTMConfig, width: int) -> None:
        super().__init__()
        heads = config.num_heads
        if width % heads:
            raise ConfigError(f"num_heads must divide width, got width={width} and num_heads={heads}")
        self.config, self.shape = config, (heads, width // heads)
        self.conv = ShortConv(width, config.conv) if config.conv else None
        self.gates = nn.Parameter(torch.empty(2, heads, width // heads, 2 * width // heads))  # of i and f, of z and o
        self.recurrent = nn.Parameter(torch.empty(heads, width // heads, 4 * width // heads))
        self.bias = nn.Parameter(torch.empty(heads, 4 * width // heads))
        self.scale = nn.Parameter(torch.ones(width))
        self.facts = Facts(state_bytes=4 * width * (4 + max(0, config.conv - 1)), parallel="sequential")
        self.start()

    def start(self) -> None:
        """No recurrence yet, small input weights, and forget gates spread by a power law from 5 down to -7."""
        heads, units = self.shape
        nn.init.normal_(self.gates, std=(0.4 / (heads * units)) ** 0.5)
        nn.init.zeros_(self.recurrent)
        nn.init.zeros_(self.bias)
        nn.init.ones_(self.scale)
        with torch.no_grad():
            self.bias[:, units : 2 * units] = 5 - 12 * torch.linspace(0, 1, units) ** 0.3
        if self.conv is not None:
            self.conv.reset_parameters()

    def initial_state(self, rows: int) -> State:
        dtype = wide(self.bias.dtype)
        cell = self.bias.new_zeros(rows, 4, *self.shape, dtype=dtype)  # h, c e^-m, n e^-m, m
        cell[:, 3] = NEVER
        return {"cell": cell} | ({} if self.conv is None else {"conv": self.conv.initial_state(rows).to(dtype)})

    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None, read: slice | None = None
    ) -> Mixed:
        tokens, at = tokens or Tokens(), slice(None) if read is None else read
        rows, length, _ = x_BLD.shape
        if not length:
            return Mixed(x_BLD, state)
        u_BLD, conv = x_BLD, None
        if self.conv is not None:
            u_BLD, conv = self.conv(x_BLD, None if state is None else state["conv"], tokens)
            u_BLD = F.silu(u_BLD)
        cell = self.initial_state(rows)["cell"] if state is None else state["cell"]
        h_HLBE, cell = _unrolled(
            self._by_head(u_BLD), self._by_head(x_BLD), self.gates, self.recurrent, self.bias, cell,
            *(None if mask is None else mask.T[..., None] for mask in (tokens.valid, tokens.fresh)),
        )  # fmt: skip
        h = h_HLBE[:, at].permute(2, 1, 0, 3)
        y = F.layer_norm(h, h.shape[-1:], eps=self.config.norm_eps).flatten(2).to(u_BLD.dtype) * self.scale
        if tokens.valid is not None:
            y = y * tokens.valid[:, at, None]
        if state is not None:
            state = {"cell": cell} | ({} if conv is None else {"conv": conv.to(cell.dtype)})
        return Mixed(y, state)

    def _by_head(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) -> (H, L, B, E)."""
        return x_BLD.unflatten(-1, self.shape).permute(2, 1, 0, 3)


@in_full_precision
def _unrolled(
    u_HLBE: Tensor, x_HLBE: Tensor, weight: Tensor, recurrent: Tensor, bias: Tensor, cell_B4HE: Tensor,
    valid: Tensor | None, fresh: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """All h (H, L, B, E) and the last cell; masks are (L, B, 1)."""
    given = [
        torch.baddbmm(b[:, None], part.flatten(1, 2), w)
        for part, w, b in zip((u_HLBE, x_HLBE), weight, bias.chunk(2, dim=-1), strict=True)
    ]
    raw = torch.cat(given, dim=-1).unflatten(1, x_HLBE.shape[1:3])
    h, cell = _Recurrence.apply(raw, recurrent, cell_B4HE.movedim(0, 2), valid, fresh)
    return h, cell.movedim(2, 0)


def _nothing(cell: Tensor) -> Tensor:
    return cell.new_tensor([0, 0, 0, NEVER]).view(4, 1, 1, 1)


class _Recurrence(torch.autograd.Function):
    """The loop over tokens and its gradient. Since m cancels it is a constant to the gradient, within a call and between calls."""

    @staticmethod
    def forward(
        ctx: Any, given: Tensor, recurrent: Tensor, start: Tensor, valid: Tensor | None, fresh: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """`given` (H, L, B, 4E), what the gates get besides R h; `start` (4, H, B, E)."""
        raw = torch.empty_like(given)
        cells = given.new_empty(4, *given.shape[:3], start.shape[-1])  # (4, H, L, B, E) after each token
        cell = start
        for t, (known, gates, after) in enumerate(zip(given.unbind(1), raw.unbind(1), cells.unbind(2), strict=True)):
            before = cell if fresh is None else torch.where(fresh[t], _nothing(cell), cell)
            h, c, n, m = before.unbind(0)
            torch.baddbmm(known, h, recurrent, out=gates)
            i, f, z, o = gates.chunk(4, dim=-1)
            log_f = F.logsigmoid(f).add_(m)
            top = torch.maximum(log_f, i, out=after[3])
            f, i = log_f.sub_(top).exp_(), (i - top).exp_()
            torch.addcmul(i * z.tanh(), f, c, out=after[1])
            torch.addcmul(i, f, n, out=after[2])
            torch.div(after[1], after[2], out=after[0]).mul_(o.sigmoid())
            if valid is not None:
                after.copy_(torch.where(valid[t], after, before))
            cell = after
        ctx.save_for_backward(raw, recurrent, start, cells, valid, fresh)
        return cells[0], cell.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        raw, recurrent, start, cells, valid, fresh = ctx.saved_tensors
        of_h, of_cell = gradients
        before = torch.cat((start[:, :, None], cells[:, :, :-1]), dim=2)
        if fresh is not None:
            before = torch.where(fresh, _nothing(start)[..., None], before)
        h_old, c_old, n_old, m_old = before.unbind(0)
        h, _, n, m = cells.unbind(0)
        i, f, z, o = raw.chunk(4, dim=-1)
        # The slopes of everything in its own token, for all tokens at once.
        keep, take = (F.logsigmoid(f) + m_old - m).exp(), (i - m).exp()
        z, o, f = z.tanh(), o.sigmoid(), keep * (-f).sigmoid()
        of_c = torch.cat((take * z, f * c_old, take * (1 - z * z)), dim=-1)  # of i, f and z from the gradient of c
        of_n = torch.cat((take, f * n_old), dim=-1)  # of i and f from that of n
        c_by_h, n_by_h, o_by_h = o / n, -h / n, h * (1 - o)
        if valid is not None:
            of_c, of_n, c_by_h, n_by_h, o_by_h = (
                torch.where(valid, s, 0) for s in (of_c, of_n, c_by_h, n_by_h, o_by_h)
            )
            keep = torch.where(valid, keep, 1)
        of_c, of_n = of_c.unflatten(-1, (3, -1)), of_n.unflatten(-1, (2, -1))
        slopes = [part.unbind(1) for part in (keep, of_c, of_n, c_by_h, n_by_h, o_by_h)]
        of_raw = torch.empty_like(raw).unflatten(-1, (4, -1))  # (H, L, B, 4, E)
        back = recurrent.transpose(1, 2)
        dh, dc, dn, _ = of_cell.unbind(0)
        for t in reversed(range(raw.shape[1])):
            keep_t, of_c_t, of_n_t, c_by_h_t, n_by_h_t, o_by_h_t = (part[t] for part in slopes)
            dh = dh + of_h[:, t]
            dc, dn, out = torch.addcmul(dc, dh, c_by_h_t), torch.addcmul(dn, dh, n_by_h_t), of_raw[:, t]
            torch.mul(of_c_t, dc[:, :, None], out=out[:, :, :3])
            out[:, :, :2].addcmul_(of_n_t, dn[:, :, None])
            torch.mul(dh, o_by_h_t, out=out[:, :, 3])
            heard = torch.bmm(out.flatten(2), back)
            dh = heard if valid is None else torch.where(valid[t], heard, dh)
            dc, dn = dc * keep_t, dn * keep_t
            if fresh is not None:
                dh, dc, dn = (torch.where(fresh[t], 0, d) for d in (dh, dc, dn))
        of_raw = of_raw.flatten(3)
        of_recurrent = h_old.flatten(1, 2).transpose(1, 2) @ of_raw.flatten(1, 2)
        return of_raw, of_recurrent, torch.stack((dh, dc, dn, torch.zeros_like(dh))), None, None


def reference(mixer: SLSTM, x_LD: Tensor, tokens: Tokens) -> Tensor:
    """The same layer for one row, token by token, with plain exponentials."""
    heads, units = mixer.shape
    outputs: list[Tensor] = []
    seen: list[Tensor] = []
    c, n, h = x_LD.new_zeros(3, heads, units)
    for t, x in enumerate(x_LD):
        if tokens.fresh is not None and tokens.fresh[t]:
            seen, (c, n, h) = [], x_LD.new_zeros(3, heads, units)
        if tokens.valid is not None and not tokens.valid[t]:
            outputs.append(torch.zeros_like(x))
            continue
        seen.append(x)
        u = x
        if mixer.conv is not None:
            bias, taps = mixer.conv.bias, mixer.conv.weight.T.flip(0)  # the present token's tap first
            assert bias is not None
            u = F.silu(torch.stack([bias, *(w * old for w, old in zip(taps, seen[::-1], strict=False))]).sum(0))
        heard = [torch.stack([h[j] @ mixer.recurrent[j] for j in range(heads)]) + mixer.bias]
        for into, w in zip((u, x), mixer.gates, strict=True):
            heard.append(torch.stack([into.view(heads, units)[j] @ w[j] for j in range(heads)]))
        i, f, z, o = (heard[0] + torch.cat(heard[1:], dim=-1)).chunk(4, dim=-1)
        c = f.sigmoid() * c + i.exp() * z.tanh()
        n = f.sigmoid() * n + i.exp()
        h = o.sigmoid() * c / n
        y = (h - h.mean(1, keepdim=True)) / (h.var(1, keepdim=True, unbiased=False) + mixer.config.norm_eps).sqrt()
        outputs.append(y.flatten() * mixer.scale)
    return torch.stack(outputs)


VARIANTS = (SLSTMConfig(num_heads=1, conv=0), SLSTMConfig(num_heads=3, conv=1))
