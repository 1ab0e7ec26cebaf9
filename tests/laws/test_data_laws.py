"""Laws of data: what goes in comes out; windows equal a loop written from their definition; draws are fair and repeatable."""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from foretoken.core.spec import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Spec, Window
from foretoken.data import Episode, Store, WindowSampler, open_store
from foretoken.data.windows import MASKS

LENGTHS = (7, 1, 20, 3, 3, 12, 2, 9)
TASKS = ("a", "a", "b", "b", "b", "a", "c", "c")
OBSERVATIONS = {
    "vector": Box(shape=(3,)),
    "double": Box(shape=(2, 2), dtype="float64"),
    "image": Box(shape=(48, 48, 3), dtype="uint8"),
    "nested": Dict(
        spaces={
            "image": Box(shape=(4, 4, 1), dtype="uint8"),
            "body": Dict(spaces={"joint": Box(shape=(3,)), "mode": Discrete(n=5)}),
        }
    ),
}
ACTIONS = {
    "box": Box(shape=(2,)),
    "discrete": Discrete(n=4, start=-1),
    "multi_discrete": MultiDiscrete(nvec=(2, 3)),
    "multi_binary": MultiBinary(n=3),
    "dict": Dict(spaces={"move": Box(shape=(2,)), "press": Discrete(n=2)}),
}


def sample(space, count, generator):
    if isinstance(space, Dict):
        return {name: sample(part, count, generator) for name, part in space.spaces.items()}
    if isinstance(space, Discrete):
        return generator.integers(space.start, space.start + space.n, count)
    if isinstance(space, MultiDiscrete):
        return generator.integers(0, space.nvec, (count, len(space.nvec)))
    if isinstance(space, MultiBinary):
        return generator.integers(0, 2, (count, space.n), np.int8)
    if space.dtype == "uint8":
        return generator.integers(0, 256, (count, *space.shape), np.uint8)
    return generator.standard_normal((count, *space.shape)).astype(space.dtype)


def make(spec, lengths=LENGTHS, seed=0):
    generator = np.random.default_rng(seed)
    for number, n in enumerate(lengths):
        ends, terminated = np.arange(n) == n - 1, bool(generator.integers(2))
        yield Episode(
            observation=sample(spec.observation, n + 1, generator),
            action=sample(spec.action, n, generator),
            reward=generator.standard_normal(n).astype(np.float32),
            terminated=ends & terminated,
            truncated=ends & (not terminated),
            columns={"cost": generator.random(n, np.float32), "goal": generator.random((n + 1, 2), np.float32)},
            facts={"task": TASKS[number % len(TASKS)], "order": number},
        )


COLUMNS = {"cost": Box(shape=()), "goal": Box(shape=(2,))}


def equal(got, wanted):
    if isinstance(wanted, dict):
        assert set(got) == set(wanted)
        for name in wanted:
            equal(got[name], wanted[name])
    else:
        np.testing.assert_array_equal(got, wanted)


@pytest.fixture(scope="module")
def store():
    spec = Spec(observation=OBSERVATIONS["vector"], action=ACTIONS["box"])
    made = Store.create(None, spec, columns=COLUMNS)
    made.extend(make(spec))
    return made


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("action", ACTIONS)
def test_round_trip(tmp_path, observation, action):
    spec = Spec(
        observation=OBSERVATIONS[observation], action=ACTIONS[action], environment="Some-v0", max_episode_steps=20
    )
    given = list(make(spec))
    kept = Store.create(tmp_path / "s", spec, columns=COLUMNS, floats="keep")
    kept.extend(given[:5])
    for one in given[5:]:
        kept.append(one)
    for opened in (kept, open_store(tmp_path / "s")):
        assert opened.spec == spec
        for number, wanted in enumerate(given):
            got = opened.episode(number)
            equal(got.observation, wanted.observation)
            equal(got.action, wanted.action)
            for name in ("reward", "terminated", "truncated"):
                equal(getattr(got, name), getattr(wanted, name))
            equal(got.columns["cost"][:-1], wanted.columns["cost"])
            equal(got.columns["goal"], wanted.columns["goal"])
            assert got.facts == wanted.facts
            got.validate(spec)


def test_float64_becomes_float32_unless_kept():
    spec = Spec(observation=OBSERVATIONS["double"], action=ACTIONS["box"])
    for floats, dtype in (("float32", torch.float32), ("keep", torch.float64)):
        made = Store.create(None, spec, columns=COLUMNS, floats=floats)
        made.extend(make(spec))
        assert made.gather([0], ("observation",)).observation.dtype == dtype


def test_return_to_go_equals_a_slow_loop(store):
    got = store.gather(np.arange(store.num_steps), ("return_to_go",)).return_to_go.numpy()
    wanted = []
    for number in range(store.num_episodes):
        reward, rest = store.episode(number).reward.astype(np.float64), 0.0
        back = [0.0]
        for t in range(len(reward) - 1, -1, -1):
            rest += reward[t]
            back.append(rest)
        wanted += back[::-1]
    np.testing.assert_array_equal(got, np.array(wanted, np.float32))


def test_return_to_go_keeps_small_returns_beside_large_ones():
    spec = Spec(observation=Box(shape=(1,)), action=Discrete(n=1))
    made = Store.create(None, spec)
    for size in (1e12, 1e-6):
        ends = np.array([False, True])
        made.append(Episode(np.zeros((3, 1)), np.zeros(2, int), np.full(2, size), ends, ends & False))
    assert made.gather([3], ("return_to_go",)).return_to_go.item() == pytest.approx(2e-6)


def reference(store, window, anchor):
    """One window, step by step, from the words in core.spec.Window and data.windows: a list of T (address or None, scored, fresh)."""
    number = max(i for i in range(store.num_episodes) if store.episodes["start"][i] <= anchor)
    group = [number]
    if window.across:
        values = store.episodes[window.across]
        while group[0] > 0 and values[group[0] - 1] == values[number]:
            group.insert(0, group[0] - 1)
        while group[-1] + 1 < len(values) and values[group[-1] + 1] == values[number]:
            group.append(group[-1] + 1)
    steps = []
    for i in group:
        start, length = store.episodes["start"][i], store.episodes["length"][i]
        steps += range(start, start + length + window.final)
    here = steps.index(anchor)
    main = window.length - window.back
    if window.anchor == "start":
        low, high, scored = here - window.back, here + main - 1, here
    elif window.anchor == "episode":
        low, high, scored = 0, len(steps) - 1, 0
    else:
        here += window.final
        low, high, scored = here - window.length + 1, here, here - main + 1
        if window.anchor == "full" and low < 0:
            low, high = 0, window.length - 1
    low, high = max(low, 0), min(high, len(steps) - 1)
    finals = set((store.episodes["start"] + store.episodes["length"]).tolist())
    real = [(steps[i], i >= scored and steps[i] not in finals, i == low) for i in range(low, high + 1)]
    padding = [(None, False, False)] * (window.length - len(real))
    return padding + real if window.pad == "left" else real + padding


LAYOUTS = [
    dict(zip(("anchor", "pad", "length", "back", "final", "across"), values, strict=True))
    for values in itertools.product(
        ("start", "end", "full", "episode"), ("left", "right"), (1, 4, 7, 63), (0, 1, 5), (False, True), ("", "task")
    )
    if values[3] < values[2] and not (values[0] == "episode" and (values[3] or values[2] < 63))
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: "-".join(map(str, layout.values())))
def test_windows_equal_a_loop(store, layout):
    window = Window(columns=("observation", "action", "reward", "return_to_go", "goal", "truncated"), **layout)
    sampler = WindowSampler(store, window)
    anchors = sampler.anchors()
    assert len(anchors) == sampler.num_anchors
    batch = sampler.windows(anchors)
    wanted = [reference(store, window, anchor) for anchor in anchors.tolist()]
    at = np.array([[-1 if step is None else step for step, _, _ in row] for row in wanted])
    np.testing.assert_array_equal(batch.at, at)
    np.testing.assert_array_equal(batch.scored, [[scored for _, scored, _ in row] for row in wanted])
    np.testing.assert_array_equal(batch.fresh, [[fresh for _, _, fresh in row] for row in wanted])
    np.testing.assert_array_equal(batch.valid, at >= 0)
    direct = store.gather(at, (*window.columns, "timestep", "first", "final"))
    for name in (*window.columns, "timestep", "first", "final"):
        np.testing.assert_array_equal(batch[name], direct[name], err_msg=name)
        assert (batch[name][at < 0] == 0).all()
    table = store.episodes
    number = np.searchsorted(table["start"], at, side="right") - 1
    for row, steps in zip(number, at, strict=True):
        seen = row[steps >= 0]
        assert len(set(seen.tolist())) == 1 or (layout["across"] and len(set(table["task"][seen])) == 1)


def test_gather_equals_the_episodes(store):
    for number in range(store.num_episodes):
        one, start = store.episode(number), store.episodes["start"][number]
        batch = store.gather(start + np.arange(one.length + 1), ("observation", "action", "reward", "goal", "timestep"))
        np.testing.assert_array_equal(batch.observation, one.observation)
        np.testing.assert_array_equal(batch.action[:-1], one.action)
        assert (batch.action[-1] == 0).all() and batch.reward[-1] == 0
        np.testing.assert_array_equal(batch.timestep, np.arange(one.length + 1))


@pytest.mark.parametrize(("anchor", "final"), [("start", False), ("end", False), ("end", True), ("start", True)])
def test_steps_are_drawn_evenly(store, anchor, final):
    sampler = WindowSampler(
        store, Window(length=3, anchor=anchor, pad="right" if anchor == "start" else "left", final=final)
    )
    at = torch.cat([sampler.draw(1000, seed).at for seed in range(60)]).numpy()
    drawn = at[:, 0] if anchor == "start" else at[:, -1] - final
    counts = np.bincount(drawn, minlength=store.num_steps)
    assert set(np.flatnonzero(counts)) == set(sampler.anchors().tolist())
    assert stats.chisquare(counts[sampler.anchors()]).pvalue > 1e-4
    episodes = np.searchsorted(store.episodes["start"], drawn, side="right") - 1
    length = store.episodes["length"]
    assert stats.chisquare(np.bincount(episodes), 60_000 * length / length.sum()).pvalue > 1e-4


def test_episodes_are_drawn_evenly(store):
    for window in (Window(length=3, weights="episodes", pad="right"), Window(length=20, anchor="episode", pad="right")):
        at = WindowSampler(store, window).draw(40_000, 0).at[:, 0].numpy()
        episodes = np.searchsorted(store.episodes["start"], at, side="right") - 1
        assert stats.chisquare(np.bincount(episodes, minlength=store.num_episodes)).pvalue > 1e-4


def test_only_chosen_episodes_are_drawn(store):
    chosen = [5, 2, 7]
    for sampler in (
        WindowSampler(store, Window(length=4), episodes=chosen),
        WindowSampler(store.subset(chosen), Window(length=4)),
    ):
        batch = sampler.draw(500, 1)
        at = batch.at[batch.valid].numpy()
        assert set(np.searchsorted(store.episodes["start"], at, side="right") - 1) == set(chosen)
        torch.testing.assert_close(batch.observation, store.gather(batch.at, ("observation",)).observation)


DRAWN = [
    Window(length=5),
    Window(length=4, anchor="full", final=True, weights="episodes"),
    Window(length=6, across="task", anchor="end"),
    Window(length=21, anchor="episode"),
]


@pytest.mark.parametrize("window", DRAWN)
def test_a_draw_is_a_function_of_its_seed(tmp_path, store, window):
    spec = store.spec
    on_disk = Store.create(tmp_path / "s", spec, columns=COLUMNS)
    on_disk.extend(make(spec))
    first, second = WindowSampler(store, window), WindowSampler(open_store(tmp_path / "s"), window)
    np.random.seed(1)
    torch.manual_seed(1)
    wanted = first.draw(32, 5)
    second.draw(7, 99)
    same(second.draw(32, 5), wanted)
    assert not torch.equal(first.draw(32, 6).at, wanted.at)
    assert set(wanted) == {"observation", "action", "reward", *MASKS}


@pytest.mark.parametrize("window", DRAWN)
@pytest.mark.parametrize(("rows", "world"), [(32, 2), (31, 4), (5, 3)])
def test_parts_together_are_the_whole(store, window, rows, world):
    sampler = WindowSampler(store, window)
    whole = sampler.draw(rows, 11)
    parts = [sampler.draw(rows, 11, part=(rank, world)) for rank in range(world)]
    for name in whole:
        torch.testing.assert_close(torch.cat([part[name] for part in parts]), whole[name], rtol=0, atol=0)


@pytest.mark.parametrize("window", DRAWN)
def test_blocks_equal_single_draws(store, window):
    sampler = WindowSampler(store, window)
    seeds = [4, 1, 2**40, -3]
    for seed, batch in zip(seeds, sampler.draw_block(16, seeds), strict=True):
        same(batch, sampler.draw(16, seed))


def test_nested_columns_are_windowed(tmp_path):
    spec = Spec(observation=OBSERVATIONS["nested"], action=ACTIONS["discrete"])
    made = Store.create(tmp_path / "s", spec, columns=COLUMNS)
    made.extend(make(spec))
    batches = WindowSampler(made, Window(length=5)).draw_block(8, [0, 1])
    direct = made.gather(batches[1].at, ("observation", "action"))
    torch.testing.assert_close(batches[1].observation, direct.observation, rtol=0, atol=0)
    assert batches[1].observation["image"].shape == (8, 5, 4, 4, 1)
    moved = batches[1].map(lambda leaf: leaf[:2])
    assert moved.observation["body"]["joint"].shape == (2, 5, 3)


def same(got, wanted):
    assert list(got) == list(wanted)
    for name in wanted:
        torch.testing.assert_close(got[name], wanted[name], rtol=0, atol=0)
