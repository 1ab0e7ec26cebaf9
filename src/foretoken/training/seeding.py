"""Seeds as pure functions of what they are for.

Training draws from the default generators of torch, numpy and Python, which are re-seeded before each draw and each
loss from (seed, update, rank, purpose). So no generator state is saved, and neither evaluation nor logging can disturb
a run.
"""

import random
import zlib
from functools import cache

import numpy as np
import torch

_MASK = (1 << 64) - 1


@cache
def _number(name: str) -> int:
    return zlib.crc32(name.encode())


def mix(*keys: int | str) -> int:
    """A seed in [0, 2**63) in which every key and the order of keys matter (the finaliser of SplitMix64 after each key)."""
    x = 0
    for key in keys:
        x = (x + (_number(key) if isinstance(key, str) else key) + 0x9E3779B97F4A7C15) & _MASK
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
        x ^= x >> 31
    return x >> 1


def reseed(device: torch.device, *keys: int | str) -> None:
    """Re-seeds the default generators of torch (on the CPU and on `device`), numpy and Python from `keys`."""
    seed = mix(*keys)
    # torch.manual_seed reaches every device and costs about 100 us; the generators themselves cost 2 us.
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)
