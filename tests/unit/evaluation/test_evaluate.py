"""Evaluation: jobs from targets and episodes, the JSON, warnings, and the score card."""

import json
import math
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from foretoken.core.batch import Decision
from foretoken.core.errors import ConfigError, DataError, EnvironmentMismatch
from foretoken.envs.make import make
from foretoken.envs.slots import Job, Slots
from foretoken.evaluation.evaluate import Evaluated, Evaluation, default_targets, evaluate, read_evaluation
from foretoken.evaluation.rollout import EpisodeResult, rollout
from foretoken.evaluation.scores import score_card


class Earn(gymnasium.Env):
    """Pays what the action says, plus luck that depends on the seed; 4 steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Box(-1000.0, 1000.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.luck, self.t = self.np_random.normal(), 0
        return np.array([self.luck], np.float32), {}

    def step(self, action):
        self.t += 1
        return (
            np.array([self.luck], np.float32),
            float(action[0]) + self.luck,
            self.t == 4,
            False,
            {"success": self.luck > 0, "cost": 1.0},
        )


class Asked(nn.Module):
    """A method whose policy earns a quarter of the asked return per step; a stand-in without learning."""

    asks = ("target_return",)

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.child = nn.Linear(1, 1)

    @property
    def policy(self):
        return self

    def begin(self, rows, context):
        return {"target": context.get("target_return", torch.zeros(rows))}

    def act(self, step, state, *, explore=False):
        assert not self.training and not self.drop.training and not torch.is_grad_enabled()
        return Decision(state["target"][:, None] / 4, state)


SPEC = Slots(Earn, [0], num_slots=1, seed=0).spec.replace(environment="Earn-v0")


def go(method=None, warnings=None, **changes):
    given = {
        "data_returns": changes.pop("data_returns", None),
        "update": changes.pop("update", 0),
        "seed": changes.pop("seed", 0),
    }
    said = warnings if warnings is not None else []
    return evaluate(method or Asked(), SPEC, Evaluation(**changes), environment=Earn, on_warning=said.append, **given)


def test_every_target_plays_the_same_episodes():
    found = go(targets=(100.0, 20.0), episodes=5, num_slots=3)
    assert [(r.target, r.episode) for r in found.records] == [(t, e) for t in (100.0, 20.0) for e in range(5)]
    seeds = [r.reset_seed for r in found.records]
    assert seeds[:5] == seeds[5:] and len(set(seeds)) == 5
    np.testing.assert_allclose(found.returns(100.0) - found.returns(20.0), 80, rtol=1e-5)
    assert found.decisions == 40 and found.targets == (100.0, 20.0) and found.environment == "Earn-v0"


def test_modes_are_restored():
    method = Asked()
    method.train()
    method.child.eval()
    go(method, targets=(1.0,))
    assert method.training and method.drop.training and not method.child.training
    with pytest.raises(RuntimeError, match="stop"):
        rollout(
            method, Earn, [Job(0, 1.0)], seed=0, on_episode=lambda result: (_ for _ in ()).throw(RuntimeError("stop"))
        )
    assert method.training and method.drop.training and not method.child.training


def test_targets_come_from_the_data():
    returns = np.arange(101.0)
    assert default_targets(returns) == (100.0, 77.5, 55.0, 32.5, 10.0)
    assert default_targets([3.0, 3.0]) == (3.0,)
    assert go(data_returns=returns, episodes=1).targets == (100.0, 77.5, 55.0, 32.5, 10.0)
    assert go(episodes=1).targets == (None,) and go(episodes=1).target_rule == "nothing asked for"
    with pytest.raises(DataError, match="got 2 of which 1 are not"):
        default_targets([1.0, math.nan])


def test_targets_outside_the_data_are_named_once():
    said = []
    go(warnings=said, targets=(500.0, 5.0, -1.0), data_returns=[0.0, 10.0], episodes=3)
    assert said == ["targets outside the data's returns (0 to 10), where nothing was learned: 500, -1"]
    said.clear()
    go(warnings=said, data_returns=np.random.default_rng(0).normal(3000, 1, 50), episodes=1)
    assert not said


def test_json_round_trip(tmp_path):
    found = go(targets=(100.0,), episodes=3, update=50)
    file = found.write(tmp_path / "evaluations" / "update-00000050.json")
    again = read_evaluation(file)
    assert again == found
    tree = json.loads(file.read_text())
    assert tree["format"] == "foretoken-evaluation" and tree["version"] == 1
    assert set(tree["records"][0]) == {
        "target",
        "episode",
        "reset_seed",
        "return",
        "length",
        "success",
        "cost",
        "terminated",
        "index",
        "task",
        "target_cost",
        "regret",
        "route",
        "delay",
    }
    assert tree["card"]["scores"][0]["name"] == "last"
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_older_files_without_trials_are_read():
    found = go(targets=(100.0,), episodes=2)
    tree = found.to_json()
    for record in tree["records"]:
        for name in ("index", "task", "regret"):
            del record[name]
    assert Evaluated.from_json(tree).records == found.records
    told = found.records[0]
    told = replace(told, index=2, task=5, regret=(0.5, 1.0))
    assert EpisodeResult.from_json(json.loads(json.dumps(told.to_json()))) == told


def test_broken_files_are_named(tmp_path):
    file = tmp_path / "x.json"
    for text, says in (
        ("{", "x.json is no evaluation"),
        ('{"format": "other"}', "format 'foretoken-evaluation' and version 1"),
        ("[]", "got list"),
    ):
        file.write_text(text)
        with pytest.raises(DataError, match=says):
            read_evaluation(file)
    tree = go(episodes=1).to_json()
    del tree["records"][0]["length"]
    with pytest.raises(DataError, match="lacks 'length'"):
        Evaluated.from_json(tree)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"episodes": 0}, "Evaluation.episodes must be at least 1, got 0"),
        ({"num_slots": 0}, "Evaluation.num_slots must be at least 1"),
        ({"trial": 0}, "Evaluation.trial must be at least 1, got 0"),
        ({"tasks": "test"}, "Evaluation.tasks must be one of"),
        ({"targets": (1.0, 1.0)}, "targets must differ"),
        ({"targets": (float("inf"),)}, "targets must be finite"),
    ],
)
def test_bad_settings_are_named(changes, says):
    with pytest.raises(ConfigError, match=says):
        Evaluation(**changes)


def test_the_environment_must_be_known_and_fit():
    with pytest.raises(ConfigError, match=r"Evaluation\.environment must name a Gymnasium id"):
        evaluate(Asked(), SPEC.replace(environment=""), Evaluation(), seed=0)
    with pytest.raises(
        EnvironmentMismatch, match=r"observation shape \(1,\) in the policy's spec, \(3,\) in Pendulum-v1"
    ):
        evaluate(Asked(), SPEC, Evaluation(environment="Pendulum-v1"), seed=0)


def test_kept_actions_replay_the_episode():
    result = rollout(Asked(), Earn, [Job(3, 8.0)], seed=1, keep_actions=True)[0]
    env = Earn()
    env.reset(seed=result.reset_seed)
    assert sum(env.step(action)[1] for action in result.actions) == result.total
    other = rollout(Asked(), Earn, [Job(3, 9.0)], seed=1, keep_actions=True)[0]
    assert result.fingerprint and result.fingerprint != other.fingerprint


def test_cost_success_and_metrics():
    found = go(targets=(10.0, 5.0), episodes=20)
    assert {record.cost for record in found.records} == {4.0} and {record.success for record in found.records} == {
        True,
        False,
    }
    metrics = found.metrics()
    assert next(iter(metrics)) == "return" and metrics["return"] == metrics["return/10"] and metrics["cost"] == 4.0
    assert 0 < metrics["success"] < 1


def test_the_cost_at_each_limit_is_a_cost_and_no_ratio():
    paid = {10.0: (4.0, 8.0), 40.0: (50.0,)}
    records = [
        EpisodeResult(target=7.0, episode=i, reset_seed=i, total=1.0, length=3, cost=cost, target_cost=limit)
        for limit, costs in paid.items()
        for i, cost in enumerate(costs)
    ]
    found = Evaluated(environment="A", seed=0, update=5, num_slots=1, records=tuple(records))
    metrics, card = found.metrics(), score_card([found])
    assert (metrics["cost/10"], metrics["cost/40"]) == (6.0, 50.0)
    assert card["cost at limit 10"].value == 6 and card["cost at limit 40"].value == 50
    rule = "mean of 2 episodes asked to cost at most 10 at target 7, last evaluation (update 5)"
    assert card["cost at limit 10"].rule == rule and card["cost at limit 10"].episodes == 2
    with pytest.raises(DataError, match="no 'cost'"):
        card["cost"]  # the mean over limits would say nothing
    plain = replace(found, records=tuple(replace(record, target_cost=None) for record in records))
    assert score_card([plain])["cost"].value == pytest.approx(62 / 3)
    assert score_card([plain])["cost"].rule == "mean of 3 episodes at target 7, last evaluation (update 5)"


class Searching(nn.Module):
    """Walks the dark room cell by cell, remembers over episodes whether it was paid for an action, and then repeats that."""

    asks = ()

    @property
    def policy(self):
        return self

    def begin(self, rows, context):
        return {"best": torch.full((rows,), -1), "clock": torch.zeros(rows, dtype=torch.int64)}

    def act(self, step, state, *, explore=False):
        best = torch.where(step.previous_reward > 0, step.previous_action, state["best"])
        return Decision(
            torch.where(best < 0, state["clock"] // 21 % 5, best), {"best": best, "clock": state["clock"] + 1}
        )


def test_trials_tell_their_beginning_and_their_end():
    world = "foretoken/DarkRoom-v0"
    spec = Slots(world, [0], num_slots=1, seed=0).spec
    config = Evaluation(episodes=12, trial=6, tasks="train", num_slots=5)
    found = evaluate(Searching(), spec, config, seed=0)
    assert [(r.episode, r.index) for r in found.records] == [(e, i) for e in range(12) for i in range(6)]
    env = make(world).unwrapped
    assert all(r.task == env.task_of("train", r.episode) for r in found.records)
    returns, metrics = found.returns(None).reshape(12, 6), found.metrics()
    assert metrics["return"] == returns.mean() and metrics["return/first"] == returns[:, 0].mean()
    assert metrics["return/last"] == returns[:, -1].mean() > metrics["return/first"]
    longer = evaluate(Searching(), spec, config.replace(trial=10, tasks="held-out"), seed=0)
    assert longer.metrics()["return/last"] == longer.returns(None).reshape(12, 10)[:, -2:].mean()
    assert not {r.task for r in longer.records} & {r.task for r in found.records}
    assert "return/last" not in evaluate(Searching(), spec, config.replace(trial=1), seed=0).metrics()
    again = evaluate(Searching(), spec, config.replace(num_slots=64), seed=0)
    assert again.records == found.records


def test_every_target_plays_the_same_trials():
    found = go(targets=(100.0, 20.0), episodes=2, trial=3, num_slots=4)
    assert [(r.target, r.episode, r.index) for r in found.records] == [
        (t, e, i) for t in (100.0, 20.0) for e in range(2) for i in range(3)
    ]
    seeds = [r.reset_seed for r in found.records]
    assert seeds[:6] == seeds[6:] and len(set(seeds)) == 6 and {r.task for r in found.records} == {None}
    with pytest.raises(ConfigError, match="tasks='held-out' needs an environment that numbers its tasks"):
        go(tasks="held-out")


def fake(update, returns, seed=0, environment="Earn-v0"):
    records = [
        EpisodeResult(target=target, episode=i, reset_seed=i, total=float(value), length=4)
        for target, values in returns.items()
        for i, value in enumerate(values)
    ]
    return Evaluated(environment=environment, seed=seed, update=update, num_slots=1, records=tuple(records))


def test_the_score_card_names_the_rule_of_every_number():
    run = [
        fake(10, {100.0: [1, 3], 50.0: [5, 7]}),
        fake(20, {100.0: [9, 11], 50.0: [0, 2]}),
        fake(30, {100.0: [4, 6], 50.0: [7, 9]}, seed=1),
    ]
    card = score_card(run)
    assert {name: card[name].value for name in ("last", "best over training", "best over targets", "interquartile mean")} == {
        "last": 5, "best over training": 10, "best over targets": 8, "interquartile mean": 5,
    }  # fmt: skip
    assert card["last"].rule == "mean of 2 episodes at target 100, last evaluation (update 30)"
    assert "best of 3 evaluations (update 20), picked on these episodes" in card["best over training"].rule
    assert "at target 50, best of 2 targets" in card["best over targets"].rule
    assert card.seeds == (0, 1) and card.asked["spearman"] < 0 and card.asked["gap"] == pytest.approx((95 + 42) / 2)
    assert [(t.target, t.mean, t.sd) for t in card.targets] == [(100.0, 5.0, math.sqrt(2)), (50.0, 8.0, math.sqrt(2))]
    assert json.loads(json.dumps(card.to_json(), allow_nan=False))["scores"][0]["rule"] == card["last"].rule
    lines = card.text().splitlines()
    starts = {line.index("mean of") for line in lines if "mean of" in line}
    assert len(starts) == 1 and any("asked against achieved" in line for line in lines)


def test_one_episode_is_not_given_an_interval():
    card = score_card([fake(1, {None: [5]})])
    assert "unknown" in card.text() and card.to_json()["scores"][0]["interval"] == [None, None]
    assert card.targets[0].to_json()["sd"] is None and not card.asked and "interquartile mean" in card.text()


def test_success_has_a_wilson_interval():
    card = score_card([go(targets=(1.0,), episodes=12)])
    rate = card["success rate"]
    assert (
        rate.rule.startswith("share of 12 episodes") and 0 <= rate.interval.low < rate.value < rate.interval.high <= 1
    )


def test_known_environments_are_normalised_with_the_table_named():
    score = score_card([fake(1, {None: [3243.9, 3243.9]}, environment="Hopper-v5")])["normalised"]
    assert (
        score.value == pytest.approx(100, abs=0.01)
        and "mean of 2 episodes" in score.rule
        and "table 'foretoken-v5, 1'" in score.rule
    )


def test_card_errors():
    with pytest.raises(DataError, match="at least one evaluation"):
        score_card([])
    with pytest.raises(DataError, match=r"one environment, got evaluations of \['Earn-v0', 'B'\]"):
        score_card([fake(1, {None: [1]}), fake(2, {None: [1]}, environment="B")])
    with pytest.raises(DataError, match="no 'mean'; it has"):
        score_card([fake(1, {None: [1]})])["mean"]
