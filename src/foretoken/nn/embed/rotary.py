"""Rotary positions (Su et al. 2021, arXiv 2104.09864): queries and keys are turned, so that their product tells their distance."""

from functools import lru_cache

import torch
from torch import Tensor


def turn(position_BL: Tensor, head_width: int, base: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines of rotary positions, (B, L, 1, E), in `dtype`: pair (e, e + E/2) turns by position * base^(-2e/E)."""
    rate, sign = _rates(head_width // 2, base, position_BL.device)
    angle = position_BL[..., None, None] * rate
    return angle.cos().to(dtype), (angle.sin() * sign).to(dtype)


@lru_cache
def _rates(half: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    """Of all E entries of a head, how far a position turns them (float64), and the sign of their sine."""
    with torch.inference_mode(False):
        rate = base ** (-torch.arange(half, device=device, dtype=torch.float64) / half)
        sign = torch.ones_like(rate)
        return torch.cat((rate, rate)), torch.cat((-sign, sign))


def rotate(x_BLHE: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys turned to their positions."""
    return torch.addcmul(x_BLHE * cos, x_BLHE.roll(x_BLHE.shape[-1] // 2, dims=-1), sin)
