"""Noise as a pure function of per-row seeds.

Acting must not depend on which rows happen to share a batch, so policies never draw from a generator: they hash
`step.seed`. The hash is the finaliser of SplitMix64 (Steele, Lea and Flood 2014) in wrapping int64 arithmetic, which
exports to ONNX and compiles.
"""

import torch
from torch import Tensor

_GOLDEN, _MIX1, _MIX2 = -7046029254386353131, -4658895280553007687, -7723592293110705685


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # a logical shift: int64's own is arithmetic


def scramble(x: Tensor) -> Tensor:
    """A bijection of int64 in which every output bit depends on every input bit."""
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


def split(seed_B: Tensor, *keys: int | Tensor) -> Tensor:
    """A new (B,) seed for another purpose, step or episode; a key is one number, or (B,) int64 for one per row."""
    for key in keys:
        offset = (key + 1) * _GOLDEN
        if isinstance(offset, int):  # Python does not wrap around, and torch refuses what does not fit int64
            offset = (offset + 2**63) % 2**64 - 2**63
        seed_B = scramble(seed_B * 3 + offset)
    return seed_B


def uniform(seed_B: Tensor, *shape: int) -> Tensor:
    """(B, *shape) float32 in [0, 1), row b depending on `seed_B[b]` alone."""
    size = 1
    for side in shape:
        size *= side
    counter = torch.arange(1, size + 1, device=seed_B.device) * _GOLDEN
    bits = _shift(scramble(scramble(seed_B)[:, None] + counter), 40)
    return (bits.to(torch.float32) * 2.0**-24).reshape(-1, *shape)


def normal(seed_B: Tensor, *shape: int) -> Tensor:
    """(B, *shape) float32 standard normal by inversion, row b depending on `seed_B[b]` alone."""
    u = uniform(seed_B, *shape).clamp(min=2.0**-25)
    return torch.special.ndtri(u.double()).float()


def categorical(logits_BV: Tensor, seed_B: Tensor) -> Tensor:
    """(B, ...) int64: one draw from the softmax over the last axis by the Gumbel maximum; leading axes beyond the first draw separately."""
    gumbel = -torch.log(-torch.log(uniform(seed_B, *logits_BV.shape[1:]).clamp(min=1e-20)))
    return (logits_BV.float() + gumbel).argmax(-1)
