"""Environments by id, and what is said of ids that cannot be made."""

import importlib.util

import pytest

from foretoken.core.errors import ConfigError, MissingExtra, UnknownName
from foretoken.envs.make import make

ABSENT = {
    "gymnasium_robotics": ("FetchReach-v4", r"foretoken\[robotics\]"),
    "ale_py": ("ALE/Pong-v5", "pip install ale-py"),
    "minigrid": ("MiniGrid-Empty-5x5-v0", "pip install minigrid"),
    "gym_pusht": ("gym_pusht/PushT-v0", "pip install gym-pusht"),
}


def test_makes_with_time_limit_and_arguments():
    assert make("CartPole-v1", max_episode_steps=7).spec.max_episode_steps == 7


@pytest.mark.parametrize(
    ("wrong", "near"), [("Hoper-v5", "Hopper-v5"), ("HalfCheetah-v9", "HalfCheetah-v5"), ("cartpole", "CartPole-v1")]
)
def test_unknown_ids_get_the_nearest_one(wrong, near):
    with pytest.raises(UnknownName, match=f"no environment is called '{wrong}'.*'{near}'"):
        make(wrong)


@pytest.mark.parametrize("module", ABSENT)
def test_a_missing_package_says_how_to_install_it(module):
    if importlib.util.find_spec(module):
        pytest.skip(f"{module} is installed")
    id, says = ABSENT[module]
    with pytest.raises(MissingExtra, match=says):
        make(id)


def test_unknown_arguments_are_refused():
    with pytest.raises(ConfigError, match=r"CartPole-v1 could not be made with .*wings"):
        make("CartPole-v1", wings=2)


def test_a_server_renders_without_a_display_only_when_asked(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL", "SDL_VIDEODRIVER"):
        monkeypatch.delenv(name, raising=False)
    import os

    make("CartPole-v1")
    assert "MUJOCO_GL" not in os.environ
    make("CartPole-v1", render_mode="rgb_array")
    assert (os.environ["MUJOCO_GL"], os.environ["SDL_VIDEODRIVER"]) == ("egl", "dummy")
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    make("CartPole-v1", render_mode="rgb_array")
    assert os.environ["MUJOCO_GL"] == "osmesa"
