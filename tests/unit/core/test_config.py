"""Configs: types are checked, JSON keeps everything, and only configs of trusted packages are loaded."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from foretoken.core.config import Config, configures, trusted_packages
from foretoken.core.errors import ConfigError
from foretoken.core.spec import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Spec, Tokens, Window
from foretoken.methods.conditioned_cloning import ConditionedCloningConfig
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.stack import BlockConfig, StackConfig


@dataclass(frozen=True, kw_only=True)
class Inner(Config):
    size: int = 1


@dataclass(frozen=True, kw_only=True)
class Outer(Config):
    rate: float = 0.5
    name: str = "x"
    flag: bool = False
    kind: Literal["small", "large"] = "small"
    pair: tuple[float, float] = (0.0, 1.0)
    many: tuple[int, ...] = ()
    inner: Inner = Inner()
    maybe: Inner | None = None
    table: Mapping[str, float] = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.table is None:
            object.__setattr__(self, "table", {})
        super().__post_init__()


@pytest.mark.parametrize(
    "config",
    [
        Window(length=5, back=2, pad="right"),
        ConditionedCloningConfig(
            condition=None, backbone=StackConfig(pattern=(BlockConfig(feed_forward=None), BlockConfig(norm="rms")))
        ),
        BlockConfig(mixer=AttentionConfig(num_heads=4, window=3, positions="rotary")),
        Spec(
            observation=Dict(spaces={"a": Box(shape=(2, 3), low=(0.0,)), "b": Dict(spaces={"c": MultiBinary(n=4)})}),
            action=MultiDiscrete(nvec=(2, 5)),
            environment="Some-v0",
            max_episode_steps=7,
        ),
        Spec(observation=Discrete(n=3, start=-1), action=Discrete(n=2)),
        Spec(observation=Tokens(vocabulary=10, max_length=4), action=Box(shape=())),
    ],
)
def test_json_keeps_everything(config: Config) -> None:
    tree = json.loads(json.dumps(config.to_json()))
    assert Config.from_json(tree) == config
    assert type(config).from_json(tree) == config
    assert config.replace() == config


def test_values_are_fitted_to_their_types() -> None:
    made = Outer(rate=1, pair=[2, 3], many=[4], table={"a": 1})
    assert made.rate == 1.0 and isinstance(made.rate, float)
    assert made.pair == (2.0, 3.0) and made.many == (4,) and isinstance(made.table["a"], float)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"rate": "fast"}, r"Outer.rate must be float, got 'fast'"),
        ({"rate": True}, r"Outer.rate must be float, got True"),
        ({"flag": 1}, r"Outer.flag must be bool, got 1"),
        ({"kind": "smal"}, r"Outer.kind must be one of \['small', 'large'\], got 'smal' \(did you mean 'small'\?\)"),
        ({"pair": (1.0,)}, r"Outer.pair must have 2 entries, got 1"),
        ({"many": (1, 2.5)}, r"Outer.many\[1\] must be int, got 2.5"),
        ({"many": 3}, r"Outer.many must be .*int.*, got 3"),
        ({"inner": 3}, r"Outer.inner must be Inner, got 3"),
        ({"maybe": "no"}, r"Outer.maybe must be .*Inner.*None.*, got 'no'"),
        ({"table": {"a": "b"}}, r"Outer.table\['a'\] must be float, got 'b'"),
        ({"inner": {"size": 1}}, r"Outer.inner must be Inner"),
    ],
)
def test_wrong_types_are_named(given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Outer(**given)


def test_nan_is_no_number() -> None:
    with pytest.raises(ConfigError, match="dropout must be a number, got nan"):
        BlockConfig(dropout=float("nan"))


def test_bool_is_no_int() -> None:
    with pytest.raises(ConfigError, match=r"Inner.size must be int, got True"):
        Inner(size=True)


def test_unknown_fields_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"Window has no field 'lenght' \(did you mean 'length'\?\)"):
        Window(length=3).replace(lenght=4)
    tree = Window(length=3).to_json() | {"lenght": 4}
    with pytest.raises(ConfigError, match=r"Window has no field 'lenght' \(did you mean 'length'\?\)"):
        Config.from_json(tree)


def test_json_is_checked_like_python() -> None:
    good = Window(length=3).to_json()
    with pytest.raises(ConfigError, match=r"Window.length must be int, got 'three'"):
        Config.from_json(good | {"length": "three"})
    with pytest.raises(ConfigError, match="back must lie in"):
        Config.from_json(good | {"back": 3})
    with pytest.raises(ConfigError, match=r"Window: .*length"):
        Config.from_json({"class": good["class"]})
    with pytest.raises(ConfigError, match="expected the JSON of a Spec, got Window"):
        Spec.from_json(good)
    with pytest.raises(ConfigError, match="expected the JSON of a Window, got int"):
        Window.from_json(3)


@pytest.mark.parametrize(
    "path",
    [
        "os:system",
        "subprocess:Popen",
        "builtins:eval",
        "foretokens:X",
        "",
        ":",
        f"{__name__}:Outer",
        "foretoken.__main__:X",
    ],
)
def test_classes_from_outside_are_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="refusing to import"):
        Config.from_json({"class": path})


@pytest.mark.parametrize(
    "path",
    ["foretoken.core.config:configures", "foretoken.core.batch:Batch", "foretoken.core.config:importlib.import_module"],
)
def test_only_configs_are_loaded(path: str) -> None:
    with pytest.raises(ConfigError, match="is not a config class"):
        Config.from_json({"class": path})


@pytest.mark.parametrize("path", ["foretoken.nothing:X", "foretoken.core.spec:Nothing", "foretoken.core.spec"])
def test_missing_classes_are_named(path: str) -> None:
    with pytest.raises(ConfigError, match=r"the config class '.*' does not exist"):
        Config.from_json({"class": path})


def test_only_plain_values_are_written() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Odd(Config):
        thing: object = None

    with pytest.raises(ConfigError, match="plain values and configs only"):
        Odd(thing=object()).to_json()


def test_build_makes_the_owner() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Thing(Config):
        size: int = 2

    with pytest.raises(ConfigError, match="Thing has nothing to build"):
        Thing().build()

    @configures(Thing)
    class Owner:
        def __init__(self, config: Thing, more: int) -> None:
            self.total = config.size + more

    assert Thing(size=3).build(4).total == 7
    assert Config.owner is None and Inner.owner is None


def test_configs_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Inner().size = 2  # type: ignore[misc]


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An installed distribution `crew` with the systems package `crew_systems`."""
    folder = tmp_path / "crew_systems" / "offline"
    folder.mkdir(parents=True)
    for part in (folder, folder.parent):
        (part / "__init__.py").write_text("")
    (folder / "ferry.py").write_text(
        "from dataclasses import dataclass\nfrom foretoken.core import Card, Config\n\n"
        'CARD = Card(key="fy", title="Ferry", paper="p", claim="c", stream="s")\n\n\n'
        "@dataclass(frozen=True, kw_only=True)\nclass FerryConfig(Config):\n    size: int = 1\n"
    )
    facts = tmp_path / "crew-1.0.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: crew\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[foretoken.systems]\ncrew = crew_systems\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "crew_systems.offline.ferry:FerryConfig"
    for name in [name for name in sys.modules if name.startswith("crew_systems")]:
        del sys.modules[name]


def test_plugins_are_trusted(plugin: str) -> None:
    assert {"foretoken", "crew_systems"} <= trusted_packages()
    made = Config.from_json({"class": plugin, "size": 5})
    assert made.to_json() == {"class": plugin, "size": 5}


def test_plugins_are_listed(plugin: str) -> None:
    from foretoken.core.catalogue import find, systems

    assert systems()["ferry"].family == "offline"
    assert "crew_systems" not in sys.modules  # listing imports nothing
    assert find("fy").load().FerryConfig().size == 1


def test_without_the_plugin_it_is_refused() -> None:
    with pytest.raises(ConfigError, match="refusing to import"):
        Config.from_json({"class": "crew_systems.offline.ferry:FerryConfig"})
