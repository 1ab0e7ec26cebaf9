"""Stores: opening, refusing, appending durably, growing, views, statistics, size."""

import json
import mmap
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from foretoken.core.errors import DataError
from foretoken.core.spec import Box, Dict, Discrete, Spec, Window
from foretoken.data import Episode, Store, WindowSampler, open_store
from foretoken.data.transforms import Derived, top_fraction

SPEC = Spec(observation=Box(shape=(3,)), action=Discrete(n=4), environment="Maze-v0", max_episode_steps=50)


def episode(n, value=0.0, **facts):
    ends = np.zeros(n, bool)
    ends[-1] = True
    steps = np.arange(n + 1, dtype=np.float32)
    return Episode(
        observation=np.stack([steps + value, steps * 2, -steps], 1),
        action=np.arange(n) % 4,
        reward=np.arange(n, dtype=np.float32) + 1,
        terminated=ends,
        truncated=np.zeros(n, bool),
        facts=facts,
    )


def window(**changes):
    return Window(**{"length": 4, **changes})


def filled(path, *lengths):
    store = Store.create(path, SPEC)
    store.extend(episode(n, 100.0 * i) for i, n in enumerate(lengths))
    store.close()
    return store


def edit(folder, **changes):
    head = json.loads((folder / "store.json").read_text())
    (folder / "store.json").write_text(json.dumps({**head, **changes}))


def rejected(folder, *words):
    with pytest.raises(DataError) as caught:
        open_store(folder)
    for word in words:
        assert word in str(caught.value)


def test_spec_and_about_survive(tmp_path):
    Store.create(tmp_path / "s", SPEC, about={"source": "made here"}).append(episode(3))
    store = open_store(tmp_path / "s")
    assert store.spec == SPEC
    assert store.spec.max_episode_steps == 50
    assert store.about == {"source": "made here"}
    assert (store.num_episodes, store.num_steps, store.num_actions) == (1, 4, 3)


def test_the_episode_table(tmp_path):
    store = Store.create(tmp_path / "s", SPEC)
    store.append(episode(3, task="a", order=1))
    store.append(episode(5, task="b", success=True))
    for seen in (store, open_store(tmp_path / "s")):
        table = seen.episodes
        assert table["start"].tolist() == [0, 4]
        assert table["length"].tolist() == [3, 5]
        assert table["return"].tolist() == [6, 15]
        assert table["terminated"].tolist() == [True, True]
        assert table["task"].tolist() == ["a", "b"]
        np.testing.assert_array_equal(table["order"], [1, np.nan])
        np.testing.assert_array_equal(table["success"], [np.nan, 1])


def test_a_fact_keeps_its_kind():
    store = Store.create(None, SPEC)
    store.append(episode(2, task="a"))
    with pytest.raises(DataError, match="'task' was text so far, got 3"):
        store.append(episode(2, task=3))
    with pytest.raises(DataError, match="'length'"):
        store.append(episode(2, length=3))
    assert store.num_episodes == 1


def test_open_refuses_what_is_broken(tmp_path):
    rejected(tmp_path / "nowhere", "nowhere", "store.json", "foretoken import")
    folder = tmp_path / "s"
    filled(folder, 3, 4)
    head = (folder / "store.json").read_text()

    def broken(*words, **changes):
        edit(folder, **changes)
        rejected(folder, *words)
        (folder / "store.json").write_text(head)

    broken("format", "'parquet'", format="parquet")
    broken("version 7", version=7)
    broken("truncated", "steps-float32.bin", committed={"episodes": 2, "steps": 90})
    broken("truncated", "episodes.jsonl", committed={"episodes": 3, "steps": 9})
    broken("unequal lengths", "9", "4", committed={"episodes": 1, "steps": 9})
    broken("number of episodes", "-1", committed={"episodes": -1, "steps": 9})
    tree = json.loads(head)
    broken("dtype", "'object'", blocks={**tree["blocks"], "steps-float32": {"dtype": "object", "width": 4}})
    broken("plain file name", blocks={**tree["blocks"], "../../x": {"dtype": "int8", "width": 4}})
    broken(
        "'reward'",
        "outside",
        columns={**tree["columns"], "reward": {"block": "steps-float32", "offset": 40, "shape": []}},
    )
    broken("'action'", columns={name: column for name, column in tree["columns"].items() if name != "action"})
    broken("spec", "os:system", spec={"class": "os:system"})
    (folder / "store.json").write_text("{")
    rejected(folder, "not JSON")
    (folder / "store.json").write_text(head)
    (folder / "episodes.jsonl").write_text("1\n2\n")
    rejected(folder, "episodes.jsonl", "line 1")
    (folder / "steps-int64.bin").unlink()
    rejected(folder, "steps-int64.bin", "missing")


def test_truncated_block_file(tmp_path):
    filled(tmp_path / "s", 3, 4)
    block = tmp_path / "s" / "steps-float32.bin"
    os.truncate(block, block.stat().st_size - 1)
    rejected(tmp_path / "s", "steps-float32.bin", "truncated", "9 steps")


def test_create_refuses(tmp_path):
    filled(tmp_path / "s", 3)
    with pytest.raises(DataError, match="empty folder"):
        Store.create(tmp_path / "s", SPEC)
    with pytest.raises(DataError, match="'reward'"):
        Store.create(None, SPEC, columns={"reward": Box(shape=())})
    with pytest.raises(DataError, match="'complex64'"):
        Store.create(None, SPEC, columns={"wave": Box(shape=(), dtype="complex64")})
    with pytest.raises(DataError, match="without entries"):
        Store.create(None, SPEC, columns={"nothing": Box(shape=(0,))})
    with pytest.raises(DataError, match="float16"):
        Store.create(None, SPEC, floats="float16")
    with pytest.raises(DataError, match="'a/b'"):
        Store.create(None, Spec(observation=Dict(spaces={"a/b": Box(shape=(1,))}), action=Discrete(n=2)))


def test_an_empty_store_opens_but_gives_nothing(tmp_path):
    Store.create(tmp_path / "s", SPEC)
    store = open_store(tmp_path / "s")
    assert store.num_episodes == store.num_steps == 0
    assert len(store.episodes["length"]) == 0
    sampler = WindowSampler(store, window())
    assert sampler.num_anchors == 0
    with pytest.raises(DataError, match="no episodes"):
        sampler.draw(4, 0)
    with pytest.raises(DataError, match="need episodes"):
        store.statistics("reward")
    with pytest.raises(DataError, match=r"-1 .. -1"):
        store.gather([0], ("reward",))


def test_unknown_columns_name_the_nearest(tmp_path):
    store = filled(tmp_path / "s", 3)
    with pytest.raises(DataError, match=r"'rewrad' \(did you mean 'reward'\?\)"):
        store.gather([0], ("rewrad",))
    with pytest.raises(DataError, match="did you mean 'return_to_go'"):
        WindowSampler(store, window(columns=("return_to_og",)))
    with pytest.raises(DataError, match=r"-1 .. 3, got 0 .. 4"):
        store.gather([0, 4], ("reward",))


def test_columns_must_be_declared_and_given():
    store = Store.create(None, SPEC, columns={"cost": Box(shape=(2,))})
    with pytest.raises(DataError, match=r"missing \['cost'\]"):
        store.append(episode(3))
    base = episode(3)
    for columns, words in (({"csot": np.ones((3, 2))}, "did you mean 'cost'"), ({"cost": np.ones(3)}, r"\(2,\)")):
        with pytest.raises(DataError, match=words):
            store.append(Episode(base.observation, base.action, base.reward, base.terminated, base.truncated, columns))
    assert store.num_steps == 0


def test_what_float32_cannot_hold_is_refused():
    good = episode(3)
    bad = Episode(
        good.observation.astype(np.float64) + 1e300, good.action, good.reward, good.terminated, good.truncated
    )
    with pytest.raises(DataError, match='floats="keep"'):
        Store.create(None, SPEC).append(bad)


def test_extend_is_all_or_nothing(tmp_path):
    store = filled(tmp_path / "s", 3)
    files = {file.name: file.stat().st_size for file in (tmp_path / "s").iterdir()}
    with pytest.raises(DataError, match="NaN"):
        store.extend([episode(4), episode(2, float("nan"))])
    assert store.num_episodes == 1
    store.close()
    assert {file.name: file.stat().st_size for file in (tmp_path / "s").iterdir() if file.name in files} == files
    store.append(episode(5, 7.0))
    np.testing.assert_array_equal(open_store(tmp_path / "s").episode(1).observation, episode(5, 7.0).observation)


def test_writers_exclude_one_another(tmp_path):
    pytest.importorskip("fcntl", reason="file locks of this kind need POSIX")
    one, two = filled(tmp_path / "s", 3), open_store(tmp_path / "s")
    one.append(episode(2))
    with pytest.raises(DataError, match="written by another"):
        two.append(episode(2))
    one.close()
    with pytest.raises(DataError, match="open it again"):
        two.append(episode(2))
    assert open_store(tmp_path / "s").append(episode(2)) == 2
    with pytest.raises(DataError, match="a view"):
        one.subset([0]).append(episode(2))


@pytest.mark.parametrize("where", ["disk", None])
def test_truncate(tmp_path, where):
    store = filled(where and tmp_path / "s", 3, 4, 5)
    store.gather([0], ("return_to_go",))
    store.truncate(1)
    assert (store.num_episodes, store.num_steps) == (1, 4)
    store.append(episode(6, 9.0))
    np.testing.assert_array_equal(store.episode(1).observation, episode(6, 9.0).observation)
    assert store.gather(np.arange(4, 11), ("return_to_go",)).return_to_go.tolist() == [21, 20, 18, 15, 11, 6, 0]
    if where:
        store.close()
        assert open_store(tmp_path / "s").num_episodes == 2
    with pytest.raises(DataError, match="truncated to 5"):
        store.truncate(5)


KILLED = """
    import os, sys
    from foretoken.data import open_store
    sys.path.insert(0, {tests!r})
    from test_store import episode
    store = open_store({folder!r})
    {how}
"""


@pytest.mark.parametrize(
    "how",
    [
        "store._commit = lambda: os._exit(7); store.append(episode(9))",
        "store._write_head = lambda: os._exit(7); store.append(episode(9))",
        "os.replace = lambda *a: os._exit(7); store.append(episode(9))",
        "store._steps.blocks['steps-int64'].append = lambda v: os._exit(7); store.append(episode(9))",
        "store.gather([0], ('return_to_go',)); store.extend(episode(9) if i < 3 else os._exit(7) for i in range(9))",
    ],
)
def test_a_writer_that_dies_leaves_the_last_commit(tmp_path, how):
    folder = tmp_path / "s"
    filled(folder, 3, 4)
    code = textwrap.dedent(KILLED).format(tests=str(Path(__file__).parent), folder=str(folder), how=how)
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 7
    store = open_store(folder)
    assert store.num_episodes == 2
    np.testing.assert_array_equal(store.episode(1).observation, episode(4, 100.0).observation)
    assert store.append(episode(5, 3.0)) == 2
    again = open_store(folder)
    np.testing.assert_array_equal(again.episode(2).observation, episode(5, 3.0).observation)
    assert again.gather([9, 13, 14], ("return_to_go",)).return_to_go.tolist() == [15, 5, 0]


def test_killed_at_any_moment(tmp_path):
    folder = tmp_path / "s"
    filled(folder, 3)
    code = textwrap.dedent(KILLED).format(
        tests=str(Path(__file__).parent),
        folder=str(folder),
        how="while True: store.append(episode(7, store.num_episodes))",
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        deadline = time.monotonic() + 60
        while open_store(folder).num_episodes < 5 and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    store = open_store(folder)
    assert store.num_episodes >= 5
    for number in range(1, store.num_episodes):
        np.testing.assert_array_equal(store.episode(number).observation, episode(7, number).observation)
    store.append(episode(2))


@pytest.mark.skipif(not hasattr(mmap, "MADV_RANDOM"), reason="this system takes no advice on how files are read")
def test_large_files_are_mapped_for_either_way_of_reading(tmp_path, monkeypatch):
    monkeypatch.setattr("foretoken.data.blocks.LARGE", 1)
    plain, store = filled(None, 5, 3), filled(tmp_path / "store", 5, 3)
    for lengths in ((), (7,)):
        for one in (plain, store):
            one.extend(episode(n) for n in lengths)
        at, columns = np.arange(-1, store.num_steps), ("observation", "action", "return_to_go")
        torch.testing.assert_close(dict(store.gather(at, columns)), dict(plain.gather(at, columns)), rtol=0, atol=0)
        mean = store.statistics("observation")[""].mean
        np.testing.assert_array_equal(mean, plain.statistics("observation")[""].mean)
        block = store._steps.blocks["steps-float32"]
        assert block.array is not block.in_order and block.array is block.array and block.in_order is block.in_order
        assert not block.array.flags.writeable


def test_subset_is_a_view_of_the_same_files(tmp_path):
    store = filled(tmp_path / "s", 3, 4, 5, 6)
    part = store.subset([3, 1])
    assert (part.num_episodes, part.num_actions, part.num_steps) == (2, 10, 12)
    assert part.episodes["start"].tolist() == [15, 4]
    np.testing.assert_array_equal(part.episode(0).observation, store.episode(3).observation)
    np.testing.assert_array_equal(part.subset([1]).episode(0).observation, store.episode(1).observation)
    rewards = np.concatenate([store.episode(i).reward for i in (3, 1)])
    assert part.statistics("reward")[""].mean == pytest.approx(rewards.mean())
    for bad in ([0, 0], [4], [-1]):
        with pytest.raises(DataError, match=r"subset|0 .. 3"):
            store.subset(bad)


def test_top_fraction_is_by_actions():
    store = filled(None, 2, 10, 3, 5)
    assert top_fraction(store, 0.5).tolist() == [1]
    assert top_fraction(store, 0.75).tolist() == [1, 3]
    assert top_fraction(store, 1.0).tolist() == [0, 1, 2, 3]
    assert top_fraction(store, 1e-9).tolist() == [1]
    with pytest.raises(DataError, match=r"\(0, 1\], got 0"):
        top_fraction(store, 0)


def test_statistics_equal_numpy(monkeypatch):
    monkeypatch.setattr("foretoken.data.measure.CHUNK_BYTES", 80)  # many chunks, many joins
    generator = np.random.default_rng(0)
    spec = Spec(
        observation=Dict(
            spaces={"image": Box(shape=(2, 2, 1), dtype="uint8"), "hand": Dict(spaces={"touch": Box(shape=(3,))})}
        ),
        action=Box(shape=(2,)),
    )
    store = Store.create(None, spec)
    kept = []
    for n in (1, 7, 2, 30):
        ends = np.arange(n) == n - 1
        kept.append(
            Episode(
                {
                    "image": generator.integers(0, 256, (n + 1, 2, 2, 1), np.uint8),
                    "hand": {"touch": 1e4 + generator.random((n + 1, 3), np.float32)},
                },
                generator.random((n, 2), np.float32),
                generator.random(n, np.float32),
                ends,
                ends & False,
            )
        )
    store.extend(kept)
    found = store.statistics("observation")
    assert set(found) == {"/image", "/hand/touch"}
    touch = np.concatenate([e.observation["hand"]["touch"][:-1] for e in kept]).astype(np.float64)
    got = found["/hand/touch"]
    assert got.count == 40
    np.testing.assert_allclose(got.mean, touch.mean(0), rtol=1e-14)
    np.testing.assert_allclose(got.std, touch.std(0), rtol=1e-9)
    np.testing.assert_array_equal(got.low, touch.min(0))
    np.testing.assert_array_equal(got.high, touch.max(0))
    assert found["/image"].mean.shape == (2, 2, 1)
    assert store.statistics("return_to_go")[""].count == 40


def test_derived_columns(tmp_path):
    store = filled(tmp_path / "s", 3, 4)
    double = Derived(
        reads=("reward", "return_to_go"), compute=lambda c, b: np.stack([c["reward"], c["return_to_go"]], 1), shape=(2,)
    )
    store.derive("both", double)
    assert store.gather([0, 3], ("both",)).both.tolist() == [[1, 6], [0, 0]]
    store.append(episode(2))
    assert store.gather([9], ("both",)).both.tolist() == [[1, 3]]
    for name in ("reward", "return_to_go", "at"):
        with pytest.raises(DataError, match=name):
            store.derive(name, double)
    with pytest.raises(DataError, match="did you mean 'reward'"):
        store.derive("more", Derived(reads=("rewards",), compute=double.compute))
    store.derive("short", Derived(reads=("reward",), compute=lambda c, b: c["reward"][1:]))
    with pytest.raises(DataError, match="'short' must have shape"):
        store.gather([0], ("short",))


def test_reading_writes_nothing(tmp_path):
    filled(tmp_path / "s", 3, 4)

    def files():
        return {file: (file.stat().st_size, file.stat().st_mtime_ns) for file in (tmp_path / "s").rglob("*")}

    before, store = files(), open_store(tmp_path / "s")
    store.derive("doubled", Derived(reads=("reward",), compute=lambda c, b: 2 * c["reward"]))
    batch = WindowSampler(store, window(columns=("return_to_go", "doubled"))).draw(8, 0)
    assert (batch.doubled[batch.scored] >= 2).all()
    store.statistics("observation")
    assert files() == before


def test_parts_of_columns(tmp_path):
    spec = Spec(
        observation=Dict(
            spaces={"a": Box(shape=(20,)), "b": Dict(spaces={"c": Box(shape=(2, 2)), "d": Discrete(n=5)})}
        ),
        action=Box(shape=(1,)),
    )
    store = Store.create(tmp_path / "s", spec)
    whole = {
        "a": np.arange(60, dtype=np.float32).reshape(3, 20),
        "b": {"c": np.arange(12, dtype=np.float32).reshape(3, 2, 2), "d": np.array([1, 2, 3])},
    }
    store.append(Episode(whole, np.ones((2, 1)), np.ones(2), np.zeros(2, bool), np.array([False, True])))
    batch = open_store(tmp_path / "s").gather(
        [[2, -1], [0, 1]], ("observation", "observation/b/c", "truncated", "final", "valid", "timestep")
    )
    torch.testing.assert_close(batch.observation["b"]["c"][0, 0], torch.tensor(whole["b"]["c"][2]))
    torch.testing.assert_close(batch["observation/b/c"], batch.observation["b"]["c"])
    assert batch.observation["b"]["d"].tolist() == [[3, 0], [1, 2]]
    assert batch.truncated.tolist() == [[False, False], [False, True]]
    assert batch.final.tolist() == [[True, False], [False, False]]
    assert batch.valid.tolist() == [[True, False], [True, True]]
    assert batch.timestep.tolist() == [[2, 0], [0, 1]]


def test_no_pickle_on_disk(tmp_path):
    filled(tmp_path / "s", 3)
    assert {file.suffix for file in (tmp_path / "s").iterdir()} <= {".json", ".jsonl", ".bin", ".lock"}
    json.loads((tmp_path / "s" / "store.json").read_text())


LARGE = """
    import resource, sys
    import numpy as np
    from foretoken.core.spec import Window
    from foretoken.data import WindowSampler, open_store

    def megabytes(name):
        return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name)) / 1024

    store = open_store({folder!r})
    sampler = WindowSampler(store, Window(length=4, columns=("observation", "action", "return_to_go")))
    sampler.draw(2, 0)
    before = megabytes("RssAnon")
    limit = int(megabytes("VmData") + 24) * 2**20
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    for seed in range(20):
        batch = sampler.draw(4, seed)
        assert (batch.observation[batch.valid] == 7).all()
    print(megabytes("RssAnon") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's account of memory")
def test_a_store_larger_than_memory_is_sampled_without_loading_it(tmp_path):
    spec = Spec(observation=Box(shape=(84, 84, 1), dtype="uint8"), action=Discrete(n=2))
    store = Store.create(tmp_path / "s", spec)
    n, ends = 999, np.arange(999) == 998
    images = np.full((n + 1, 84, 84, 1), 7, np.uint8)
    store.extend(Episode(images, np.zeros(n, int), np.ones(n), ends, np.zeros(n, bool)) for _ in range(20))
    size = sum(file.stat().st_size for file in (tmp_path / "s").iterdir()) / 2**20
    code = textwrap.dedent(LARGE).format(folder=str(tmp_path / "s"))
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert size > 130
    assert float(done.stdout) < 24
