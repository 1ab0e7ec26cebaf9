"""D4RL's flat HDF5 files: one row per transition, all episodes after one another.

    observations (N, ...)   actions (N, ...)   rewards (N,)   terminals (N,)      needed
    timeouts (N,)   next_observations (N, ...)   infos/* (N, ...)   metadata/*    optional

`terminals` says that the environment ended the episode, `timeouts` that a time limit cut it; they are never mixed. Where
`timeouts` is missing, cuts are found by counting to `max_episode_steps` and by rows whose successor is not the next row's
observation; a finding says which, or that neither was possible. Where final observations come from: `formats.flat`.

AntMaze needs a choice of its `ends`. In some versions an ant is put elsewhere in the maze where no timeout says so (D4RL issue 77);
and terminals mark every step on the goal, where the way goes on, so that what is cut there are single steps. Cut at jumps
instead; maze2d is one long way, whose timeouts are goals reached (issue 85), and has none.

    foretoken import antmaze-medium-play-v2.hdf5 --ends timeouts,jumps
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from foretoken.core.errors import ConfigError, DataError
from foretoken.core.names import nearest
from foretoken.core.spec import Box, Dict, Spec
from foretoken.data.episode import Episode, flatten
from foretoken.data.formats import flat, hdf5
from foretoken.data.table import RESERVED

_FIELDS = {
    "observation": "observations",
    "action": "actions",
    "reward": "rewards",
    "next_observation": "next_observations",
}
_SPEC = "foretoken_spec"
_NEEDED = ("observations", "actions", "rewards", "terminals")
# Relative difference above which a successor is not the next row: files mix float32 and float64
_TOLERANCE = 1e-5
# A position that moves this many times further than in 95 % of steps was put there
_LEAP = 5.0

ENDS = ("terminals", "timeouts", "jumps")
"""What may end an episode."""


def sniff(path: str | os.PathLike[str]) -> bool:
    """Whether this is an HDF5 file with `observations` and `actions` at its root."""
    import h5py

    file = Path(path)
    if not file.is_file() or not h5py.is_hdf5(file):
        return False
    with hdf5.opened(file) as opened:
        return "observations" in opened and "actions" in opened


def read(
    path: str | os.PathLike[str],
    *,
    environment: str = "",
    max_episode_steps: int = 0,
    action_bounds: tuple[float, float] | None = None,
    ends: tuple[str, ...] = ENDS[:2],
) -> tuple[Spec, Iterator[Episode], dict[str, Any]]:
    """What a file holds: its spec, its episodes (read while iterating), and what is known about it.

    Args:
        path: the HDF5 file.
        environment: Gymnasium id the data comes from.
        max_episode_steps: the environment's time limit; used to find cuts where the file has no `timeouts`.
        action_bounds: lowest and highest allowed action; -1 and 1 where all actions lie within and nothing is given.
        ends: which of `ENDS` end an episode. "jumps" are rows whose successor is not the next row's observation, or, where the file
            has no successors, after which the position, the first two entries of an observation as in AntMaze and maze2d, moves
            further than it can. A terminal that ends nothing is dropped.

    Raises:
        ConfigError: for `ends` that there are not.
        DataError: for missing arrays, unequal lengths, Python objects, shuffled rows, links into other files.
    """
    source, notes = Path(path), flat.Notes()
    for name in ends or ("",):
        if name not in ENDS:
            raise ConfigError(f"ends must be some of {list(ENDS)}, got {name!r}{nearest(name, ENDS)}")
    with hdf5.opened(source) as file:
        count = _check(file)
        cuts = _cuts(file, count, max_episode_steps, ends, notes)
        notes.about_final(cuts)
        columns = _columns(file, count, notes)
        spec = _own_spec(file) or Spec(
            observation=flat.observation_space(file["observations"].shape[1:], file["observations"].dtype),
            action=_action_space(file, count, action_bounds, notes),
        )
        spec = spec.replace(
            environment=environment or spec.environment, max_episode_steps=max_episode_steps or spec.max_episode_steps
        )
        facts = _facts(file, len(cuts.start))
        about = {
            "format": "d4rl",
            "source": source.name,
            "metadata": _metadata(file),
            "findings": [one.to_json() for one in notes.found],
        }
    return spec, _episodes(source, spec, cuts, columns, facts), about


def _own_spec(file: Any) -> Spec | None:
    """The spec that `write` leaves in the file."""
    text = file.attrs.get(_SPEC)
    return Spec.from_json(json.loads(text)) if isinstance(text, str) else None


def _check(file: Any) -> int:
    for name in _NEEDED:
        if name not in file:
            held = sorted(file)
            some = ", ".join(held[:8]) + (f" and {len(held) - 8} more" if len(held) > 8 else "")
            way_out = "; give --format minari for a Minari dataset" if any("episode_" in part for part in held) else ""
            raise DataError(
                f"{file.filename} has no {name!r}; a D4RL file needs {', '.join(_NEEDED)}, this one has {some}{way_out}"
            )
    names = [name for name in (*_NEEDED, "timeouts", "next_observations") if name in file]
    for name in names:
        if not hasattr(file[name], "dtype"):
            raise DataError(
                f"{file.filename}: {name!r} is a group, needs an array; D4RL files have no nested observations"
            )
        hdf5.numeric(file[name].dtype, f"{file.filename}: {name!r}")
    shapes = {name: file[name].shape for name in names}
    if shapes.get("next_observations", shapes["observations"])[1:] != shapes["observations"][1:]:
        raise DataError(
            f"{file.filename}: observations and next_observations need one shape, got {shapes['observations']} and "
            f"{shapes['next_observations']}"
        )
    return flat.same_rows(shapes, file.filename)


def _cuts(file: Any, count: int, limit: int, ends: tuple[str, ...], notes: flat.Notes) -> flat.Cuts:
    terminals = flat.flags(hdf5.Arrays(file).read("terminals"), "terminals", file.filename)
    follows, ended = "next_observations" in file, np.zeros(count, bool)
    if "timeouts" in file:
        timeouts = flat.flags(hdf5.Arrays(file).read("timeouts"), "timeouts", file.filename)
    else:
        timeouts = _guess_timeouts(file, terminals, limit, ends, notes)
    if not terminals[-1] and not timeouts[-1]:
        timeouts[-1] = True
        notes.add("open-end", "note", "the file ends in the middle of an episode; that episode is marked truncated.")
    for name, flagged in {"terminals": terminals, "timeouts": timeouts}.items():
        ended |= flagged & (name in ends)
    ended[-1] = True
    if "jumps" in ends:
        jumps = (_jumps if follows else _leaps)(file, ended)
        _about_jumps(int(jumps.sum()), follows, notes)
        ended |= jumps
    if inside := int((terminals & ~ended).sum()):
        notes.add(
            "terminals-inside",
            "note",
            f"{inside} terminals end no episode, as ends={list(ends)} asks, and were dropped.",
            rows=inside,
        )
    stop = np.flatnonzero(ended) + 1
    start = np.concatenate([[0], stop[:-1]])
    final: dict[str, flat.Final] = (
        {"terminated": "next", "truncated": "next"} if follows else {"terminated": "repeat", "truncated": "drop"}
    )
    return flat.Cuts(start, stop, terminals[stop - 1], (timeouts | ~terminals)[stop - 1], final)


def _guess_timeouts(
    file: Any, terminals: np.ndarray, limit: int, ends: tuple[str, ...], notes: flat.Notes
) -> np.ndarray:
    """Cuts of a file without `timeouts`: where the successor is not the next row, and after every `limit` rows."""
    cuts = np.zeros_like(terminals)
    if "next_observations" in file:
        cuts |= _jumps(file, terminals)
        notes.add(
            "timeouts-from-jumps",
            "note",
            f"the file has no timeouts; {int(cuts.sum())} rows whose successor is not the next row's observation "
            "were taken as truncations.",
            cuts=int(cuts.sum()),
        )
    if limit:
        ends = terminals | cuts
        begin = np.maximum.accumulate(np.where(np.concatenate([[True], ends[:-1]]), np.arange(len(ends)), 0))
        reached = ((np.arange(len(ends)) - begin + 1) % limit == 0) & ~terminals
        notes.add(
            "timeouts-from-limit",
            "note",
            f"the file has no timeouts; {int((reached & ~cuts).sum())} episodes that reached max_episode_steps={limit} "
            "without a terminal were cut there and marked truncated.",
            cuts=int((reached & ~cuts).sum()),
        )
        cuts |= reached
    if not limit and "next_observations" not in file and "jumps" not in ends:
        _no_timeouts(terminals, notes)
    return cuts


def _no_timeouts(terminals: np.ndarray, notes: flat.Notes) -> None:
    way_out = "give max_episode_steps (the environment's time limit), or a file with timeouts or next_observations."
    if terminals.any():
        notes.add(
            "timeouts-missing",
            "warning",
            f"the file has no timeouts and no next_observations, so only its {int(terminals.sum())} terminals end "
            "episodes "
            f"and a time limit between them cannot be seen; {way_out}",
        )
    else:
        notes.add(
            "no-boundaries",
            "error",
            f"nothing in the file says where an episode ends: all {len(terminals)} rows became one episode; {way_out}",
        )


def _jumps(file: Any, ended: np.ndarray) -> np.ndarray:
    """(N,) bool: no episode ends with the row (N,) and its successor is not the next row's observation."""
    count = len(ended)
    jumps = np.zeros(count, bool)
    for start in range(0, count - 1, flat.BLOCK_ROWS):
        stop = min(start + flat.BLOCK_ROWS, count - 1)
        following = hdf5.Arrays(file).read("next_observations", slice(start, stop))
        after = hdf5.Arrays(file).read("observations", slice(start + 1, stop + 1))
        close = np.isclose(following, after, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)
        jumps[start:stop] = ~close.reshape(stop - start, -1).all(1)
    jumps &= ~ended
    # A shuffled file has a jump almost everywhere; a real one has at most a few
    if count > 10 and jumps.sum() > 0.5 * (~ended).sum():
        raise DataError(
            f"{file.filename}: {jumps.mean():.0%} of the rows are not followed by their next_observations; episodes "
            "need rows in the order of time, "
            "these seem shuffled: import the original file"
        )
    return jumps


def _leaps(file: Any, ended: np.ndarray) -> np.ndarray:
    """(N,) bool: no episode ends with the row (N,) and from it to the next the position moves further than it can."""
    shape = file["observations"].shape
    if len(shape) != 2 or shape[1] < 2:
        raise DataError(
            f"{file.filename}: jumps are seen by next_observations, or by the first two entries of an observation, the position; "
            f"this file has neither, its observations have shape {shape[1:]}"
        )
    count = len(ended)
    blocks = (slice(start, min(start + flat.BLOCK_ROWS, count)) for start in range(0, count, flat.BLOCK_ROWS))
    place = np.concatenate([hdf5.Arrays(file).read("observations", rows)[:, :2] for rows in blocks]).astype(np.float64)
    moved = np.append(np.linalg.norm(np.diff(place, axis=0), axis=1), 0.0)
    moved[ended] = 0.0
    return moved > _LEAP * np.quantile(moved[moved > 0], 0.95) if moved.any() else np.zeros(count, bool)


def _about_jumps(count: int, follows: bool, notes: flat.Notes) -> None:
    why = (
        "whose successor is not the next row's observation"
        if follows
        else "after which the position moves further than it can"
    )
    notes.add("cut-at-jumps", "note", f"{count} rows {why} were taken as truncations.", cuts=count)


def _action_space(file: Any, count: int, bounds: tuple[float, float] | None, notes: flat.Notes) -> Any:
    found = file["actions"]
    low, high = np.full(found.shape[1:], np.inf), np.full(found.shape[1:], -np.inf)
    for start in range(0, count, flat.BLOCK_ROWS):
        rows = hdf5.Arrays(file).read("actions", slice(start, min(start + flat.BLOCK_ROWS, count)))
        low, high = np.minimum(low, rows.min(0)), np.maximum(high, rows.max(0))
    return flat.action_space(found.shape[1:], found.dtype, low, high, bounds, file.filename, notes)


def _columns(file: Any, count: int, notes: flat.Notes) -> tuple[str, ...]:
    names: list[str] = []
    left: list[str] = []

    def visit(name: str, found: Any) -> None:
        if hasattr(found, "dtype"):
            (names if found.dtype.kind in "biuf" and found.shape[:1] == (count,) else left).append(f"infos/{name}")

    if "infos" in file:
        file["infos"].visititems(visit)
    if left:
        notes.add(
            "infos-left-out",
            "note",
            f"{len(left)} entries of infos hold no number per row and were left out: {left[:8]}.",
            names=left,
        )
    return tuple(names)


def _metadata(file: Any) -> dict[str, Any]:
    """The single numbers and texts under `metadata`; its arrays (policy weights) are left out."""
    found: dict[str, Any] = {}

    def visit(name: str, entry: Any) -> None:
        if (
            getattr(entry, "shape", None) == ()
            and entry.dtype.kind in "biufOS"
            and not entry.is_virtual
            and not entry.external
        ):
            value = entry[()]
            found[name] = (
                value.decode(errors="replace")
                if isinstance(value, bytes)
                else getattr(value, "item", lambda value=value: str(value))()
            )

    if "metadata" in file:
        file["metadata"].visititems(visit)
    return found


def _facts(file: Any, count: int) -> dict[str, np.ndarray]:
    """Values per episode, as `write` stores them."""
    group = file.get("metadata/episodes")
    names = [name for name in group if group[name].shape == (count,)] if group is not None else []
    return {name: _fact(file, f"metadata/episodes/{name}") for name in names}


def _fact(file: Any, name: str) -> np.ndarray:
    import h5py

    if h5py.check_string_dtype(file[name].dtype):
        return np.array(file[name].asstr()[()], dtype=str)
    return hdf5.Arrays(file).read(name)


def _episodes(
    path: Path, spec: Spec, cuts: flat.Cuts, columns: tuple[str, ...], facts: dict[str, np.ndarray]
) -> Iterator[Episode]:
    whole = not isinstance(spec.action, Box)

    with hdf5.opened(path) as file:
        arrays = hdf5.Arrays(file)

        def rows(name: str, start: int, stop: int) -> np.ndarray:
            values = arrays.read(_FIELDS.get(name, name), slice(start, stop))
            if name == "reward":
                return flat.per_row(values, "rewards", str(path))
            if name == "action" and whole:
                return values.reshape(stop - start, *spec.action.shape).astype(np.int64)  # type: ignore[union-attr]
            return values

        yield from flat.episodes(rows, cuts, columns, facts)


def write(store: Any, path: str | os.PathLike[str]) -> None:
    """Writes a store as one flat file with `next_observations`, so that reading it back loses nothing.

    Columns go to `infos/<name>` (their value at the final observation has no place in this format) and facts to
    `metadata/episodes/<name>`.

    Raises:
        DataError: for Dict observations or actions, which a flat file cannot hold, and where `path` exists.
    """
    import h5py

    target = Path(path)
    if target.exists():
        raise DataError(f"{target} exists; remove it or give another path")
    if isinstance(store.spec.observation, Dict) or isinstance(store.spec.action, Dict):
        raise DataError(
            "a D4RL file holds plain observations and actions only, this store has Dict ones; write Minari or npz "
            "instead"
        )
    partial = target.with_name(f".{target.name}.partial")
    try:
        with h5py.File(partial, "w") as file:
            _write_rows(store, file)
            _write_facts(store, file)
            file.attrs[_SPEC] = json.dumps(store.spec.to_json())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _write_rows(store: Any, file: Any) -> None:
    at, total = 0, store.num_steps - store.num_episodes
    for number in range(store.num_episodes):
        episode = store.episode(number)
        count = len(episode.action)
        rows = {
            "observations": episode.observation[:-1],
            "next_observations": episode.observation[1:],
            "actions": episode.action,
            "rewards": episode.reward,
            "terminals": episode.terminated,
            "timeouts": episode.truncated,
        }
        for name, tree in episode.columns.items():
            rows |= {
                f"infos/{path.removeprefix('infos/')}": values[:count] for path, values in flatten(tree, name).items()
            }
        for name, values in rows.items():
            if number == 0:
                file.create_dataset(name, (total, *values.shape[1:]), values.dtype)
            file[name][at : at + count] = values
        at += count


def _write_facts(store: Any, file: Any) -> None:
    import h5py

    for name, values in store.episodes.items():
        if name in RESERVED:
            continue
        values = np.asarray(values)
        kind = h5py.string_dtype() if values.dtype.kind in "US" else values.dtype
        file.create_dataset(
            f"metadata/episodes/{name}", data=values.astype(object) if values.dtype.kind in "US" else values, dtype=kind
        )
