"""A dataset's metadata, and the reader of its episodes."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from foretoken.core.errors import DataError
from foretoken.core.spec import Box, Spec
from foretoken.data.episode import Episode
from foretoken.data.findings import Finding
from foretoken.data.formats.minari.arrow_episodes import Arrow
from foretoken.data.formats.minari.contents import MAIN, METADATA
from foretoken.data.formats.minari.hdf5_episodes import Hdf5
from foretoken.data.formats.minari.spaces import TEXT, read_space


def sniff(path: str | os.PathLike[str]) -> bool:
    """Whether this is a dataset folder, its `data` folder, or the file `main_data.hdf5` inside."""
    folder = _folder(Path(path))
    if folder is None:
        return False
    try:
        return "data_format" in json.loads((folder / METADATA).read_text(encoding="utf-8")) or (folder / MAIN).is_file()
    except (OSError, ValueError):
        return (folder / MAIN).is_file()


def _folder(path: Path) -> Path | None:
    """The folder that holds metadata.json."""
    for folder in (path, path / "data", path.parent if path.name == MAIN else path):
        if (folder / METADATA).is_file():
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
        raise DataError(f"{path} is no Minari dataset: it needs {METADATA} beside the data; give the dataset's folder")
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
        Hdf5(folder, spec, metadata) if metadata.get("data_format", "hdf5") == "hdf5" else Arrow(folder, spec, metadata)
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
        metadata = json.loads((folder / METADATA).read_text(encoding="utf-8"))
    except (ValueError, OSError) as problem:
        raise DataError(f"{folder / METADATA} is not valid JSON ({problem}); fetch the dataset again") from None
    if not isinstance(metadata, dict):
        raise DataError(f"{folder / METADATA} must hold a JSON object, got a {type(metadata).__name__}")
    identifier = str(metadata.get("dataset_id", "x-v0"))
    if identifier.startswith("/") or ".." in identifier.split("/"):
        raise DataError(f"{folder / METADATA}: dataset_id {identifier!r} points outside the datasets' folder, refused")
    kind = metadata.get("data_format", "hdf5")
    if kind not in ("hdf5", "arrow", "parquet"):
        raise DataError(f"{folder / METADATA}: data_format must be 'hdf5', 'arrow' or 'parquet', got {kind!r}")
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


def _spec(
    folder: Path, metadata: Mapping[str, Any], environment: str, limit: int, bounds: tuple[float, float] | None
) -> tuple[Spec, list[str]]:
    spaces: dict[str, Any] = {}
    absent: list[str] = []
    for name in ("observation_space", "action_space"):
        text = metadata.get(name)
        if text is None:
            raise DataError(
                f"{folder / METADATA} has no {name}; add it as Minari writes it (datasets of Minari before "
                "0.4.3 lack it)"
            )
        spaces[name] = read_space(json.loads(text) if isinstance(text, str) else text, name, absent)
        if spaces[name] is TEXT:
            raise DataError(
                f"{folder / METADATA}: {name} is text, which is not read; use a dataset that encodes it as numbers"
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
