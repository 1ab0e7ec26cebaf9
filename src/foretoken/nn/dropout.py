"""Dropout with cheap random bits.

On a CPU, drawing one Bernoulli number per element costs more than the matrix product around it. Here 16 bits of a fast
generator (SFC64) serve each element, so the dropping probability is met to 2^-17. PyTorch's default generator gives the
seed of each mask, so seeding works as everywhere. Accelerators keep PyTorch's own kernel.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def keep_mask(like: Tensor, p: float) -> Tensor:
    """A mask of `like`'s shape and dtype: 1 with probability 1 - p (rounded to a multiple of 2^-16), 0 elsewhere."""
    size = like.numel()
    seed = int(torch.empty((), dtype=torch.int64).random_())
    words = torch.from_numpy(np.random.SFC64(seed).random_raw((size + 3) // 4).view(np.int16))[:size]
    # Comparing into numbers is several times faster than into bool, which would be cast again at every product.
    mask = torch.empty(size, dtype=like.dtype)
    return torch.ge(words, round(p * 65536) - 32768, out=mask).view(like.shape)


class _CheapDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        mask = keep_mask(x, p)
        ctx.save_for_backward(mask)
        ctx.scale = 1 / (1 - round(p * 65536) / 65536)
        return (x * mask).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return (gradients[0] * mask) * ctx.scale, None


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """Inverted dropout: entries are zeroed with probability p and the rest scaled to keep the mean."""
    if not training or p == 0:
        return x
    return _CheapDropout.apply(x, p) if x.device.type == "cpu" else F.dropout(x, p)


class Dropout(nn.Module):
    """Module form of `dropout`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        return f"p={self.p}"
