"""Planners find known optima; rows are independent; the same seeds give the same plan; more iterations are no worse."""

import pytest
import torch
from torch import Tensor

from foretoken.core.errors import ConfigError
from foretoken.core.state import State
from foretoken.planning.base import PlannerConfig
from foretoken.planning.cem import CEMConfig
from foretoken.planning.mppi import MPPIConfig

BOTH = [
    CEMConfig(horizon=4, candidates=128, elites=16, iterations=8),
    MPPIConfig(horizon=4, candidates=128, iterations=8),
    MPPIConfig(horizon=4, candidates=64, iterations=2, smoothing=0.5),
]
A, B = torch.tensor([[1.0, 0.2], [0.0, 1.0]]), torch.tensor([[0.0], [0.4]])


def cart(state: State, action: Tensor) -> tuple[Tensor, State]:
    """x <- A x + B a, at a cost of |x|^2 before it and a^2 / 10."""
    x = state["x"]
    return -x.square().sum(-1) - 0.1 * action.square().sum(-1), {"x": x @ A.T + action @ B.T}


def lqr(x: Tensor, horizon: int) -> tuple[Tensor, float]:
    """The best actions (T, 1) without bounds, and what they earn, by the Riccati recursion backwards."""
    value, gains = torch.zeros(2, 2), []
    for _ in range(horizon):
        gain = torch.linalg.solve(0.1 * torch.eye(1) + B.T @ value @ B, B.T @ value @ A)
        value = torch.eye(2) + A.T @ value @ (A - B @ gain)
        gains.append(gain)
    best, actions = -float(x @ value @ x), []
    for gain in reversed(gains):
        actions.append(-gain @ x)
        x = A @ x + B @ actions[-1]
    return torch.stack(actions), best


def begun(*places: tuple[float, float]) -> State:
    return {"x": torch.tensor(places)}


@pytest.mark.parametrize("config", BOTH[:2])
def test_finds_the_regulator(config: PlannerConfig) -> None:
    x = (0.2, -0.1)
    actions, best = lqr(torch.tensor(x), 4)
    assert actions.abs().max() < 1  # within the bounds
    plan = config.build(1).plan(cart, begun(x, x, x), torch.tensor([3, 4, 5]))
    assert plan.actions.shape == (3, 4, 1) and plan.value.shape == (3,)
    assert (plan.value <= best + 1e-6).all() and (plan.value > best - 0.002).all()
    assert (plan.actions[:, :2] - actions[:2]).abs().max() < 0.15


def test_finds_a_quadratics_top() -> None:
    top = torch.tensor([[0.5, -0.25], [2.0, 0.1]])  # the second lies beyond the bounds
    model = lambda state, action: (-(action - state["top"]).square().sum(-1), state)  # noqa: E731
    plan = CEMConfig(horizon=2, iterations=12).build(2).plan(model, {"top": top}, torch.tensor([0, 1]))
    assert (plan.actions - top.clamp(-1, 1)[:, None]).abs().max() < 0.06


@pytest.mark.parametrize("config", BOTH)
def test_rows_are_independent_and_seeds_decide(config: PlannerConfig) -> None:
    places, seeds = [(1.0, 0.0), (-0.5, 0.3), (0.0, -1.0)], torch.tensor([7, 8, 9])
    planner, warm = config.build(1), torch.linspace(-0.5, 0.5, 12).view(3, 4, 1)
    whole = planner.plan(cart, begun(*places), seeds, warm)
    again = planner.plan(cart, begun(*places), seeds, warm)
    assert torch.equal(whole.actions, again.actions) and torch.equal(whole.value, again.value)
    for row in range(3):
        alone = planner.plan(cart, begun(places[row]), seeds[[row]], warm[[row]])
        torch.testing.assert_close(alone.actions[0], whole.actions[row], atol=1e-5, rtol=0)
    other = planner.plan(cart, begun(*places), seeds + 1, warm)
    assert not torch.equal(other.actions, whole.actions)
    assert whole.actions.abs().max() <= 1


@pytest.mark.parametrize("config", BOTH[:2])
def test_more_iterations_are_no_worse(config: PlannerConfig) -> None:
    start, seeds = {"x": torch.randn(40, 2, generator=torch.Generator().manual_seed(0))}, torch.arange(40)
    earned = [config.replace(iterations=n).build(1).plan(cart, start, seeds).value.mean() for n in (1, 3, 9)]
    assert earned[0] <= earned[1] <= earned[2]


def test_a_warm_start_is_never_lost_and_discounts_count() -> None:
    config = CEMConfig(horizon=3, candidates=2, elites=1, iterations=1, discount=0.5)
    model = lambda state, action: (action[:, 0], state)  # noqa: E731
    plan = config.build(1).plan(model, {}, torch.tensor([0]), torch.ones(1, 3, 1))
    assert torch.equal(plan.actions, torch.ones(1, 3, 1)) and float(plan.value) == 1.75


@pytest.mark.parametrize("wrong", [{"horizon": 0}, {"candidates": 1}, {"std": 0.0}, {"smoothing": 1.0}, {"elites": 99}])
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        CEMConfig(**wrong)
    with pytest.raises(ConfigError, match="temperature must be positive"):
        MPPIConfig(temperature=0.0)
