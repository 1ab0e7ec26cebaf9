"""Episodes in HDF5: one group each."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from foretoken.core.errors import DataError
from foretoken.core.spec import Dict, Space, Spec, leaves
from foretoken.data.episode import Episode
from foretoken.data.findings import Finding
from foretoken.data.formats import hdf5
from foretoken.data.formats.minari.contents import MAIN, facts, note_infos, pictures


class Hdf5:
    """Reads `main_data.hdf5`, one episode at a time."""

    def __init__(self, folder: Path, spec: Spec, metadata: Mapping[str, Any]) -> None:
        self.path, self.spec = folder / MAIN, spec
        self.spaces = {"observations": spec.observation, "actions": spec.action}
        self.leaves = {
            part: _stored_leaves(space, metadata[f"{part[:-1]}_space"]) for part, space in self.spaces.items()
        }
        self.infos: tuple[str, ...] = ()

    def prepare(self, found: list[Finding]) -> list[int]:
        """Episode numbers in order; notes what will be left out."""
        with hdf5.opened(self.path, walked=True) as file:
            names = hdf5.walk(file)
            numbers = sorted(int(name.removeprefix("episode_")) for name in names if re.fullmatch(r"episode_\d+", name))
            if not numbers:
                raise DataError(
                    f"{self.path} holds no episodes; Minari datasets have groups 'episode_0', 'episode_1', ..."
                )
            self.infos, left = _common_infos(file, names, len(numbers))
        note_infos(left, found)
        return numbers

    def episodes(self, numbers: list[int]) -> Iterator[Episode]:
        with hdf5.opened(self.path, walked=True) as file:
            arrays = hdf5.Arrays(file)
            for number in numbers:
                yield self._episode(arrays, f"episode_{number}")

    def _episode(self, arrays: hdf5.Arrays, group: str) -> Episode:
        return Episode(
            observation=self._space(arrays, group, "observations"),
            action=self._space(arrays, group, "actions"),
            reward=arrays.read(f"{group}/rewards").reshape(-1),
            terminated=arrays.read(f"{group}/terminations").astype(bool, copy=False).reshape(-1),
            truncated=arrays.read(f"{group}/truncations").astype(bool, copy=False).reshape(-1),
            columns={name: arrays.read(f"{group}/{name}") for name in self.infos},
            facts=_attributes(arrays.file, group),
        )

    def _space(self, arrays: hdf5.Arrays, group: str, part: str) -> Any:
        values = {path: self._leaf(arrays, f"{group}/{part}{stored}", leaf) for path, stored, leaf in self.leaves[part]}
        return _tree(self.spaces[part], values)

    def _leaf(self, arrays: hdf5.Arrays, name: str, space: Any) -> np.ndarray:
        if space.dtype == "uint8" and len(space.shape) in (2, 3) and name in arrays.file:
            found = arrays.file[name]
            if _is_encoded(found, space.shape):
                hdf5.refuse_elsewhere(found.id, f"{self.path}: {name!r}")
                return pictures(found[()], f"{self.path}: {name!r}")
        return _shaped(arrays.read(name), space)


def _stored_leaves(space: Space, text: Any) -> list[tuple[str, str, Any]]:
    """Every leaf's path in the space, its path in the file, and its space."""
    tuples = _tuples(json.loads(text) if isinstance(text, str) else text)
    return [(path, _stored(path, tuples), leaf) for path, leaf in leaves(space).items()]


def _tuples(tree: Mapping[str, Any], path: str = "") -> frozenset[str]:
    """Paths of the Tuple spaces: their parts are stored as `_index_<i>`."""
    if tree.get("type") not in ("Dict", "Tuple"):
        return frozenset()
    parts = tree["subspaces"].items() if tree["type"] == "Dict" else enumerate(tree["subspaces"])
    own = {path} if tree["type"] == "Tuple" else set()
    return frozenset(own.union(*(_tuples(part, f"{path}/{key}") for key, part in parts)))


def _stored(path: str, tuples: frozenset[str]) -> str:
    """A leaf's path in the file."""
    if not tuples:
        return path
    pieces = path.split("/")[1:]
    return "".join(
        f"/_index_{piece}" if "".join(f"/{one}" for one in pieces[:i]) in tuples else f"/{piece}"
        for i, piece in enumerate(pieces)
    )


def _tree(space: Space, values: Mapping[str, np.ndarray], path: str = "") -> Any:
    """Nested mappings as the space has them, from arrays by leaf path."""
    if isinstance(space, Dict):
        return {key: _tree(part, values, f"{path}/{key}") for key, part in space.spaces.items()}
    return values[path]


def _shaped(values: np.ndarray, space: Any) -> np.ndarray:
    """(n, *shape) from arrays stored with a needless axis or as the bytes of pictures."""
    wanted = (len(values), *space.shape)
    return values.reshape(wanted) if values.shape != wanted and values.size == math.prod(wanted) else values


def _is_encoded(found: Any, shape: tuple[int, ...]) -> bool:
    """Images are stored raw as (n, *shape), or as JPEG bytes: (n,) of varying or (n, bytes) of equal length."""
    return found.shape[1:] != shape and found.ndim <= 2 and (found.dtype == np.uint8 or found.dtype.kind == "O")


def _common_infos(file: Any, names: list[str], count: int) -> tuple[tuple[str, ...], list[str]]:
    """Numeric infos that all `count` episodes have, and the names of all others; `names` are the paths in the file."""
    seen: dict[str, int] = {}
    refused: set[str] = set()
    for path in names:
        group, _, name = path.partition("/infos/")
        if not name or not re.fullmatch(r"episode_\d+", group) or not hasattr(file[path], "dtype"):
            continue
        seen[name] = seen.get(name, 0) + 1
        found, rewards = file[path], file.get(f"{group}/rewards")
        steps = len(rewards) if hasattr(rewards, "dtype") else -1
        if found.dtype.kind not in "biuf" or not found.shape or found.shape[0] - steps not in (0, 1):
            refused.add(name)
    common = tuple(sorted(name for name, times in seen.items() if times == count and name not in refused))
    return tuple(f"infos/{name}" for name in common), sorted(set(seen) - set(common))


def _attributes(file: Any, group: str) -> dict[str, Any]:
    """Single numbers and texts known per episode; most episodes have none beyond two that we skip, which is quick to see."""
    import h5py

    opened = h5py.h5g.open(file.id, group.encode())
    if (
        h5py.h5a.get_num_attrs(opened) == 2
        and h5py.h5a.exists(opened, b"id")
        and h5py.h5a.exists(opened, b"total_steps")
    ):
        return {}
    return facts(h5py.Group(opened).attrs)
