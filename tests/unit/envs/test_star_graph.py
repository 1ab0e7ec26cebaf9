"""Star graphs: arms around a hub, what counts as an exact path, and the stores of solved ones."""

from itertools import pairwise

import numpy as np
import pytest

from foretoken.core.errors import ConfigError
from foretoken.envs.diagnostic import make_world
from foretoken.envs.diagnostic.record import Expert, record
from foretoken.envs.diagnostic.star_graph import StarGraph
from foretoken.envs.recipes.star_paths import StarPaths

ID = "foretoken/StarGraph-2x4-16-v0"


def begun(rows, id=ID):
    world = make_world(id, rows)
    seeds = np.arange(rows)
    world.begin(np.arange(rows), world.drawn_tasks(seeds), seeds)
    return world


def graph(observation, labels):
    """Neighbours by label, own label and target's, read from the bits."""
    pairs = np.stack(np.triu_indices(labels, 1), axis=1)
    joined = {}
    for one, other in pairs[observation[: len(pairs)] > 0].tolist():
        joined.setdefault(one, set()).add(other)
        joined.setdefault(other, set()).add(one)
    ends = observation[len(pairs) :].reshape(2, labels)
    assert (ends.sum(1) == 1).all()
    return joined, *ends.argmax(1).tolist()


@pytest.mark.parametrize(("id", "arms", "labels"), [(ID, 2, 16), ("foretoken/StarGraph-5x4-50-v0", 5, 50)])
def test_a_star_has_arms_and_the_player_goes_along_the_targets(id, arms, labels):
    world = begun(40, id)
    (played,) = record(world, Expert(), world.task.copy(), world.seed.copy())
    assert (played.length == 4).all() and played.info["success"][3].all()
    targets = set()
    for row in range(40):
        joined, hub, target = graph(played.observation[0, row], labels)
        assert sorted(map(len, joined.values())) == sorted([arms] + [2] * 3 * arms + [1] * arms)
        assert len(joined[hub]) == arms and len(joined[target]) == 1
        way = [hub, *played.action[:, row].tolist()]
        assert way[-1] == target and all(there in joined[here] for here, there in pairwise(way))
        assert [graph(seen, labels)[1] for seen in played.observation[:, row]] == way
        targets.add(sorted(joined[hub]).index(way[1]))
    assert targets == set(range(arms))


def test_a_task_is_the_labels_and_a_seed_the_arm():
    world = make_world(ID, 40)
    world.begin(np.arange(40), np.repeat([3, 4], 20), np.arange(40) % 20)
    seen, pairs = world.observe(), 120
    assert (seen[:20, :pairs] == seen[0, :pairs]).all() and not np.array_equal(seen[0, :pairs], seen[20, :pairs])
    assert len(np.unique(seen[:20, pairs:], axis=0)) == 2
    assert np.array_equal(world.target[:20], world.target[20:])


def test_only_the_way_straight_on_is_a_success():
    world = begun(4)
    right, labels = world.expert(), world.label
    unjoined = np.setdiff1d(np.arange(16), labels[3])[0]
    other = np.where(right == labels[:, 1], labels[:, 5], labels[:, 1])
    # Goes on, takes the other arm, stays by its own label, stays by a label that no node has.
    world.step(np.array([right[0], other[1], labels[2, 0], unjoined]))
    assert (world.place > 0).tolist() == [True, True, False, False]
    successes, arrived = np.zeros(4, bool), np.zeros(4, bool)
    for _ in range(6):
        outcome = world.step(world.expert())
        successes |= outcome.info["success"] & ~arrived
        arrived |= outcome.terminated
    assert arrived.all() and successes.tolist() == [True, False, False, False]


def test_nodes_that_are_not_joined_cannot_be_reached():
    world = begun(1)
    for node in range(2, 5):
        world.step(world.label[:, node])
        assert world.place[0] == 0
    world.step(world.label[:, 1])
    world.step(world.label[:, 5])  # the other arm's first
    assert world.place[0] == 1
    world.step(world.label[:, 0])
    assert world.place[0] == 0


def test_wrong_sizes_are_refused():
    for wrong in ({"arms": 0}, {"length": 0}, {"labels": 8}):
        with pytest.raises(ConfigError, match="a label for each node"):
            StarGraph(1, "x", **{"arms": 2, "length": 4, "labels": 9} | wrong)


def test_stores_of_solved_stars(tmp_path, monkeypatch):
    monkeypatch.setenv("FORETOKEN_CACHE", str(tmp_path))
    store, other = StarPaths(episodes=12).open(), StarPaths(episodes=12, seed=1).open()
    assert store.num_episodes == 12 and store.spec.environment == ID
    for number in range(12):
        episode = store.episode(number)
        assert episode.facts["success"] is True and episode.total_return == 1 and len(episode.action) == 4
        assert not np.array_equal(episode.observation[0], other.episode(number).observation[0])
    with pytest.raises(ConfigError, match="did you mean"):
        StarPaths(world="foretoken/StarGraph-2x4-17-v0")
    with pytest.raises(ConfigError, match="episodes must be at least 1"):
        StarPaths(episodes=0)
