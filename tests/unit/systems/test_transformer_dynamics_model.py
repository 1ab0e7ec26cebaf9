"""What the laws do not check: the rivals share all but what they are compared by, and held-out bodies are held out."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from foretoken.envs.diagnostic import make_world
from foretoken.systems.worldmodel import transformer_dynamics_model as tdm


def test_arms_share_planner_data_and_budget() -> None:
    arms = tdm.claim().arms
    ours, mlp, policy = (arms[name] for name in ("tdm", "mlp", "policy"))
    assert ours.system.planner == mlp.system.planner and ours.source == mlp.source == policy.source
    assert ours.system.model.stream == policy.system.stream
    budgets = {(arm.training.updates, arm.training.batch_size) for arm in (ours, mlp, policy)}
    assert len(budgets) == 1 and arms["few-tuned"].before[0].training == ours.training
    assert arms["few-tuned"].source == arms["few-alone"].source


def test_bodies_of_the_test_are_not_among_those_of_training() -> None:
    world = make_world("foretoken/Pendulums-v0", 1)
    parts = [{world.task_of(part, number) for number in range(50)} for part in ("train", "held-out")]
    assert [len(part) for part in parts] == [20, 5] and not parts[0] & parts[1]
    assert tdm.claim().arms["tdm"].evaluation.tasks == "held-out"
    assert tdm.cpu().source.recipe.bodies == "train" and tdm.HELD_OUT.bodies == "held-out"


@pytest.fixture
def held_out(tmp_path, monkeypatch):
    """Ten episodes of the held-out bodies, in place of a hundred."""
    monkeypatch.setenv("FORETOKEN_CACHE", str(tmp_path))
    monkeypatch.setattr(tdm, "HELD_OUT", tdm.HELD_OUT.replace(episodes=10))
    return tdm.HELD_OUT.open()


def done(*means):
    return SimpleNamespace(
        evaluations=lambda: [
            SimpleNamespace(returns=lambda target, mean=mean: np.array([mean - 1, mean + 1])) for mean in means
        ],
        experiment=tdm.cpu().replace(seed=3),
        path="",
    )


def test_a_score_lies_between_random_torques_and_the_scripted_player(held_out, monkeypatch) -> None:
    found = held_out.episodes
    worst = found["return"][found["rate"] == 1].mean()
    best = make_world(held_out.spec.environment, 1).best_return(np.unique(found["task"])).mean()
    assert worst < found["return"].max() <= best + 1e-6
    monkeypatch.setattr(tdm, "load", lambda path: object())
    assert tdm.figures(done(worst)) == pytest.approx({"return": worst, "score": 0.0})
    assert tdm.figures(done(worst, best))["score"] == pytest.approx(1.0), "the better of its evaluations"
    half = (worst + best) / 2
    assert tdm.figures(done(half, worst))["score"] == pytest.approx(0.5)


def test_the_policy_counts_by_its_likeliest_or_its_drawn_actions(held_out, monkeypatch) -> None:
    method = tdm.TokenCloningConfig(stream=tdm.smoke().system.model.stream, context=4).build(held_out.spec)
    monkeypatch.setattr(tdm, "load", lambda path: method)

    def rollout(policy, environment, jobs, *, seed, explore):
        assert environment == held_out.spec.environment and len(jobs) == 10 and explore and seed == 3
        assert {job.task for job in jobs} == set(held_out.episodes["task"].astype(int).tolist())
        return [SimpleNamespace(total=total) for total in (20.0, 40.0)]

    monkeypatch.setattr(tdm, "rollout", rollout)
    assert tdm.figures(done(25.0))["return"] == 30 and tdm.figures(done(35.0))["return"] == 35
    assert set(tdm.figures(done(25.0))) == {"return", "score"}


def test_errors_are_in_the_datas_variances_by_steps_ahead(held_out, monkeypatch) -> None:
    """A model that is off by as many standard deviations as steps ahead, and by twice that after one known step."""
    method, read = tdm.smoke().system.build(held_out.spec), []
    std = torch.from_numpy(held_out.statistics("observation")[""].std).float()

    def imagine(batch, known, back=0):
        read.append((known, back))
        assert batch.valid.shape[1] == tdm.CONTEXT + tdm.HORIZON and batch.valid.all() and len(batch.valid) > 100
        off = torch.arange(1, tdm.HORIZON + 1)[:, None] * std * (2 if back else 1)
        return batch.observation[:, known:] + off, None

    monkeypatch.setattr(method, "imagine", imagine)
    monkeypatch.setattr(tdm, "load", lambda path: method)
    found = tdm.figures(done(0.0))
    assert read == [(tdm.CONTEXT, 0), (tdm.CONTEXT, 1)]
    want = {f"error at {step}": step**2 for step in (1, 4, 12)} | {"error": 650 / 12}
    want |= {f"{name} from 1": 4 * value for name, value in want.items()}
    assert {name: value for name, value in found.items() if "error" in name} == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize(
    ("arm", "change", "fails"),
    [
        ("tdm", {}, None),
        ("policy", {"score": 0.76}, "0.15 above"),
        ("mlp", {"score": 0.91}, "no less than the MLP"),
        ("mlp", {"error": 0.1}, "error over 12 steps"),
        ("tdm", {"error from 1": 0.13}, "8 steps of history"),
        ("few-alone", {"score": 0.71}, "tuned on 2 episodes"),
    ],
)
def test_verdict(arm, change, fails) -> None:
    row = {"score": 0.9, "error": 0.1, "error from 1": 0.2}
    results = {"tdm": row, "mlp": row | {"error": 0.3, "score": 0.8}, "policy": {"score": 0.5}}
    results |= {"few-tuned": row, "few-alone": row | {"score": 0.6}}
    results[arm] = results[arm] | change
    broken = [name for name, held in tdm.verdict({arm: [row] * 3 for arm, row in results.items()}).items() if not held]
    assert len(broken) == (fails is not None) and all(name.startswith(fails) for name in broken)
