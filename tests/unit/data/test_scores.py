"""Reference returns."""

import numpy as np
import pytest

from foretoken.core.errors import UnknownName
from foretoken.data.scores import D4RL, FORETOKEN_V5, normalised_score, reference


@pytest.mark.parametrize("task", [*D4RL, *FORETOKEN_V5])
def test_references_score_0_and_100(task):
    found = reference(task)
    np.testing.assert_allclose(normalised_score(task, [found.low, found.high]).values, [0, 100])


def test_known_figures():
    assert normalised_score("hopper-medium-v2", 3234.3).values == pytest.approx(100)
    assert normalised_score("halfcheetah-expert-v0", 12135.0 * 0 - 280.178953).values == pytest.approx(0)
    assert reference("maze2d-umaze-dense-v1").high == 193.66285642381482
    assert reference("maze2d-umaze-v1").high == 161.86
    assert reference("pen-human-v1").low == 96.262799


def test_a_score_names_its_table():
    assert normalised_score("hopper-medium-v2", 0).reference.table == "D4RL"
    assert normalised_score("Hopper-v5", 0).reference.table == "foretoken-v5, 1"
    assert "medium" in reference("Walker2d-v5").note


@pytest.mark.parametrize("task", ["Hopper-v4", "hoper-medium-v2", "antelope", ""])
def test_unknown_tasks_are_refused(task):
    with pytest.raises(UnknownName, match="no reference returns"):
        reference(task)


def test_near_names():
    with pytest.raises(UnknownName, match="Hopper-v5"):
        reference("Hopper-v4")
