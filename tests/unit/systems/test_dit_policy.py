"""DiT-Block Policy: no past action is read, the chunk's errors are summed, and the claim's figures add up."""

from types import SimpleNamespace

import pytest
import torch

from foretoken.data.windows import WindowSampler
from foretoken.systems.imitation import dit_policy
from foretoken.testing.agreement import perturb
from foretoken.testing.stores import SPECS, random_store


def fitted():
    torch.manual_seed(0)
    method, store = dit_policy.smoke().system.build(SPECS["continuous"]), random_store(SPECS["continuous"])
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

    found = figures([0, 0, 0, 0, 1, 1, 1, 2, 2, 3])
    assert found["success"] == 1 and found["gates"] == 4 and abs(found["route distance"]) < 1e-9
    assert abs(figures([0] * 10)["route distance"] - 0.6) < 1e-9
    lost = figures([0, 0, 0, 0, 1, 1, 1, 2, 2, 3], arrived=False)
    assert lost["success"] == 0 and lost["gates"] == 0 and abs(lost["route distance"] - 1) < 1e-9
