"""Constrained Decision Transformer: who sees which action, what the loss is, relabelled windows, the temperature, data without costs."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from foretoken.cli import main
from foretoken.core.errors import ConfigError, DataError
from foretoken.core.spec import Spec
from foretoken.data.mixture import Mixture
from foretoken.data.store import open_store
from foretoken.data.windows import WindowSampler
from foretoken.envs.recipes.circle_controllers import CircleControllers
from foretoken.evaluation.rollout import EpisodeResult
from foretoken.methods import constrained_cloning as cc
from foretoken.methods.conditions.return_to_go import ReturnToGoConfig
from foretoken.methods.pareto import InfeasibleConfig
from foretoken.nn.heads.base import BySpaceConfig
from foretoken.systems.offline import constrained_decision_transformer as cdt
from foretoken.testing.agreement import perturb
from foretoken.testing.stores import SPECS, random_store

SPEC = SPECS["continuous"]
LENGTHS = (5, 9, 3, 14, 6, 2, 11, 7, 8, 4)


def fitted(stores=None, **changes):
    """A small fitted method whose weights all take part, in training mode, and its stores."""
    torch.manual_seed(0)
    stores = stores or {"data": random_store(SPEC, lengths=LENGTHS, rich=True)}
    method = cdt.smoke().system.replace(**changes).build(SPEC)
    method.fit(stores, "main")
    perturb(method, 0, scale=0.1)
    return method, stores


def windows(method, store, rows=12):
    return WindowSampler(store, method.window).draw(rows, 0)


def test_the_cost_s_class_sees_the_action_and_the_policy_does_not() -> None:
    method, stores = fitted()
    batch = windows(method.eval(), stores["data"])
    policy, classes, _ = method.predict(batch)
    assert classes.shape == (12, method.window.length - 1, 2)
    for step in range(method.window.length - 1):
        action = batch.action.clone()
        action[:, step] += 1
        changed, told, _ = method.predict(batch.replace(action=action))
        seen = batch.valid[:, step]  # and so all later steps are valid: windows are padded on the left
        moved = (changed.mode() != policy.mode()).any(-1)
        assert not moved[:, : step + 1].any() and moved[seen, step + 1 :].all()
        moved = (told != classes).any(-1)
        assert not moved[:, :step].any() and moved[seen, step:].all()
    torch.testing.assert_close(method(batch).mode(), policy.mode())


def test_loss_is_likelihood_and_entropy_of_the_action_and_the_class_of_its_cost() -> None:
    method, stores = fitted()
    batch = windows(method.eval(), stores["data"])
    policy, classes, _ = method.predict(batch)
    log_std = policy.log_std
    assert (log_std >= -5).all() and (log_std <= 2).all()
    total, count = 0.0, 0
    for row in range(12):
        for step in range(method.window.length):
            if not batch.scored[row, step]:
                continue
            middle, radius = torch.tensor(-0.5), torch.tensor(1.5)  # of actions in [-2, 1]
            normal = torch.distributions.Normal(
                middle + radius * policy.mean[row, step], radius * log_std[row, step].exp()
            )
            entropy = normal.entropy().sum() - 3 * radius.log()  # of actions scaled to [-1, 1]
            total -= normal.log_prob(batch.action[row, step]).sum() + method.temperature[0].exp() * entropy
            if step + 1 < method.window.length and batch.valid[row, step + 1]:
                costly = int(batch.cost[row, step] > 0)
                total += 0.02 * F.cross_entropy(classes[row, step], torch.tensor(costly))
            count += 1
    loss = method.loss(batch)
    torch.testing.assert_close(loss.total, total / count)
    loss.total.backward()
    assert method.temperature[0].grad is None
    torch.testing.assert_close(loss.notes["entropy"] / loss.notes["count"], loss.metrics["entropy"])


def test_acts_by_the_mean() -> None:
    method, _ = fitted()
    assert cc.ConstrainedCloningConfig().cloning.acting == "mode" and method.policy.method is method.cloning
    assert method.asks == ("target_return", "target_cost")


def test_pairs_shift_whole_trajectories_to_cheaper_ones_doing_for_more() -> None:
    method, stores = fitted()
    store, pairs = stores["data"], (method.owner < cc.NOBODY).sum()
    assert pairs == 5, "half of ten trajectories"
    owned = [store.episodes["start"].tolist().index(int(start)) for start in method.owner[:pairs]]
    assert (method.shift[:pairs, 1] >= 0).all(), "they cost no more than the pair allows"
    returns, costs = store.episodes["return"], store.episodes["cost"]
    for number, (more, allowed) in zip(owned, method.shift[:pairs].double().numpy(), strict=True):
        want, allow = returns[number] + more, costs[number] + allowed + 1e-5
        assert not ((returns >= want) & (costs <= allow)).any(), "infeasible"


def test_each_trajectory_is_drawn_as_often_as_it_has_labels() -> None:
    method, stores = fitted()
    store, rows = stores["data"], 4000
    batch = windows(method, store, rows)
    torch.manual_seed(1)
    moved, weight = method.relabelled(batch)
    earned, paid = moved.return_to_go - batch.return_to_go, moved.cost_to_go - batch.cost_to_go
    for shift in (earned, paid):
        torch.testing.assert_close(shift, shift[:, :1].expand_as(shift), atol=1e-5, rtol=0), "whole windows"
    assert torch.equal(moved.action, batch.action)
    assert abs(float(weight.mean()) - 1) < 0.05, "1 in the mean over trajectories drawn evenly"
    start = (batch.at - batch.timestep)[batch.valid.cumsum(1).eq(1) & batch.valid]
    total = 0.0
    for number, first in enumerate(store.episodes["start"].tolist()):
        own, labels = start == first, method.shift[method.owner == first]
        assert abs(float(own.float().mean()) - 0.1) < 0.03, "trajectories are drawn evenly"
        torch.testing.assert_close(weight[own], torch.full_like(weight[own], (1 + len(labels)) / 1.5))
        for label in torch.cat((torch.zeros(1, 2), labels)):
            same = ((torch.stack((earned[own, 0], paid[own, 0]), 1) - label).abs() < 1e-4).all(1)
            assert abs(float(same.float().mean()) - 1 / (1 + len(labels))) < 0.1, (number, label)
        total += float(weight[own][:1].sum())
    assert abs(total / len(LENGTHS) - 1) < 1e-5


def test_only_training_relabels() -> None:
    method, stores = fitted()
    batch = windows(method, stores["data"], 64)
    torch.manual_seed(1)
    shown, weight = method.relabelled(batch)
    torch.manual_seed(1)
    trained = method.loss(batch).total
    assert trained != method.eval().loss(batch).total
    plain, _, _ = method.predict(shown)
    torch.testing.assert_close(
        method.loss(batch).metrics["likelihood"], method.predict(batch)[0].log_prob(batch.action)[batch.scored].mean()
    )
    likelihood = (plain.log_prob(batch.action) * weight)[batch.scored].mean()
    method.train()
    torch.manual_seed(1)
    torch.testing.assert_close(method.loss(batch).metrics["likelihood"], likelihood)
    untouched, _ = fitted(pairs=None)
    assert untouched.loss(batch).total == untouched.eval().loss(batch).total


def test_several_stores_have_one_front_and_keep_their_trajectories_apart() -> None:
    stores = {name: random_store(SPEC, lengths=LENGTHS, seed=seed, rich=True) for seed, name in enumerate("ab")}
    method, _ = fitted(stores)
    owner = method.owner[method.owner < cc.NOBODY]
    assert len(owner) == 10 and (owner.diff() >= 0).all() and {0, 1} == set((owner // cc.APART).tolist())
    batch = Mixture(list(stores.values()), (1.0, 1.0), method.window).draw(400, 0)
    torch.manual_seed(0)
    moved, weight = method.relabelled(batch)
    owned = {(int(one // cc.APART), int(one % cc.APART)) for one in owner}
    start = (batch.at - batch.timestep)[:, -1].tolist()
    for row, key in enumerate(zip(batch.store.tolist(), start, strict=True)):
        assert (weight[row] > 1 / 1.5 + 1e-6) == (key in owned)
        assert key in owned or torch.equal(moved.return_to_go[row], batch.return_to_go[row])


def test_the_temperature_falls_while_entropy_is_ample_and_rises_where_it_lacks() -> None:
    method, stores = fitted()
    policy, temperature = method.objectives()
    assert [id(p) for module in temperature.trains for p in module.parameters()] == [id(method.temperature[0])]
    begun = method.temperature[0].item()
    assert math.isclose(begun, math.log(0.1), abs_tol=0.5), "perturbed"
    for entropy, sign in ((0.0, 1), (-5.0, -1)):  # the least is -3, minus the entries of an action
        method.after_update("policy", {"entropy": torch.tensor(7 * entropy), "count": torch.tensor(7.0)})
        method.zero_grad()
        temperature.loss().total.backward()
        assert sign * float(method.temperature[0].grad) > 0
    loss = policy.loss(windows(method, stores["data"]))
    method.after_update(policy.name, loss.notes)
    torch.testing.assert_close(method.entropy, loss.metrics["entropy"])
    assert cdt.paper().training.optimiser.settings("temperature.0", method.temperature[0]) == (1e-4, 0.0)


def test_what_is_refused() -> None:
    system = cdt.smoke().system
    with pytest.raises(ConfigError, match=r"must ask for a target_return and a target_cost, got \('target_return',\)"):
        system.replace(cloning=system.cloning.replace(condition=ReturnToGoConfig())).build(SPEC)
    for change, told in (
        ({"context": 1}, "at least 2 steps of context, got layout='separate', across='' and context=1"),
        ({"layout": "joined"}, "a token for the previous action.*layout='joined'"),
        ({"across": "task"}, "windows inside episodes.*across='task'"),
        ({"head": BySpaceConfig()}, "head must be a Gaussian, for likelihood and entropy, got BySpaceConfig"),
    ):
        with pytest.raises(ConfigError, match=told):
            system.replace(cloning=system.cloning.replace(**change))
    with pytest.raises(ConfigError, match=r"temperature must be positive, got 0\.0"):
        system.replace(temperature=0.0)
    with pytest.raises(ConfigError, match="Gaussian head needs a Box"):
        system.build(SPECS["discrete"])
    with pytest.raises(ConfigError, match="room must be at least the number of infeasible pairs, 5, got 4"):
        fitted(room=4)
    bare, asked = random_store(SPEC), cc.asked(1.0, 1.0)
    with pytest.raises(DataError, match='infeasible pairs need the episode fact "cost" of every trajectory'):
        fitted({"data": bare}, cloning=system.cloning.replace(condition=asked))


def test_data_without_costs_give_one_clear_error(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("FORETOKEN_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "pendulum"
    assert main(["collect", "Pendulum-v1", "--episodes", "3", "--max-steps", "9", "--out", str(folder)]) == 0
    capsys.readouterr()
    run = cdt.smoke()
    scaled = run.system.cloning.replace(condition=cc.asked(0.0, 0.0))
    for number, (system, wanted) in enumerate(
        (
            (run.system, 'infeasible pairs need the episode fact "cost" of every trajectory'),
            (
                run.system.replace(pairs=None),
                "'cost_to_go' is computed from 'cost', which the store's steps do not have",
            ),
            (run.system.replace(cloning=scaled), "cost-to-go needs the cost of each episode, which this data lacks"),
        )
    ):
        monkeypatch.setattr(cdt, "smoke", lambda system=system: run.replace(system=system))
        words = ["train", "constrained_decision_transformer", "smoke", "--source.store", str(folder), "--quiet"]
        assert main([*words, "--out", str(tmp_path / f"run{number}")]) == 2
        told = capsys.readouterr().err
        assert told.startswith("foretoken: error: ") and wanted in told and len(told.splitlines()) <= 2, told


def test_safe_only_keeps_what_costs_no_more_than_the_limit(tmp_path) -> None:
    of = CircleControllers(episodes=12)
    of.write(tmp_path / "whole")
    whole = open_store(tmp_path / "whole")

    class Written(CircleControllers):
        def open(self):
            return whole

    cdt.SafeOnly(of=Written(episodes=12), limit=20.0).write(tmp_path / "safe")
    safe = open_store(tmp_path / "safe")
    kept = np.flatnonzero(whole.episodes["cost"] <= 20)
    assert 0 < len(kept) < 12
    for name in ("return", "cost", "overshoot"):
        np.testing.assert_array_equal(safe.episodes[name], whole.episodes[name][kept])
    assert isinstance(safe.spec, Spec) and safe.spec == whole.spec
    assert torch.equal(
        safe.gather([3], ("cost_to_go",)).cost_to_go,
        whole.gather([int(whole.episodes["start"][kept[0]]) + 3], ("cost_to_go",)).cost_to_go,
    )


def test_presets_draw_pairs_from_their_data_s_grid() -> None:
    assert cdt.paper().system.pairs == InfeasibleConfig(max_return=600.0, max_decrease=100.0)
    assert cdt.cpu().system.pairs.max_return > cdt.TARGET


def played(target, limit, costs, totals):
    return [
        EpisodeResult(target=target, episode=i, reset_seed=i, total=total, length=9, cost=cost, target_cost=limit)
        for i, (cost, total) in enumerate(zip(costs, totals, strict=True))
    ]


def figures(monkeypatch, *records, recipe=cdt.RUNNERS):
    """Of data that earned from 50 to 150."""
    data = SimpleNamespace(episodes={"return": np.array([80.0, 150.0, 50.0])})
    monkeypatch.setattr(CircleControllers, "open", lambda self: data)
    last = SimpleNamespace(records=[one for part in records for one in part])
    experiment = SimpleNamespace(source=SimpleNamespace(recipe=recipe))
    return cdt.figures(SimpleNamespace(evaluations=lambda: [None, last], experiment=experiment))


def test_figures_are_means_by_what_was_asked_and_costs_are_in_limits(monkeypatch) -> None:
    case = 180.0, 10.0, (4.0, 8.0), (100.0, 140.0)
    assert figures(monkeypatch, played(*case), played(250.0, 40.0, (50.0,), (7.0,))) == {
        "return at 180 within 10": 120.0,
        "cost / limit at 180 within 10": 0.6,
        "return at 250 within 40": 7.0,
        "cost / limit at 250 within 40": 1.25,
        "normalised return at 180": 0.7,
        "normalised cost at 180": 0.6,
        "normalised return at 250": -0.43,
        "normalised cost at 250": 1.25,
    }
    plain = {"return": 1.5, "cost": 6.0, "normalised return": pytest.approx(-0.485)}
    assert figures(monkeypatch, played(None, None, (4.0, 8.0), (1.0, 2.0))) == plain


def test_figures_average_over_limits_as_the_paper_s_table(monkeypatch) -> None:
    """Each limit counts alike, however many episodes it had, and costs are divided by their own limit first."""
    cases = played(180.0, 10.0, (5.0, 5.0), (100.0, 100.0)), played(180.0, 40.0, (60.0,), (150.0,))
    found = figures(monkeypatch, *cases)
    assert found["normalised return at 180"] == pytest.approx(0.75)  # of 0.5 and 1
    assert found["normalised cost at 180"] == pytest.approx(1.0)  # of 0.5 and 1.5
    safe = figures(monkeypatch, played(None, None, (5.0, 15.0), (75.0,) * 2), recipe=cdt.SafeOnly(limit=20.0))
    assert safe == {"return": 75.0, "cost": 10.0, "normalised return": 0.25, "normalised cost": 0.5}


def test_an_arm_differs_in_its_pairs_alone_and_none_in_budget() -> None:
    arms = cdt.claim().arms
    base, bare = arms["cdt"], arms["no pairs"]
    assert base.system.pairs is not None and bare.system.pairs is None
    assert bare.replace(system=bare.system.replace(pairs=base.system.pairs)) == base
    for arm in arms.values():
        spent, own = base.training, arm.training
        assert own.replace(optimiser=spent.optimiser) == spent and own.optimiser.replace(
            parts=()
        ) == spent.optimiser.replace(parts=())
        reader = getattr(arm.system, "cloning", arm.system)
        assert (reader.backbone, reader.context, reader.time) == (cdt.SMALL.backbone, cdt.SMALL.context, cdt.SMALL.time)


def asked_for(target, *limits):
    return [f"{target:g} within {limit:g}" for limit in limits or cdt.LIMITS]


@pytest.mark.parametrize(
    ("change", "fails"),
    [
        ({}, []),
        ({"cdt": {"cost / limit at 180 within 20": 1.1}}, ["stays"]),
        ({"cdt": {"cost / limit at 250 within 40": 1.1}}, ["stays"]),
        # only where CDT keeps the limit that DT breaks does that count
        ({"cdt": {"cost / limit at 250 within 10": 1.1}}, ["stays", "asked for far more"]),
        ({"cdt": {"return at 180 within 10": 121.0}}, ["the return never falls"]),
        ({"cdt": {"return at 250 within 10": 999.0}}, []),
        ({"bc-safe-20": {"return": 121.0}}, ["earns no less"]),
        ({"bc-safe-40": {"return": 131.0}}, ["earns no less"]),
        ({"dt": {"cost / limit at 250 within 10": 1.0}}, ["asked for far more"]),
        ({"dt": {"cost / limit at 180 within 10": 9.0, "cost / limit at 250 within 10": 0.9}}, ["asked for far more"]),
    ],
)
def test_verdict(change, fails) -> None:
    kept = {f"cost / limit at {case}": 0.9 for target in (180, 250) for case in asked_for(target)}
    earned = {
        f"return at {case}": value
        for target in (180, 250)
        for case, value in zip(asked_for(target), (110.0, 120.0, 130.0), strict=True)
    }
    results = {
        "cdt": kept | earned,
        "dt": kept | earned | {"cost / limit at 250 within 10": 1.5},
        "bc-safe-20": {"return": 120.0},
        "bc-safe-40": {"return": 130.0},
    }
    noisy = {
        arm: [
            {name: value + noise * (name[:6] == "return") for name, value in (row | change.get(arm, {})).items()}
            for noise in (-30, 0, 30)
        ]
        for arm, row in results.items()
    }
    broken = [name for name, held in cdt.verdict(noisy).items() if not held]
    assert len(broken) == len(fails) and all(name.startswith(start) for name, start in zip(broken, fails, strict=True))
