"""Environments by id. Optional packages register theirs when an id first asks for it; wrong ids are answered with the nearest one."""

import importlib
import os
import sys
from typing import Any, NamedTuple

import gymnasium
from gymnasium.envs.registration import registry

from foretoken.core.errors import ConfigError, MissingExtra, UnknownName
from foretoken.core.names import nearest


class _Package(NamedTuple):
    """An optional package: ids beginning with one of `prefixes` are registered by importing `module`."""

    module: str
    install: str
    prefixes: tuple[str, ...]


_ROBOTICS = (
    "PointMaze", "AntMaze", "FrankaKitchen", "Fetch", "HandReach", "HandManipulate", "AdroitHand",
)  # fmt: skip
_PACKAGES = (
    _Package("gymnasium_robotics", "foretoken[robotics]", _ROBOTICS),
    _Package("ale_py", "ale-py", ("ALE/",)),
    _Package("minigrid", "minigrid", ("MiniGrid-", "BabyAI-")),
    _Package("gym_pusht", "gym-pusht", ("gym_pusht/",)),
    _Package("gym_aloha", "gym-aloha", ("gym_aloha/",)),
    _Package("metaworld", "metaworld", ("Meta-World/",)),
    _Package("shimmy", "shimmy[dm-control]", ("dm_control/",)),
    _Package("popgym", "foretoken[memory]", ("popgym-",)),
    _Package(
        "memory_gym", "--no-deps memory-gym pygame-ce", ("MortarMayhem", "MysteryPath", "SearingSpotlights", "Endless-")
    ),
    _Package(
        "highway_env", "highway-env", ("highway-", "parking-", "roundabout-", "intersection-", "merge-", "racetrack-")
    ),
    _Package("bullet_safety_gym", "--no-deps bullet-safety-gym pybullet", ("Safety",)),
)


def make(id: str, **kwargs: Any) -> gymnasium.Env:
    """A new environment by its Gymnasium id, with its time limit.

    Where there is no display, `SDL_VIDEODRIVER=dummy` is set, and for environments that are to render also
    `MUJOCO_GL=egl` (MuJoCo refuses to be imported where that library is missing, and physics does without), unless you
    set them. Gymnasium's passive checker is off unless asked for: `foretoken` compares
    spaces itself, and the checker costs time at every step.

    Args:
        id: for example "HalfCheetah-v5", "ALE/Pong-v5" or "module:Name-v0" (imports the module first).
        kwargs: handed to the environment (render_mode, max_episode_steps, ...).

    Raises:
        UnknownName: no such id; the message names the nearest one.
        MissingExtra: the package that holds it is not installed; the message says how to install it.
    """
    _prepare_rendering(renders=kwargs.get("render_mode") is not None)
    register(id)
    if ":" not in id and id not in registry:
        raise UnknownName(
            f"no environment is called {id!r}{_near(id)}; `gymnasium.pprint_registry()` lists what is installed"
        )
    kwargs.setdefault("disable_env_checker", True)
    try:
        return tuple_as_dict(_kept_open(gymnasium.make(id, **kwargs)))
    except gymnasium.error.DependencyNotInstalled as problem:
        raise MissingExtra(f"{id} needs a package that is not installed: {problem}; {_extra(id)}") from problem
    except ModuleNotFoundError as problem:
        raise MissingExtra(f"{id} needs the module {problem.name!r}, which is not installed; {_extra(id)}") from problem
    except TypeError as problem:
        raise ConfigError(f"{id} could not be made with {kwargs}: {problem}") from problem


def tuple_as_dict(env: gymnasium.Env) -> gymnasium.Env:
    """An environment of POPGym whose observation is a Tuple, with the same as a Dict whose keys are "0", "1", ...; others as they are."""
    space = env.observation_space
    if not isinstance(space, gymnasium.spaces.Tuple) or not type(env.unwrapped).__module__.startswith("popgym."):
        return env
    named = gymnasium.spaces.Dict({str(i): part for i, part in enumerate(space.spaces)})
    change = lambda seen: {str(i): part for i, part in enumerate(seen)}  # noqa: E731
    return gymnasium.wrappers.TransformObservation(env, change, named)


def _kept_open(env: gymnasium.Env) -> gymnasium.Env:
    """An environment of Memory Gym that leaves pygame's one display, on which all of them draw, to the others when it is closed."""
    if type(env.unwrapped).__module__.startswith("memory_gym."):
        vars(env.unwrapped)["close"] = lambda: None
    return env


def register(id: str) -> None:
    """Registers our own worlds, or imports the optional package that registers `id`, once, where one is known."""
    if id.startswith("foretoken/"):
        from foretoken.envs.diagnostic import register_worlds

        register_worlds()
    for package in _PACKAGES:
        if not id.startswith(package.prefixes) or id in registry:
            continue
        try:
            gymnasium.register_envs(importlib.import_module(package.module))
        except ModuleNotFoundError as problem:
            if problem.name != package.module:
                raise MissingExtra(
                    f"{id}: {package.module} needs {problem.name!r}, which is not installed"
                ) from problem
            raise MissingExtra(f"{id} needs the package {package.module}; `pip install {package.install}`") from None
        if package.module == "gymnasium_robotics" and id not in registry:
            importlib.import_module(package.module).register_robotics_envs()


def _near(id: str) -> str:
    """The newest version of the same name where there is one, else the nearest id."""
    name = id.rsplit("-v", 1)[0]
    versions = [known for known in registry if known.rsplit("-v", 1)[0] == name]
    if versions:
        return f" (did you mean {max(versions, key=lambda known: registry[known].version or 0)!r}?)"
    return nearest(id, registry)


def _extra(id: str) -> str:
    known = registry.get(id)
    point = str(known.entry_point) if known is not None else ""
    if "box2d" in point:
        return "`pip install foretoken[box2d]`"
    return "see the environment's own page for how to install it"


def _prepare_rendering(renders: bool) -> None:
    """Off-screen renderers for machines without a display; whatever the user set is left alone."""
    if not sys.platform.startswith("linux") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        return
    if renders:
        os.environ.setdefault("MUJOCO_GL", "egl")
    os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
