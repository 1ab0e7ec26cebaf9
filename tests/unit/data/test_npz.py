"""npz files: our own layout comes back exactly, foreign layouts are recognised, anything doubtful is refused."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from foretoken.core.errors import DataError
from foretoken.core.spec import Box, Dict, Discrete, Spec
from foretoken.data.episode import Episode
from foretoken.data.formats import npz
from foretoken.data.imports import import_dataset
from foretoken.data.store import Store


def rows(count=9, seed=0):
    random = np.random.default_rng(seed)
    return {
        "observations": random.normal(size=(count, 3)),
        "actions": random.uniform(-1, 1, (count, 2)),
        "rewards": random.normal(size=count),
    }


def save(path, arrays):
    np.savez(path, **{name: values for name, values in arrays.items() if values is not None})
    return path


def marks(count, *at):
    found = np.zeros(count, bool)
    found[list(at)] = True
    return found


# Three episodes of 4, 2 and 3 rows, said in every way we know
WAYS = {
    "episode_lengths": {"episode_lengths": np.array([4, 2, 3])},
    "lengths as a column": {"lengths": np.array([[4], [2], [3]])},
    "episode_starts": {"episode_starts": marks(9, 0, 4, 6)},
    "step_type": {"step_type": np.array([0, 1, 1, 2, 0, 2, 0, 1, 2], np.int8)},
    "dones": {"dones": marks(9, 3, 5, 8).astype(np.float32)[:, None]},
    "terminals and timeouts": {"terminals": marks(9, 3), "timeouts": marks(9, 5, 8)},
    "terminated and truncated": {"terminated": marks(9, 3), "truncated": marks(9, 5, 8)},
    "lengths and terminals": {"episode_lengths": np.array([4, 2, 3]), "terminals": marks(9, 3)},
}


@pytest.mark.parametrize("way", WAYS)
def test_all_ways_to_mark_ends_give_the_same_episodes(tmp_path, way):
    made = rows()
    spec, episodes, about = npz.read(save(tmp_path / "set.npz", made | WAYS[way]))
    episodes = list(episodes)
    assert [one.length for one in episodes] == [4, 2, 3]
    for one, begin, end in zip(episodes, (0, 4, 6), (4, 6, 9), strict=True):
        one.validate(spec)
        np.testing.assert_array_equal(
            one.observation, np.concatenate([made["observations"][begin:end], made["observations"][end - 1 : end]])
        )
        np.testing.assert_array_equal(one.action, made["actions"][begin:end])
        np.testing.assert_array_equal(one.reward, made["rewards"][begin:end])
    said = any("term" in name for name in WAYS[way])
    assert [bool(one.terminated[-1]) for one in episodes] == [said, False, False]
    assert [bool(one.truncated[-1]) for one in episodes] == [not said, True, True]
    assert [one["code"] for one in about["findings"]] == ([] if said else ["ends-unknown"]) + ["final-repeated"]


def test_a_time_limit_tells_terminations_from_truncations(tmp_path):
    path = save(tmp_path / "set.npz", rows() | {"dones": marks(9, 3, 5, 8)})
    assert [bool(one.terminated[-1]) for one in npz.read(path, max_episode_steps=4)[1]] == [False, True, True]
    path = save(tmp_path / "starts.npz", rows() | {"episode_starts": marks(9, 0, 4, 6)})
    # Nothing says that the last episode had ended when the file did
    assert [bool(one.terminated[-1]) for one in npz.read(path, max_episode_steps=4)[1]] == [False, True, False]


def test_discounts_tell_terminations(tmp_path):
    arrays = rows() | WAYS["step_type"] | {"discount": np.where(np.arange(9) == 5, 0.0, 1.0)}
    assert [bool(one.terminated[-1]) for one in npz.read(save(tmp_path / "set.npz", arrays))[1]] == [False, True, False]


def test_successors_are_used_where_the_file_has_them(tmp_path):
    made = rows()
    following = np.concatenate([made["observations"][1:], np.ones((1, 3))])
    following[[3, 5]] = 7.0
    path = save(tmp_path / "set.npz", made | WAYS["dones"] | {"next_observations": following})
    _spec, episodes, about = npz.read(path, max_episode_steps=9)
    assert [one.observation[-1].tolist() for one in episodes] == [[7.0] * 3, [7.0] * 3, [1.0] * 3] and about[
        "findings"
    ] == []


def test_one_observation_more_than_actions_per_episode(tmp_path):
    made = rows() | {
        "observations": np.arange(36.0).reshape(12, 3),
        "episode_lengths": np.array([4, 2, 3]),
        "terminals": marks(9, 3, 5, 8),
    }
    _spec, episodes, about = npz.read(save(tmp_path / "set.npz", made))
    np.testing.assert_array_equal(np.concatenate([one.observation for one in episodes]), made["observations"])
    assert about["findings"] == []


def test_short_names_single_columns_and_other_arrays(tmp_path):
    made = rows()
    arrays = {
        "obs": made["observations"],
        "actions": np.array([0, 1] * 4 + [2])[:, None],
        "rewards": made["rewards"][:, None],
        "episode_starts": marks(9, 0, 4, 6),
        "episode_returns": np.array([1.0, 2.0, 3.0]),
        "lives": np.arange(9, dtype=np.uint16),
        "level": np.array([5, 6, 7]),
        "extra": np.zeros((3, 4)),
        "at": np.arange(9),
    }
    store, findings = import_dataset(save(tmp_path / "set.npz", arrays), tmp_path / "store")
    assert store.spec.action == Discrete(n=3) and store.episode(0).action.shape == (4,)
    assert store.episode(1).columns["lives"][:2].tolist() == [4, 5] and store.episodes["level"].tolist() == [5, 6, 7]
    found = {one.code: one for one in findings}
    assert len(found["left-out"].detail["names"]) == 2 and found["returns-differ"].detail["episodes"] == [0, 1, 2]


def test_images_keep_their_bounds(tmp_path):
    arrays = rows() | {"observations": np.zeros((9, 8, 8, 3), np.uint8)} | WAYS["dones"]
    assert npz.read(save(tmp_path / "set.npz", arrays))[0].observation == Box(
        shape=(8, 8, 3), dtype="uint8", low=(0.0,), high=(255.0,)
    )


def nested_store():
    spec = Spec(
        observation=Dict(spaces={"a": Box(shape=(2,)), "deep": Dict(spaces={"b": Discrete(n=4)})}),
        action=Box(shape=(2,), low=(-1.0,), high=(1.0,)),
        environment="X-v0",
    )
    store, random = (
        Store.create(None, spec, columns={"cost": Box(shape=(2,))}, about={"licence": "free"}),
        np.random.default_rng(0),
    )
    for length in (1, 7, 3):
        ends = np.arange(length) == length - 1
        store.append(
            Episode(
                observation={
                    "a": random.normal(size=(length + 1, 2)).astype(np.float32),
                    "deep": {"b": random.integers(0, 4, length + 1)},
                },
                action=random.uniform(-1, 1, (length, 2)).astype(np.float32),
                reward=random.normal(size=length).astype(np.float32),
                terminated=ends,
                truncated=~ends & False,
                columns={"cost": random.normal(size=(length + 1, 2)).astype(np.float32)},
                facts={"seed": length, "name": "x" * length} if length != 7 else {},
            )
        )
    return store


def test_our_own_layout_comes_back_exactly(tmp_path):
    store = nested_store()
    npz.write(store, tmp_path / "set.npz")
    again, findings = import_dataset(tmp_path / "set.npz", tmp_path / "store")
    assert (
        again.spec == store.spec and again.about["licence"] == "free" and [one.code for one in findings] == ["summary"]
    )
    for number in range(3):
        one, two = store.episode(number), again.episode(number)
        np.testing.assert_array_equal(one.observation["deep"]["b"], two.observation["deep"]["b"])
        for name in ("action", "reward", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        np.testing.assert_array_equal(one.columns["cost"], two.columns["cost"])
        assert one.facts == two.facts
    with pytest.raises(DataError, match="exists"):
        npz.write(store, tmp_path / "set.npz")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"version": np.array(2)}, "version 2"),
        ({"length": np.array([1, 7, 4])}, "lengths that add up"),
        ({"length": np.array([], np.int64)}, "at least one episode"),
        ({"reward": None}, "'reward'.*no such array"),
        ({"facts/seed": np.zeros(2)}, "'facts/seed'"),
        ({"spec": np.array("{")}, "'spec' must be JSON"),
    ],
)
def test_a_broken_file_of_our_own_is_refused(tmp_path, changes, words):
    npz.write(nested_store(), tmp_path / "set.npz")
    arrays = dict(np.load(tmp_path / "set.npz"))
    with pytest.raises(DataError, match=words):
        npz.read(save(tmp_path / "broken.npz", arrays | changes))


def test_a_frozen_file_of_version_1_stays_readable():
    spec, episodes, about = npz.read(Path(__file__).parents[2] / "data" / "foretoken-npz-1.npz")
    one, two = episodes
    assert spec.action == Discrete(n=3) and about["format"] == "npz"
    np.testing.assert_array_equal(two.observation["position"], np.arange(8).reshape(4, 2))
    np.testing.assert_array_equal(two.columns["infos/speed"], [0, 1, 2, 3])
    assert two.reward.tolist() == [0.0, 0.5, 1.0] and one.facts == {"seed": 2} and two.truncated[-1]


# Bad input


def test_python_objects_are_refused_by_name(tmp_path):
    arrays = rows() | WAYS["dones"] | {"rewards": np.array([1.0, None] * 4 + [2.0], object)}
    with pytest.raises(DataError, match="'rewards' holds Python objects"):
        npz.read(save(tmp_path / "set.npz", arrays))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rewards": np.zeros(8)}, "unequal lengths"),
        ({"dones": np.zeros(8, bool)}, "unequal lengths"),
        ({"actions": None}, "no action"),
        ({"dones": None}, "nothing says where an episode ends"),
        ({"observations": np.array(["a"] * 9)}, "'observations' has dtype"),
        ({"dones": np.arange(9)}, "0 and 1"),
        ({"dones": None, "step_type": np.arange(9)}, "step_type"),
        ({"dones": None, "episode_starts": marks(9, 4)}, "first row"),
        ({"dones": None, "episode_lengths": np.array([4, 2])}, "add up"),
        ({"dones": None, "episode_lengths": np.array([], np.int64)}, "add up"),
        ({"dones": None, "episode_lengths": np.array([9]), "terminals": marks(9, 4)}, "row 4, inside an episode"),
        ({"observations": np.full((9, 3), np.nan)}, "NaN"),
        ({"next_observations": np.zeros((9, 2))}, "next observations"),
    ],
)
def test_broken_arrays_are_refused_and_leave_nothing(tmp_path, changes, words):
    with pytest.raises(DataError, match=words):
        import_dataset(save(tmp_path / "set.npz", rows() | WAYS["dones"] | changes), tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.npz"]


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(DataError, match="no transitions"):
        npz.read(save(tmp_path / "set.npz", {name: values[:0] for name, values in (rows() | WAYS["dones"]).items()}))


def test_a_cut_file_is_refused(tmp_path):
    path = save(tmp_path / "set.npz", rows() | WAYS["dones"])
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match="cut short"):
        npz.read(path)
    with pytest.raises(DataError, match="cut short"):
        import_dataset(path, tmp_path / "store")


def test_members_that_point_outside_are_refused(tmp_path):
    path = save(tmp_path / "set.npz", rows() | WAYS["dones"])
    for name in ("../up.npy", "/root.npy", "a/../../b.npy", "..\\up.npy"):
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr(name, b"")
        with pytest.raises(DataError, match="points outside"):
            npz.read(path)
        save(path, rows() | WAYS["dones"])


# import_dataset


def test_an_existing_folder_is_not_touched_unless_told(tmp_path):
    path = save(tmp_path / "set.npz", rows() | WAYS["dones"])
    import_dataset(path, tmp_path / "store")
    before = sorted((file.name, file.stat().st_mtime_ns) for file in (tmp_path / "store").iterdir())
    with pytest.raises(DataError, match="not empty"):
        import_dataset(path, tmp_path / "store")
    with pytest.raises(DataError, match="does not exist"):
        import_dataset(tmp_path / "missing.npz", tmp_path / "store", overwrite=True)
    assert sorted((file.name, file.stat().st_mtime_ns) for file in (tmp_path / "store").iterdir()) == before
    store, _ = import_dataset(save(path, rows(4) | {"dones": marks(4, 3)}), tmp_path / "store", overwrite=True)
    assert store.num_episodes == 1 and sorted(entry.name for entry in tmp_path.iterdir()) == ["set.npz", "store"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("precious")
    with pytest.raises(DataError, match="never overwritten"):
        import_dataset(path, tmp_path / "mine", overwrite=True)


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "store").mkdir()
    assert import_dataset(save(tmp_path / "set.npz", rows() | WAYS["dones"]), tmp_path / "store")[0].num_episodes == 3


def test_unknown_files_and_formats_are_refused(tmp_path):
    (tmp_path / "a.txt").write_text("hello")
    with pytest.raises(DataError, match="no known format"):
        import_dataset(tmp_path / "a.txt", tmp_path / "store")
    with pytest.raises(LookupError, match="did you mean 'minari'"):
        import_dataset(tmp_path / "a.txt", tmp_path / "store", format="minary")
    with pytest.raises(DataError, match="not a whole HDF5 file"):
        import_dataset(tmp_path / "a.txt", tmp_path / "store", format="d4rl")


def test_float64_is_kept_when_asked(tmp_path):
    path = save(tmp_path / "set.npz", rows() | WAYS["dones"])
    assert import_dataset(path, tmp_path / "a")[0].episode(0).observation.dtype == np.float32
    kept = import_dataset(path, tmp_path / "b", floats="keep")[0]
    np.testing.assert_array_equal(kept.episode(0).observation[:4], rows()["observations"][:4])


def test_extra_columns_that_cannot_be_stored_can_be_left_out(tmp_path):
    path = save(tmp_path / "set.npz", rows() | WAYS["dones"] | {"cost": np.full(9, np.nan), "lives": np.ones(9)})
    with pytest.raises(DataError, match=r"cost.*columns="):
        import_dataset(path, tmp_path / "store")
    store, _ = import_dataset(path, tmp_path / "store", columns=("lives",))
    assert "lives" in store.columns and "cost" not in store.columns
    with pytest.raises(DataError, match="livess"):
        import_dataset(path, tmp_path / "other", columns=("livess",))
