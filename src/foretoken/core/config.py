"""Configs: frozen, keyword-only dataclasses that build their owner and survive a round trip through JSON.

Types are checked when a config is made, from Python, the command line or a file alike. Loading imports nothing but
classes of this library and of installed plug-ins (entry-point group `foretoken.systems`), and only Config subclasses.
"""

import dataclasses
import importlib
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib import metadata
from typing import Any, ClassVar, Literal, Self, TypeVar, get_args, get_origin

from foretoken.core.errors import ConfigError
from foretoken.core.names import nearest

T = TypeVar("T", bound=type)


@dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all configs. Subclasses are `@dataclass(frozen=True, kw_only=True)` and may check relations in `__post_init__`."""

    owner: ClassVar[type | None] = None

    def __post_init__(self) -> None:
        hints: dict[str, Any] = _hints(typing.cast(typing.Hashable, type(self)))
        for entry in fields(self):
            value = _fit(getattr(self, entry.name), hints[entry.name], f"{type(self).__name__}.{entry.name}")
            object.__setattr__(self, entry.name, value)

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """The object this config describes; arguments are the owner's beyond the config itself."""
        if self.owner is None:
            raise ConfigError(
                f"{type(self).__name__} has nothing to build; mark its owner with @configures({type(self).__name__})"
            )
        return self.owner(self, *args, **kwargs)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed; unknown names are refused with the nearest one."""
        known = [entry.name for entry in fields(self)]
        for name in changes:
            if name not in known:
                raise ConfigError(f"{type(self).__name__} has no field {name!r}{nearest(name, known)}; it has {known}")
        return dataclasses.replace(self, **changes)

    def at_least(self, **least: float) -> None:
        """Raises ConfigError for the first of these fields that is below its bound; for `__post_init__`."""
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ConfigError(f"{type(self).__name__}.{name} must be at least {bound}, got {getattr(self, name)}")

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `"class"` names the config's class."""
        return {"class": f"{type(self).__module__}:{type(self).__qualname__}"} | {
            entry.name: _plain(getattr(self, entry.name)) for entry in fields(self) if entry.init
        }

    @classmethod
    def from_json(cls, tree: Any) -> Self:
        """The config that `to_json` described; refuses unknown fields, wrong types and classes from outside."""
        config = _revive(tree)
        if not isinstance(config, cls):
            raise ConfigError(f"expected the JSON of a {cls.__name__}, got {type(config).__name__}")
        return config


def configures(config: type[Config]) -> Callable[[T], T]:
    """Marks the decorated class as what `config.build(...)` makes."""

    def mark(owner: T) -> T:
        config.owner = owner
        return owner

    return mark


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _name(hint: Any) -> str:
    return getattr(hint, "__name__", str(hint)) if get_origin(hint) is None else str(hint).replace("typing.", "")


def _fit(value: Any, hint: Any, where: str) -> Any:
    """The value as the hint asks for it (an int serves as a float, a list as a tuple), or a ConfigError."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any or hint is None:
        return value
    if origin in (typing.Union, types.UnionType):
        for option in arguments:
            try:
                return _fit(value, option, where)
            except ConfigError:
                continue
        raise ConfigError(f"{where} must be {_name(hint)}, got {value!r}")
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(
                f"{where} must be one of {list(arguments)}, got {value!r}{nearest(str(value), map(str, arguments))}"
            )
        return value
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise ConfigError(f"{where} must be {_name(hint)}, got {value!r}")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_fit(item, arguments[0], f"{where}[{i}]") for i, item in enumerate(value))
        if len(value) != len(arguments):
            raise ConfigError(f"{where} must have {len(arguments)} entries, got {len(value)}")
        return tuple(
            _fit(item, kind, f"{where}[{i}]") for i, (item, kind) in enumerate(zip(value, arguments, strict=True))
        )
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be {_name(hint)}, got {value!r}")
        return {key: _fit(item, arguments[1], f"{where}[{key!r}]") for key, item in value.items()}
    kind = origin or hint
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is type(None):
        kind = types.NoneType
    if isinstance(kind, type) and (not isinstance(value, kind) or (kind is int and isinstance(value, bool))):
        raise ConfigError(f"{where} must be {_name(hint)}, got {value!r}")
    if isinstance(value, float) and math.isnan(value):
        raise ConfigError(f"{where} must be a number, got {value!r}")
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_json()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(f"configs hold plain values and configs only, got {value!r} of type {type(value).__name__}")


def _revive(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_revive(item) for item in value)
    if not isinstance(value, Mapping):
        return value
    if "class" not in value:
        return {key: _revive(item) for key, item in value.items()}
    cls = _allowed_class(str(value["class"]))
    known = [entry.name for entry in fields(cls) if entry.init]
    given = {key: _revive(item) for key, item in value.items() if key != "class"}
    for name in given:
        if name not in known:
            raise ConfigError(f"{cls.__name__} has no field {name!r}{nearest(name, known)}; it has {known}")
    try:
        return cls(**given)
    except TypeError as problem:
        raise ConfigError(f"{cls.__name__}: {problem}") from None


def trusted_packages() -> set[str]:
    """Top-level packages whose configs may be loaded: this one and the registered plug-ins."""
    return {"foretoken"} | {
        point.value.split(":")[0].split(".")[0] for point in metadata.entry_points(group="foretoken.systems")
    }


def _allowed_class(path: str) -> type[Config]:
    module, _, name = path.partition(":")
    if module.split(".")[0] not in trusted_packages() or "__main__" in module:  # importing a program would run it
        raise ConfigError(
            f"refusing to import {path!r}: only classes of foretoken and of installed plug-ins are loaded"
        )
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as problem:
        raise ConfigError(f"the config class {path!r} does not exist in this version: {problem}") from None
    if not (isinstance(found, type) and issubclass(found, Config)):
        raise ConfigError(f"{path!r} is not a config class")
    return found
