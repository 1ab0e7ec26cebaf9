"""The laws of heads: likelihoods that are normalised, draws that follow them and belong to their row, modes within bounds."""

from itertools import product

import numpy as np
import torch
from torch import Tensor, nn

from foretoken.core.spec import Box, Discrete, MultiBinary, MultiDiscrete, Space
from foretoken.core.store import Statistics
from foretoken.nn.heads.base import HeadConfig, Prediction
from foretoken.testing.agreement import perturb, require, require_equal

_DRAWS = 20_000


def check_head(config: HeadConfig, space: Space, width: int = 8, *, bounded: bool = True, seed: int = 0) -> None:
    """Checks the laws of a head over one action space.

    Sums over all actions of choices, integrates over scalar continuous ones; larger Boxes have only the other laws.

    Args:
        config: of the head.
        space: of the actions.
        width: of the features.
        bounded: the head promises actions within the bounds of a Box.
        seed: of weights and features.

    Raises:
        AssertionError: a law does not hold.
    """
    torch.manual_seed(seed)
    head = config.build(space, width)
    if isinstance(space, Box) and hasattr(head, "fit"):
        ones = np.ones(space.shape)
        head.fit({"": Statistics(100, 0.5 * ones, ones, -2 * ones, 3 * ones)})
        if hasattr(head, "fit_actions"):
            head.fit_actions(5 * torch.rand(100, *space.shape) - 2)
    perturb(head, seed)
    features = torch.randn(3, 4, width, generator=torch.Generator().manual_seed(seed))
    sizes = f"{config}, {space}, width={width}"
    with torch.no_grad():
        _check_shapes(head, space, features, sizes)
        if isinstance(space, Box) and bounded:
            _check_bounds(head, space, features, sizes)
        _check_seeds(head, features, sizes)
        if _has_likelihood(head(features), space):
            _check_likelihood(head, space, features[:1, 0], sizes)
    _check_gradient(head, features, sizes)


def _check_shapes(head: nn.Module, space: Space, features: Tensor, sizes: str) -> None:
    prediction: Prediction = head(features)
    shape = (3, 4, *getattr(space, "shape", ()))
    for name, action in (("mode", prediction.mode()), ("sample", prediction.sample(torch.arange(3)))):
        require(
            tuple(action.shape) == shape, f"shape of {name}", f"{tuple(action.shape)}, actions are {shape} ({sizes})"
        )
        loss = prediction.loss(action)
        require(
            tuple(loss.shape) == (3, 4),
            f"shape of the loss at the {name}",
            f"{tuple(loss.shape)}, places are (3, 4) ({sizes})",
        )
        require(bool(loss.isfinite().all()), f"finite loss at the {name}", f"{loss.flatten().tolist()} ({sizes})")


def _check_bounds(head: nn.Module, space: Box, features: Tensor, sizes: str) -> None:
    low, high = (torch.tensor(bound).expand(space.size).reshape(space.shape) for bound in (space.low, space.high))
    margin = 1e-5 * (1 + torch.where(high.isfinite() & low.isfinite(), high - low, 0.0))
    for scale in (1.0, 1e3):
        prediction = head(scale * features)
        for name, action in (("mode", prediction.mode()), ("sample", prediction.sample(torch.arange(3)))):
            inside = (action >= low - margin) & (action <= high + margin)
            require(
                bool(inside.all()),
                f"{name} within bounds",
                f"got {float(action.min()):.4g} .. {float(action.max()):.4g} ({sizes})",
            )


def _check_seeds(head: nn.Module, features: Tensor, sizes: str) -> None:
    seed, order = torch.tensor([5, -3, 2**62]), torch.tensor([2, 0, 1])
    want = head(features).sample(seed)
    require_equal(head(features).sample(seed), want, "the same seeds, the same draws", sizes)
    require_equal(head(features[order]).sample(seed[order]), want[order], "rows permuted with their seeds", sizes)
    mixed = head(torch.cat((features[:1], -features[1:]))).sample(torch.tensor([5, 8, 9]))
    require_equal(mixed[:1], want[:1], "a draw depends on its own row and seed", sizes)
    require_equal(head(features[:1]).sample(seed[:1]), want[:1], "a row alone", sizes)


def _has_likelihood(prediction: Prediction, space: Space) -> bool:
    try:
        prediction.log_prob(prediction.mode())
    except NotImplementedError:
        return False
    return not isinstance(space, Box) or space.size == 1


def _check_likelihood(head: nn.Module, space: Space, feature: Tensor, sizes: str) -> None:
    """On one place, `feature` (1, D): the total probability, and the frequencies of draws against it."""
    drawn = head(feature.expand(_DRAWS, -1)).sample(torch.arange(_DRAWS))
    if isinstance(space, Box):
        edges, mass = _quadrature(head, space, feature, drawn)
        counts = torch.stack([(drawn.flatten() <= edge).double().mean() for edge in edges[1:-1]])
        expected, total = mass.cumsum(0)[:-1], mass.sum()
        name = "density integrates to 1"
    else:
        actions = _all_actions(space)
        mass = head(feature.expand(len(actions), -1)).log_prob(actions).double().exp()
        counts = torch.stack([(drawn == action).reshape(_DRAWS, -1).all(1).double().mean() for action in actions])
        expected, total = mass, mass.sum()
        name = "probabilities sum to 1"
        mode = actions[int(mass.argmax())]
        require_equal(head(feature).mode()[0], mode, "the mode is the likeliest action", sizes)
        entropy = -(mass * mass.clamp(min=1e-300).log()).sum()
        require_equal(head(feature).entropy()[0].double(), entropy, "entropy", sizes, tolerance=1e-4)
    require_equal(total, torch.ones((), dtype=torch.float64), name, sizes, tolerance=2e-3)
    allowed = 5 * (expected * (1 - expected) / _DRAWS).clamp(min=0).sqrt() + 3e-3
    off = float(((counts - expected).abs() - allowed).max())
    require(
        off <= 0, "frequencies of draws", f"off by {off:.3g} more than 5 standard errors in {_DRAWS} draws ({sizes})"
    )


def _quadrature(head: nn.Module, space: Box, feature: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Edges of 20 cells of equal drawn mass over the support, and each one's integral of the density by 4,000 midpoints."""
    spread = float(drawn.max() - drawn.min())
    low, high = float(drawn.min()) - spread, float(drawn.max()) + spread
    if head(1e4 * feature).mode().abs().max() < 1e3:  # bounded by the head itself
        low, high = max(low, space.low[0]), min(high, space.high[0])
    inner = drawn.flatten().double().quantile(torch.linspace(0, 1, 21, dtype=torch.float64)[1:-1])
    edges = torch.cat((torch.tensor([low]).double(), inner, torch.tensor([high]).double()))
    masses = []
    for begin, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        at = begin + (torch.arange(4000, dtype=torch.float64) + 0.5) * (end - begin) / 4000
        action = at.float().reshape(-1, *space.shape)
        masses.append(head(feature.expand(4000, -1)).log_prob(action).double().exp().mean() * (end - begin))
    return edges, torch.stack(masses)


def _all_actions(space: Space) -> Tensor:
    match space:
        case Discrete():
            return torch.arange(space.start, space.start + space.n)
        case MultiDiscrete():
            return torch.tensor(list(product(*(range(n) for n in space.nvec))))
        case MultiBinary():
            return torch.tensor(list(product((0, 1), repeat=space.n)), dtype=torch.int8)
        case _:
            raise AssertionError(f"the actions of {space} cannot be listed")


def _check_gradient(head: nn.Module, features: Tensor, sizes: str) -> None:
    features = features.clone().requires_grad_()
    prediction = head(features)
    prediction.loss(prediction.sample(torch.arange(3)).detach()).sum().backward()
    finite = all(part.grad is not None and bool(part.grad.isfinite().all()) for part in [features, *head.parameters()])
    require(finite, "finite gradients of the loss", f"some are missing or not finite ({sizes})")
