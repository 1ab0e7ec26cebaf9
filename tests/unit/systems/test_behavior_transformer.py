"""Behavior Transformer: what it reads, what it remembers, and its claim's verdict."""

from dataclasses import replace

import pytest
import torch

from foretoken.core.batch import Step
from foretoken.core.errors import ConfigError
from foretoken.data.windows import WindowSampler
from foretoken.evaluation.rollout import EpisodeResult
from foretoken.systems.imitation import behavior_transformer as bet
from foretoken.testing.agreement import perturb
from foretoken.testing.stores import SPECS, random_store


def made(**changes):
    torch.manual_seed(0)
    method = bet.smoke().system.replace(**changes).build(SPECS["continuous"])
    store = random_store(SPECS["continuous"])
    method.fit({"data": store}, "main")
    perturb(method, 0, scale=0.3)
    return method.eval(), WindowSampler(store, method.window).draw(8, 0)


def test_actions_are_targets_only() -> None:
    method, batch = made()
    other = batch.replace(action=torch.zeros_like(batch.action))
    assert torch.equal(method(batch).logits, method(other).logits)
    assert not torch.equal(method.loss(batch).total, method.loss(other).total)


def test_every_position_of_a_full_window_is_scored() -> None:
    method, batch = made()
    assert method.window.length == 4
    long = batch.valid.all(1)
    assert long.any() and batch.scored[long].all()


def test_a_shorter_memory_counts_places_from_its_own_beginning() -> None:
    method, batch = made(look_back=2, acting="mode")
    rows, state = len(batch.valid), method.policy.begin(len(batch.valid), {})
    for t in range(4):
        zeros, no = torch.zeros(rows), torch.zeros(rows, dtype=torch.bool)
        told = batch.observation[:, t], torch.zeros_like(batch.action[:, t]), zeros, zeros, no, no, ~no
        step = Step(*told, batch.timestep[:, t], torch.arange(rows))
        decision = method.policy.act(step, state)
        state = decision.state
    last = {name: batch[name][:, 2:] for name in ("observation", "action", "timestep", "valid", "scored", "first")}
    full = batch.valid.all(1)
    want = method(batch.replace(**last), slice(-1, None)).mode().squeeze(1)
    torch.testing.assert_close(decision.action[full], want[full])
    with pytest.raises(ConfigError, match="look_back"):
        bet.smoke().system.replace(look_back=5)


def results(routes):
    return [
        EpisodeResult(target=None, episode=i, reset_seed=i, total=1.0, length=9, route=route, success=route >= 0)
        for i, route in enumerate(routes)
    ]


def test_route_distance() -> None:
    assert bet.route_distance(results([0] * 4 + [3] * 3 + [2] * 2 + [1])) == pytest.approx(0)
    assert bet.route_distance(results([0] * 5 + [-1] * 5)) == pytest.approx(0.6)
    lost = [replace(one, success=False) for one in results([0] * 4 + [3] * 3 + [2] * 2 + [1])]
    assert bet.route_distance(lost) == 1
    assert bet.route_distance(results([-1, -1])) == 1
    assert bet.success(results([0, 1, -1, -1])) == 0.5


def test_verdict() -> None:
    row = {"success": 0.95, "route distance": 0.1, "route distance of the likeliest": 0.6}
    rows = {"bet": [row] * 3, "mse": [row | {"success": 0.3}] * 3, "no-offsets": [row | {"success": 0.9}] * 3}
    assert all(bet.verdict(rows).values())
    rows["bet"] = [row, row, row | {"success": 0.8, "route distance": 0.2, "route distance of the likeliest": 0.0}]
    assert list(bet.verdict(rows).values()) == [False, False, True, False, False]
