"""DiT-Block Policy: no past action is read, the chunk's errors are summed, and the claim's figures add up."""

from types import SimpleNamespace

import pytest
import torch
from torch.utils._pytree import tree_leaves

from foretoken.core.batch import Step
from foretoken.core.spec import Box, Spec
from foretoken.data.windows import WindowSampler
from foretoken.systems.imitation import dit_policy
from foretoken.testing.agreement import perturb
from foretoken.testing.stores import SPECS, random_store


def fitted(**changes):
    torch.manual_seed(0)
    method = dit_policy.smoke().system.replace(**changes).build(SPECS["continuous"])
    store = random_store(SPECS["continuous"])
    method.fit({"data": store}, "main")
    perturb(method, 0)
    return method.eval(), store


def test_no_past_action_is_read() -> None:
    method, store = fitted()
    batch, seed = WindowSampler(store, method.window).draw(4, 0), torch.arange(4)
    with torch.no_grad():
        want = method(batch).sample(seed)
        got = method(batch.replace(action=torch.randn_like(batch.action))).sample(seed)
    assert torch.equal(got, want)


@pytest.mark.parametrize("execute", [1, 2])
def test_decisions_do_not_depend_on_previous_actions(execute: int) -> None:
    method, _ = fitted(execute=execute)
    rows, zeros = 3, torch.zeros(3)
    no, generator = zeros.bool(), torch.Generator().manual_seed(0)
    states = [method.policy.begin(rows, {}) for _ in range(2)]
    for t in range(5):
        seen = torch.randn(rows, 5, generator=generator)
        before = torch.zeros(rows, 3), torch.randn(rows, 3, generator=generator)
        told = (zeros, zeros, no | (t == 0), no, ~no, zeros.long() + t, torch.arange(rows) + 7 * t)
        with torch.no_grad():
            pair = [method.policy.act(Step(seen, a, *told), s) for a, s in zip(before, states, strict=True)]
        assert torch.equal(pair[0].action, pair[1].action), t
        states = [decision.state for decision in pair]
    assert all(torch.equal(*pair) for pair in zip(*map(tree_leaves, states), strict=True)), "nor is one kept"


def test_errors_are_summed_over_the_chunk() -> None:
    method, store = fitted()
    start, length = store.episodes["start"][3], store.episodes["length"][3]
    whole = WindowSampler(store, method.window).windows([start, start + length - 4])
    with torch.no_grad():
        loss = method.loss(whole)
    torch.testing.assert_close(loss.total, method.config.horizon * loss.metrics["per_step"])


def test_figures_of_a_perfect_run_and_of_one_that_takes_one_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dit_policy, "speed_up", lambda run: 3.0)

    def figures(routes, arrived=True):
        records = [SimpleNamespace(success=arrived, route=route) for route in routes]
        return dit_policy.figures(SimpleNamespace(evaluations=lambda: [SimpleNamespace(records=records)]))

    found = figures([0, 0, 0, 0, 3, 3, 3, 2, 2, 1])
    assert found["success"] == 1 and found["gates"] == 4 and abs(found["route distance"]) < 1e-9
    assert abs(figures([0] * 10)["route distance"] - 0.6) < 1e-9
    lost = figures([0, 0, 0, 0, 3, 3, 3, 2, 2, 1], arrived=False)
    assert lost["success"] == 0 and lost["gates"] == 0 and abs(lost["route distance"] - 1) < 1e-9


def test_figures_without_routes_tell_the_return(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dit_policy, "speed_up", lambda run: 3.0)
    records = [SimpleNamespace(success=success, route=None) for success in (True, False)]
    last = SimpleNamespace(records=records, returns=lambda target: torch.tensor([3.0, 5.0]))
    found = dit_policy.figures(SimpleNamespace(evaluations=lambda: [last]))
    assert found == {"success": 0.5, "speed-up by reading once": 3, "return": 4}


def test_the_door_is_read_as_six_tokens() -> None:
    door = Spec(observation=Box(shape=(39,)), action=Box(shape=(28,), low=(-1.0,), high=(1.0,)))
    method = dit_policy.adroit().system.build(door)
    assert method.network.observation(torch.zeros(1, 1, 39)).shape == (1, 6, 64)
    assert method.plan(torch.zeros(2, 1, 39), torch.arange(2)).shape == (2, 16, 28)


def test_arms_on_the_routes_differ_from_the_first_in_network_rate_or_schedule_alone() -> None:
    arms = {name: arm for name, arm in dit_policy.claim().arms.items() if "door" not in name}
    first = arms[OWN[0]]
    for name, arm in arms.items():
        network, schedule = first.system.network, first.system.schedule
        optimiser = arm.training.optimiser.replace(lr=first.training.optimiser.lr)
        same = arm.replace(
            system=arm.system.replace(network=network, schedule=schedule),
            training=arm.training.replace(optimiser=optimiser),
        )
        assert same == first, name
        sizes = [(part.width, part.num_layers) for part in (arm.system.network.encoder, arm.system.network.decoder)]
        assert sizes == [(32, 2), (32, 2)], name


def test_speed_up_is_what_reading_anew_at_every_denoising_step_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that ticks a second for each call of the encoder, and a tenth for each of the denoiser."""
    clock = [0.0]
    monkeypatch.setattr(dit_policy, "time", SimpleNamespace(process_time=lambda: clock[0]))
    spec = Spec(observation=Box(shape=(2,)), action=Box(shape=(2,), low=(-1.0,), high=(1.0,)))
    for steps, schedule, want in (
        (4, None, 1.0),
        (4, dit_policy.paper().system.schedule, 4.4 / 1.4),
        (2, ..., 2.2 / 1.2),
    ):
        changes = {} if schedule is ... else {"schedule": schedule}
        method = dit_policy.smoke().system.replace(steps=steps, **changes).build(spec).eval()
        for name, seconds in (("encode", 1.0), ("forward", 0.1)):
            inner = getattr(method.network, name)

            def timed(*given, inner=inner, seconds=seconds):
                clock[0] += seconds
                return inner(*given)

            monkeypatch.setattr(method.network, name, timed)
        monkeypatch.setattr(dit_policy, "load", lambda path, method=method: method)
        assert dit_policy.speed_up(SimpleNamespace(path=""), trials=4) == pytest.approx(want)


OWN, OTHER = ([f"{name} {rate:g}" for rate in dit_policy.RATES] for name in ("adaln-zero", "cross-attention"))


@pytest.mark.parametrize(
    ("changes", "fails"),
    [
        ({}, set()),
        ({OWN[0]: {"success": 0.72}, OWN[1]: {"success": 0.8}, OTHER[0]: {"success": 0.5}}, {"over three rates"}),
        ({OWN[2]: {"success": 0.69}, OTHER[2]: {"success": 0.5}}, {"at its worst"}),
        ({arm: {"success": 0.9} for arm in OTHER}, {"points lower"}),
        ({OTHER[0]: {"success": 0.9}, OTHER[1]: {"success": 0.9}}, set()),
        ({OWN[1]: {"route distance": 0.16}}, {"routes within"}),
        ({OWN[2]: {"route distance": 0.16}}, set()),
        ({"regression": {"success": 0.41}}, {"regression"}),
        ({OWN[1]: {"speed-up by reading once": 1.9}}, {"plans >= 2 x faster"}),
    ],
)
def test_verdict(changes, fails) -> None:
    fine = {"success": 0.95, "route distance": 0.1, "speed-up by reading once": 2.5}
    found = {arm: [fine | changes.get(arm, {})] * 2 for arm in OWN}
    found |= {arm: [{"success": 0.8} | changes.get(arm, {})] * 2 for arm in OTHER}
    found |= {"regression": [{"success": 0.3} | changes.get("regression", {})] * 2}
    broken = [name for name, held in dit_policy.verdict(found).items() if not held]
    assert len(broken) == len(fails) and all(any(part in name for part in fails) for name in broken)
