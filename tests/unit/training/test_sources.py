"""Sources: pure draws, parts that make a whole, held-out episodes, mixtures, and episodes of the live policy."""

import numpy as np
import pytest
import torch
from torch import nn

from foretoken.core import Decision, Loss, Method, Window
from foretoken.core.errors import CheckpointError, ConfigError, DataError, UnknownName
from foretoken.core.random import categorical
from foretoken.core.spec import Box, Discrete, Spec
from foretoken.data.episode import Episode
from foretoken.data.store import Store, open_store
from foretoken.envs.recipes.maze_paths import MazePaths
from foretoken.training import sources
from foretoken.training.sources import Offline, Replay, Together, packaged_names, resolve_store

WINDOW = Window(length=3)


def make_store(path, episodes=20, width=2, offset=0.0):
    """Episode i has i % 5 + 1 actions, rewards i, and observations that name episode and step."""
    spec = Spec(observation=Box(shape=(width,)), action=Discrete(n=2))
    store = Store.create(path, spec)
    store.extend(episode(i, i % 5 + 1, width, offset) for i in range(episodes))
    store.close()
    return str(path)


def episode(number, length, width, offset):
    observation = np.full((length + 1, width), offset + number, np.float32)
    observation[:, -1] = np.arange(length + 1)
    terminated = np.arange(length) == length - 1
    return Episode(
        observation=observation, action=np.zeros(length, np.int64), reward=np.full(length, number, np.float32), terminated=terminated,
        truncated=np.zeros(length, bool), facts={},
    )  # fmt: skip


def equal(a, b) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class TestOffline:
    def test_draws_are_a_function_of_seed_view_update_and_micro_batch(self, tmp_path):
        config = Offline(store=make_store(tmp_path / "s"))
        one, two = (config.build(batch_size=8, seed=3) for _ in range(2))
        one.draw("other", WINDOW, 5)
        assert equal(one.draw("data", WINDOW, 5, 1), two.draw("data", WINDOW, 5, 1))
        assert equal(one.draw("data", WINDOW, 5), one.draw("data", WINDOW, 5))
        draws = [
            one.draw("data", WINDOW, 5),
            one.draw("data", WINDOW, 6),
            one.draw("data", WINDOW, 5, 1),
            one.draw("view", WINDOW, 5),
        ]
        draws.append(config.build(batch_size=8, seed=4).draw("data", WINDOW, 5))
        assert len({tuple(draw["at"].flatten().tolist()) for draw in draws}) == 5

    def test_ranks_together_draw_what_one_process_does(self, tmp_path):
        config = Offline(store=make_store(tmp_path / "s"))
        whole = config.build(batch_size=8, seed=3).draw("data", WINDOW, 7)
        parts = [
            config.build(batch_size=8, seed=3, rank=rank, world_size=2).draw("data", WINDOW, 7) for rank in range(2)
        ]
        assert torch.equal(whole["at"], torch.cat([part["at"] for part in parts]))

    def test_drawing_ahead_changes_nothing(self, tmp_path, monkeypatch):
        config = Offline(store=make_store(tmp_path / "s"))
        ahead, single = (config.build(batch_size=8, seed=3, rank=1, world_size=2) for _ in range(2))
        updates = [0, 1, 2, 40, 41, 3, 17, 18, 18]
        got = [ahead.draw("data", WINDOW, update, update % 2) for update in updates]
        assert max(len(batches) for _, batches in ahead._ahead.values()) == 16
        monkeypatch.setattr(sources, "_AHEAD_BYTES", 1)  # large batches come one at a time
        assert all(equal(batch, single.draw("data", WINDOW, u, u % 2)) for batch, u in zip(got, updates, strict=True))
        assert all(len(batches) == 1 for _, batches in single._ahead.values())

    def test_held_out_episodes_are_whole_fixed_and_never_trained_on(self, tmp_path):
        source = Offline(store=make_store(tmp_path / "s"), held_out=0.2).build(batch_size=64, seed=3)
        trained = {int(e) for update in range(20) for e in source.draw("data", WINDOW, update)["reward"].unique()}
        kept = {int(e) for number in range(20) for e in source.held_out("data", WINDOW, number)["reward"].unique()}
        kept.discard(0), trained.discard(0)  # the reward of padding
        assert len(kept) in (3, 4) and not kept & trained and source.stores["data"].num_episodes == 16
        again = Offline(store=str(tmp_path / "s"), held_out=0.2).build(batch_size=64, seed=3)
        assert equal(source.held_out("data", WINDOW, 2), again.held_out("data", WINDOW, 2))

    def test_nothing_is_held_out_of_one_episode_or_on_request(self, tmp_path):
        one = Offline(store=make_store(tmp_path / "one", episodes=1)).build(batch_size=4, seed=0)
        none = Offline(store=make_store(tmp_path / "s"), held_out=0.0).build(batch_size=4, seed=0)
        assert one.held_out("data", WINDOW, 0) is None and none.held_out("data", WINDOW, 0) is None
        assert one.draw("data", WINDOW, 0)["observation"].shape == (4, 3, 2)

    def test_best_fraction_keeps_the_highest_returns(self, tmp_path):
        source = Offline(store=make_store(tmp_path / "s"), held_out=0.0, best_fraction=0.1).build(batch_size=4, seed=0)
        kept = source.stores["data"].episodes["return"]
        everything = np.sort(open_store(tmp_path / "s").episodes["return"])
        assert 0 < len(kept) < 5 and np.array_equal(np.sort(kept), everything[-len(kept) :])

    def test_mixtures_draw_by_weight(self, tmp_path):
        names = ",".join((make_store(tmp_path / "a"), make_store(tmp_path / "b", offset=100.0)))
        source = Offline(store=names, weights=(1.0, 3.0), held_out=0.1).build(batch_size=4000, seed=0)
        last = source.draw("data", WINDOW, 0)["observation"][:, -1, 0]
        assert (last >= 100).float().mean().item() == pytest.approx(0.75, abs=0.03)
        assert source.held_out("data", WINDOW, 0) is not None and len(source.stores) == 2

    def test_annotation_is_applied_once_to_each_batch_without_gradient(self, tmp_path):
        class Annotating(Chooser):
            def annotate(self, batch):
                return batch.replace(extra=self.net(batch.observation))

        source = Offline(store=make_store(tmp_path / "s")).build(batch_size=4, seed=0)
        source.connect(Annotating(2))
        assert not source.draw("data", WINDOW, 0)["extra"].requires_grad
        assert "extra" in source.held_out("data", WINDOW, 0)

    def test_changed_data_cannot_be_resumed(self, tmp_path):
        source = Offline(store=make_store(tmp_path / "s"), held_out=0.0).build(batch_size=4, seed=0)
        source.load_state_dict(source.state_dict())
        with pytest.raises(CheckpointError, match=r"stores of \[19\] episodes, now they have \[20\]"):
            source.load_state_dict({"episodes": [19]})

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ({"held_out": 1.0}, r"held_out must lie in \[0, 1\), got 1.0"),
            ({"best_fraction": 0.0}, "best_fraction must lie"),
            ({"store": " , "}, "store must name a store"),
            ({"weights": (1.0, 2.0)}, "weights must be one per store, got 2 for 1 stores"),
            ({"weights": (-1.0,)}, "weights must not be negative"),
        ],
    )
    def test_bad_settings_are_named(self, settings, words):
        with pytest.raises(ConfigError, match=words):
            Offline(**({"store": "x"} | settings))

    def test_stores_of_different_spaces_are_refused(self, tmp_path):
        names = ",".join((make_store(tmp_path / "a"), make_store(tmp_path / "b", width=3)))
        with pytest.raises(DataError, match="stores mixed in one source need equal spaces"):
            Offline(store=names).build(batch_size=4, seed=0)


class TestResolve:
    def test_unknown_names_list_the_packaged_ones(self):
        with pytest.raises(UnknownName, match=r"'hopper-mixd'.*did you mean 'hopper-mixed'"):
            resolve_store("hopper-mixd")
        with pytest.raises(
            UnknownName, match=r"`foretoken import DATASET --out stores/mine` makes a store there"
        ) as told:
            resolve_store("stores/mine")
        assert (
            f"{len(packaged_names())} datasets come with the package" in str(told.value) and len(str(told.value)) < 300
        )

    def test_a_dataset_file_is_imported_once_into_the_cache(self, tmp_path, monkeypatch):
        from foretoken.data.formats import npz

        monkeypatch.setenv("FORETOKEN_CACHE", str(tmp_path / "cache"))
        npz.write(open_store(make_store(tmp_path / "s")), tmp_path / "few.npz")
        first = resolve_store(str(tmp_path / "few.npz"))
        assert first.num_episodes == 20 and resolve_store(str(tmp_path / "few.npz")).path == first.path
        assert [path.name.rsplit("-", 1)[0] for path in (tmp_path / "cache" / "stores").iterdir()] == ["few"]


class Chooser(Method):
    """Acts by chance from logits of the observation; counts how often it acted in this episode."""

    window = WINDOW

    def __init__(self, width=4):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(width, 2)

    @property
    def policy(self):
        return self

    def begin(self, rows, context):
        self.asked = context.get("target_return")
        return {"acted": torch.zeros(rows, dtype=torch.int64)}

    def act(self, step, state, *, explore=False):
        assert explore and not self.training and not torch.is_grad_enabled()
        assert torch.equal(state["acted"], step.timestep)
        return Decision(categorical(self.net(step.observation), step.seed), {"acted": state["acted"] + 1})

    def loss(self, batch):
        return Loss(self.net(batch.observation).square().mean())


def replay(folder, **settings):
    config = Replay(**({"environment": "CartPole-v1", "steps": 4, "num_slots": 3, "warmup_episodes": 2} | settings))
    source = config.build(batch_size=8, seed=3, folder=folder)
    source.connect(Chooser())
    return source


class TestReplay:
    def test_warms_up_then_plays_the_asked_number_of_steps(self, tmp_path):
        source = replay(tmp_path, target_return=20.0)
        source._method.train()
        told = source.advance(0)
        store = source._store
        warm = store.num_episodes
        assert warm >= 2 and told["episode_return"] == pytest.approx(store.episodes["return"].mean())
        assert source._method.training and source._method.asked.tolist()[0] == 20.0
        before = source.player.slots.num_actions
        for update in range(1, 31):
            source.advance(update)
        assert source.player.slots.num_actions - before == pytest.approx(120, abs=3)
        batch = source.draw("data", WINDOW, 30)
        assert batch["observation"].shape == (8, 3, 4) and equal(batch, source.draw("data", WINDOW, 30))
        assert open_store(tmp_path / "replay").num_episodes == store.num_episodes

    def test_stored_episodes_are_what_the_environment_does(self, tmp_path):
        import gymnasium

        from foretoken.envs.slots import reset_seed

        source = replay(tmp_path)
        source.advance(0)
        env = gymnasium.make("CartPole-v1")
        for number in range(source._store.num_episodes):
            kept = source._store.episode(number)
            observation, _ = env.reset(seed=reset_seed(source.player.slots.seed, int(kept.facts["job"])))
            assert np.array_equal(observation, kept.observation[0])
            for t, action in enumerate(kept.action):
                observation, reward, terminated, truncated, _ = env.step(int(action))
                assert np.array_equal(observation, kept.observation[t + 1]) and reward == kept.reward[t]
            assert terminated or truncated

    def test_capacity_draws_from_the_newest_episodes_only(self, tmp_path):
        source = replay(tmp_path, capacity=60, warmup_episodes=12)
        source.advance(0)
        start, length = source._store.episodes["start"], source._store.episodes["length"]
        drawn = source.draw("data", WINDOW, 0)["at"]
        newest = source._newest()
        assert drawn[drawn >= 0].min() >= start[newest[0]] and length[newest].sum() <= 60

    def test_a_new_run_starts_empty_over_the_leavings_of_another(self, tmp_path):
        first = replay(tmp_path)
        first.advance(0)
        first._store.close()
        second = replay(tmp_path)
        second.advance(0)
        assert second._store.num_episodes == first._store.num_episodes

    def test_resumes_in_the_middle_of_episodes_and_records_the_grade(self, tmp_path):
        from foretoken.training.checkpoint import pack, unpack

        source = replay(tmp_path)
        for update in range(5):
            source.advance(update)
        tensors = {}
        saved = pack(source.state_dict(), tensors)
        whole = [source.advance(update) for update in range(5, 25)]
        expected = source.draw("data", WINDOW, 24)
        source._store.close()
        other = replay(tmp_path)
        other.load_state_dict(unpack(saved, tensors))
        assert other.state_dict()["episodes"] == saved["map"]["episodes"]
        assert [other.advance(update) for update in range(5, 25)] == whole
        assert sum(other.resumes[0]["grades"].values()) == 3 and set(other.resumes[0]["grades"]) <= {"replay", "over"}
        assert equal(expected, other.draw("data", WINDOW, 24))

    def test_a_store_that_is_gone_or_only_in_memory_is_said(self, tmp_path):
        source = replay(tmp_path / "a")
        source.advance(0)
        with pytest.raises(CheckpointError, match=r"needs .* episodes of the store .*, which does not exist"):
            replay(tmp_path / "b").load_state_dict(source.state_dict())
        memory = replay(None)
        memory.advance(0)
        with pytest.raises(CheckpointError, match="build it with folder="):
            replay(None).load_state_dict(memory.state_dict())

    def test_a_second_stage_pays_for_its_own_steps_and_overrides_the_first_when_resumed(self, tmp_path):
        source = replay(tmp_path)
        source.advance(0)
        first = source.state_dict()
        source.connect(Chooser())
        before = source.player.slots.num_actions
        source.advance(0)
        assert source.player.slots.num_actions - before == pytest.approx(4, abs=3)
        for update in range(1, 40):
            source.advance(update)
        second, told = source.state_dict(), source.advance(40)
        source._store.close()
        other = replay(tmp_path)
        other.load_state_dict(first)
        other.connect(Chooser())
        other.load_state_dict(second)
        assert other.advance(40) == told and len(other.resumes) == 1

    def test_several_processes_are_refused(self):
        with pytest.raises(ConfigError, match="works in one process, got 2"):
            Replay(environment="CartPole-v1").build(batch_size=8, seed=0, world_size=2)


class TestTogether:
    def test_views_find_their_part(self, tmp_path):
        parts = {
            "a": Offline(store=make_store(tmp_path / "a")),
            "b": Offline(store=make_store(tmp_path / "b", width=5)),
        }
        source = Together(parts=parts).build(batch_size=4, seed=0)
        assert source.draw("a", WINDOW, 0)["observation"].shape[-1] == 2
        assert source.draw("b/critic", WINDOW, 0)["observation"].shape[-1] == 5
        assert source.held_out("b", WINDOW, 0)["observation"].shape[-1] == 5
        assert set(source.spec) == set(source.stores) == {"a", "b"} and source.advance(0) == {}
        source.load_state_dict(source.state_dict())
        with pytest.raises(ConfigError, match=r"view 'c' names no part .*; parts are \['a', 'b'\]"):
            source.draw("c", WINDOW, 0)

    def test_survives_json(self):
        config = Together(parts={"a": Offline(store="x"), "b": Replay(environment="CartPole-v1")})
        assert Together.from_json(config.to_json()) == config


def test_a_source_that_is_given_a_recipe_forgets_its_store_and_the_other_way_round() -> None:
    made = Offline(store="hopper-mixed", held_out=0.0).replace(recipe=MazePaths())
    assert made.store == "" and made.recipe == MazePaths() and made.held_out == 0
    named = made.replace(store="hopper-mixed")
    assert named.recipe is None and named.names == ("hopper-mixed",)
    assert made.replace(held_out=0.1).recipe == MazePaths()
