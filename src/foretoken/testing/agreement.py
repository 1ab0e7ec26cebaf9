"""How a broken law is told: which one, by how much, with which sizes."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves


def require(holds: bool, law: str, detail: str) -> None:
    """Raises AssertionError where `holds` is false."""
    if not holds:
        raise AssertionError(f"{law}: {detail}")


def require_equal(got: Any, want: Any, law: str, sizes: str, *, tolerance: float = 0.0) -> None:
    """Raises AssertionError unless two trees of tensors agree.

    Args:
        got, want: trees of the same structure; shapes must agree, dtypes need not.
        law, sizes: what is told when they differ.
        tolerance: allowed difference of floats, relative to max(1, |want|); integers and bools must be equal.
    """
    first, second = tree_leaves(got), tree_leaves(want)
    require(len(first) == len(second), law, f"{len(first)} tensors against {len(second)} ({sizes})")
    for a, b in zip(first, second, strict=True):
        _require_close(torch.as_tensor(a), torch.as_tensor(b), law, sizes, tolerance)


def _require_close(got: Tensor, want: Tensor, law: str, sizes: str, tolerance: float) -> None:
    require(got.shape == want.shape, law, f"shape {tuple(got.shape)} against {tuple(want.shape)} ({sizes})")
    if not got.numel():
        return
    a, b = got.detach().double(), want.detach().double()
    error = torch.where(a == b, 0.0, (a - b).abs() / b.abs().clamp(min=1))  # equal infinities agree
    allowed = tolerance if got.is_floating_point() else 0.0
    bad = ~(error <= allowed)  # so that NaN is bad
    if bad.any():
        worst = error.nan_to_num(nan=float("inf")).argmax()
        place = tuple(int(i) for i in torch.unravel_index(worst, error.shape))
        raise AssertionError(
            f"{law}: off by {float(error.flatten()[worst]):.3g} where {allowed:.1g} is allowed; {int(bad.sum())} of {bad.numel()} entries, "
            f"worst at {place}: {float(a.flatten()[worst]):.6g} against {float(b.flatten()[worst]):.6g} ({sizes})"
        )


def perturb(module: torch.nn.Module, seed: int, scale: float = 0.3) -> None:
    """Adds seeded normal noise to every parameter, so that what starts at zero (gates, biases) takes part in a law."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter))
