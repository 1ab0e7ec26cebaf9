"""D4RL files: every way in which ends and final observations can be known, against a loop written step by step."""

from pathlib import Path

import numpy as np
import pytest

from foretoken.core.errors import ConfigError, DataError
from foretoken.core.spec import Box, Dict, Discrete, MultiDiscrete, Spec
from foretoken.data.doctor import examine
from foretoken.data.episode import Episode
from foretoken.data.formats import d4rl
from foretoken.data.imports import import_dataset
from foretoken.data.store import Store


def steps(lengths, terminated, seed=0):
    """True episodes laid flat, with each row's true successor; the last flag of `terminated` says how each ends."""
    random = np.random.default_rng(seed)
    seen = [random.normal(size=(length + 1, 3)).astype(np.float32) for length in lengths]
    ends = np.cumsum(lengths) - 1
    count = int(ends[-1]) + 1
    terminals, timeouts = np.zeros(count, bool), np.zeros(count, bool)
    terminals[ends[np.array(terminated)]] = True
    timeouts[ends[~np.array(terminated)]] = True
    return {
        "observations": np.concatenate([one[:-1] for one in seen]),
        "next_observations": np.concatenate([one[1:] for one in seen]),
        "actions": random.uniform(-1, 1, (count, 2)).astype(np.float32),
        "rewards": random.normal(size=count).astype(np.float32),
        "terminals": terminals,
        "timeouts": timeouts,
    }


def save(path, rows, **more):
    import h5py

    with h5py.File(path, "w") as file:
        for name, values in (rows | more).items():
            if values is not None:
                file[name] = values
    return path


def by_hand(rows, limit=0):
    """The rules of the format, one row at a time: list of (observations, actions, rewards, terminated, truncated)."""
    count, found, begin = len(rows["rewards"]), [], 0
    for t in range(count):
        terminal = bool(rows["terminals"][t])
        if "timeouts" in rows:
            timeout = bool(rows["timeouts"][t])
        else:
            jump = (
                "next_observations" in rows
                and t + 1 < count
                and not np.allclose(rows["next_observations"][t], rows["observations"][t + 1])
            )
            timeout = not terminal and (jump or (limit > 0 and t - begin + 1 == limit))
        timeout = timeout or (t == count - 1 and not terminal)
        if not (terminal or timeout):
            continue
        seen, actions, rewards = (
            list(rows["observations"][begin : t + 1]),
            rows["actions"][begin : t + 1],
            rows["rewards"][begin : t + 1],
        )
        if "next_observations" in rows:
            seen.append(rows["next_observations"][t])
        elif terminal:
            seen.append(seen[-1])
        else:
            actions, rewards = actions[:-1], rewards[:-1]
        if len(actions):
            found.append((np.array(seen), actions, rewards, terminal, timeout))
        begin = t + 1
    return found


def check(path, rows, limit=0):
    spec, episodes, about = d4rl.read(path, max_episode_steps=limit)
    truth = by_hand(rows, limit)
    for one, (seen, actions, rewards, terminal, timeout) in zip(episodes, truth, strict=True):
        one.validate(spec)
        np.testing.assert_array_equal(one.observation, seen)
        np.testing.assert_array_equal(one.action, actions)
        np.testing.assert_array_equal(one.reward, rewards)
        assert one.terminated.tolist() == [False] * (len(actions) - 1) + [terminal]
        assert one.truncated.tolist() == [False] * (len(actions) - 1) + [timeout]
    return spec, [one["code"] for one in about["findings"]]


CASES = {
    "everything": ({}, 0, []),
    "no successors": ({"next_observations"}, 0, ["final-from-last-row", "final-repeated", "too-short"]),
    "no timeouts": ({"timeouts"}, 0, ["timeouts-from-jumps"]),
    "no timeouts, limit": ({"timeouts"}, 4, ["timeouts-from-jumps", "timeouts-from-limit"]),
    "neither, limit": (
        {"timeouts", "next_observations"},
        4,
        ["timeouts-from-limit", "final-from-last-row", "final-repeated", "too-short"],
    ),
    "neither": ({"timeouts", "next_observations"}, 0, ["timeouts-missing", "final-from-last-row", "final-repeated"]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("block", [1, 7, 65_536])
def test_every_case_equals_the_loop(tmp_path, monkeypatch, case, block):
    monkeypatch.setattr(d4rl.flat, "BLOCK_ROWS", block)
    gone, limit, codes = CASES[case]
    rows = steps([4, 3, 1, 9, 4, 1, 8, 5], [False, True, False, True, True, True, False, False])
    if case == "no timeouts, limit":
        rows = steps([4, 3, 4, 2, 4, 4], [False, True, False, True, True, False])
    rows = {name: values for name, values in rows.items() if name not in gone}
    _, found = check(save(tmp_path / "set.hdf5", rows), rows, limit)
    assert [code for code in found if code != "open-end"] == codes


def test_random_files_equal_the_loop(tmp_path):
    for seed in range(30):
        random = np.random.default_rng(seed)
        count = random.integers(1, 9)
        rows = steps(random.integers(2, 13, count), random.random(count) < 0.5, seed)
        gone = [name for name in ("timeouts", "next_observations") if random.random() < 0.5]
        rows = {name: values for name, values in rows.items() if name not in gone}
        check(save(tmp_path / f"{seed}.hdf5", rows), rows, int(random.integers(0, 6)) if "timeouts" in gone else 0)


def test_timeouts_are_not_terminals_even_when_both_are_set(tmp_path):
    rows = steps([3, 3], [True, False])
    rows["timeouts"][2] = True
    _, episodes, _ = d4rl.read(save(tmp_path / "set.hdf5", rows))
    one, two = episodes
    assert one.terminated[-1] and one.truncated[-1] and two.truncated[-1] and not two.terminated[-1]


def test_an_open_end_is_said(tmp_path):
    rows = steps([3, 5], [True, False])
    rows["timeouts"][-1] = False
    assert check(save(tmp_path / "set.hdf5", rows), rows)[1] == ["open-end"]


def test_one_endless_episode_is_an_error_finding(tmp_path):
    rows = {
        name: values for name, values in steps([30], [False]).items() if name not in ("timeouts", "next_observations")
    }
    _, _, about = d4rl.read(save(tmp_path / "set.hdf5", rows))
    assert about["findings"][0]["code"] == "no-boundaries" and about["findings"][0]["severity"] == "error"
    assert "max_episode_steps" in about["findings"][0]["message"]


def test_columns_of_one_number_flags_as_numbers_and_whole_number_actions(tmp_path):
    rows = steps([3, 2], [True, False])
    rows |= {
        "rewards": rows["rewards"][:, None],
        "terminals": rows["terminals"].astype(np.float32)[:, None],
        "timeouts": rows["timeouts"].astype(np.uint8),
    }
    rows["actions"] = np.array([0, 2, 1, 0, 1])[:, None].astype(np.uint8)
    spec, episodes, _ = d4rl.read(save(tmp_path / "set.hdf5", rows))
    assert spec.action == Discrete(n=3)
    for one in episodes:
        one.validate(spec)
    rows["actions"] = np.array([[0, 2], [1, 0], [1, 1], [0, 0], [0, 5]])
    assert d4rl.read(save(tmp_path / "more.hdf5", rows))[0].action == MultiDiscrete(nvec=(2, 6))


def test_action_bounds_are_given_or_assumed_or_reported_missing(tmp_path):
    rows = steps([3, 2], [True, False])
    assert d4rl.read(save(tmp_path / "a.hdf5", rows))[0].action == Box(shape=(2,), low=(-1.0,), high=(1.0,))
    rows["actions"][1, 1] = 1.37
    path = save(tmp_path / "b.hdf5", rows)
    spec, _, about = d4rl.read(path)
    assert (
        spec.action == Box(shape=(2,))
        and about["findings"][0]["code"] == "action-bounds-unknown"
        and "1.37" in about["findings"][0]["message"]
    )
    assert d4rl.read(path, action_bounds=(-1, 1))[0].action == Box(shape=(2,), low=(-1.0,), high=(1.0,))


def test_infos_are_columns_and_metadata_is_kept(tmp_path):
    rows = steps([3, 2], [True, False])
    qpos = np.arange(10.0).reshape(5, 2)
    more = {
        "infos/qpos": qpos,
        "infos/note": [b"x"] * 5,
        "metadata/algorithm": "SAC",
        "metadata/iteration": 7,
        "metadata/policy/weight": np.ones((3, 3)),
    }
    store, findings = import_dataset(
        save(tmp_path / "set.hdf5", rows, **more), tmp_path / "store", environment="Hopper-v5"
    )
    np.testing.assert_array_equal(store.episode(1).columns["infos"]["qpos"][:2], qpos[3:])
    assert store.about["metadata"] == {"algorithm": "SAC", "iteration": 7}
    assert store.spec.environment == "Hopper-v5" and store.spec.max_episode_steps == 1000
    assert [one.code for one in findings] == ["summary", "infos-left-out"] and "2 episodes, 5 actions" in findings[
        0
    ].message


def test_what_is_written_is_read_back(tmp_path):
    spec = Spec(observation=Box(shape=(3,)), action=Discrete(n=4, start=2), environment="X-v0", max_episode_steps=9)
    store, random = Store.create(None, spec, columns={"cost": Box(shape=())}), np.random.default_rng(0)
    for length in (1, 4):
        ends = np.arange(length) == length - 1
        store.append(
            Episode(
                observation=random.normal(size=(length + 1, 3)).astype(np.float32),
                action=random.integers(2, 6, length),
                reward=random.normal(size=length).astype(np.float32),
                terminated=ends & (length == 1),
                truncated=ends & (length != 1),
                columns={"cost": np.ones(length, np.float32)},
                facts={"order": length, "name": "one" * length},
            )
        )
    d4rl.write(store, tmp_path / "set.hdf5")
    assert d4rl.sniff(tmp_path / "set.hdf5")
    found, episodes, _ = d4rl.read(tmp_path / "set.hdf5")
    assert found == spec
    for number, one in enumerate(episodes):
        truth = store.episode(number)
        for name in ("observation", "action", "reward", "terminated", "truncated"):
            np.testing.assert_array_equal(getattr(one, name), getattr(truth, name))
        np.testing.assert_array_equal(one.columns["infos/cost"], truth.columns["cost"][:-1])
        assert one.facts == truth.facts
    with pytest.raises(DataError, match="exists"):
        d4rl.write(store, tmp_path / "set.hdf5")


def test_dict_observations_cannot_be_written(tmp_path):
    store = Store.create(None, Spec(observation=Dict(spaces={"a": Box(shape=(1,))}), action=Discrete(n=2)))
    with pytest.raises(DataError, match="plain"):
        d4rl.write(store, tmp_path / "set.hdf5")
    assert not any(tmp_path.iterdir())


def test_a_frozen_file_stays_readable():
    spec, episodes, about = d4rl.read(Path(__file__).parents[2] / "data" / "d4rl.hdf5")
    one, two = episodes
    assert spec == Spec(observation=Box(shape=(2,)), action=Box(shape=(1,), low=(-1.0,), high=(1.0,)))
    np.testing.assert_array_equal(two.observation, [[4, 5], [6, 7], [8, 9], [10, 11]])
    np.testing.assert_array_equal(two.action[:, 0], [0, 0.5, 1])
    np.testing.assert_array_equal(one.columns["infos/qvel"], [0, 1])
    assert one.terminated.tolist() == [False, True] and two.truncated.tolist() == [False, False, True]
    assert about["findings"] == []


# Bad input


@pytest.mark.parametrize("name", ["observations", "actions", "rewards", "terminals"])
def test_missing_arrays_are_named(tmp_path, name):
    with pytest.raises(DataError, match=f"has no '{name}'"):
        d4rl.read(save(tmp_path / "set.hdf5", steps([3], [True]) | {name: None}))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rewards": np.zeros(4)}, "unequal lengths.*'rewards': 4"),
        ({"timeouts": np.zeros(4, bool)}, "unequal lengths"),
        ({"next_observations": np.zeros((5, 2))}, "one shape"),
        ({"terminals": np.array([0, 2, 0, 0, 1])}, "'terminals' must hold 0 and 1"),
        ({"rewards": np.zeros((5, 2))}, "'rewards' needs one number per row"),
        ({"observations": [b"a"] * 5}, "'observations'.*refused"),
        ({"actions": np.zeros((5, 2), np.complex64)}, "'actions'.*refused|'actions' has dtype"),
        ({"actions": np.array([0, -1, 0, 0, 0])}, "count from 0"),
    ],
)
def test_broken_arrays_are_refused(tmp_path, changes, words):
    with pytest.raises(DataError, match=words):
        import_dataset(
            save(tmp_path / "set.hdf5", steps([3, 2], [True, False]) | changes), tmp_path / "store", format="d4rl"
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.hdf5"]


def test_nan_is_refused_and_leaves_nothing(tmp_path):
    rows = steps([3, 2], [True, False])
    rows["observations"][4, 1] = np.nan
    with pytest.raises(DataError, match="NaN"):
        import_dataset(save(tmp_path / "set.hdf5", rows), tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set.hdf5"]


def test_no_rows_are_refused(tmp_path):
    rows = {name: values[:0] for name, values in steps([3], [True]).items()}
    with pytest.raises(DataError, match="no transitions"):
        d4rl.read(save(tmp_path / "set.hdf5", rows))


def test_shuffled_rows_are_refused(tmp_path):
    rows = steps([20, 20], [True, False])
    order = np.random.default_rng(0).permutation(40)
    rows = {name: values[order] for name, values in rows.items() if name != "timeouts"}
    with pytest.raises(DataError, match="shuffled"):
        d4rl.read(save(tmp_path / "set.hdf5", rows))


def test_a_cut_file_is_refused(tmp_path):
    path = save(tmp_path / "set.hdf5", steps([300], [True]))
    path.write_bytes(path.read_bytes()[:-2000])
    for format in (None, "d4rl"):
        with pytest.raises(DataError, match="cut short"):
            import_dataset(path, tmp_path / "store", format=format)


def test_links_into_other_files_are_refused(tmp_path):
    import h5py

    save(tmp_path / "secret.hdf5", {"x": np.zeros((3, 3))})
    path = save(tmp_path / "set.hdf5", steps([3], [True]), next_observations=None)
    with h5py.File(path, "a") as file:
        file["infos/x"] = h5py.ExternalLink("secret.hdf5", "/x")
    with pytest.raises(DataError, match="another file, refused"):
        d4rl.read(path)


# What ends an episode


def ants(without=(), seed=0):
    """Twenty ways of 60 steps through a maze, (N, 29) with the place first; of some no timeout says that the ant was put back.

    The terminals are those of AntMaze: every step on the goal, after which the way goes on.
    """
    random, ways = np.random.default_rng(seed), []
    for _ in range(20):
        place = np.cumsum(random.uniform(0.05, 0.15, (60, 2)), axis=0)
        ways.append(np.concatenate([place, random.normal(size=(60, 27))], axis=1))
    ends = np.arange(59, 1200, 60)
    timeouts, terminals = np.zeros(1200, bool), np.zeros(1200, bool)
    timeouts[np.delete(ends, without)] = True
    terminals[(ends[:, None] - [8, 7, 6]).ravel()] = True
    return {
        "observations": np.concatenate(ways).astype(np.float32),
        "actions": random.uniform(-1, 1, (1200, 8)).astype(np.float32),
        "rewards": terminals.astype(np.float32),
        "terminals": terminals,
        "timeouts": timeouts,
    }


@pytest.mark.parametrize("follows", [False, True])
def test_ants_that_are_put_back_begin_an_episode_where_jumps_end_one(tmp_path, follows):
    rows = ants(without=(4, 9, 10))
    if follows:  # the truth beyond an end is a little further on
        rows["next_observations"] = np.append(rows["observations"][1:], rows["observations"][-1:], axis=0)
        rows["next_observations"][59::60] = rows["observations"][59::60] + np.float32(0.1)
    path = save(tmp_path / "set.hdf5", rows)
    store, findings = import_dataset(path, tmp_path / "store", ends=("timeouts", "jumps"))
    told = {one.code: one for one in findings}
    assert store.episodes["length"].tolist() == [60 if follows else 59] * 20
    assert told["cut-at-jumps"].detail == {"cuts": 3} and told["terminals-inside"].detail == {"rows": 60}
    assert store.episodes["truncated"].all() and not store.episodes["terminated"].any()
    joined, _ = import_dataset(path, tmp_path / "joined", ends=("timeouts",))
    assert joined.num_episodes == 17


def test_the_doctor_finds_the_ant_that_was_put_back(tmp_path):
    path = save(tmp_path / "set.hdf5", ants(without=(4, 9)))
    sick, _ = import_dataset(path, tmp_path / "sick", ends=("timeouts",))
    (found,) = [one for one in examine(sick) if one.code in ("observation-jumps", "unmarked-resets")]
    assert found.detail == {"episodes": [4, 8], "steps": 2} and "--ends timeouts,jumps" in found.message
    healthy, _ = import_dataset(path, tmp_path / "healthy", ends=("timeouts", "jumps"))
    assert not {"observation-jumps", "unmarked-resets"} & {one.code for one in examine(healthy)}


def test_a_way_without_jumps_is_cut_nowhere_else(tmp_path):
    """maze2d: one way, at a changing pace, whose timeouts are goals reached."""
    random = np.random.default_rng(0)
    pace = 0.04 * (1 + np.sin(np.arange(3000) / 20)) + random.uniform(0, 0.01, 3000)
    turn = np.cumsum(random.normal(0, 0.1, 3000))
    place = np.cumsum(pace[:, None] * np.stack([np.cos(turn), np.sin(turn)], 1), axis=0)
    timeouts = np.arange(3000) % 100 == 99
    rows = {"observations": place, "actions": np.zeros((3000, 2)), "rewards": np.zeros(3000)}
    rows |= {"terminals": np.zeros(3000, bool), "timeouts": timeouts}
    store, findings = import_dataset(
        save(tmp_path / "set.hdf5", rows), tmp_path / "store", ends=("terminals", "timeouts", "jumps")
    )
    assert store.num_episodes == 30 and {one.code: one.detail for one in findings}["cut-at-jumps"] == {"cuts": 0}


def test_jumps_alone_cut_a_file_that_says_no_ends(tmp_path):
    rows = ants() | {"timeouts": None}
    _, episodes, about = d4rl.read(save(tmp_path / "set.hdf5", rows), ends=("jumps",))
    assert [len(one.action) for one in episodes] == [59] * 20
    assert "no-boundaries" not in [one["code"] for one in about["findings"]]


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        (("jump",), r"ends must be some of .*got 'jump'.*did you mean 'jumps'"),
        ((), "ends must be some of"),
    ],
)
def test_ends_that_there_are_not_are_refused(tmp_path, ends, words):
    with pytest.raises(ConfigError, match=words):
        d4rl.read(save(tmp_path / "set.hdf5", steps([3, 2], [True, False])), ends=ends)


def test_jumps_need_a_position_and_ends_a_d4rl_file(tmp_path):
    rows = steps([3, 2], [True, False]) | {"next_observations": None}
    rows["observations"] = rows["observations"][:, :1]
    with pytest.raises(DataError, match="the first two entries of an observation"):
        d4rl.read(save(tmp_path / "set.hdf5", rows), ends=("jumps",))
    np.savez(tmp_path / "set.npz", **{name: values for name, values in rows.items() if values is not None})
    with pytest.raises(ConfigError, match="for D4RL files only"):
        import_dataset(tmp_path / "set.npz", tmp_path / "store", ends=("jumps",))


def test_a_file_of_minari_is_named_with_few_of_its_many_groups(tmp_path):
    import h5py

    with h5py.File(tmp_path / "main_data.hdf5", "w") as file:
        for number in range(100):
            file.create_group(f"episode_{number}")
    with pytest.raises(DataError, match=r"has no 'observations'.*and 92 more; give --format minari") as told:
        import_dataset(tmp_path / "main_data.hdf5", tmp_path / "store", format="d4rl")
    assert len(str(told.value)) < 400
