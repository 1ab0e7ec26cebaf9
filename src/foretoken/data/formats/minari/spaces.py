"""Spaces as Minari writes them in its metadata."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from foretoken.core.errors import DataError
from foretoken.core.spec import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space

TEXT = object()
"""Stands for a space of texts, which are not read."""


def read_space(tree: Mapping[str, Any], name: str, absent: list[str]) -> Any:
    """Our space for Minari's JSON of a Gymnasium space; Tuples become Dicts keyed "0", "1", ...; texts are noted in `absent`."""
    kind = tree.get("type")
    if kind == "Text":
        absent.append(name)
        return TEXT
    if kind in ("Dict", "Tuple"):
        parts = tree["subspaces"]
        parts = {str(key): part for key, part in (parts.items() if kind == "Dict" else enumerate(parts))}
        read = {key: read_space(part, f"{name}/{key}", absent) for key, part in parts.items()}
        return Dict(spaces={key: part for key, part in read.items() if part is not TEXT})
    if kind == "Box":
        return Box(
            shape=tuple(tree["shape"]), dtype=str(tree["dtype"]), low=_bound(tree["low"]), high=_bound(tree["high"])
        )
    if kind == "Discrete":
        return Discrete(n=int(tree["n"]), start=int(tree.get("start", 0)))
    if kind == "MultiDiscrete" and np.ndim(tree["nvec"]) == 1 and not np.any(tree.get("start", 0)):
        return MultiDiscrete(nvec=tuple(map(int, tree["nvec"])))
    if kind == "MultiBinary" and np.ndim(tree["n"]) == 0:
        return MultiBinary(n=int(tree["n"]))
    raise DataError(
        f"{name}: the space {json.dumps(tree)[:120]} is not supported; spaces may be Box, Discrete, MultiDiscrete "
        "(one axis, from 0), MultiBinary (one axis), Dict and Tuple of these"
    )


def _bound(values: Any) -> tuple[float, ...]:
    flat = tuple(np.asarray(values, np.float64).reshape(-1).tolist())
    return flat[:1] if len(set(flat)) == 1 else flat


def write_space(space: Space) -> dict[str, Any]:
    if isinstance(space, Dict):
        return {"type": "Dict", "subspaces": {key: write_space(part) for key, part in space.spaces.items()}}
    if isinstance(space, Box):
        low, high = (
            np.broadcast_to(np.asarray(bound), (space.size,)).reshape(space.shape).tolist()
            for bound in (space.low, space.high)
        )
        return {"type": "Box", "dtype": space.dtype, "shape": list(space.shape), "low": low, "high": high}
    if isinstance(space, Discrete):
        return {"type": "Discrete", "dtype": "int64", "start": space.start, "n": space.n}
    if isinstance(space, MultiDiscrete):
        return {"type": "MultiDiscrete", "dtype": "int64", "nvec": list(space.nvec), "start": [0] * len(space.nvec)}
    if isinstance(space, MultiBinary):
        return {"type": "MultiBinary", "n": space.n}
    raise DataError(f"Minari has no space for {type(space).__name__}; write npz instead")
