"""Infeasible pairs: above every trajectory, given to cheaper ones, spread where one would take many."""

import numpy as np
import pytest

from foretoken.core.errors import ConfigError, DataError
from foretoken.methods.pareto import InfeasibleConfig, front, infeasible, pareto, relabel, spread, thin

ALL = InfeasibleConfig(per_cell=(1, 500))


def cloud(count: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns and costs below a rising front."""
    generator = np.random.default_rng(seed)
    costs = generator.integers(0, 80, count).astype(np.float64)
    return 100 + 0.5 * costs - generator.exponential(15, count), costs


def best_within(returns: np.ndarray, costs: np.ndarray, allowed: float) -> float:
    return max(earned for earned, paid in zip(returns, costs, strict=True) if paid <= allowed)


def test_the_front_is_what_nothing_beats() -> None:
    returns, costs = cloud()
    slow = [
        i
        for i in range(len(costs))
        if not any(
            returns[j] >= returns[i] and costs[j] <= costs[i] and (returns[j], costs[j]) != (returns[i], costs[i])
            for j in range(len(costs))
        )
    ]
    chosen = pareto(returns, costs)
    assert sorted(chosen) == slow
    assert (np.diff(costs[chosen]) > 0).all() and (np.diff(returns[chosen]) > 0).all()
    assert pareto(np.array([1.0, 2.0, 2.0]), np.array([3.0, 3.0, 3.0])).tolist() == [1], "equal ones: the first"


def test_the_fitted_front_passes_through_a_polynomial_and_below_no_trajectory() -> None:
    costs = np.arange(30.0)
    returns = 3 + 2 * costs - 0.02 * costs**2
    np.testing.assert_allclose(front(returns, costs, costs, 2), returns, rtol=1e-9)
    returns, costs = cloud()
    at = np.linspace(costs.min(), costs.max(), 50)
    for degree in (0, 1, 4):
        fitted = front(returns, costs, at, degree)
        assert all(high >= best_within(returns, costs, cost) for high, cost in zip(fitted, at, strict=True))
    assert front(np.array([5.0]), np.array([2.0]), np.array([2.0, 3.0]), 4).tolist() == [5.0, 5.0], "one trajectory"


def test_no_trajectory_earned_what_a_pair_asks_for_within_what_it_allows() -> None:
    returns, costs = cloud()
    config = ALL.replace(margin=2.0, max_return=170.0)
    wanted, allowed = infeasible(returns, costs, 60, config, np.random.default_rng(0))
    np.testing.assert_allclose(np.diff(allowed), np.diff(allowed)[0])
    assert (allowed[0], allowed[-1]) == (costs.min(), costs.max())
    assert wanted.max() <= 170
    for want, allow in zip(wanted, allowed, strict=True):
        assert want >= best_within(returns, costs, allow) + 2.0
    lower = infeasible(returns, costs, 60, config.replace(max_return=0.0), np.random.default_rng(0))[0]
    assert (lower >= front(returns, costs, allowed, config.degree) + 2.0 - 1e-9).all(), "never below front and margin"


def test_pairs_go_to_trajectories_of_lower_or_equal_cost_and_start_where_they_ask() -> None:
    returns, costs = cloud()
    found = relabel(returns, costs, ALL, np.random.default_rng(1))
    assert len(found.episode) == 40 == int(ALL.share * len(returns))
    assert (found.cost_shift >= 0).all() and (found.return_shift > 0).all()
    np.testing.assert_allclose(
        costs[found.episode] + found.cost_shift, np.linspace(costs.min(), costs.max(), 40), atol=1e-12
    )
    again = relabel(returns, costs, ALL, np.random.default_rng(1))
    assert all((a == b).all() for a, b in zip(found, again, strict=True))


def test_the_nearest_allowed_trajectory_stands_for_a_pair_and_neighbours_for_the_next() -> None:
    returns, costs = np.array([10.0, 20.0, 19.0, 5.0, 30.0]), np.array([0.0, 5.0, 4.0, 5.0, 9.0])
    generator = np.random.default_rng(0)
    one = spread(returns, costs, np.array([31.0]), np.array([6.0]), ALL, generator)
    assert one.tolist() == [1], "the last earns more, and costs too much"
    many = spread(returns, costs, np.full(200, 31.0), np.full(200, 6.0), ALL.replace(max_decrease=3.0), generator)
    taken = np.bincount(many, minlength=5)
    assert taken[[0, 3, 4]].tolist() == [0, 0, 0], "too little return, too little return, too much cost"
    share = 1 / (np.hypot(1, 1) + 1)  # of the neighbour, by 1 / (distance + 1), against 1 of the trajectory itself
    assert abs(taken[2] / 200 - share / (1 + share)) < 0.1


def test_crowded_cells_are_thinned_and_lonely_ones_emptied() -> None:
    returns = np.array([0.0, 0.1, 0.2, 0.3, 10.0, 5.0, 5.1])
    costs = np.array([0.0, 0.1, 0.2, 0.3, 10.0, 5.0, 5.1])
    config = InfeasibleConfig(cells=(5, 5), per_cell=(2, 3))
    kept = [thin(returns, costs, config, np.random.default_rng(seed)) for seed in range(20)]
    assert all(len(some) == 5 and {5, 6} <= set(some) and 4 not in some for some in kept)
    assert len({tuple(some) for some in kept}) == 4, "any three of the crowded cell"
    assert thin(returns, costs, config.replace(per_cell=(1, 9)), np.random.default_rng(0)).tolist() == list(range(7))
    same = np.ones(4)
    assert len(thin(same, same, config, np.random.default_rng(0))) == 3, "all in one cell"
    with pytest.raises(DataError, match="none of 7 trajectories shares its cell of the grid"):
        relabel(returns, costs, config.replace(per_cell=(5, 9)), np.random.default_rng(0))


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"share": -0.1}, "share of infeasible pairs must not be negative, got -0.1"),
        ({"softness": 0.0}, "softness of infeasible pairs must be positive, got 0.0"),
        ({"per_cell": (3, 2)}, r"1 <= least <= most, got \(10, 50\) and \(3, 2\)"),
        ({"cells": (0, 2)}, "cells must be at least 1"),
    ],
)
def test_settings_that_make_no_sense(wrong: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        InfeasibleConfig(**wrong)
