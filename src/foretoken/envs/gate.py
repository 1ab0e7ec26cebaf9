"""The gate between a policy's actions and the environments: checks, casts and clips whole batches at once."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foretoken.core.errors import DataError
from foretoken.core.spec import Box, Discrete, MultiDiscrete, Space, Tokens, leaves
from foretoken.envs.spaces import build_tree, read_leaf

_ROUNDING = 1e-5  # actions beyond their bounds by less than this share of the range are rounding, and not counted


class Gate:
    """What actions must pass on their way to the environments: shape, finiteness, range, dtype and bounds of its space.

    Args:
        space: the environment's own action space.
        name: the environment's, for errors.
    """

    def __init__(self, space: Space, name: str) -> None:
        self._parts, self._name, self.num_clipped = leaves(space), name, 0
        self._bounds = {path: _finite_bounds(part) for path, part in self._parts.items() if isinstance(part, Box)}

    def admit(self, action: Any, count: int, final: list[bool]) -> tuple[list[Any], dict[str, np.ndarray]]:
        """The actions of `count` rows, one by one as the environments take them, and as arrays by part."""
        arrays = {path: self._admit_part(path, read_leaf(action, path), count, final) for path in self._parts}
        return self._rowwise(arrays), arrays

    def _admit_part(self, path: str, values: Any, count: int, final: list[bool]) -> np.ndarray:
        part = self._parts[path]
        if isinstance(values, Tensor):
            values = values.detach().cpu()
            values = (
                values.float() if values.is_floating_point() and values.dtype != torch.float64 else values
            ).numpy()
        given = np.asarray(values)
        if given.shape != (count, *part.shape):
            raise DataError(f"action{path} for {self._name} must have shape {(count, *part.shape)}, got {given.shape}")
        array = given.astype(part.dtype)  # a copy: environments may keep what they are given
        if True in final:
            array[final] = getattr(part, "start", 0)
        if isinstance(part, Box):
            return self._clip(path, array)
        low, choices = _choices(part)
        if (array < low).any() or (array >= low + choices).any():
            raise DataError(
                f"action{path} for {self._name} must lie in {low} .. {low} + {choices} - 1, got {given.tolist()}"
            )
        return array

    def _clip(self, path: str, array: np.ndarray) -> np.ndarray:
        if not np.isfinite(array).all():
            rows = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(1)).tolist()
            raise DataError(f"action{path} for {self._name} must be finite, got NaN or infinity in rows {rows}")
        bounds = self._bounds[path]
        if bounds is None:
            return array
        low, high, slack = bounds
        clipped = array.clip(low, high)
        beyond = np.abs(array - clipped) > slack
        if beyond.any():
            self.num_clipped += int(beyond.reshape(len(array), -1).any(1).sum())
        return clipped

    def _rowwise(self, arrays: Mapping[str, np.ndarray]) -> list[Any]:
        if "" in arrays:
            return arrays[""].tolist() if isinstance(self._parts[""], Discrete) else list(arrays[""])
        rows = len(next(iter(arrays.values())))
        return [build_tree({path: array[row] for path, array in arrays.items()}) for row in range(rows)]

    def pack(self, moves: list[Any]) -> dict[str, np.ndarray]:
        """Performed actions as arrays by part, (n, ...)."""
        return {
            path: np.array([read_leaf(move, path) for move in moves], part.dtype).reshape(len(moves), *part.shape)
            for path, part in self._parts.items()
        }

    def unpack(self, packed: Mapping[str, np.ndarray]) -> list[Any]:
        return self._rowwise({path: np.asarray(packed[path]) for path in self._parts})


def _choices(part: Space) -> tuple[int, Any]:
    """The first choice and how many there are, for whatever is no Box."""
    if isinstance(part, Discrete):
        return part.start, part.n
    if isinstance(part, MultiDiscrete):
        return 0, np.array(part.nvec)
    return (0, part.vocabulary) if isinstance(part, Tokens) else (0, 2)


def _finite_bounds(part: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Low, high and the rounding allowed, each of the part's shape or (1,); None where nothing is bounded."""
    low, high = np.array(part.low, part.dtype), np.array(part.high, part.dtype)
    if not (np.isfinite(low).any() or np.isfinite(high).any()):
        return None
    span = np.where(np.isfinite(low) & np.isfinite(high), high.astype(np.float64) - low, 1.0)
    low, high, span = (b.reshape(part.shape) if b.size == part.size else b for b in (low, high, span))
    return low, high, span * _ROUNDING
