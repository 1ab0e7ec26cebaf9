"""LSTM: long short-term memory, in the form and with the weights of `torch.nn.LSTM`.

    i_t, f_t, o_t = sigmoid(W x_t + U h_(t-1) + b)        g_t = tanh(W_g x_t + U_g h_(t-1) + b_g)
    c_t = f_t c_(t-1) + i_t g_t                           h_t = o_t tanh(c_t)

Hochreiter and Schmidhuber 1997, with the forget gate of Gers et al. 2000. The gates read the state, so training goes token by
token; what does not, the inputs' and the weights' products, is done once for all tokens.
Differs from torch: 1. forget gates start open, with a bias of 1 (Jozefowicz et al. 2015); 0 is torch's start. 2. Hidden states
wider or narrower than the tokens are brought back by a linear layer.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
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
class LSTMConfig(MixerConfig):
    """
    Args:
        expansion: hidden width H over width; where they differ, a linear layer follows.
        forget_bias: added to the forget gates' bias at the start.
    """

    expansion: float = 1.0
    forget_bias: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expansion <= 0:
            raise ConfigError(f"expansion must be positive, got {self.expansion}")


@configures(LSTMConfig)
class LSTM(Mixer):
    """`cell` holds the weights of `torch.nn.LSTM`, there called `weight_ih_l0`, and so on."""

    def __init__(self, config: LSTMConfig, width: int) -> None:
        super().__init__()
        self.config, self.width, self.hidden = config, width, max(1, round(width * config.expansion))
        self.cell = nn.LSTMCell(width, self.hidden)
        self.out = None if self.hidden == width else nn.Linear(self.hidden, width)
        self.facts = Facts(state_bytes=8 * self.hidden, parallel="sequential")
        self.start()

    def start(self) -> None:
        """Uniform in +-1/sqrt(H), as torch, but for the forget gates' bias."""
        self.cell.reset_parameters()
        with torch.no_grad():
            self.cell.bias_ih[self.hidden : 2 * self.hidden] += self.config.forget_bias

    def initial_state(self, rows: int) -> State:
        weight = self.cell.weight_hh
        h = weight.new_zeros(rows, self.hidden, dtype=wide(weight.dtype))
        return {"h": h, "c": h.clone()}

    def forward(
        self, x_BLD: Tensor, state: State | None = None, *, tokens: Tokens | None = None, read: slice | None = None
    ) -> Mixed:
        if x_BLD.shape[-1] != self.width:  # torch.lstm would not notice
            raise ValueError(f"inputs must have width {self.width}, got {x_BLD.shape[-1]}")
        valid, fresh = (None, None) if tokens is None else tokens[:2]
        start = self.initial_state(len(x_BLD)) if state is None else state
        cell, h, c = self.cell, start["h"], start["c"]
        y, c = _run(x_BLD, h, c, cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh, valid, fresh)
        after = None if state is None else {"h": y[:, -1] if y.shape[1] else h, "c": c}
        y = (y if read is None else y[:, read]).to(x_BLD.dtype)
        y = y if self.out is None else self.out(y)
        if valid is not None:
            y = y * (valid if read is None else valid[:, read])[..., None]
        return Mixed(y, after)


@in_full_precision
def _run(
    x: Tensor, h: Tensor, c: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Tensor, b_hh: Tensor,
    valid: Tensor | None, fresh: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """h after all tokens, (B, L, H), and c after the last one, (B, H)."""
    if x.shape[1] == 1:
        if fresh is not None:
            h, c = torch.where(fresh, 0, h), torch.where(fresh, 0, c)
        new = torch.lstm_cell(x[:, 0], (h, c), w_ih, w_hh, b_ih, b_hh)
        h, c = new if valid is None else (torch.where(valid, a, b) for a, b in zip(new, (h, c), strict=True))
        return h[:, None], c
    if valid is None and fresh is None and x.numel():
        weights = (w_ih, w_hh, b_ih, b_hh)
        if x.shape[1] <= 4 and not torch.is_grad_enabled():  # one step while streaming: less to prepare than torch.lstm
            outputs = []
            for x_t in x.unbind(1):
                h, c = torch.lstm_cell(x_t, (h, c), *weights)
                outputs.append(h)
            return torch.stack(outputs, 1), c
        y, _, c = _fused(x, h, c, weights)
        return y, c
    if valid is None and fresh is not None and x.numel() and (x.device.type, x.dtype) == ("cpu", torch.float32):
        return _in_pieces(x, h, c, (w_ih, w_hh, b_ih, b_hh), fresh)
    result: tuple[Tensor, Tensor] = _Run.apply(F.linear(x, w_ih, b_ih + b_hh), h, c, w_hh, valid, fresh)
    return result


def _fused(x: Tensor, h: Tensor, c: Tensor, weights: tuple[Tensor, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """All outputs, and h and c after the last, by PyTorch's own kernel."""
    y, h, c = torch.lstm(x, (h[None], c[None]), weights, True, 1, 0.0, torch.is_grad_enabled(), False, True)
    return y, h[0], c[0]


_SHUT = 1e4  # squashes to exactly 0 and 1
_SPARE = 128  # padding that takes as long as one more call of the kernel


def _in_pieces(x: Tensor, h: Tensor, c: Tensor, weights: tuple[Tensor, ...], fresh: Tensor) -> tuple[Tensor, Tensor]:
    """The recurrence by PyTorch's kernel, which knows no boundaries of memory, on the pieces between these.

    Pieces of like lengths go together, the shorter ones padded at their end by tokens that close the input gates and open the
    forget gates, so that cells stay as they are.
    """
    (rows, length), (w_ih, *others) = fresh.shape, weights
    begins = fresh.numpy().copy()
    begins[:, 0] = True
    at = np.flatnonzero(begins)  # first tokens of the pieces, rows laid out after one another
    size = np.diff(at, append=rows * length)
    order = np.argsort(-size, kind="stable")
    at, size = at[order], size[order]
    groups = _alike(size.tolist())
    longest = np.concatenate([np.full_like(size[group], size[group.start]) for group in groups])
    here = np.arange(longest.sum()) - np.repeat(np.cumsum(longest) - longest, longest)
    exists = here < np.repeat(size, longest)
    tokens = np.repeat(at, longest) + np.where(exists, here, 0)
    back = np.empty(rows * length, np.int64)
    back[tokens[exists]] = np.flatnonzero(exists)
    ends = np.flatnonzero((at + size) % length == 0)
    pick = lambda values, index: values.index_select(0, torch.from_numpy(index))  # noqa: E731

    goes_on = torch.from_numpy(~fresh.numpy().ravel()[at, None])
    h, c = (torch.where(goes_on, pick(part, at // length), 0) for part in (h, c))
    shut = w_ih.new_tensor([-_SHUT, _SHUT, 0, 0]).repeat_interleave(h.shape[-1])
    weights = (torch.cat((w_ih, shut[:, None]), dim=1), *others)
    there = torch.from_numpy(exists[:, None])  # padding is a zero, lest large inputs outweigh shut gates
    given = torch.cat((torch.where(there, pick(x.flatten(0, 1), tokens), 0), (~there).to(x.dtype)), dim=1)
    outputs, cells = [], []
    for group, part in zip(groups, given.split([int(longest[group].sum()) for group in groups]), strict=True):
        y, _, cell = _fused(part.unflatten(0, (group.stop - group.start, -1)), h[group], c[group], weights)
        outputs.append(y.flatten(0, 1))
        cells.append(cell)
    y, c = pick(torch.cat(outputs), back), pick(torch.cat(cells), ends[np.argsort(at[ends])])
    return y.unflatten(0, (rows, length)), c


def _alike(sizes: list[int]) -> list[slice]:
    """Descending sizes in groups whose members, brought to the length of the longest, are padded by about `_SPARE` together."""
    groups, first, spare = list[slice](), 0, 0
    for i, size in enumerate(sizes):
        spare += sizes[first] - size
        if spare > _SPARE:
            groups.append(slice(first, i))
            first, spare = i, 0
    return [*groups, slice(first, len(sizes))]


class _Run(torch.autograd.Function):
    """The recurrence from the inputs' share of the gates, with padding and memory boundaries."""

    @staticmethod
    def forward(
        ctx: Any, given_BLG: Tensor, h: Tensor, c: Tensor, weight: Tensor, valid: Tensor | None, fresh: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        H = h.shape[-1]
        given = given_BLG.transpose(0, 1).clone(memory_format=torch.contiguous_format)
        exists = None
        if valid is not None:  # i = 0 and f = 1 leave c as it is, and take no gradient
            exists = valid.t()[..., None]
            given[..., :H].masked_fill_(~exists, -torch.inf)
            given[..., H : 2 * H].masked_fill_(~exists, torch.inf)
        lives = None if fresh is None else (~fresh).t()[..., None].to(given.dtype)
        gates, back = torch.empty_like(given), weight.t().contiguous()
        hs, cs = (given.new_empty(len(given) + 1, *h.shape) for _ in range(2))
        squashed = torch.empty_like(hs[1:])
        hs[0], cs[0] = h, c
        parts = (given, gates, gates[..., : 2 * H], *gates.chunk(4, dim=-1), hs[1:], cs[1:], squashed)
        steps = zip(*(part.unbind(0) for part in parts), strict=True)
        for t, (x, gates_t, both, i, f, g, o, h_t, c_t, tanh_c) in enumerate(steps):
            if lives is not None:
                h, c = h * lives[t], c * lives[t]
            torch.addmm(x, h, back, out=gates_t)
            both.sigmoid_(), g.tanh_(), o.sigmoid_()
            c = torch.mul(f, c, out=c_t).addcmul_(i, g)
            torch.mul(o, torch.tanh(c, out=tanh_c), out=h_t)
            h = h_t if exists is None else h_t.copy_(torch.where(exists[t], h_t, h))
        ctx.save_for_backward(gates, hs, cs, squashed, weight, exists, lives)
        return hs[1:].transpose(0, 1), cs[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gates, hs, cs, squashed, weight, exists, lives = ctx.saved_tensors
        i, f, g, o = gates.chunk(4, dim=-1)
        hs, cs = (x[:-1] if lives is None else x[:-1] * lives for x in (hs, cs))
        # What i, f and g take of a gradient of c_t, and o of one of h_t, of which c_t takes `to_c`.
        takes = torch.stack((g * i * (1 - i), cs * f * (1 - f), i * (1 - g * g)), dim=2)
        of_o, to_c = squashed * o * (1 - o), o * (1 - squashed * squashed)
        stays = None
        if exists is not None:  # where a token is padding, h_(t-1) has the whole gradient of h_t
            of_o, to_c, stays = of_o * exists, to_c * exists, (~exists).to(gates.dtype)
        taken = torch.empty_like(gates).unflatten(-1, (4, -1))
        parts = (gradients[0].transpose(0, 1), takes, of_o, to_c, f, taken[:, :, :3], taken[:, :, 3], taken.flatten(2))
        dh, dc = torch.zeros_like(hs[0]), gradients[1]
        steps = zip(*(part.unbind(0) for part in parts), strict=True)
        for t, (dy, takes_t, of_o_t, to_c_t, f_t, of_c, of_h, by_state) in reversed(list(enumerate(steps))):
            dh = dh + dy
            dc = torch.addcmul(dc, dh, to_c_t)
            torch.mul(dc[:, None], takes_t, out=of_c)
            torch.mul(dh, of_o_t, out=of_h)
            dh, dc = by_state @ weight if stays is None else (dh * stays[t]).addmm_(by_state, weight), dc * f_t
            if lives is not None:
                dh, dc = dh * lives[t], dc * lives[t]
        of_given = taken.flatten(2)
        flat = of_given.flatten(0, 1)
        return of_given.transpose(0, 1), dh, dc, flat.t() @ hs.flatten(0, 1), None, None


def reference(mixer: LSTM, x_LD: Tensor, tokens: Tokens) -> Tensor:
    """The same layer for one row, token by token in plain loops; slow, for tests."""
    cell, outputs = mixer.cell, []
    h = c = x_LD.new_zeros(mixer.hidden)
    for t, x in enumerate(x_LD):
        if tokens.fresh is not None and tokens.fresh[t]:
            h = c = torch.zeros_like(h)
        if tokens.valid is not None and not tokens.valid[t]:
            outputs.append(torch.zeros_like(x))
            continue
        i, f, g, o = (cell.weight_ih @ x + cell.bias_ih + cell.weight_hh @ h + cell.bias_hh).chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        outputs.append(h if mixer.out is None else mixer.out(h))
    return torch.stack(outputs)


VARIANTS = (LSTMConfig(expansion=1.5, forget_bias=0.0),)  # settings that take other paths, for the laws
