"""What a robot's body is: parts, which of them are joined, and which observations and actions belong to each.

Plain data, so that a policy that reads it needs no simulator. Bodies of well-known environments come with the package, one
JSON file each beside this one; `foretoken.envs.bodies` makes them from MuJoCo models.
"""

import json
from collections import Counter
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from foretoken.core.config import Config
from foretoken.core.errors import ConfigError, UnknownName
from foretoken.core.names import nearest

_FOLDER = Path(__file__).with_name("bodies")


@dataclass(frozen=True, kw_only=True)
class Part(Config):
    """
    Args:
        name: unique within the body.
        joined: names of the parts it is joined to; saying so at one of the two is enough.
        observation: which entries of the observation it reads; may be none, and entries may belong to several parts.
        action: which entries of the action it decides; may be none.
    """

    name: str
    joined: tuple[str, ...] = ()
    observation: tuple[int, ...] = ()
    action: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Body(Config):
    """A connected graph of parts. Every entry of the action belongs to exactly one part, every entry of the observation to at least one.

    Args:
        parts: in the order of their tokens.
    """

    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        names = self.names
        if not names or len(set(names)) < len(names):
            twice = [name for name, count in Counter(names).items() if count > 1]
            raise ConfigError(
                f"a body needs at least one part, with different names, got {len(names)} with {twice} twice"
            )
        for part in self.parts:
            for other in part.joined:
                if other not in names or other == part.name:
                    near = nearest(other, names)
                    raise ConfigError(f"part {part.name!r} must be joined to other parts, got {other!r}{near}")
            for kind, indices in (("observation", part.observation), ("action", part.action)):
                if len(set(indices)) < len(indices) or min(indices, default=0) < 0:
                    raise ConfigError(
                        f"{kind} entries of part {part.name!r} must be different and not negative, got {indices}"
                    )
        if apart := [names[i] for i, far in enumerate(self.distances()[0]) if far < 0]:
            raise ConfigError(f"the parts of a body must be connected, {apart} are not joined to {names[0]!r}")
        for kind in ("observation", "action"):
            self._check_entries(kind, self._size(kind))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.parts)

    @property
    def diameter(self) -> int:
        """The longest of the shortest paths between two parts, in joints."""
        return max(map(max, self.distances()))

    def distances(self) -> tuple[tuple[int, ...], ...]:
        """(P, P): joints on the shortest path between two parts, -1 where there is none."""
        place = {name: i for i, name in enumerate(self.names)}
        beside: list[set[int]] = [set() for _ in place]
        for i, part in enumerate(self.parts):
            for other in part.joined:
                beside[i].add(place[other])
                beside[place[other]].add(i)
        rows = []
        for start in range(len(place)):
            far, edge = {start: 0}, {start}
            while edge:
                edge = {j for i in edge for j in beside[i]} - far.keys()
                far |= dict.fromkeys(edge, max(far.values()) + 1)
            rows.append(tuple(far.get(i, -1) for i in range(len(place))))
        return tuple(rows)

    def check(self, observation: int, action: int) -> None:
        """Raises ConfigError where vectors of these sizes do not belong to this body."""
        for kind, size in (("observation", observation), ("action", action)):
            if self._size(kind) != size:
                raise ConfigError(f"this body has {self._size(kind)} entries of the {kind}, the data have {size}")

    def _size(self, kind: str) -> int:
        return max((max(getattr(part, kind), default=-1) for part in self.parts), default=-1) + 1

    def _check_entries(self, kind: str, size: int) -> None:
        owners = Counter(index for part in self.parts for index in getattr(part, kind))
        if missing := sorted(set(range(size)) - owners.keys()):
            raise ConfigError(f"{kind} entries {missing} belong to no part of the body; each of 0 .. {size - 1} must")
        if kind == "action" and (shared := sorted(index for index, count in owners.items() if count > 1)):
            raise ConfigError(f"action entries {shared} belong to several parts; each must belong to exactly one")


def known_bodies() -> list[str]:
    """Environments whose bodies come with the package."""
    return sorted(file.name.removesuffix(".json") for file in _FOLDER.glob("*.json"))


@cache
def known_body(environment: str) -> Body:
    """The body that is played in an environment.

    Raises:
        UnknownName: none is known; the message says how one is made.
    """
    if environment not in known_bodies():
        raise UnknownName(
            f"no body is known for the environment {environment!r}{nearest(environment, known_bodies())}; known are "
            f"{known_bodies()}, and foretoken.envs.bodies.body_of_environment makes one from a MuJoCo environment"
        )
    return Body.from_json(json.loads((_FOLDER / f"{environment}.json").read_text(encoding="utf-8")))


def star(observation: int, action: int) -> Body:
    """A body for vectors of which nothing is known: a hub that reads everything, and a limb for each entry of the action."""
    limbs = (Part(name=f"limb {i}", joined=("hub",), action=(i,)) for i in range(action))
    return Body(parts=(Part(name="hub", observation=tuple(range(observation))), *limbs))
