"""Reference returns and normalised scores: 0 is a random policy, 100 the reference policy.

Two tables. "D4RL" holds the constants of D4RL (Fu et al. 2020, `d4rl/infos.py`), one pair per task for all its
data sets and versions; they were measured in environments older than Gymnasium's `-v5`, whose dynamics differ.
"foretoken-v5, 1" holds our own for `-v5` environments: the random return over 200 episodes and the best deterministic
return of one SAC run per task (Gymnasium 1.4, MuJoCo 3.3). Always show a score with the table that made it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from foretoken.core.errors import UnknownName
from foretoken.core.names import nearest


@dataclass(frozen=True)
class Reference:
    """The returns that score 0 (`low`) and 100 (`high`) in a task, the table they stand in, and what to know about them."""

    low: float
    high: float
    table: str
    note: str = ""


@dataclass(frozen=True)
class Score:
    """Normalised scores, of the returns' shape, and the reference that made them."""

    values: np.ndarray
    reference: Reference


_D4RL_RETURNS = {
    "halfcheetah": (-280.178953, 12135.0),
    "hopper": (-20.272305, 3234.3),
    "walker2d": (1.629008, 4592.3),
    "ant": (-325.6, 3879.7),
    "maze2d-umaze": (23.85, 161.86),
    "maze2d-umaze-dense": (68.537689, 193.66285642381482),
    "maze2d-medium": (13.13, 277.39),
    "maze2d-medium-dense": (44.264742, 297.4552547777125),
    "maze2d-large": (6.7, 273.99),
    "maze2d-large-dense": (30.569041, 303.4857382709002),
    "maze2d-open": (0.01, 20.66),
    "antmaze": (0.0, 1.0),
    "kitchen": (0.0, 4.0),
    "pen": (96.262799, 3076.8331017826877),
    "hammer": (-274.856578, 12794.134825156867),
    "door": (-56.512833, 2880.5693087298737),
    "relocate": (-6.425911, 4233.877797728884),
    "minigrid-fourrooms": (0.01442, 2.89685),
    "flow-ring": (-165.22, 24.42),
    "flow-merge": (118.67993, 330.03179),
    "carla-lane": (-0.8503839912088142, 1023.5784385429523),
    "carla-town": (-114.81579500772153, 2440.1772022247314),
}
_V5_RETURNS = {
    "HalfCheetah-v5": (-286.38597090060574, 6611.417155, ""),
    "Hopper-v5": (17.178302008134118, 3243.9003987863225, ""),
    "Walker2d-v5": (
        1.9352383581679402,
        1919.4454442395981,
        "the reference policy is of medium level: scores above 100 are usual",
    ),
}

D4RL = {task: Reference(low, high, "D4RL") for task, (low, high) in _D4RL_RETURNS.items()}
FORETOKEN_V5 = {task: Reference(low, high, "foretoken-v5, 1", note) for task, (low, high, note) in _V5_RETURNS.items()}


def reference(task: str) -> Reference:
    """The reference returns of a D4RL data set ("hopper-medium-v2", or its task "hopper") or a `-v5` environment ("Hopper-v5").

    Raises:
        UnknownName: no table has the task.
    """
    if task in FORETOKEN_V5:
        return FORETOKEN_V5[task]
    fitting = [
        name for name in D4RL if task == name or (task.startswith(f"{name}-") and "-dense" not in task[len(name) :])
    ]
    if not fitting:
        raise UnknownName(
            f"no reference returns are known for {task!r}{nearest(task, [*FORETOKEN_V5, *D4RL])}; report plain returns"
        )
    return D4RL[max(fitting, key=len)]


def normalised_score(task: str, returns: Any) -> Score:
    """100 * (return - low) / (high - low).

    Args:
        task: see `reference`.
        returns: episode returns, a number or an array of any shape.
    """
    found = reference(task)
    return Score(100.0 * (np.asarray(returns, np.float64) - found.low) / (found.high - found.low), found)
