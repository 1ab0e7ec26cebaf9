"""Behavior Transformer: what it reads, what it remembers, and its claim's verdict."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load, save

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


def test_a_step_knows_its_place_in_the_window_and_no_other_time() -> None:
    method, batch = made()
    assert torch.equal(method(batch.replace(timestep=batch.timestep + 99)).logits, method(batch).logits)
    moved = batch.replace(observation=batch.observation[:, :1].expand_as(batch.observation))
    logits = method(moved).logits[batch.valid.all(1)]
    assert not torch.allclose(logits[:, 0], logits[:, 1], atol=1e-3)


def test_every_position_of_a_full_window_is_scored() -> None:
    method, batch = made()
    assert method.window.length == 4
    long = batch.valid.all(1)
    assert long.any() and batch.scored[long].all()


def test_the_loss_is_the_mean_over_all_scored_positions() -> None:
    method, batch = made()
    errors = method(batch).loss(batch.action)
    want = sum(errors[row, t] for row, t in batch.scored.nonzero().tolist()) / batch.scored.sum()
    torch.testing.assert_close(method.loss(batch).total, want)
    logits = method(batch).logits
    moved = torch.where(batch.scored[..., None], -batch.action - 1, batch.action)  # mirrored in [-2, 1]
    for t in range(4):
        action = batch.action.clone()
        action[:, t] = moved[:, t]
        assert not torch.equal(method.loss(batch.replace(action=action)).total, want), t
    assert torch.equal(method(batch.replace(action=moved)).logits, logits)


def test_acting_draws_the_cluster_by_the_steps_seed() -> None:
    method, batch = made()
    rows = 6000
    zeros, no = torch.zeros(rows), torch.zeros(rows, dtype=torch.bool)
    seen, before = batch.observation[:1, -1].expand(rows, -1), torch.zeros(rows, 3)
    step = Step(seen, before, zeros, zeros, ~no, no, ~no, zeros.long(), torch.arange(rows))

    def act(step):
        with torch.no_grad():
            return method.policy.act(step, method.policy.begin(rows, {})).action

    alone = batch.map(lambda leaf: leaf[:1, -1:])
    prediction = method(alone.replace(valid=torch.ones(1, 1, dtype=torch.bool)))
    share, drawn = prediction.logits[0, 0].softmax(-1), act(step)
    assert share.max() < 0.9, "nothing to draw"
    of_class = torch.stack([prediction._action(torch.tensor([[token]]))[0, 0] for token in range(8)])
    distance = (drawn[:, None] - of_class).norm(dim=-1)
    assert distance.amin(1).max() < 1e-4, "an action is a centre and its offset"
    torch.testing.assert_close(distance.argmin(1).bincount(minlength=8) / rows, share, atol=0.025, rtol=0)
    assert torch.equal(act(step), drawn) and not torch.equal(act(step._replace(seed=step.seed + 1)), drawn)


def test_centres_are_in_the_checkpoint() -> None:
    method, _ = made()
    saved = load(save(dict(method.state_dict())))
    fresh = bet.smoke().system.build(SPECS["continuous"])
    assert fresh.head.codec.centres.isnan().all()
    fresh.load_state_dict(saved)
    assert torch.equal(fresh.head.codec.centres, method.head.codec.centres)
    fresh.fit({"data": random_store(SPECS["continuous"], seed=1)}, "main")  # and stay what the weights were trained for
    assert torch.equal(fresh.head.codec.centres, method.head.codec.centres)


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


def test_only_what_linear_layers_multiply_by_decays_as_published() -> None:
    method, _ = made()
    optimiser = bet.paper().training.optimiser
    optimiser.check(method)
    decays = {name for name, weight in method.named_parameters() if optimiser.settings(name, weight)[1]}
    linear = {f"{name}.weight" for name, part in method.named_modules() if isinstance(part, torch.nn.Linear)}
    assert decays == linear and optimiser.weight_decay == 0.1


def test_arms_differ_from_the_first_in_their_head_alone() -> None:
    arms = {name: arm for name, arm in bet.claim().arms.items() if "door" not in name}
    head = arms["bet"].system.head
    for arm in arms.values():
        assert arm.replace(system=arm.system.replace(head=head)) == arms["bet"]
    assert arms["mse"].system.head.clusters.clusters == 1 and arms["no-offsets"].system.head.offsets == "none"


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
