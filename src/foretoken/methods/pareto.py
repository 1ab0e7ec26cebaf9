"""Pairs of return and cost that no trajectory achieved, and the trajectories that answer to them.

Where a wanted return costs more than is allowed, data say nothing about which of the two wishes goes first. Here they are
made to: pairs above the Pareto front (much return for little cost) are given to recorded trajectories that cost no more
than the pair allows, so that what is learned from them is to keep the cost and give up the return.

After Liu et al., ICML 2023, arXiv 2302.07351, section 4.2.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from foretoken.core.config import Config
from foretoken.core.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class InfeasibleConfig(Config):
    """
    Args:
        share: pairs to draw, a part of the number of trajectories.
        degree: of the polynomial through the Pareto front.
        margin: how far above the front a pair's return lies at least.
        max_return: highest return of a pair, which should be what a policy will be asked for; None takes the data's best and
            a tenth of their range.
        max_decrease: how much less return a neighbour may have that is taken in place of a trajectory already taken; None
            takes a fifth of the range of returns.
        softness: neighbours are drawn by 1 / (distance + softness).
        cells: the grid of (costs, returns) by which trajectories are thinned before all this.
        per_cell: the least and most trajectories of a cell; a cell with fewer is left out, as outliers are, one with more keeps
            so many of them.
    """

    share: float = 0.2
    degree: int = 4
    margin: float = 1.0
    max_return: float | None = None
    max_decrease: float | None = None
    softness: float = 1.0
    cells: tuple[int, int] = (10, 50)
    per_cell: tuple[int, int] = (2, 10)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("share", "degree", "margin"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} of infeasible pairs must not be negative, got {getattr(self, name)}")
        if self.softness <= 0:
            raise ConfigError(f"softness of infeasible pairs must be positive, got {self.softness}")
        if min(self.cells) < 1 or not 1 <= self.per_cell[0] <= self.per_cell[1]:
            raise ConfigError(
                f"cells must be at least 1 and per_cell (least, most) with 1 <= least <= most, got {self.cells} and {self.per_cell}"
            )


class Relabelled(NamedTuple):
    """n pairs: which trajectory stands for each, and how far all its returns-to-go and costs-to-go are shifted."""

    episode: np.ndarray  # (n,) int64
    return_shift: np.ndarray  # (n,) float64
    cost_shift: np.ndarray  # (n,) float64, never negative


def relabel(
    returns: np.ndarray, costs: np.ndarray, config: InfeasibleConfig, generator: np.random.Generator
) -> Relabelled:
    """Infeasible pairs for trajectories of these returns and costs, (N,) each.

    Raises:
        DataError: no trajectory is left after thinning.
    """
    kept = thin(returns, costs, config, generator)
    if not len(kept):
        raise DataError(
            f"none of {len(returns)} trajectories shares its cell of the grid {config.cells} with {config.per_cell[0] - 1} others; "
            "take fewer cells, or a lower per_cell"
        )
    count = int(config.share * len(returns))
    wanted, allowed = infeasible(returns[kept], costs[kept], count, config, generator)
    episode = kept[spread(returns[kept], costs[kept], wanted, allowed, config, generator)]
    return Relabelled(episode, wanted - returns[episode], allowed - costs[episode])


def thin(
    returns: np.ndarray, costs: np.ndarray, config: InfeasibleConfig, generator: np.random.Generator
) -> np.ndarray:
    """Numbers, in order, of the trajectories that stay when crowded cells of the grid are thinned and lonely ones emptied."""
    columns = [_cell(values, cells) for values, cells in zip((costs, returns), config.cells, strict=True)]
    _, cell, size = np.unique(columns[0] * config.cells[1] + columns[1], return_inverse=True, return_counts=True)
    order = generator.permutation(len(returns))
    order = order[np.argsort(cell[order], kind="stable")]  # cell by cell, at random within each
    place = np.arange(len(order)) - (np.cumsum(size) - size)[cell[order]]
    return np.sort(order[(size[cell[order]] >= config.per_cell[0]) & (place < config.per_cell[1])])


def _cell(values: np.ndarray, cells: int) -> np.ndarray:
    low, high = values.min(initial=np.inf), values.max(initial=-np.inf)
    width = (high - low) / cells if high > low else 1.0
    return np.minimum((values - low) // width, cells - 1).astype(np.int64)


def pareto(returns: np.ndarray, costs: np.ndarray) -> np.ndarray:
    """Numbers of the trajectories than which none earned as much for less, or more for as much; by rising cost."""
    order = np.lexsort((-returns, costs))
    best = np.maximum.accumulate(returns[order])
    return order[returns[order] > np.concatenate(([-np.inf], best[:-1]))]


def front(returns: np.ndarray, costs: np.ndarray, at: np.ndarray, degree: int) -> np.ndarray:
    """The highest return (M,) to be had for costs `at` (M,): a polynomial through the Pareto front.

    Where it passes below a trajectory that earned more for no more cost, that trajectory's return is taken instead.
    """
    chosen = pareto(returns, costs)
    curve = np.polynomial.Polynomial.fit(costs[chosen], returns[chosen], min(degree, len(chosen) - 1))
    reached = np.concatenate(([-np.inf], returns[chosen]))[np.searchsorted(costs[chosen], at, side="right")]
    return np.maximum(curve(at), reached)


def infeasible(
    returns: np.ndarray, costs: np.ndarray, count: int, config: InfeasibleConfig, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns and costs (count,) of pairs: costs evenly over the data's range, returns evenly between the front and the highest."""
    spread = returns.max() - returns.min()
    highest = returns.max() + 0.1 * spread if config.max_return is None else config.max_return
    allowed = np.linspace(costs.min(), costs.max(), count)
    lowest = front(returns, costs, allowed, config.degree) + config.margin
    return generator.uniform(lowest, np.maximum(lowest, highest)), allowed


def spread(
    returns: np.ndarray,
    costs: np.ndarray,
    wanted: np.ndarray,
    allowed: np.ndarray,
    config: InfeasibleConfig,
    generator: np.random.Generator,
) -> np.ndarray:
    """The trajectory (n,) for each pair: the nearest of those that cost no more than the pair allows.

    One that is already taken passes a pair on to itself or a neighbour that costs no more than it does and earns not much
    less. Distances mix returns and costs as they are.
    """
    decrease = 0.2 * (returns.max() - returns.min()) if config.max_decrease is None else config.max_decrease
    chosen = np.empty(len(wanted), np.int64)
    for pair, (want, allow) in enumerate(zip(wanted, allowed, strict=True)):
        distance = np.where(costs <= allow, np.hypot(returns - want, costs - allow), np.inf)
        nearest = int(distance.argmin())
        if nearest in chosen[:pair]:
            near = (costs <= costs[nearest]) & (returns >= returns[nearest] - decrease)
            weight = near / (np.hypot(returns - returns[nearest], costs - costs[nearest]) + config.softness)
            nearest = int(generator.choice(len(returns), p=weight / weight.sum()))
        chosen[pair] = nearest
    return chosen
