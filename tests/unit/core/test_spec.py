"""Spaces and windows as plain descriptions."""

import pytest

from foretoken.core.errors import ConfigError
from foretoken.core.spec import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tokens, Window, leaves


def test_shapes_and_dtypes() -> None:
    spaces = [
        Box(shape=(2, 3)),
        Discrete(n=4),
        MultiDiscrete(nvec=(2, 3)),
        MultiBinary(n=5),
        Tokens(vocabulary=9, max_length=6),
    ]
    assert [(space.shape, space.dtype) for space in spaces] == [
        ((2, 3), "float32"), ((), "int64"), ((2,), "int64"), ((5,), "int8"), ((6,), "int64"),
    ]  # fmt: skip
    assert Box(shape=(2, 3)).size == 6 and Box(shape=()).size == 1


def test_images_are_told_from_vectors() -> None:
    assert Box(shape=(8, 8, 3), dtype="uint8").is_image
    assert not Box(shape=(8, 8, 3)).is_image and not Box(shape=(8,), dtype="uint8").is_image


def test_equal_bounds_have_one_spelling() -> None:
    assert Box(shape=(2,), low=(-1.0, -1.0), high=(1.0, 2.0)) == Box(shape=(2,), low=(-1.0,), high=(1.0, 2.0))


def test_bounds_must_fit_the_shape() -> None:
    with pytest.raises(ConfigError, match=r"Box low needs 1 or 6 entries for shape \(2, 3\), got 2"):
        Box(shape=(2, 3), low=(0.0, 1.0))


def test_leaves_by_path() -> None:
    inner = Dict(spaces={"touch": Box(shape=(2,)), "mode": Discrete(n=2)})
    assert list(leaves(Dict(spaces={"goal": Discrete(n=3), "hand": inner}))) == ["/goal", "/hand/touch", "/hand/mode"]
    assert list(leaves(Discrete(n=3))) == [""]
    assert list(leaves(inner, "observation")) == ["observation/touch", "observation/mode"]


@pytest.mark.parametrize(
    ("given", "message"), [({"length": 0}, "at least 1, got 0"), ({"length": 4, "back": 4}, "back=4 and length=4")]
)
def test_windows_refuse_nonsense(given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Window(**given)
