"""Episode: one episode as arrays, the unit that readers yield, collectors make and stores keep."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np

from foretoken.core.errors import DataError
from foretoken.core.names import nearest
from foretoken.core.spec import Box, Dict, Discrete, MultiDiscrete, Space, Spec, Tokens, leaves

Fact: TypeAlias = bool | int | float | str
Leaf: TypeAlias = Any  # a space without parts: Box, Discrete, MultiDiscrete, MultiBinary or Tokens


@dataclass(frozen=True, eq=False)
class Episode:
    """An episode of n actions and n + 1 observations; the last observation is the one after the last action.

    Everything is turned into numpy arrays; nothing is checked before `validate`, which stores call on append.

    Args:
        observation: (n + 1, ...) array, or a (nested) mapping of such for a Dict space.
        action: (n, ...) array, or a mapping of such. `action[t]` is taken after `observation[t]`.
        reward: (n,) floats. `reward[t]` is what `action[t]` earned.
        terminated, truncated: (n,) bool, true at the last action at most.
        columns: further arrays per step, with n entries, or n + 1 when the final step has one too.
        facts: one value per episode (task, order, seed, success, ...).
    """

    observation: Any
    action: Any
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    columns: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("observation", "action", "reward", "terminated", "truncated", "columns"):
            object.__setattr__(self, name, _arrays(getattr(self, name), name))

    @property
    def length(self) -> int:
        """n, the number of actions."""
        return len(next(iter(flatten(self.action, "action").values()), ()))

    @property
    def total_return(self) -> float:
        """The undiscounted sum of rewards, in float64."""
        return float(np.sum(self.reward, dtype=np.float64))

    def validate(self, spec: Spec) -> None:
        """Checks the episode against `spec` and itself.

        Raises:
            DataError: no actions, unequal lengths, missing or unknown parts, wrong shapes or kinds of numbers, choices
                out of range, NaN anywhere, infinities in observation, action or reward, an end before the last action.
        """
        if self.length < 1:
            raise DataError("an episode needs at least one action, got none; leave such episodes out")
        check_tree(self.observation, spec.observation, self.length + 1, "observation")
        check_tree(self.action, spec.action, self.length, "action")
        check_array(self.reward, Box(shape=()), self.length, "reward")
        for name in ("terminated", "truncated"):
            _check_flag(getattr(self, name), self.length, name)
        for name, values in flatten(self.columns, "").items():
            self._check_column(values, name[1:])
        for name, fact in self.facts.items():
            check_fact(fact, name)

    def _check_column(self, values: np.ndarray, name: str) -> None:
        if values.ndim == 0 or len(values) not in (self.length, self.length + 1):
            raise DataError(
                f"column {name!r} needs {self.length} entries (one per action) or {self.length + 1}, "
                f"got shape {values.shape}"
            )
        if values.dtype.kind not in "fiub":
            raise DataError(f"column {name!r} must hold numbers, got dtype {values.dtype}")
        if values.dtype.kind == "f" and np.isnan(values).any():
            raise DataError(f"column {name!r} holds NaN, first at step {_first(np.isnan(values))}")


def _arrays(tree: Any, name: str) -> Any:
    if isinstance(tree, Mapping):
        return {key: _arrays(part, f"{name}/{key}") for key, part in tree.items()}
    try:
        return np.asarray(tree)
    except ValueError as problem:
        raise DataError(f"{name} must be an array with one shape for all steps: {problem}") from None


def flatten(tree: Any, path: str) -> dict[str, Any]:
    """The leaves of nested mappings by path: `{"observation/goal": ...}`, or `{path: tree}` for a plain array."""
    if not isinstance(tree, Mapping):
        return {path: tree}
    return {name: leaf for key, part in tree.items() for name, leaf in flatten(part, f"{path}/{key}").items()}


def check_tree(tree: Any, space: Space, count: int, name: str) -> None:
    """Checks that `tree` has the parts of `space`, each with `count` entries that `check_array` accepts."""
    wanted, given = leaves(space, name), flatten(tree, name)
    for path in wanted:
        if path not in given:
            what = "must have the part" if isinstance(space, Dict) else "must be an array, not a mapping; no"
            raise DataError(f"{name} {what} {path!r}{nearest(path, given)}, got {sorted(given)}")
    for path in given:
        if path not in wanted:
            raise DataError(
                f"{name} has the part {path!r}{nearest(path, wanted)} that its space lacks; it has {sorted(wanted)}"
            )
    for path, leaf in wanted.items():
        check_array(given[path], leaf, count, path)


def check_array(values: np.ndarray, space: Leaf, count: int, name: str) -> None:
    """Checks `count` values of a space: length, shape, kind of number, range of choices, finite.

    Bounds of a Box are not checked: recorded data often lie outside (the doctor reports it).
    """
    if values.ndim == 0 or len(values) != count:
        raise DataError(
            f"{name} must have {count} entries (observations: one more than actions), got shape {values.shape}"
        )
    if values.shape[1:] != space.shape:
        raise DataError(f"{name} must have shape {space.shape} per step, got {values.shape[1:]}")
    check_kind(values, np.dtype(space.dtype), name)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise DataError(f"{name} must be finite, got NaN or infinity first at step {_first(~np.isfinite(values))}")
    low, high = _choices(space)
    if high is not None and ((values < low) | (values > high)).any():
        raise DataError(
            f"{name} must lie in {low} .. {np.asarray(high).tolist()}, got {values.min()} .. {values.max()}"
        )


def check_kind(values: np.ndarray, dtype: np.dtype, name: str) -> None:
    """Checks that `values` can be stored as `dtype` with no loss but rounding of floats."""
    if values.dtype.kind not in "fiub":
        raise DataError(f"{name} must hold numbers, got dtype {values.dtype}")
    if dtype.kind == "f" or values.dtype == dtype:
        return
    if values.dtype.kind == "f" or (dtype.kind == "b" and values.dtype.kind != "b"):
        raise DataError(
            f"{name} must be {dtype}, got {values.dtype}; convert it first, so that nothing is lost silently"
        )
    if values.dtype.kind in "iu" and values.size:
        bounds = np.iinfo(dtype)
        if int(values.min()) < bounds.min or int(values.max()) > bounds.max:
            raise DataError(f"{name} must fit {dtype}, got values {values.min()} .. {values.max()}")


def check_fact(fact: Any, name: str) -> None:
    """Checks a per-episode value: bool, int, text or a finite float."""
    if isinstance(fact, np.generic):
        fact = fact.item()
    if not isinstance(fact, bool | int | float | str) or (isinstance(fact, float) and not np.isfinite(fact)):
        raise DataError(f"the episode fact {name!r} must be a bool, an int, a finite float or text, got {fact!r}")


def _choices(space: Leaf) -> tuple[int, Any]:
    if isinstance(space, Discrete):
        return space.start, space.start + space.n - 1
    if isinstance(space, MultiDiscrete):
        return 0, np.asarray(space.nvec) - 1
    if isinstance(space, Tokens):
        return 0, space.vocabulary - 1
    return 0, 1 if not isinstance(space, Box) else None


def _check_flag(values: np.ndarray, count: int, name: str) -> None:
    if values.shape != (count,) or values.dtype != np.bool_:
        raise DataError(f"{name} must be ({count},) bool, got {values.shape} {values.dtype}")
    if values[:-1].any():
        raise DataError(
            f"{name} may be true at the last action only, got true at action {_first(values)} of {count}; "
            "cut the episode there"
        )


def _first(mask: np.ndarray) -> int:
    return int(np.argwhere(mask)[0, 0])
