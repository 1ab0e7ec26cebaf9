"""Bodies as plain data: distances, and what is refused."""

import pytest

from foretoken.core.body import Body, Part, known_bodies, known_body, star
from foretoken.core.errors import ConfigError, UnknownName

ARM = (
    Part(name="base", observation=(0, 1)),
    Part(name="elbow", joined=("base",), observation=(1, 2), action=(0,)),
    Part(name="hand", joined=("elbow",), action=(1, 2)),
)


def test_distances_are_joints_on_the_shortest_path():
    body = Body(parts=ARM)
    assert body.distances() == ((0, 1, 2), (1, 0, 1), (2, 1, 0)) and body.diameter == 2
    ring = Body(parts=tuple(Part(name=str(i), joined=(str((i + 1) % 5),)) for i in range(5)))
    assert ring.diameter == 2 and ring.distances()[0] == (0, 1, 2, 2, 1)


def test_survives_json_and_shares_observations():
    body = Body(parts=ARM)
    assert Body.from_json(body.to_json()) == body
    body.check(3, 3)  # entry 1 of the observation belongs to two parts


@pytest.mark.parametrize("name", known_bodies())
def test_known_bodies_are_whole(name):
    body = known_body(name)
    assert all(part.action or part.observation for part in body.parts) and body.diameter >= 3


def test_star_fits_any_vectors():
    body = star(5, 3)
    body.check(5, 3)
    assert body.diameter == 2 and len(body.parts) == 4
    assert Body(parts=(Part(name="all", observation=(0,), action=(0,)),)).diameter == 0


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ((), r"at least one part"),
        ((*ARM, ARM[0]), r"different names, got 4 with \['base'\] twice"),
        ((*ARM, Part(name="toe", joined=("hnd",))), r"part 'toe' .* got 'hnd' \(did you mean 'hand'\?\)"),
        ((*ARM, Part(name="toe")), r"must be connected, \['toe'\] are not joined to 'base'"),
        ((*ARM, Part(name="toe", joined=("hand",), action=(1,))), r"action entries \[1\] belong to several parts"),
        ((*ARM, Part(name="toe", joined=("hand",), action=(5,))), r"action entries \[3, 4\] belong to no part"),
        ((*ARM, Part(name="toe", joined=("hand",), observation=(4,))), r"observation entries \[3\] belong to no part"),
        ((*ARM, Part(name="toe", joined=("hand",), observation=(-1,))), r"of part 'toe' must be different and not neg"),
    ],
)
def test_refuses_what_is_no_body(parts, message):
    with pytest.raises(ConfigError, match=message):
        Body(parts=parts)


def test_refuses_other_sizes_and_unknown_names():
    with pytest.raises(ConfigError, match="this body has 3 entries of the observation, the data have 4"):
        Body(parts=ARM).check(4, 3)
    with pytest.raises(UnknownName, match=r"'HalfCheeta-v5' \(did you mean 'HalfCheetah-v5'\?\)"):
        known_body("HalfCheeta-v5")
