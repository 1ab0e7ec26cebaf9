"""The last few tokens of each token: what causal convolutions over tokens are made of.

Taps count valid tokens of the same memory, so padding is skipped wherever it lies, and a tap that would reach before the
memory's beginning is zero. The streaming state is the last inputs themselves, zero where there was none.
"""

import torch
from torch import Tensor, nn

from foretoken.nn.mixer import Tokens


def taps(x_BLD: Tensor, before: Tensor | None, tokens: Tokens, width: int) -> tuple[Tensor, Tensor]:
    """
    Args:
        x_BLD: (B, L, D) inputs.
        before: (B, width - 1, D) inputs before them, oldest first, zero where there was none; None = none at all.
        tokens: which inputs exist and where memory begins.
        width: taps, the token itself included, >= 1.

    Returns:
        (B, L, width, D), the token itself last, of no meaning at padded tokens; and the new `before`.
    """
    rows, length, features = x_BLD.shape
    past = x_BLD.new_zeros(rows, width - 1, features) if before is None else before.to(x_BLD.dtype)
    if length == 0:
        return x_BLD.new_zeros(rows, 0, width, features), past
    if tokens.valid is None and tokens.fresh is None:
        joined = torch.cat((past, x_BLD), dim=1)
        return joined.unfold(1, width, 1).transpose(2, 3), joined[:, length:]
    device = x_BLD.device
    valid = torch.ones(rows, length, dtype=torch.bool, device=device) if tokens.valid is None else tokens.valid
    fresh = torch.zeros_like(valid) if tokens.fresh is None else tokens.fresh
    memory, place = (
        fresh.cumsum(1),
        valid.cumsum(1),
    )  # valid tokens are closed up: token i comes to place[i] + width - 2
    target = torch.where(valid, place + width - 2, length + width - 1)  # padding goes to a slot that is cut off
    blank = x_BLD.new_zeros(rows, length + width, features)
    blank[:, : width - 1] = past
    joined = blank.scatter(1, target[..., None].expand_as(x_BLD), x_BLD)[:, :-1]
    owner = torch.zeros(rows, length + width, dtype=memory.dtype, device=device).scatter(1, target, memory)[:, :-1]
    at = (place - 1).clamp(min=0)[..., None] + torch.arange(width, device=device)  # (B, L, width)
    picked = joined.gather(1, at.flatten(1)[..., None].expand(-1, -1, features)).unflatten(1, (length, width))
    picked = torch.where((owner.gather(1, at.flatten(1)).view_as(at) == memory[..., None])[..., None], picked, 0)
    last = place[:, -1:] + torch.arange(width - 1, device=device)
    kept = joined.gather(1, last[..., None].expand(-1, -1, features))
    kept = torch.where((owner.gather(1, last) == memory[:, -1:])[..., None], kept, 0)
    return picked, kept


class ShortConv(nn.Module):
    """Depthwise causal convolution over the last `kernel` tokens: y_t = bias + sum_w weight[:, w] x_(t - kernel + 1 + w)."""

    def __init__(self, width: int, kernel: int = 4, *, bias: bool = True) -> None:
        super().__init__()
        self.kernel = kernel
        self.weight = nn.Parameter(torch.empty(width, kernel))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1/sqrt(kernel), as PyTorch's depthwise convolution."""
        nn.init.uniform_(self.weight, -(self.kernel**-0.5), self.kernel**-0.5)

    def initial_state(self, rows: int) -> Tensor:
        """(B, kernel - 1, D) zeros."""
        return self.weight.new_zeros(rows, self.kernel - 1, self.weight.shape[0])

    def forward(self, x_BLD: Tensor, before: Tensor | None, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Outputs (B, L, D) and the last inputs (B, kernel - 1, D)."""
        weight, length = self.weight.to(x_BLD.dtype), x_BLD.shape[1]
        bias = None if self.bias is None else self.bias.to(x_BLD.dtype)
        if tokens.valid is None and tokens.fresh is None:
            past = self.initial_state(len(x_BLD)) if before is None else before
            joined = torch.cat((past.to(x_BLD.dtype), x_BLD), dim=1)
            after = joined[:, length:]
            if length != 1:  # one product per tap: faster than a depthwise convolution, forwards and backwards
                first, *rest = weight.unbind(1)
                y = joined[:, :length] * first if bias is None else torch.addcmul(bias, joined[:, :length], first)
                for tap, weight_D in enumerate(rest, 1):
                    y = torch.addcmul(y, joined[:, tap : tap + length], weight_D)
                return y, after
            y = (joined * weight.T).sum(1, keepdim=True)
        else:
            picked, after = taps(x_BLD, before, tokens, self.kernel)
            y = (picked * weight.T).sum(2)
        return y if bias is None else y + bias, after
