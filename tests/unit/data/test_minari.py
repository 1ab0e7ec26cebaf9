"""Minari datasets: read as the minari package reads them, written so that it opens them, refused when broken."""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from foretoken.core.errors import DataError, MissingExtra
from foretoken.core.spec import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Spec
from foretoken.data.episode import Episode
from foretoken.data.formats import minari
from foretoken.data.imports import import_dataset
from foretoken.data.store import Store

FROZEN = Path(__file__).parents[2] / "data"
BOX = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-np.inf, -np.inf], "high": [np.inf, np.inf]}
TWO = {"type": "Discrete", "dtype": "int64", "start": 0, "n": 2}
ENV = {"id": "CartPole-v1", "max_episode_steps": 500}


def put(group, name, tree):
    if isinstance(tree, dict):
        inner = group.create_group(name)
        for key, part in tree.items():
            put(inner, key, part)
    else:
        group[name] = tree


def episode(length=3, seed=0, **changes):
    random = np.random.default_rng(seed)
    ends = np.zeros((2, length), bool)
    ends[seed % 2, -1] = True
    return {
        "observations": random.normal(size=(length + 1, 2)).astype(np.float32),
        "actions": random.integers(0, 2, length),
        "rewards": random.normal(size=length),
        "terminations": ends[0],
        "truncations": ends[1],
        "infos": {},
    } | changes


def dataset(folder, episodes, observation=BOX, action=TWO, attributes=(), **metadata):
    """A dataset as Minari 0.5 lays it out, by hand."""
    import h5py

    data = folder / "data"
    data.mkdir(parents=True)
    metadata = {
        "data_format": "hdf5",
        "total_episodes": len(episodes),
        "observation_space": json.dumps(observation),
        "action_space": json.dumps(action),
        "env_spec": json.dumps(ENV),
        "dataset_id": "a/b-v0",
    } | metadata
    (data / "metadata.json").write_text(json.dumps(metadata))
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for number, one in enumerate(episodes):
            put(file, f"episode_{number}", {name: value for name, value in one.items() if value is not None})
            file[f"episode_{number}"].attrs.update(
                {"id": number, "total_steps": len(one["actions"]), **dict(attributes)}
            )
    return folder


def test_reads_every_number_from_each_path_of_a_dataset(tmp_path):
    made = [episode(3, 0), episode(12, 1)]
    folder = dataset(tmp_path / "set", made)
    for path in (folder, folder / "data", folder / "data" / "main_data.hdf5"):
        assert minari.sniff(path)
        spec, episodes, about = minari.read(path)
        for one, truth in zip(episodes, made, strict=True):
            for ours, theirs in (
                ("observation", "observations"),
                ("action", "actions"),
                ("reward", "rewards"),
                ("terminated", "terminations"),
                ("truncated", "truncations"),
            ):
                np.testing.assert_array_equal(getattr(one, ours), truth[theirs])
            one.validate(spec)
    assert spec == Spec(
        observation=Box(shape=(2,)), action=Discrete(n=2), environment="CartPole-v1", max_episode_steps=500
    )
    assert about["dataset_id"] == "a/b-v0" and about["findings"] == []


def test_episodes_come_in_the_order_of_their_numbers(tmp_path):
    _, episodes, _ = minari.read(dataset(tmp_path / "set", [episode(n + 1, n) for n in range(12)]))
    assert [one.length for one in episodes] == list(range(1, 13))


def test_nested_observations_and_all_kinds_of_spaces(tmp_path):
    tree = {
        "hand": {"touch": np.zeros((4, 3), np.int8)},
        "goal": np.ones((4, 2), np.float32),
        "pair": {"_index_0": np.zeros(4, np.int64), "_index_1": np.ones((4, 2), np.int64)},
    }
    space = {
        "type": "Dict",
        "subspaces": {
            "hand": {"type": "Dict", "subspaces": {"touch": {"type": "MultiBinary", "n": 3}}},
            "goal": BOX,
            "pair": {
                "type": "Tuple",
                "subspaces": [TWO, {"type": "MultiDiscrete", "dtype": "int64", "nvec": [3, 4], "start": [0, 0]}],
            },
        },
    }
    spec, episodes, _ = minari.read(dataset(tmp_path / "set", [episode(observations=tree)], observation=space))
    one = next(iter(episodes))
    assert spec.observation == Dict(
        spaces={
            "hand": Dict(spaces={"touch": MultiBinary(n=3)}),
            "goal": Box(shape=(2,)),
            "pair": Dict(spaces={"0": Discrete(n=2), "1": MultiDiscrete(nvec=(3, 4))}),
        }
    )
    one.validate(spec)
    np.testing.assert_array_equal(one.observation["pair"]["1"], np.ones((4, 2)))


def test_bounds_per_entry_are_kept(tmp_path):
    action = {"type": "Box", "dtype": "float32", "shape": [2], "low": [-1.0, -2.0], "high": [1.0, 2.0]}
    spec, _, _ = minari.read(dataset(tmp_path / "set", [episode(actions=np.zeros((3, 2), np.float32))], action=action))
    assert spec.action.low == (-1.0, -2.0) and spec.action.high == (1.0, 2.0)


@pytest.mark.parametrize("encoded", ["raw", "equal", "varying"])
def test_images_raw_and_as_jpeg(tmp_path, encoded):
    from PIL import Image

    frames = np.zeros((4, 32, 40, 3), np.uint8) + np.arange(4, dtype=np.uint8)[:, None, None, None] * 60
    if encoded == "varying":
        frames[1] += np.random.default_rng(0).integers(0, 40, frames[1].shape, np.uint8)
    stored = frames
    if encoded != "raw":
        import h5py

        pieces = []
        for frame in frames:
            Image.fromarray(frame).save(buffer := io.BytesIO(), format="JPEG", quality=95)
            pieces.append(np.frombuffer(buffer.getvalue(), np.uint8))
        longest = max(map(len, pieces))
        if encoded == "equal":
            stored = np.stack([np.pad(piece, (0, longest - len(piece))) for piece in pieces])
        else:
            stored = np.empty(4, h5py.vlen_dtype(np.uint8))
            stored[:] = pieces
    space = {
        "type": "Box",
        "dtype": "uint8",
        "shape": [32, 40, 3],
        "low": np.zeros((32, 40, 3)).tolist(),
        "high": np.full((32, 40, 3), 255).tolist(),
    }
    spec, episodes, _ = minari.read(dataset(tmp_path / "set", [episode(observations=stored)], observation=space))
    found = next(iter(episodes)).observation
    assert spec.observation == Box(shape=(32, 40, 3), dtype="uint8", low=(0.0,), high=(255.0,))
    assert found.dtype == np.uint8 and found.shape == frames.shape
    assert np.abs(found.astype(int) - frames).mean() < (1 if encoded == "raw" else 12)


def test_texts_are_left_out_with_a_finding(tmp_path):
    space = {
        "type": "Dict",
        "subspaces": {"position": BOX, "mission": {"type": "Text", "max_length": 9, "min_length": 1, "charset": "ab"}},
    }
    tree = {"position": np.zeros((4, 2), np.float32), "mission": [b"a"] * 4}
    spec, episodes, about = minari.read(dataset(tmp_path / "set", [episode(observations=tree)], observation=space))
    next(iter(episodes)).validate(spec)
    assert list(spec.observation.spaces) == ["position"]
    assert [one["code"] for one in about["findings"]] == ["text-left-out"] and "mission" in about["findings"][0][
        "message"
    ]


def test_infos_become_columns_and_attributes_facts(tmp_path):
    infos = {"qpos": np.arange(8.0).reshape(4, 2), "deep": {"success": np.array([0, 0, 1], bool)}, "words": [b"x"] * 4}
    other = {"qpos": np.zeros((4, 2)), "deep": {"success": np.zeros(3, bool)}, "once": np.zeros(4)}
    folder = dataset(
        tmp_path / "set",
        [episode(infos=infos), episode(infos=other)],
        attributes={"seed": 7, "options/level": "hard", "return": 3.0},
    )
    store, findings = import_dataset(folder, tmp_path / "store")
    first = store.episode(0)
    np.testing.assert_array_equal(np.asarray(first.columns["infos"]["deep"]["success"])[:3], infos["deep"]["success"])
    np.testing.assert_array_equal(first.columns["infos"]["qpos"], infos["qpos"])
    assert store.episodes["seed"].tolist() == [7, 7] and store.episodes["source_return"].tolist() == [3.0, 3.0]
    left = next(one for one in findings if one.code == "infos-left-out")
    assert list(left.detail["names"]) == ["once", "words"]


def test_metadata_with_more_episodes_than_data_is_found(tmp_path):
    _, _, about = minari.read(dataset(tmp_path / "set", [episode()], total_episodes=5))
    assert [one["code"] for one in about["findings"]] == ["episodes-missing"]


@pytest.mark.parametrize("kind", ["hdf5", "arrow", "parquet"])
def test_frozen_datasets_of_minari_0_5_4_stay_readable(tmp_path, kind):
    if kind != "hdf5":
        pytest.importorskip("pyarrow", reason="needs the extra 'arrow'")
    store, findings = import_dataset(FROZEN / f"minari-0.5.4-{kind}", tmp_path / "store")
    assert [one.code for one in findings] == ["summary"] and store.num_episodes == 2
    assert store.spec.observation == Dict(spaces={"position": Box(shape=(2,)), "room": Discrete(n=4)})
    one, two = store.episode(0), store.episode(1)
    np.testing.assert_array_equal(two.observation["position"], np.arange(8).reshape(4, 2))
    np.testing.assert_array_equal(two.observation["room"], [0, 1, 2, 3])
    np.testing.assert_array_equal(two.action, [0, 1, 2])
    np.testing.assert_array_equal(two.reward, [0.0, 0.5, 1.0])
    np.testing.assert_array_equal(two.columns["infos"]["speed"].reshape(-1), [0, 1, 2, 3])
    assert one.terminated.tolist() == [False, True] and two.truncated.tolist() == [False, False, True]
    assert store.episodes["seed"].tolist() == [2, 3]


# Bad input


def test_a_cut_file_is_refused(tmp_path):
    folder = dataset(tmp_path / "set", [episode(200)])
    main = folder / "data" / "main_data.hdf5"
    main.write_bytes(main.read_bytes()[:-3000])
    with pytest.raises(DataError, match="cut short"):
        minari.read(folder)
    main.write_bytes(b"")
    with pytest.raises(DataError, match="not a whole HDF5 file"):
        minari.read(folder)


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "terminations", "truncations"])
def test_missing_arrays_are_named(tmp_path, name):
    folder = dataset(
        tmp_path / "set", [episode(), episode(**{name: None})] if name != "actions" else [episode(), episode()]
    )
    if name == "actions":
        import h5py

        with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
            del file["episode_1/actions"]
    with pytest.raises(DataError, match=f"episode_1/{name}"):
        list(minari.read(folder)[1])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rewards": np.zeros(2)}, "reward"),
        ({"observations": np.zeros((3, 2), np.float32)}, "observation"),
        ({"observations": np.full((4, 2), np.nan, np.float32)}, "NaN"),
        ({"observations": np.zeros((4, 5), np.float32)}, "shape"),
        ({"terminations": np.array([True, False, False])}, "terminated"),
        ({"actions": np.array([0, 1, 5])}, "action"),
    ],
)
def test_broken_episodes_are_refused_and_leave_nothing(tmp_path, changes, words):
    folder = dataset(tmp_path / "set", [episode(), episode(**changes)])
    with pytest.raises(DataError, match=words):
        import_dataset(folder, tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_texts_and_objects_in_place_of_numbers_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"episode_0/rewards.*refused"):
        list(minari.read(dataset(tmp_path / "set", [episode(rewards=[b"a", b"b", b"c"])]))[1])


def test_a_dataset_without_episodes_is_refused(tmp_path):
    with pytest.raises(DataError, match="no episodes"):
        minari.read(dataset(tmp_path / "set", []))


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"observation_space": None}, "observation_space"),
        ({"data_format": "zarr"}, "zarr"),
        ({"dataset_id": "../../elsewhere-v0"}, "outside"),
        ({"action_space": json.dumps({"type": "Graph"})}, "Graph"),
        ({"action_space": json.dumps({"type": "Text"})}, "text"),
    ],
)
def test_metadata_that_cannot_be_used_is_refused(tmp_path, metadata, words):
    with pytest.raises(DataError, match=words):
        minari.read(dataset(tmp_path / "set", [episode()], **metadata))


def test_metadata_that_is_no_json_is_refused(tmp_path):
    folder = dataset(tmp_path / "set", [episode()])
    (folder / "data" / "metadata.json").write_text("{")
    with pytest.raises(DataError, match=r"metadata\.json is not valid JSON"):
        minari.read(folder)


def test_links_and_values_in_other_files_are_refused(tmp_path):
    import h5py

    with h5py.File(tmp_path / "secret.hdf5", "w") as file:
        file["x"] = np.zeros((4, 2), np.float32)
    folder = dataset(tmp_path / "link", [episode(observations=None)])
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        file["episode_0/observations"] = h5py.ExternalLink(str(tmp_path / "secret.hdf5"), "/x")
    with pytest.raises(DataError, match="another file, refused"):
        minari.read(folder)
    folder = dataset(tmp_path / "external", [episode(observations=None)])
    (tmp_path / "raw").write_bytes(bytes(32))
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        file.create_dataset("episode_0/observations", (4, 2), np.float32, external=[(str(tmp_path / "raw"), 0, 32)])
    with pytest.raises(DataError, match="other files, refused"):
        list(minari.read(folder)[1])
    folder = dataset(tmp_path / "virtual", [episode(observations=None)])
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        layout = h5py.VirtualLayout((4, 2), np.float32)
        layout[:] = h5py.VirtualSource(str(tmp_path / "secret.hdf5"), "x", (4, 2))
        file.create_virtual_dataset("episode_0/observations", layout)
    with pytest.raises(DataError, match="other files, refused"):
        list(minari.read(folder)[1])


# Writing, and the minari package as the judge


def nested_store(path=None):
    spec = Spec(
        observation=Dict(
            spaces={
                "position": Box(shape=(2,)),
                "camera": Box(shape=(36, 34, 3), dtype="uint8", low=(0.0,), high=(255.0,)),
            }
        ),
        action=MultiDiscrete(nvec=(3, 4)),
        environment="CartPole-v1",
        max_episode_steps=500,
    )
    store = Store.create(path, spec, columns={"infos/speed": Box(shape=())}, about={"author": ["somebody"]})
    random = np.random.default_rng(0)
    for length in (3, 1, 5):
        ends = np.arange(length) == length - 1
        store.append(
            Episode(
                observation={
                    "position": random.normal(size=(length + 1, 2)).astype(np.float32),
                    "camera": random.integers(0, 255, (length + 1, 36, 34, 3), np.uint8),
                },
                action=random.integers(0, 3, (length, 2)),
                reward=random.normal(size=length).astype(np.float32),
                terminated=ends,
                truncated=~ends & False,
                columns={"infos/speed": random.normal(size=length + 1).astype(np.float32)},
                facts={"seed": length},
            )
        )
    return store


def assert_equal_stores(ours, theirs):
    assert ours.num_episodes == theirs.num_episodes
    for number in range(ours.num_episodes):
        one, two = ours.episode(number), theirs.episode(number)
        for name in ("observation", "action", "reward", "terminated", "truncated", "columns"):
            assert_equal_trees(getattr(one, name), getattr(two, name))


def assert_equal_trees(one, two):
    if isinstance(one, dict):
        assert sorted(one) == sorted(two)
        for key in one:
            assert_equal_trees(one[key], two[key])
    else:
        np.testing.assert_array_equal(one, two)


def test_what_is_written_is_read_back(tmp_path):
    store = nested_store()
    minari.write(store, tmp_path / "set-v0")
    again, _ = import_dataset(tmp_path / "set-v0", tmp_path / "store")
    assert_equal_stores(store, again)
    assert again.spec == store.spec and again.episodes["seed"].tolist() == [3, 1, 5]
    with pytest.raises(DataError, match="exists"):
        minari.write(store, tmp_path / "set-v0")
    with pytest.raises(DataError, match="dataset_id"):
        minari.write(store, tmp_path / "new", dataset_id="../up-v0")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set-v0", "store"]


def test_a_disk_without_room_is_refused_before_it_is_full(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(DataError, match=r"needs about 0\.\d+ MB, .* has 0\.001 MB left; make room"):
        minari.write(nested_store(), tmp_path / "set-v0")
    assert not list(tmp_path.iterdir())


def test_minari_opens_what_is_written(tmp_path, monkeypatch):
    package = pytest.importorskip("minari", reason="needs the extra 'minari'")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    store = nested_store()
    minari.write(store, tmp_path / "ours" / "set-v0", dataset_id="ours/set-v0") if (
        tmp_path / "ours"
    ).mkdir() is None else None
    found = package.load_dataset("ours/set-v0")
    assert found.total_episodes == 3 and found.total_steps == 9 and found.env_spec.id == "CartPole-v1"
    for number, theirs in enumerate(found.iterate_episodes()):
        ours = store.episode(number)
        assert_equal_trees(ours.observation, theirs.observations)
        np.testing.assert_array_equal(ours.action, theirs.actions)
        np.testing.assert_array_equal(ours.reward, theirs.rewards)
        np.testing.assert_array_equal(ours.terminated, theirs.terminations)
    assert "ours/set-v0" in package.list_local_datasets()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["hdf5", "arrow", "parquet"])
@pytest.mark.parametrize("jpeg", [True, False])
def test_reads_what_minari_makes(tmp_path, monkeypatch, kind, jpeg):
    package = pytest.importorskip("minari", reason="needs the extra 'minari'")
    pytest.importorskip("pyarrow", reason="needs the extra 'arrow'")
    import gymnasium
    from minari.data_collector import EpisodeBuffer

    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    random, spaces = np.random.default_rng(0), gymnasium.spaces
    observation = spaces.Dict(
        {
            "a": spaces.Box(-1, 1, (2, 3)),
            "deep": spaces.Dict({"n": spaces.Discrete(5)}),
            "image": spaces.Box(0, 255, (40, 33, 3), np.uint8),
        }
    )
    buffers = []
    for length in (4, 1, 11):
        seen = {
            "a": random.uniform(-1, 1, (length + 1, 2, 3)).astype(np.float32),
            "deep": {"n": random.integers(0, 5, length + 1)},
            "image": random.integers(0, 255, (length + 1, 40, 33, 3), np.uint8),
        }
        ends = [False] * (length - 1) + [True]
        buffers.append(
            EpisodeBuffer(
                seed=length,
                observations=seen,
                actions=random.uniform(-1, 1, (length, 2)).astype(np.float32),
                rewards=random.normal(size=length).tolist(),
                terminations=ends,
                truncations=[False] * length,
                infos={"xy": random.normal(size=(length + 1, 2)), "score": random.normal(size=length + 1).tolist()},
            )
        )
    made = package.create_dataset_from_buffers(
        "theirs/set-v0",
        buffers,
        observation_space=observation,
        action_space=spaces.Box(-1, 1, (2,)),
        data_format=kind,
        jpeg_encoding=jpeg,
    )
    store, findings = import_dataset(tmp_path / "theirs" / "set-v0", tmp_path / "store", floats="keep")
    assert [one.code for one in findings] == ["summary"]
    assert store.episodes["seed"].tolist() == [4, 1, 11]
    for number, theirs in enumerate(made.iterate_episodes()):
        ours = store.episode(number)
        assert_equal_trees(ours.observation, theirs.observations)
        np.testing.assert_array_equal(ours.action, theirs.actions)
        np.testing.assert_array_equal(ours.reward, theirs.rewards)
        np.testing.assert_array_equal(ours.terminated, theirs.terminations)
        np.testing.assert_array_equal(ours.columns["infos"]["xy"], buffers[number].infos["xy"])
        np.testing.assert_array_equal(ours.columns["infos"]["score"].reshape(-1), buffers[number].infos["score"])


def test_arrow_without_pyarrow_names_the_extra(tmp_path, monkeypatch):
    folder = dataset(tmp_path / "set", [episode()], data_format="arrow")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r"foretoken\[arrow\]"):
        minari.read(folder)


def test_broken_arrow_files_are_refused(tmp_path):
    pytest.importorskip("pyarrow", reason="needs the extra 'arrow'")
    folder = dataset(tmp_path / "set", [episode()], data_format="arrow")
    with pytest.raises(DataError, match="no episodes"):
        minari.read(folder)
    (folder / "data" / "0").mkdir()
    with pytest.raises(DataError, match=r"no \.arrow file"):
        minari.read(folder)
    (folder / "data" / "0" / "part-0.arrow").write_bytes(b"ARROW1")
    with pytest.raises(DataError, match="cut short"):
        minari.read(folder)


def test_reading_never_imports_minari(tmp_path, monkeypatch):
    folder = dataset(tmp_path / "set", [episode()])
    monkeypatch.setitem(sys.modules, "minari", None)
    assert len(list(minari.read(folder)[1])) == 1
