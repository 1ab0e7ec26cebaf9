"""Episodes in Arrow or Parquet: one folder of files each."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from foretoken.core.errors import DataError, MissingExtra
from foretoken.core.spec import Dict, Space, Spec
from foretoken.data.episode import Episode
from foretoken.data.findings import Finding
from foretoken.data.formats.minari.contents import METADATA, facts, note_infos, pictures


class Arrow:
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
        note_infos(sorted(set(seen) - set(self.infos)), found)
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
        file = self.folder / str(number) / METADATA
        return facts(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise MissingExtra(
            "this Minari dataset is stored as Arrow, which needs pyarrow; install it with: pip install 'foretoken[arrow]'"
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
        return pictures(column.to_pylist(), where)
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
