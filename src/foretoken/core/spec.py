"""What observations and actions look like (Spec), and what data a method asks for (Window).

These are plain, JSON-able descriptions; `foretoken.envs.spaces` translates to and from Gymnasium's spaces.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Literal, TypeAlias

from foretoken.core.config import Config
from foretoken.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Box(Config):
    """Numbers of one shape. `low` and `high` are one bound for all entries, or one per entry in C order; infinities allowed.

    An image is a uint8 Box of three axes (channels last or first, as the environment gives it).
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    low: tuple[float, ...] = (float("-inf"),)
    high: tuple[float, ...] = (float("inf"),)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("low", "high"):
            bounds = getattr(self, name)
            if len(bounds) not in (1, self.size):
                raise ConfigError(
                    f"Box {name} needs 1 or {self.size} entries for shape {self.shape}, got {len(bounds)}"
                )
            if len(set(bounds)) == 1 and len(bounds) > 1:
                object.__setattr__(self, name, bounds[:1])  # one spelling, so that equal spaces compare equal

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def is_image(self) -> bool:
        return self.dtype == "uint8" and len(self.shape) == 3


@dataclass(frozen=True, kw_only=True)
class Discrete(Config):
    """One of `n` choices, stored as int64 `start .. start + n - 1`."""

    n: int
    start: int = 0
    shape: tuple[int, ...] = field(default=(), init=False)
    dtype: str = field(default="int64", init=False)


@dataclass(frozen=True, kw_only=True)
class MultiDiscrete(Config):
    """Several independent choices, stored as int64 of shape (len(nvec),), each from 0."""

    nvec: tuple[int, ...]
    dtype: str = field(default="int64", init=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.nvec),)


@dataclass(frozen=True, kw_only=True)
class MultiBinary(Config):
    """`n` bits, stored as int8 of shape (n,)."""

    n: int
    dtype: str = field(default="int8", init=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.n,)


@dataclass(frozen=True, kw_only=True)
class Tokens(Config):
    """A sequence of up to `max_length` int64 tokens below `vocabulary`."""

    vocabulary: int
    max_length: int
    dtype: str = field(default="int64", init=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.max_length,)


@dataclass(frozen=True, kw_only=True)
class Dict(Config):
    """Named parts; may nest."""

    spaces: Mapping[str, "Space"]


Space: TypeAlias = Box | Discrete | MultiDiscrete | MultiBinary | Tokens | Dict


def leaves(space: Space, path: str = "") -> dict[str, Box | Discrete | MultiDiscrete | MultiBinary | Tokens]:
    """The parts of a space by path, `{"": space}` for a plain one and `{"/goal": ..., "/hand/touch": ...}` for a Dict."""
    if not isinstance(space, Dict):
        return {path: space}
    return {name: leaf for key, part in space.spaces.items() for name, leaf in leaves(part, f"{path}/{key}").items()}


@dataclass(frozen=True, kw_only=True)
class Spec(Config):
    """What one kind of experience looks like; a Batch and a store have exactly one.

    Args:
        observation, action: the spaces.
        environment: Gymnasium id the data comes from and policies are evaluated in; "" when there is none.
        max_episode_steps: the longest episode an environment allows (time-limit); 0 when unknown.
    """

    observation: Space
    action: Space
    environment: str = ""
    max_episode_steps: int = 0


@dataclass(frozen=True, kw_only=True)
class Window(Config):
    """The data a method asks for: windows of `length` steps, the columns of each, and how they are laid over episodes.

    Args:
        length: steps in the window T (>= 1). For anchor="episode", the longest episode that fits.
        columns: store or derived columns to read (masks, flags and timestep always come).
        anchor: "start": the drawn step is the window's first, the window ends with the episode at the latest (Decision
            Transformer). "end": it is the last, history is cut at the episode's start (the window a policy sees while
            acting). "full": it is the last and the window never starts before the episode, so all steps are real
            wherever the episode is long enough. "episode": whole episodes, drawn evenly.
        final: whether the final observation (a step without an action) may be part of the window.
        back: earlier steps given before each window without being scored (burn-in), inside `length`.
        pad: the side on which short windows are padded.
        across: "" keeps windows inside an episode; otherwise an episode column (for example "task"): windows run on
            through consecutive episodes of equal value, `fresh` only where the value changes.
        weights: "steps" draws every step evenly (so episodes in proportion to length); "episodes" draws episodes evenly.
    """

    length: int
    columns: tuple[str, ...] = ("observation", "action", "reward")
    anchor: Literal["start", "end", "full", "episode"] = "start"
    final: bool = False
    back: int = 0
    pad: Literal["left", "right"] = "left"
    across: str = ""
    weights: Literal["steps", "episodes"] = "steps"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < 1:
            raise ConfigError(f"window length must be at least 1, got {self.length}")
        if not 0 <= self.back < self.length:
            raise ConfigError(f"window back must lie in [0, length), got back={self.back} and length={self.length}")
