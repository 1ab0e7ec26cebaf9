"""import_dataset: files of other projects become a store."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from foretoken.core.errors import ConfigError, DataError, UnknownName
from foretoken.core.names import nearest
from foretoken.core.spec import Box, Space, Spec, leaves
from foretoken.data.episode import Episode
from foretoken.data.findings import Finding
from foretoken.data.store import Store, open_store

# In the order in which they are asked whether a path is theirs: Minari's HDF5 lies in a folder with metadata
FORMATS = ("minari", "d4rl", "npz")
# torch lacks these; the wider ones hold all their values
_WIDER = {"uint16": "int32", "uint32": "int64", "uint64": "int64"}


def import_dataset(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: str | None = None,
    floats: Literal["float32", "keep"] = "float32",
    environment: str = "",
    max_episode_steps: int = 0,
    action_bounds: tuple[float, float] | None = None,
    ends: tuple[str, ...] | None = None,
    columns: tuple[str, ...] | None = None,
    overwrite: bool = False,
) -> tuple[Store, list[Finding]]:
    """Reads a dataset, whatever its format, into a new store at `out`.

    The store is written beside `out` and put there when it is complete: a failed import leaves nothing behind.

    Args:
        path: a Minari dataset's folder, a D4RL HDF5 file or an npz file.
        out: the new store's folder.
        format: one of `FORMATS`; None looks at the files.
        floats: "float32" stores float64 as float32, "keep" keeps it.
        environment: Gymnasium id the data comes from, where the files do not say it.
        max_episode_steps: its time limit; by default that of the registered environment, or what the files say.
        action_bounds: lowest and highest allowed action, where the files do not say it.
        ends: of D4RL files, what ends an episode: some of "terminals", "timeouts" and "jumps"; None takes the first two. See
            `formats.d4rl`, for AntMaze and maze2d.
        columns: the extra step columns to keep ("infos/qpos", ...); None keeps all, () none.
        overwrite: replaces an existing store at `out`.

    Returns:
        The open store, and what was noticed while reading, with a summary first (code "summary"). `doctor.examine`
        looks deeper.

    Raises:
        ConfigError: for `ends` that do not fit the format, bounds in the wrong order, a negative time limit.
        DataError: for anything broken in the files, or where `out` exists and is not empty.
        UnknownName: for a format that does not exist.
        MissingExtra: where reading needs a package that is not installed.
    """
    source, target = Path(path), Path(out)
    if max_episode_steps < 0:
        raise ConfigError(
            f"max_episode_steps must be at least 1, or 0 for the registered limit, got {max_episode_steps}"
        )
    if action_bounds is not None and not action_bounds[0] < action_bounds[1]:
        raise ConfigError(f"action_bounds must be a lowest and a higher action, got {action_bounds}")
    _check_target(target, overwrite)
    reader = _reader(source, format)
    if ends is not None and not hasattr(reader, "ENDS"):
        raise ConfigError(f"ends are chosen for D4RL files only, got ends={list(ends)} for {source}")
    spec, episodes, about = reader.read(
        source,
        environment=environment,
        max_episode_steps=max_episode_steps or _time_limit(environment),
        action_bounds=action_bounds,
        **({} if ends is None else {"ends": ends}),
    )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # In the same folder, so that the final rename stays within one file system
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
    except OSError as problem:
        raise DataError(f"no store can be made at {target} ({problem.strerror}); give another path") from None
    try:
        _fill(partial / "store", source, spec, _with_columns(episodes, columns), about, floats)
        _put(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    store = open_store(target)
    return store, [_summary(store, about), *(Finding(**tree) for tree in about["findings"])]


def _check_target(target: Path, overwrite: bool) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise DataError(f"{target} exists and is no folder; give another path")
    if not target.is_dir() or not any(target.iterdir()):
        return
    if not overwrite:
        raise DataError(
            f"{target} exists and is not empty; give another path, or overwrite=True (--overwrite) to replace the store there"
        )
    if not (target / "store.json").is_file():
        raise DataError(f"{target} holds something other than a store, which is never overwritten; give another path")


def _reader(path: Path, format: str | None) -> ModuleType:
    if format is not None and format not in FORMATS:
        raise UnknownName(f"no format is called {format!r}{nearest(format, FORMATS)}; there are {', '.join(FORMATS)}")
    if not path.exists():
        raise DataError(f"{path} does not exist; give a Minari dataset's folder, a D4RL HDF5 file or an npz file")
    for name in (format,) if format else FORMATS:
        module = import_module(f"foretoken.data.formats.{name}")
        if format or module.sniff(path):
            return module
    if inside := _inside(path):
        some = ", ".join(inside[:3]) + (", ..." if len(inside) > 3 else "")
        raise DataError(f"{path} is a folder of other things, and one dataset is needed: give one of {some}")
    why = "the folder is empty" if path.is_dir() and not any(path.iterdir()) else "or was cut short"
    raise DataError(
        f"{path} is of no known format ({why}): a Minari folder needs metadata.json beside its data, a "
        "D4RL file must be HDF5 with observations and actions, an npz must be a zip of arrays; --format NAME shows the "
        "exact complaint"
    )


def _inside(path: Path) -> list[str]:
    """Files somewhere in a folder that look like datasets; of Minari's, the folder. At most a few."""
    found = (part for part in sorted(path.rglob("*")) if part.suffix in (".npz", ".hdf5", ".h5"))
    return [str(part.parents[1] if part.name == "main_data.hdf5" else part) for part in islice(found, 4)]


def _time_limit(environment: str) -> int:
    """The registered environment's time limit; 0 where it has none or is not registered."""
    if not environment:
        return 0
    import gymnasium

    try:
        return gymnasium.spec(environment).max_episode_steps or 0
    except gymnasium.error.Error:
        return 0


def _fill(
    folder: Path,
    source: Path,
    spec: Spec,
    episodes: Iterator[Episode],
    about: dict[str, Any],
    floats: Literal["float32", "keep"],
) -> None:
    first = next(iter(episodes := iter(episodes)), None)
    if first is None:
        raise DataError(f"{source} holds no episodes with an action; import a file with at least one")
    store = Store.create(folder, spec, columns=_column_spaces(first), floats=floats, about=about)
    number = 0

    def numbered() -> Iterator[Episode]:
        nonlocal number
        for number, episode in enumerate(chain([first], episodes)):  # noqa: B007  read after the loop stopped
            yield episode

    try:
        store.extend(numbered())
    except DataError as problem:
        way_out = "; leave such columns out with columns=(names to keep)" if "column" in str(problem) else ""
        raise DataError(f"{source}: episode {number}: {problem}{way_out}") from None
    store.close()


def _with_columns(episodes: Iterator[Episode], columns: tuple[str, ...] | None) -> Iterator[Episode]:
    """The same episodes with only the named columns."""
    for episode in episodes:
        for name in columns or ():
            if name not in episode.columns:
                raise DataError(
                    f"the data have no column {name!r}{nearest(name, episode.columns)}; they have "
                    f"{sorted(episode.columns)}"
                )
        yield (
            episode if columns is None else replace(episode, columns={name: episode.columns[name] for name in columns})
        )


def _column_spaces(episode: Episode) -> dict[str, Space]:
    """Spaces of the extra columns, as the first episode has them."""
    return {
        name: Box(shape=values.shape[1:], dtype=_WIDER.get(str(values.dtype), str(values.dtype)))
        for name, values in episode.columns.items()
    }


def _put(partial: Path, target: Path) -> None:
    """Moves the finished store to its place; an old one goes only when the new one is there."""
    old = partial / "old"
    if target.exists():
        target.rename(old)
    try:
        (partial / "store").rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise


def _summary(store: Store, about: dict[str, Any]) -> Finding:
    returns = np.asarray(store.episodes["return"], np.float64)
    actions = store.num_steps - store.num_episodes
    shapes = {
        part: {path: leaf.shape or type(leaf).__name__ for path, leaf in leaves(getattr(store.spec, part)).items()}
        for part in ("observation", "action")
    }
    words = "; ".join(
        f"{part} " + ", ".join(f"{path.lstrip('/')} {shape}".strip() for path, shape in found.items())
        for part, found in shapes.items()
    )
    where = (
        store.spec.environment or "an environment without name (--environment ID names it, so that it can be played)"
    )
    message = (
        f"{about['format']}: {store.num_episodes} episodes, {actions} actions of {where}; {words}; return mean "
        f"{returns.mean():.4g}, lowest {returns.min():.4g}, highest {returns.max():.4g}."
    )
    detail = {
        "episodes": int(store.num_episodes),
        "actions": int(actions),
        "return_mean": float(returns.mean()),
        "return_low": float(returns.min()),
        "return_high": float(returns.max()),
    }
    return Finding("summary", "note", message, detail)
