"""npz files: foretoken's own layout, and the flat layouts found in the wild.

Our layout (`format` = "foretoken-npz", `version` = 1), E episodes of n_e actions each:

    spec, about         JSON texts
    length              (E,) int64 actions per episode
    observation         (sum(n_e + 1), ...), or observation/<leaf path> for Dict spaces; likewise action (sum(n_e), ...)
    reward, terminated, truncated    (sum(n_e),)
    columns/<name>      (sum(n_e), ...) or (sum(n_e + 1), ...)
    facts/<name>        (E,)

Foreign files hold one row per transition under the names in `_NAMES`, and say where episodes end in one of the ways in
`_boundaries`. Most of them have no final observation: all actions are kept and the last observation is given twice, with
a finding. (Giving up the last action instead would lose the reward that often matters most: the one at the goal.)

An npz is read whole: a zip archive cannot be memory-mapped. Python objects are never loaded.
"""

import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from foretoken.core.errors import DataError
from foretoken.core.spec import Box, Dict, Space, Spec, leaves
from foretoken.data.episode import Episode, flatten
from foretoken.data.formats import flat
from foretoken.data.layout import COMPUTED
from foretoken.data.table import RESERVED

FORMAT, VERSION = "foretoken-npz", 1
# What other people call the same array; the first name found is taken
_NAMES = {
    "observation": ("observations", "obs", "observation", "states", "state"),
    "next_observation": ("next_observations", "next_obs", "next_observation", "next_states"),
    "action": ("actions", "action", "acts"),
    "reward": ("rewards", "reward", "rews"),
    "length": ("episode_lengths", "lengths", "episode_length", "length", "traj_lengths"),
    "begin": ("episode_starts", "is_first"),
    "step_type": ("step_type", "step_types"),
    "terminated": ("terminated", "terminals", "terminations", "terminal", "is_terminal"),
    "truncated": ("truncated", "timeouts", "truncations", "timeout"),
    "done": ("dones", "done", "is_last"),
    "discount": ("discounts", "discount"),
    "returns": ("episode_returns",),
}


def sniff(path: str | os.PathLike[str]) -> bool:
    """Whether this is a zip archive of .npy members."""
    file = Path(path)
    if not file.is_file() or not zipfile.is_zipfile(file):
        return False
    with zipfile.ZipFile(file) as archive:
        return any(name.endswith(".npy") for name in archive.namelist())


def read(
    path: str | os.PathLike[str],
    *,
    environment: str = "",
    max_episode_steps: int = 0,
    action_bounds: tuple[float, float] | None = None,
) -> tuple[Spec, Iterator[Episode], dict[str, Any]]:
    """What a file holds: its spec, its episodes, and what is known about it.

    Args:
        path: the npz file.
        environment: Gymnasium id the data comes from.
        max_episode_steps: the environment's time limit; tells termination from truncation where a file only says "done".
        action_bounds: lowest and highest allowed action; -1 and 1 where all actions lie within and nothing is given.

    Raises:
        DataError: for missing arrays, unequal lengths, Python objects or texts, member names that leave the archive.
    """
    source = Path(path)
    arrays = _load(source)
    if str(arrays.get("format", "")) == FORMAT:
        spec, episodes, about = _read_own(source, arrays)
    else:
        spec, episodes, about = _read_foreign(source, arrays, max_episode_steps, action_bounds)
    spec = spec.replace(
        environment=environment or spec.environment, max_episode_steps=max_episode_steps or spec.max_episode_steps
    )
    return spec, episodes, {**about, "format": "npz", "source": source.name}


def _load(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise DataError(f"{path} does not exist; give the path of an npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            _refuse_outside(path, archive.namelist())
        with np.load(path, allow_pickle=False) as archive:
            return {name: _member(path, archive, name) for name in archive.files}
    except (zipfile.BadZipFile, EOFError, OSError) as problem:
        raise DataError(
            f"{path} is not a whole npz file ({problem}); it may have been cut short: fetch it again"
        ) from None


def _refuse_outside(path: Path, names: list[str]) -> None:
    for name in names:
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or name[1:2] == ":":
            raise DataError(
                f"{path}: the member {name!r} points outside the archive, refused; make the file anew with plain "
                "array names"
            )


def _member(path: Path, archive: Any, name: str) -> np.ndarray:
    try:
        values = archive[name]
    except ValueError as problem:
        if "Object arrays" in str(problem) or "pickle" in str(problem):
            raise DataError(
                f"{path}: {name!r} holds Python objects, which could run code when loaded: refused; store it as an "
                "array of numbers"
            ) from None
        raise DataError(f"{path}: {name!r} cannot be read ({problem}); the file is damaged: fetch it again") from None
    if not isinstance(values, np.ndarray):
        raise DataError(f"{path}: {name!r} is no array; an npz holds arrays only")
    return values


def _text(path: Path, arrays: Mapping[str, np.ndarray], name: str) -> Any:
    values = arrays.get(name)
    try:
        return json.loads(str(values)) if values is not None else {}
    except json.JSONDecodeError as problem:
        raise DataError(f"{path}: {name!r} must be JSON text: {problem}") from None


# Our own layout


def _read_own(path: Path, arrays: dict[str, np.ndarray]) -> tuple[Spec, Iterator[Episode], dict[str, Any]]:
    version = int(arrays.get("version", 0))
    if version != VERSION:
        raise DataError(
            f"{path} is {FORMAT} version {version}, this foretoken reads version {VERSION}; use the release that "
            "wrote it"
        )
    spec = Spec.from_json(_text(path, arrays, "spec"))
    _check_own(path, arrays, spec)
    about = _text(path, arrays, "about")
    return spec, _own_episodes(arrays, spec), {**about, "findings": []}


def _check_own(path: Path, arrays: Mapping[str, np.ndarray], spec: Spec) -> None:
    lengths = arrays.get("length", np.zeros(0, np.int64))
    if not len(lengths) or lengths.min() < 1:
        raise DataError(
            f"{path} needs 'length' with at least one episode of at least one action, got {lengths[:8].tolist()}"
        )
    steps = {
        len(lengths): "facts",
        int(lengths.sum()): "steps",
        int((lengths + 1).sum()): "steps and final observations",
    }
    wanted = {f"observation{leaf}": (lengths + 1).sum() for leaf in leaves(spec.observation)}
    wanted |= {f"action{leaf}": lengths.sum() for leaf in leaves(spec.action)} | dict.fromkeys(
        ("reward", "terminated", "truncated"), lengths.sum()
    )
    for name, count in wanted.items():
        if name not in arrays or len(arrays[name]) != count:
            came = f"{len(arrays[name])}" if name in arrays else "no such array"
            raise DataError(
                f"{path}: {name!r} needs {count} entries for lengths that add up to {lengths.sum()}, got {came}; the "
                "file is broken"
            )
    for name, values in arrays.items():
        if (name.startswith("columns/") and len(values) not in list(steps)[1:]) or (
            name.startswith("facts/") and len(values) != len(lengths)
        ):
            raise DataError(f"{path}: {name!r} has {len(values)} entries, needs one of {steps}; the file is broken")


def _own_episodes(arrays: Mapping[str, np.ndarray], spec: Spec) -> Iterator[Episode]:
    lengths = arrays["length"]
    ends = np.cumsum(lengths)
    columns = {name.removeprefix("columns/"): values for name, values in arrays.items() if name.startswith("columns/")}
    facts = {name.removeprefix("facts/"): values for name, values in arrays.items() if name.startswith("facts/")}
    for number, (length, end) in enumerate(zip(lengths.tolist(), ends.tolist(), strict=True)):
        rows, steps = slice(end - length, end), slice(end - length + number, end + number + 1)
        yield Episode(
            observation=_gather(spec.observation, "observation", arrays, steps),
            action=_gather(spec.action, "action", arrays, rows),
            reward=arrays["reward"][rows],
            terminated=arrays["terminated"][rows],
            truncated=arrays["truncated"][rows],
            columns={name: values[rows if len(values) == ends[-1] else steps] for name, values in columns.items()},
            facts=flat.facts_of(facts, number),
        )


def _gather(space: Space, name: str, arrays: Mapping[str, np.ndarray], rows: slice) -> Any:
    if isinstance(space, Dict):
        return {key: _gather(part, f"{name}/{key}", arrays, rows) for key, part in space.spaces.items()}
    return arrays[name][rows]


def write(store: Any, path: str | os.PathLike[str]) -> None:
    """Writes a store in our layout, one episode in memory at a time; reading it back gives equal episodes.

    Raises:
        DataError: where `path` exists, or where the store has no episodes.
    """
    target = Path(path)
    if target.exists():
        raise DataError(f"{target} exists; remove it or give another path")
    if not store.num_episodes:
        raise DataError("a store without episodes cannot be written as npz; append at least one")
    partial = target.with_name(f".{target.name}.partial")
    try:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, shape, dtype, pieces in _members(store):
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(member, header)
                    for piece in pieces:
                        member.write(np.ascontiguousarray(piece, dtype).tobytes())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _members(store: Any) -> Iterator[tuple[str, tuple[int, ...], np.dtype, Any]]:
    """Name, shape, dtype and the pieces of every array; each array is one pass over the store."""
    texts = {
        "format": FORMAT,
        "version": VERSION,
        "spec": json.dumps(store.spec.to_json()),
        "about": json.dumps(dict(getattr(store, "about", {}))),
    }
    whole = {name: np.asarray(value) for name, value in texts.items()} | {
        "length": np.asarray(store.episodes["length"], np.int64)
    }
    whole |= {f"facts/{name}": np.asarray(value) for name, value in store.episodes.items() if name not in RESERVED}
    for name, values in whole.items():
        yield name, values.shape, values.dtype, [values]
    first, numbers = _leaf_arrays(store.episode(0)), range(store.num_episodes)
    actions = len(first["reward"])
    for name, values in first.items():
        count = store.num_steps - (store.num_episodes if len(values) == actions else 0)
        yield (
            name,
            (count, *values.shape[1:]),
            values.dtype,
            (_leaf_arrays(store.episode(number))[name] for number in numbers),
        )


def _leaf_arrays(episode: Episode) -> dict[str, np.ndarray]:
    found = flatten(episode.observation, "observation") | flatten(episode.action, "action")
    found |= {"reward": episode.reward, "terminated": episode.terminated, "truncated": episode.truncated}
    for name, tree in episode.columns.items():
        found |= flatten(tree, f"columns/{name}")
    return found


# Foreign layouts


def _read_foreign(
    path: Path, arrays: dict[str, np.ndarray], limit: int, bounds: tuple[float, float] | None
) -> tuple[Spec, Iterator[Episode], dict[str, Any]]:
    notes = flat.Notes()
    known, rest = _recognise(path, arrays)
    observation, action, reward = _steps(path, known)
    stop, terminated, truncated, shown = _boundaries(path, known, len(reward), limit, notes)
    start = np.concatenate([[0], stop[:-1]])
    following = known.get("next_observation")
    if len(observation) == len(reward) + len(stop):
        observation, following = _split_finals(observation, stop)
    final: flat.Final = "repeat" if following is None else "next"
    cuts = flat.Cuts(start, stop, terminated, truncated, {"terminated": final, "truncated": final})
    notes.about_final(cuts)
    columns, facts = _sort_rest(rest, known, shown, cuts, reward, notes)
    rows: dict[str, Any] = {
        "observation": observation,
        "next_observation": following,
        "action": action,
        "reward": reward,
        **columns,
    }
    spec = Spec(
        observation=flat.observation_space(observation.shape[1:], observation.dtype),
        action=flat.action_space(
            action.shape[1:], action.dtype, action.min(0), action.max(0), bounds, str(path), notes
        ),
    )
    if not isinstance(spec.action, Box):
        rows["action"] = action.reshape(len(action), *spec.action.shape).astype(np.int64)  # type: ignore[union-attr]
    episodes = flat.episodes(lambda name, begin, end: rows[name][begin:end], cuts, tuple(columns), facts)
    return spec, episodes, {"findings": [one.to_json() for one in notes.found]}


def _recognise(path: Path, arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Arrays under our names, and all others."""
    names = {ours: next((name for name in theirs if name in arrays), "") for ours, theirs in _NAMES.items()}
    for ours in ("observation", "action", "reward"):
        if not names[ours]:
            raise DataError(
                f"{path} has no {ours} under any of the names {', '.join(_NAMES[ours])}; it holds {', '.join(sorted(arrays))}. "
                "Save it again under such names, a row per step, and with what says where episodes end (docs/data-formats.md)"
            )
    known = {ours: arrays[name] for ours, name in names.items() if name}
    for ours, values in known.items():
        if values.dtype.kind not in "biuf":
            raise DataError(
                f"{path}: {names[ours]!r} has dtype {values.dtype}, needs numbers or booleans; convert it first"
            )
    return known, {name: values for name, values in arrays.items() if name not in names.values()}


def _steps(path: Path, known: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    reward = flat.per_row(known["reward"], "reward", str(path))
    observation, action = known["observation"], known["action"]
    shapes = {"action": action.shape, "reward": reward.shape}
    # lengths are the one layout that can hold n + 1 observations per episode
    extra = len(known["length"]) if "length" in known else 0
    if not (extra and len(observation) == len(reward) + extra):
        shapes["observation"] = observation.shape
    if "next_observation" in known:
        shapes["next_observation"] = known["next_observation"].shape
        if known["next_observation"].shape[1:] != observation.shape[1:]:
            raise DataError(
                f"{path}: next observations need the shape of observations {observation.shape}, got "
                f"{known['next_observation'].shape}"
            )
    flat.same_rows(shapes, str(path))
    return observation, action, reward


def _boundaries(
    path: Path, known: Mapping[str, np.ndarray], count: int, limit: int, notes: flat.Notes
) -> tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """Where episodes stop (E,), which of them terminated or were truncated (E,), and the names that said so."""
    shown = tuple(name for name in ("length", "begin", "step_type", "terminated", "truncated", "done") if name in known)
    if not shown:
        wanted = [
            name
            for ours in ("length", "begin", "step_type", "terminated", "truncated", "done")
            for name in _NAMES[ours]
        ]
        raise DataError(
            f"{path}: nothing says where an episode ends; add one of the arrays {', '.join(wanted)} (docs/data-formats.md)"
        )
    per_step = {name: known[name] for name in shown if name != "length"}
    flat.same_rows({"reward": (count,)} | {name: values.shape for name, values in per_step.items()}, str(path))
    row_flags = {name: flat.flags(values, name, str(path)) for name, values in per_step.items() if name != "step_type"}
    ends = _ends(path, known, shown, row_flags, count)
    if not ends[-1]:
        ends[-1] = True
        notes.add("open-end", "note", "the file ends in the middle of an episode; that episode is marked truncated.")
    stop = np.flatnonzero(ends) + 1
    said: dict[str, np.ndarray] = {name: row_flags[name] for name in ("terminated", "truncated") if name in row_flags}
    for name, values in said.items():
        if (values & ~ends).any():
            row = int(np.flatnonzero(values & ~ends)[0])
            raise DataError(
                f"{path}: {name!r} is set at row {row}, inside an episode according to {shown[0]!r}; they must agree: "
                "remove the wrong one"
            )
    return stop, *_kinds(known, shown, said, stop, limit, notes), shown


def _ends(
    path: Path, known: Mapping[str, np.ndarray], shown: tuple[str, ...], row_flags: Mapping[str, np.ndarray], count: int
) -> np.ndarray:
    """(N,) bool: the row is an episode's last, from the most explicit array there is."""
    ends = np.zeros(count, bool)
    if "length" in shown:
        lengths = flat.per_row(known["length"], "length", str(path)).astype(np.int64)
        if lengths.min(initial=1) < 1 or lengths.sum() != count:
            raise DataError(
                f"{path}: episode lengths must be positive and add up to the {count} rows, got a sum of "
                f"{lengths.sum()} and a lowest of {lengths.min(initial=1)}"
            )
        ends[np.cumsum(lengths) - 1] = True
    elif "begin" in shown:
        if not row_flags["begin"][0]:
            raise DataError(
                f"{path}: the first row must start an episode, but its episode start is false; the file was cut at "
                "the front"
            )
        ends[:-1], ends[-1] = row_flags["begin"][1:], True
    elif "step_type" in shown:
        kinds = flat.per_row(known["step_type"], "step_type", str(path))
        if not np.isin(kinds, (0, 1, 2)).all():
            raise DataError(
                f"{path}: 'step_type' must be 0 (first), 1 (middle) or 2 (last), got {np.unique(kinds)[:8].tolist()}"
            )
        ends |= kinds == 2
        ends[:-1] |= kinds[1:] == 0
    else:
        for values in row_flags.values():
            ends |= values
    return ends


def _kinds(
    known: Mapping[str, np.ndarray],
    shown: tuple[str, ...],
    said: Mapping[str, np.ndarray],
    stop: np.ndarray,
    limit: int,
    notes: flat.Notes,
) -> tuple[np.ndarray, np.ndarray]:
    """(E,) terminated and truncated: as the file says, else by the time limit, else truncated."""
    nothing = np.zeros(len(stop), bool)
    terminated = said["terminated"][stop - 1] if "terminated" in said else nothing
    truncated = said["truncated"][stop - 1] if "truncated" in said else nothing
    lengths = np.diff(stop, prepend=0)
    unsure = ~terminated & ~truncated
    if "terminated" not in said and "discount" in known and "step_type" in shown:
        terminated = terminated | (unsure & (known["discount"].reshape(-1)[stop - 1] == 0))
    elif "terminated" not in said and limit and ("begin" in shown or "done" in shown):
        terminated = terminated | (unsure & (lengths < limit))
        # Where only starts are marked, nothing says that the last episode had ended when the file did
        terminated[-1] &= "done" in shown and bool(known["done"].reshape(-1)[-1])
    elif "terminated" not in said:
        _note_ends(int(unsure.sum()), "begin" in shown or "done" in shown, notes)
    return terminated, truncated | ~terminated


def _note_ends(count: int, by_environment: bool, notes: flat.Notes) -> None:
    way_out = (
        "if episodes end before the time limit only by terminating, give --max-episode-steps."
        if by_environment
        else "if some did terminate, add an array 'terminals' to the file."
    )
    notes.add(
        "ends-unknown",
        "warning" if by_environment else "note",
        f"the file does not tell termination from truncation, so {count} episodes are marked truncated (nothing is "
        f"claimed about what would follow); {way_out}",
        episodes=count,
    )


def _split_finals(observation: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Observations and their successors, each (N, ...), from n + 1 observations per episode."""
    last = stop + np.arange(len(stop))
    keep = np.ones(len(observation), bool)
    keep[last] = False
    follows = np.ones(len(observation), bool)
    follows[np.concatenate([[0], last[:-1] + 1])] = False
    return observation[keep], observation[follows]


def _sort_rest(
    rest: Mapping[str, np.ndarray],
    known: Mapping[str, np.ndarray],
    shown: tuple[str, ...],
    cuts: flat.Cuts,
    reward: np.ndarray,
    notes: flat.Notes,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Other arrays: one entry per row is a column, one number per episode a fact, anything else is left out with a note."""
    columns, facts, left = {}, {}, []
    for name, values in rest.items():
        numbers = values.dtype.kind in "biuf"
        if numbers and values.shape[:1] == reward.shape and name not in COMPUTED:
            columns[name] = values
        elif numbers and values.shape == cuts.start.shape and name not in RESERVED:
            facts[name] = values
        else:
            left.append(f"{name} {values.dtype} {values.shape}")
    if left:
        notes.add(
            "left-out",
            "note",
            f"{len(left)} arrays hold neither one entry per row nor one number per episode and were left out: "
            f"{left[:8]}.",
            names=left,
        )
    if "returns" in known and known["returns"].shape == cuts.start.shape:
        _compare_returns(known["returns"], np.add.reduceat(reward.astype(np.float64), cuts.start), notes)
    return columns, facts


def _compare_returns(said: np.ndarray, summed: np.ndarray, notes: flat.Notes) -> None:
    apart = ~np.isclose(said, summed, rtol=1e-3, atol=1e-3)
    if apart.any():
        notes.add(
            "returns-differ",
            "warning",
            f"the file's own episode returns differ from the sum of rewards in {int(apart.sum())} of {len(apart)} "
            "episodes; "
            "either the rewards were changed or the episodes are cut elsewhere.",
            episodes=np.flatnonzero(apart)[:20].tolist(),
        )
