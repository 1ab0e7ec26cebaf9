"""Minari datasets: a folder with `metadata.json` and HDF5 or Arrow data, read and written without the minari package.

HDF5 (`main_data.hdf5`), one group per episode of n actions:

    episode_<i>/observations    (n + 1, ...), a group for Dict spaces; JPEG bytes for images where so encoded
    episode_<i>/actions         (n, ...)
    episode_<i>/{rewards, terminations, truncations}    (n,)
    episode_<i>/infos/...       (n + 1, ...) or (n, ...)       attributes: seed and other values per episode

Arrow or Parquet: one folder per episode, `<i>/*.arrow` of n + 1 rows, the last one padded beyond its observation.

Spaces come from the metadata. Infos become columns `infos/<name>`; texts (spaces and infos) are left out with a finding.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from foretoken.core.errors import DataError, MissingExtra
from foretoken.core.spec import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Spec, leaves
from foretoken.data.episode import Episode, flatten
from foretoken.data.findings import Finding
from foretoken.data.formats import hdf5
from foretoken.data.table import RESERVED

_MAIN = "main_data.hdf5"
_METADATA = "metadata.json"
_IDENTIFIER = re.compile(r"([-_\w]+/)*[-_\w]+-v\d+")
# The Minari release whose layout `write` follows
_WRITTEN_VERSION = "0.5.4"
_TEXT = object()


def sniff(path: str | os.PathLike[str]) -> bool:
    """Whether this is a dataset folder, its `data` folder, or the file `main_data.hdf5` inside."""
    folder = _folder(Path(path))
    if folder is None:
        return False
    try:
        return (
            "data_format" in json.loads((folder / _METADATA).read_text(encoding="utf-8")) or (folder / _MAIN).is_file()
        )
    except (OSError, ValueError):
        return (folder / _MAIN).is_file()


def _folder(path: Path) -> Path | None:
    """The folder that holds metadata.json."""
    for folder in (path, path / "data", path.parent if path.name == _MAIN else path):
        if (folder / _METADATA).is_file():
            return folder
    return None


def read(
    path: str | os.PathLike[str],
    *,
    environment: str = "",
    max_episode_steps: int = 0,
    action_bounds: tuple[float, float] | None = None,
) -> tuple[Spec, Iterator[Episode], dict[str, Any]]:
    """What a dataset holds: its spec, its episodes (read one by one while iterating), and what is known about it.

    Args:
        path: the dataset's folder (with `data/` in it), the `data` folder, or `main_data.hdf5`.
        environment: overrides the Gymnasium id of the metadata.
        max_episode_steps: overrides the time limit of the metadata.
        action_bounds: overrides the bounds of a Box action space.

    Raises:
        DataError: for broken metadata or files, missing arrays, unsupported spaces, links into other files.
        MissingExtra: for Arrow or Parquet data without pyarrow.
    """
    folder = _folder(Path(path))
    if folder is None:
        raise DataError(f"{path} is no Minari dataset: it needs {_METADATA} beside the data; give the dataset's folder")
    metadata, found = _metadata(folder), []
    spec, absent = _spec(folder, metadata, environment, max_episode_steps, action_bounds)
    for name in absent:
        found.append(
            Finding(
                "text-left-out",
                "warning",
                f"{name} is text, which is not read; use a dataset that encodes it as numbers.",
                {"name": name},
            )
        )
    source = (
        _Hdf5(folder, spec, metadata)
        if metadata.get("data_format", "hdf5") == "hdf5"
        else _Arrow(folder, spec, metadata)
    )
    numbers = source.prepare(found)
    expected = metadata.get("total_episodes", len(numbers))
    if expected != len(numbers):
        found.append(
            Finding(
                "episodes-missing",
                "warning",
                f"the metadata speaks of {expected} episodes, the data holds {len(numbers)}; "
                "the dataset may have been cut short: fetch it again.",
                {"expected": expected, "found": len(numbers)},
            )
        )
    return spec, source.episodes(numbers), _about(folder, metadata, found)


def _metadata(folder: Path) -> dict[str, Any]:
    try:
        metadata = json.loads((folder / _METADATA).read_text(encoding="utf-8"))
    except (ValueError, OSError) as problem:
        raise DataError(f"{folder / _METADATA} is not valid JSON ({problem}); fetch the dataset again") from None
    if not isinstance(metadata, dict):
        raise DataError(f"{folder / _METADATA} must hold a JSON object, got a {type(metadata).__name__}")
    identifier = str(metadata.get("dataset_id", "x-v0"))
    if identifier.startswith("/") or ".." in identifier.split("/"):
        raise DataError(f"{folder / _METADATA}: dataset_id {identifier!r} points outside the datasets' folder, refused")
    kind = metadata.get("data_format", "hdf5")
    if kind not in ("hdf5", "arrow", "parquet"):
        raise DataError(f"{folder / _METADATA}: data_format must be 'hdf5', 'arrow' or 'parquet', got {kind!r}")
    return metadata


def _about(folder: Path, metadata: Mapping[str, Any], found: list[Finding]) -> dict[str, Any]:
    kept = (
        "dataset_id",
        "algorithm_name",
        "author",
        "description",
        "code_permalink",
        "minari_version",
        "ref_min_score",
        "ref_max_score",
        "requirements",
        "env_spec",
    )
    about = {name: metadata[name] for name in kept if name in metadata}
    name = folder.parent.name if folder.name == "data" else folder.name
    return {"format": "minari", "source": name, **about, "findings": [one.to_json() for one in found]}


# Spaces


def _spec(
    folder: Path, metadata: Mapping[str, Any], environment: str, limit: int, bounds: tuple[float, float] | None
) -> tuple[Spec, list[str]]:
    spaces: dict[str, Any] = {}
    absent: list[str] = []
    for name in ("observation_space", "action_space"):
        text = metadata.get(name)
        if text is None:
            raise DataError(
                f"{folder / _METADATA} has no {name}; add it as Minari writes it (datasets of Minari before 0.4.3 "
                "lack it)"
            )
        spaces[name] = _read_space(json.loads(text) if isinstance(text, str) else text, name, absent)
        if spaces[name] is _TEXT:
            raise DataError(
                f"{folder / _METADATA}: {name} is text, which is not read; use a dataset that encodes it as numbers"
            )
    made = json.loads(metadata["env_spec"]) if isinstance(metadata.get("env_spec"), str) else {}
    action = spaces["action_space"]
    if bounds is not None and isinstance(action, Box):
        action = action.replace(low=bounds[:1], high=bounds[1:])
    spec = Spec(
        observation=spaces["observation_space"],
        action=action,
        environment=environment or made.get("id") or "",
        max_episode_steps=limit or made.get("max_episode_steps") or 0,
    )
    return spec, absent


def _read_space(tree: Mapping[str, Any], name: str, absent: list[str]) -> Any:
    """Our space for Minari's JSON of a Gymnasium space; Tuples become Dicts keyed "0", "1", ...; texts are noted in `absent`."""
    kind = tree.get("type")
    if kind == "Text":
        absent.append(name)
        return _TEXT
    if kind in ("Dict", "Tuple"):
        parts = tree["subspaces"]
        parts = {str(key): part for key, part in (parts.items() if kind == "Dict" else enumerate(parts))}
        read = {key: _read_space(part, f"{name}/{key}", absent) for key, part in parts.items()}
        return Dict(spaces={key: part for key, part in read.items() if part is not _TEXT})
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
        "(one axis, from 0), "
        "MultiBinary (one axis), Dict and Tuple of these"
    )


def _bound(values: Any) -> tuple[float, ...]:
    flat = tuple(np.asarray(values, np.float64).reshape(-1).tolist())
    return flat[:1] if len(set(flat)) == 1 else flat


def _write_space(space: Space) -> dict[str, Any]:
    if isinstance(space, Dict):
        return {"type": "Dict", "subspaces": {key: _write_space(part) for key, part in space.spaces.items()}}
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


def _tree(space: Space, values: Mapping[str, np.ndarray], path: str = "") -> Any:
    """Nested mappings as the space has them, from arrays by leaf path."""
    if isinstance(space, Dict):
        return {key: _tree(part, values, f"{path}/{key}") for key, part in space.spaces.items()}
    return values[path]


def _shaped(values: np.ndarray, space: Any) -> np.ndarray:
    """(n, *shape) from arrays stored with a needless axis or as the bytes of pictures."""
    wanted = (len(values), *space.shape)
    return values.reshape(wanted) if values.shape != wanted and values.size == math.prod(wanted) else values


def _pictures(frames: Any, where: str) -> np.ndarray:
    """(n, H, W[, C]) uint8 from n JPEG byte strings."""
    import io

    from PIL import Image

    try:
        return np.stack([np.asarray(Image.open(io.BytesIO(bytes(frame)), formats=("JPEG",))) for frame in frames])
    except (OSError, ValueError, TypeError) as problem:
        raise DataError(
            f"{where}: an image is not readable as JPEG ({problem}); the dataset is damaged: fetch it again"
        ) from None


# HDF5


class _Hdf5:
    """Reads `main_data.hdf5`, one episode at a time."""

    def __init__(self, folder: Path, spec: Spec, metadata: Mapping[str, Any]) -> None:
        self.path, self.spec = folder / _MAIN, spec
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
        _note_infos(left, found)
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
                return _pictures(found[()], f"{self.path}: {name!r}")
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


def _note_infos(left: list[str], found: list[Finding]) -> None:
    if left:
        found.append(
            Finding(
                "infos-left-out",
                "note",
                f"{len(left)} infos are not numbers per step in every episode and were left out: {left[:8]}.",
                {"names": left},
            )
        )


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
    return dict(_plain(h5py.Group(opened).attrs))


def _plain(attributes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in attributes.items():
        if name in ("id", "total_steps"):
            continue
        if name in RESERVED:
            name = f"source_{name}"
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
            yield name, value


# Arrow


class _Arrow:
    """Reads one folder of Arrow or Parquet files per episode."""

    def __init__(self, folder: Path, spec: Spec, metadata: Mapping[str, Any]) -> None:
        _pyarrow()
        self.folder, self.spec, self.kind = folder, spec, metadata["data_format"]
        self.infos: tuple[str, ...] = ()

    def prepare(self, found: list[Finding]) -> list[int]:
        """Episode numbers in order; notes what will be left out."""
        numbers = sorted(int(entry.name) for entry in self.folder.iterdir() if entry.name.isdigit() and entry.is_dir())
        if not numbers:
            raise DataError(
                f"{self.folder} holds no episodes; Minari's {self.kind} datasets have folders '0', '1', ..."
            )
        seen: dict[str, int] = {}
        for number in numbers:
            for name in _info_names(self._open(self._files(number)[0], only_schema=True)):
                seen[name] = seen.get(name, 0) + 1
        readable = set(_infos(self._table(numbers[0])))
        self.infos = tuple(sorted(name for name, times in seen.items() if times == len(numbers) and name in readable))
        _note_infos(sorted(set(seen) - set(self.infos)), found)
        return numbers

    def episodes(self, numbers: list[int]) -> Iterator[Episode]:
        for number in numbers:
            yield self._episode(number)

    def _files(self, number: int) -> list[Path]:
        files = sorted(path for path in (self.folder / str(number)).iterdir() if path.suffix == f".{self.kind}")
        if not files:
            raise DataError(
                f"{self.folder / str(number)} holds no .{self.kind} file; the dataset is incomplete: fetch it again"
            )
        return files

    def _open(self, path: Path, *, only_schema: bool = False) -> Any:
        """A file's table, or its schema without reading the rest."""
        import pyarrow
        from pyarrow import ipc, parquet

        try:
            if self.kind == "parquet":
                return parquet.read_schema(path) if only_schema else parquet.read_table(path)
            with ipc.open_file(pyarrow.memory_map(str(path))) as file:
                return file.schema if only_schema else file.read_all()
        except (pyarrow.ArrowException, OSError) as problem:
            raise DataError(
                f"{path} cannot be read as {self.kind} ({problem}); it may have been cut short: fetch it again"
            ) from None

    def _table(self, number: int) -> Any:
        import pyarrow

        return pyarrow.concat_tables([self._open(path) for path in self._files(number)]).combine_chunks()

    def _episode(self, number: int) -> Episode:
        table, where = self._table(number), f"{self.folder}: episode {number}"
        for name in ("observations", "actions", "rewards", "terminations", "truncations"):
            if name not in table.column_names:
                raise DataError(f"{where} has no {name!r}; Minari episodes need it")
        infos = _infos(table)
        # The last row carries only the final observation; what it holds otherwise is padding
        rows = {name: table[name].to_numpy()[:-1] for name in ("rewards", "terminations", "truncations")}
        return Episode(
            observation=_arrow_space(table["observations"], self.spec.observation, where),
            action=_trimmed(_arrow_space(table["actions"], self.spec.action, where)),
            reward=rows["rewards"],
            terminated=rows["terminations"].astype(bool),
            truncated=rows["truncations"].astype(bool),
            columns={name: infos[name] for name in self.infos},
            facts=self._facts(number),
        )

    def _facts(self, number: int) -> dict[str, Any]:
        file = self.folder / str(number) / _METADATA
        return dict(_plain(json.loads(file.read_text(encoding="utf-8")))) if file.is_file() else {}


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise MissingExtra(
            "this Minari dataset is stored as Arrow, which needs pyarrow; install it with: pip install "
            "'foretoken[arrow]'"
        ) from None
    return pyarrow


def _trimmed(tree: Any) -> Any:
    return {key: _trimmed(part) for key, part in tree.items()} if isinstance(tree, Mapping) else tree[:-1]


def _array(column: Any) -> Any:
    """One Arrow array of a table's column (which is chunked) or of a struct's field (which is not)."""
    return column.combine_chunks() if hasattr(column, "combine_chunks") else column


def _arrow_space(column: Any, space: Space, where: str) -> Any:
    column = _array(column)
    if isinstance(space, Dict):
        return {key: _arrow_space(column.field(key), part, f"{where}/{key}") for key, part in space.spaces.items()}
    return _arrow_leaf(column, space, where)


def _arrow_leaf(column: Any, space: Any, where: str) -> np.ndarray:
    import pyarrow

    if pyarrow.types.is_binary(column.type) or pyarrow.types.is_large_binary(column.type):
        return _pictures(column.to_pylist(), where)
    values = column.flatten() if pyarrow.types.is_nested(column.type) else column
    if pyarrow.types.is_string(values.type) or pyarrow.types.is_nested(values.type):
        raise DataError(
            f"{where} holds {column.type}, needs numbers of shape {space.shape}; the file is of another layout"
        )
    return values.to_numpy(zero_copy_only=False).reshape(len(column), *space.shape)


def _info_names(schema: Any) -> list[str]:
    import pyarrow

    def walk(kind: Any, path: str) -> list[str]:
        if pyarrow.types.is_struct(kind):
            return [name for field in kind for name in walk(field.type, f"{path}/{field.name}")]
        return [path]

    return walk(schema.field("infos").type, "infos") if "infos" in schema.names else []


def _infos(table: Any) -> dict[str, np.ndarray]:
    """Numeric infos by path, in the shapes that their field's metadata gives."""
    import pyarrow

    found: dict[str, np.ndarray] = {}

    def walk(column: Any, path: str, shape: tuple[int, ...] | None) -> None:
        if pyarrow.types.is_struct(column.type):
            for field in column.type:
                text = (field.metadata or {}).get(b"shape")
                inner = tuple(int(side) for side in text.split(b",") if side) if text is not None else None
                walk(column.field(field.name), f"{path}/{field.name}", inner)
            return
        values = column.flatten() if pyarrow.types.is_fixed_size_list(column.type) else column
        if (
            pyarrow.types.is_floating(values.type)
            or pyarrow.types.is_integer(values.type)
            or pyarrow.types.is_boolean(values.type)
        ):
            numbers = values.to_numpy(zero_copy_only=False)
            found[path] = (
                numbers.reshape(len(column), *shape)
                if shape is not None
                else numbers.reshape(len(column), -1)
                if values is not column
                else numbers
            )

    if "infos" in table.column_names:
        walk(_array(table["infos"]), "infos", None)
    return found


# Writing


def write(store: Any, path: str | os.PathLike[str], *, dataset_id: str = "") -> None:
    """Writes a dataset folder (HDF5, lossless) that `minari.load_dataset` opens.

    Args:
        store: the episodes; columns go to infos, facts to the episodes' attributes.
        path: the new folder. For Minari to find it, it must lie at `<MINARI_DATASETS_PATH>/<dataset_id>`.
        dataset_id: Minari's name, "[namespace/]name-v0"; default: the folder's name.

    Raises:
        DataError: where `path` exists, the name is malformed, or a space has no counterpart in Minari.
    """
    target = Path(path)
    identifier = dataset_id or (target.name if _IDENTIFIER.fullmatch(target.name) else f"{target.name}-v0")
    if not _IDENTIFIER.fullmatch(identifier):
        raise DataError(f"dataset_id must look like 'namespace/name-v0', got {identifier!r}")
    if target.exists():
        raise DataError(f"{target} exists; remove it or give another path")
    partial = target.with_name(f".{target.name}.partial")
    data = partial / "data"
    try:
        data.mkdir(parents=True)
        metadata = _new_metadata(store, identifier)
        _write_hdf5(store, data / _MAIN)
        metadata["dataset_size"] = round((data / _MAIN).stat().st_size / 1e6, 1)
        (data / _METADATA).write_text(json.dumps(metadata), encoding="utf-8")
        partial.rename(target)
    finally:
        _remove(partial)


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def _new_metadata(store: Any, identifier: str) -> dict[str, Any]:
    about = dict(getattr(store, "about", {}))
    metadata = {
        "total_episodes": int(store.num_episodes),
        "total_steps": int(store.num_steps - store.num_episodes),
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": json.dumps(_write_space(store.spec.observation)),
        "action_space": json.dumps(_write_space(store.spec.action)),
        "dataset_id": identifier,
        "minari_version": _WRITTEN_VERSION,
    }
    metadata |= {
        name: about[name] for name in ("algorithm_name", "author", "description", "code_permalink") if name in about
    }
    made = _env_spec(store.spec, about)
    return metadata | ({"env_spec": made} if made else {})


def _env_spec(spec: Spec, about: Mapping[str, Any]) -> str:
    """Gymnasium's JSON for the environment: as it was read, or from its registry; "" where it is not registered."""
    if isinstance(about.get("env_spec"), str) and json.loads(about["env_spec"]).get("id") == spec.environment:
        return str(about["env_spec"])
    if not spec.environment:
        return ""
    import gymnasium

    try:
        return gymnasium.spec(spec.environment).to_json()
    except (gymnasium.error.Error, TypeError, ImportError):
        return ""


def _write_hdf5(store: Any, path: Path) -> None:
    import h5py

    with h5py.File(path, "w", track_order=True) as file:
        for number in range(store.num_episodes):
            episode = store.episode(number)
            group = file.create_group(f"episode_{number}")
            group.attrs["id"], group.attrs["total_steps"] = number, len(episode.reward)
            group.attrs.update(episode.facts)
            _put(group, "observations", episode.observation)
            _put(group, "actions", episode.action)
            arrays = {"rewards": episode.reward, "terminations": episode.terminated, "truncations": episode.truncated}
            for name, values in arrays.items():
                group[name] = values
            infos = group.create_group("infos")
            for column, tree in episode.columns.items():
                for name, values in flatten(tree, column).items():
                    infos[name.removeprefix("infos/")] = values


def _put(group: Any, name: str, tree: Any) -> None:
    if isinstance(tree, Mapping):
        inner = group.create_group(name)
        for key, part in tree.items():
            _put(inner, key, part)
    else:
        group[name] = tree
