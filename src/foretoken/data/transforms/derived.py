"""Derived: the description of a step column that is computed from others, whole episodes at a time."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Derived:
    """
    Args:
        reads: leaf columns that `compute` needs.
        compute: takes the columns over a run of whole episodes, each (M, ...), and bounds (N + 1,) int64, where
            episode i has the rows `bounds[i] : bounds[i + 1]`, the last of them its final step; returns (M, *shape).
        shape, dtype: of one step.
    """

    reads: tuple[str, ...]
    compute: Callable[[Mapping[str, np.ndarray], np.ndarray], np.ndarray]
    shape: tuple[int, ...] = ()
    dtype: str = "float32"
