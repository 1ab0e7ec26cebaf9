"""Exhibits of a run: recorded episodes, the file, and that nothing of it ends a run."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from foretoken.core.batch import Batch
from foretoken.core.errors import DataError
from foretoken.core.exhibit import Grid, Line, Lines, Matrix, Path
from foretoken.core.random import uniform
from foretoken.diffusion.ddim import DDIMConfig
from foretoken.envs.make import make
from foretoken.envs.play import RandomPolicy
from foretoken.envs.slots import Job
from foretoken.envs.spaces import to_spec
from foretoken.evaluation.evaluate import Evaluation, evaluate
from foretoken.evaluation.exhibits import Watch, file_of, read_exhibits, replay, write_exhibits
from foretoken.evaluation.panels import panel
from foretoken.evaluation.rollout import rollout
from foretoken.methods.chunk_diffusion import ChunkDiffusionConfig
from foretoken.methods.conditioned_cloning import ConditionedCloning, ConditionedCloningConfig
from foretoken.methods.imagined import imagined_and_real
from foretoken.nn.diffusion_transformer import adaln_transformer
from foretoken.nn.stack import StackConfig

ROUTES = "foretoken/MultiRoute-v0"
KEPT = "evaluations/update-00000007.json"


def spec_of(environment):
    return to_spec(make(environment))


@pytest.fixture(scope="module")
def planner():
    torch.manual_seed(0)
    config = ChunkDiffusionConfig(
        horizon=4, execute=2, steps=2, network=adaln_transformer(8, 1, 1), schedule=DDIMConfig(num_levels=10)
    )
    return config.build(spec_of(ROUTES)).eval()


def test_recorded_episodes_are_those_of_the_evaluation(planner) -> None:
    spec, jobs = spec_of(ROUTES), [Job(0), Job(3)]
    policy, watch = RandomPolicy(spec), Watch(2)
    played = rollout(policy, ROUTES, [*jobs, Job(1)], spec=spec, seed=5, keep_actions=True, num_slots=2, watch=watch)
    for batch, result in zip(watch.episodes(), played[:2], strict=True):
        n = result.length
        assert batch.valid.shape == (1, n + 1) and batch.final[0].nonzero().tolist() == [[n]]
        np.testing.assert_array_equal(batch.action[0, :n].numpy(), result.actions)
        assert float(batch.reward.sum()) == pytest.approx(result.total) and not batch.action[0, n].any()
        assert bool(batch.terminated[0, n - 1]) == result.terminated and int(batch.terminated.sum()) <= 1
        assert batch.scored[0].tolist() == [True] * n + [False] and batch.timestep[0].tolist() == list(range(n + 1))
        drawn = RandomPolicy(spec).act(Batch(seed=batch.seed[0, :n]), {}).action
        torch.testing.assert_close(drawn, batch.action[0, :n])


def test_plans_are_those_that_were_carried_out(planner) -> None:
    spec = spec_of(ROUTES)
    watch = Watch(1)
    rollout(planner.policy, ROUTES, [Job(0)], spec=spec, seed=1, max_steps=9, watch=watch)
    (episode,) = watch.episodes()
    with torch.no_grad():
        (shown,) = planner.exhibits([episode])
    for one in shown.panels:
        done, *plans = one.lines
        for plan in plans:
            begin = int(plan.x[0])
            assert begin % 2 == 0 and plan.label == "planned"
            want = np.clip(plan.y[:2], -1, 1)  # the environment clips
            np.testing.assert_allclose(want, done.y[begin : begin + 2][: len(want)], atol=1e-5)


def test_exhibits_are_kept_under_the_name_of_their_evaluation(planner, tmp_path) -> None:
    spec = spec_of(ROUTES)
    watch = Watch(3)
    found = evaluate(planner, spec, Evaluation(episodes=3), seed=1, update=7, watch=watch)
    kept, other = (tmp_path / "evaluations" / name for name in ("update-00000007.json", "user-00000007-seed-2.json"))
    file = write_exhibits(kept, planner, 7, watch.episodes)
    assert file == file_of(kept) == tmp_path / "exhibits" / kept.name and not planner.training
    shown = read_exhibits(kept)
    assert (shown.update, shown.missing, len(shown.exhibits)) == (7, "", 1)
    before = file.read_bytes()
    write_exhibits(kept, planner, 7, lambda: replay(planner, spec, found))
    assert file.read_bytes() == before
    assert read_exhibits(other) is None
    write_exhibits(other, planner, 7, lambda: replay(planner, spec, replace(found, seed=2)))
    assert read_exhibits(kept) == shown != read_exhibits(other)
    file.write_text(json.dumps({"format": "other"}))
    with pytest.raises(DataError, match=r"update-00000007\.json holds no exhibits"):
        read_exhibits(kept)


def test_a_failing_exhibit_is_told_and_ends_nothing(planner, tmp_path, monkeypatch) -> None:
    def fail(self, episodes):
        raise RuntimeError("the plans are lost")

    monkeypatch.setattr(type(planner), "exhibits", fail)
    assert write_exhibits(tmp_path / KEPT, planner, 7, list) is not None
    assert read_exhibits(tmp_path / KEPT).missing == "RuntimeError: the plans are lost"


def test_a_watch_that_fails_ends_no_rollout(planner, tmp_path, monkeypatch) -> None:
    def fail(self, tick):
        raise RuntimeError("nothing was seen")

    monkeypatch.setattr(Watch, "_see", fail)
    watch = Watch(1)
    evaluate(planner, spec_of(ROUTES), Evaluation(episodes=1), seed=1, update=7, watch=watch)
    write_exhibits(tmp_path / KEPT, planner, 7, watch.episodes)
    assert read_exhibits(tmp_path / KEPT).missing == "RuntimeError: nothing was seen"


def test_long_episodes_are_cut(monkeypatch) -> None:
    monkeypatch.setattr("foretoken.evaluation.exhibits.STEPS", 5)
    spec, watch = spec_of(ROUTES), Watch(1)
    rollout(RandomPolicy(spec), ROUTES, [Job(0)], spec=spec, seed=5, watch=watch)
    (batch,) = watch.episodes()
    assert batch.final[0].tolist() == [False] * 5 + [True] and batch.truncated[0].tolist() == [False] * 4 + [
        True,
        False,
    ]
    assert not batch.terminated.any() and not batch.action[0, 5].any()


def test_a_method_without_exhibits_leaves_no_file(tmp_path) -> None:
    spec = spec_of(ROUTES)
    config = ConditionedCloningConfig(context=2, backbone=StackConfig(width=8, num_layers=1), condition=None)
    method = ConditionedCloning(config, spec)
    assert write_exhibits(tmp_path / KEPT, method, 7, list) is None and read_exhibits(tmp_path / KEPT) is None
    assert not (tmp_path / "exhibits").exists()


def walk(steps, seed):
    """One episode of a random walk of two entries, whose reward is the action, and no more than that."""
    action_TA = uniform(torch.arange(steps) + 100 * seed, 1) - 0.5
    seen_TO = torch.cat((torch.zeros(1, 1), action_TA[:-1])).cumsum(0) * torch.tensor([1.0, 10.0])
    valid = torch.ones(1, steps, dtype=torch.bool)
    return Batch(observation=seen_TO[None], action=action_TA[None], reward=action_TA[None, :, 0], valid=valid)


def test_what_is_imagined_is_set_beside_what_was_real() -> None:
    def imagine(batch, known, drift=0.1):
        """Knows the world but for a drift of the second entry."""
        done_WHA = batch.action[:, known - 1 : -1]
        moved_WHO = done_WHA.cumsum(1) * torch.tensor([1.0, 10.0])
        ahead_H = torch.arange(1, done_WHA.shape[1] + 1)
        moved_WHO[..., 1] += drift * ahead_H
        return batch.observation[:, known - 1 : known] + moved_WHO, done_WHA[..., 0]

    episodes = [walk(30, 0), walk(4, 1), walk(40, 2)]
    shown = imagined_and_real(episodes, lambda batch: batch.observation, imagine, known=3, horizon=6)
    growth, first, second, reward = shown.panels
    assert "16 places in 2 episodes" in shown.says
    model, still = growth.lines
    assert model.x == (1, 2, 3, 4, 5, 6) and list(model.y) == sorted(model.y) and still.y[-1] > model.y[-1]
    np.testing.assert_allclose(np.array(model.y) / model.y[0], model.x, rtol=1e-3)  # all the error is the drift
    np.testing.assert_allclose(model.low, model.y, rtol=1e-4)
    for one in (first, reward):
        real, *guesses = one.lines
        known = dict(zip(real.x, real.y, strict=True))
        assert len(guesses) == 4
        for guess in guesses:
            np.testing.assert_allclose([known[at] for at in guess.x], guess.y, atol=1e-5)
    assert [guess.x[0] for guess in second.lines[1:]] == [3, 9, 15, 21]
    assert [guess.x[0] for guess in reward.lines[1:]] == [2, 8, 14, 20]
    with pytest.raises(DataError, match="no episode has the 9 steps"):
        imagined_and_real(episodes[1:2], lambda batch: batch.observation, imagine, known=3, horizon=6)


def test_panels_of_every_kind_take_the_colours_of_the_page() -> None:
    line = Line(label="one", x=(0.0,), y=(1.0,))
    kinds = {
        "lines": Lines(x="step", y="number", lines=(line, Line(label="two", x=(0, 1), y=(0, 1), look="dashed"))),
        "grid": Grid(
            rows=2, columns=2, blocked=((0, 1),), walls=((0, 0, 1, 0),), marks={"start": (0, 0)},
            paths=(Path(label="true", cells=((0, 0), (1, 0))),),
        ),
        "matrix": Matrix(values=((0.5, -1), (0, 1)), hidden=((False, True), (False, False)), value="w", x="to", y="of"),
    }  # fmt: skip
    for name, shown in kinds.items():
        svg = panel(name, shown)
        assert re.findall(r"#[0-9a-f]{6}", svg) == []
        assert svg.startswith("<svg") and "var(--series-1)" in svg and svg == panel(name, shown)
