"""Writes a dataset that Minari opens."""

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from foretoken.core.errors import DataError
from foretoken.core.spec import Spec
from foretoken.data.episode import flatten
from foretoken.data.formats.minari.contents import MAIN, METADATA
from foretoken.data.formats.minari.spaces import write_space

_IDENTIFIER = re.compile(r"([-_\w]+/)*[-_\w]+-v\d+")
# The Minari release whose layout `write` follows
_WRITTEN_VERSION = "0.5.4"


def write(store: Any, path: str | os.PathLike[str], *, dataset_id: str = "") -> None:
    """Writes a dataset folder (HDF5, lossless) that `minari.load_dataset` opens.

    Args:
        store: the episodes; columns go to infos, facts to the episodes' attributes.
        path: the new folder. For Minari to find it, it must lie at `<MINARI_DATASETS_PATH>/<dataset_id>`.
        dataset_id: Minari's name, "[namespace/]name-v0"; default: the folder's name.

    Raises:
        DataError: where `path` exists, the name is malformed, a space has no counterpart in Minari, or the disk is too full.
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
        _check_room(store, data)
        _write_hdf5(store, data / MAIN)
        metadata["dataset_size"] = round((data / MAIN).stat().st_size / 1e6, 1)
        (data / METADATA).write_text(json.dumps(metadata), encoding="utf-8")
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_room(store: Any, folder: Path) -> None:
    """Refuses before the first byte: where a disk fills up while HDF5 writes, the process ends by a segmentation fault."""
    values = sum(column.size * np.dtype(column.dtype).itemsize for column in store.columns.values())
    headers = 600 * (len(store.columns) + 4)  # bytes of an episode's group and arrays, as measured
    needed, free = store.num_steps * values + store.num_episodes * headers, shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"a Minari dataset of {store!r} needs about {needed / 1e6:.3g} MB, {folder.parents[1]} has {free / 1e6:.3g} MB "
            "left; make room, or give another path"
        )


def _new_metadata(store: Any, identifier: str) -> dict[str, Any]:
    about = dict(getattr(store, "about", {}))
    metadata = {
        "total_episodes": int(store.num_episodes),
        "total_steps": int(store.num_steps - store.num_episodes),
        "data_format": "hdf5",
        "jpeg_encoding": False,
        "observation_space": json.dumps(write_space(store.spec.observation)),
        "action_space": json.dumps(write_space(store.spec.action)),
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
    # an entry point that is a function cannot be written down: a ValueError
    except (gymnasium.error.Error, TypeError, ValueError, ImportError):
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
