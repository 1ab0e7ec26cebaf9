"""What the linear state spaces that do not look at the token share: HiPPO, powers of complex rates, and padding closed up."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from foretoken.nn.mixer import Tokens

FEW = 4
"""Up to so many tokens go one by one."""


def hippo(size: int) -> tuple[Tensor, Tensor]:
    """HiPPO-LegS without its rank-one part is normal: -1/2 + i frequencies, over orthonormal vectors.

    Returns:
        The positive frequencies (size / 2) and their vectors (size, size / 2), in float64; the other half is conjugate.
    """
    n = torch.arange(size, dtype=torch.float64)
    root = (2 * n + 1).sqrt()
    skew = -0.5 * root[:, None] * root * (n[:, None] - n).sign()
    frequencies, vectors = torch.linalg.eigh(-1j * skew)
    return frequencies[size // 2 :], vectors[:, size // 2 :]


def powers(rate: Tensor, angle: Tensor, steps: Tensor | None = None) -> Tensor:
    """exp(rate + i angle), or its powers, as pairs of reals; torch's complex exponential is many times slower on the CPU."""
    if steps is not None:  # many turns leave no digits of an angle in float32
        angle = torch.remainder(steps * angle.double(), 2 * math.pi).to(angle.dtype)
        rate = steps * rate
    size = rate.exp()
    return torch.stack((size * angle.cos(), size * angle.sin()), dim=-1)


def power_less_one(rate: Tensor, angle: Tensor) -> Tensor:
    """exp(rate + i angle) - 1, complex, without cancellation near 0."""
    real = torch.expm1(rate) * angle.cos() - 2 * (angle / 2).sin().square()
    return torch.complex(real, rate.exp() * angle.sin())


class Remembered:
    """What was last made from some parameters, made anew when their values differ; only with gradients off, on the CPU."""

    def __init__(self) -> None:
        self.last: tuple[list[Tensor], Any] | None = None

    def __call__(self, make: Callable[[], Any], *parameters: Tensor) -> Any:
        if torch.is_grad_enabled() or parameters[0].device.type != "cpu" or torch.compiler.is_compiling():
            return make()
        if self.last is None or not all(
            a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(self.last[0], parameters, strict=True)
        ):
            self.last = [parameter.detach().clone() for parameter in parameters], make()
        return self.last[1]


class Closed(NamedTuple):
    """A sequence without its padding: the valid tokens of each row moved to the front, in order.

    order: (B, L) where the i-th of them lay; place: (B, L) valid tokens up to each token; None where nothing is padded.
    memory: (B, L) memories begun up to the i-th of them; begun: (B,) memories begun in all; None where none begins.
    """

    order: Tensor | None
    place: Tensor | None
    memory: Tensor | None
    begun: Tensor | None

    def close(self, x_BLD: Tensor) -> Tensor:
        if self.order is None or self.place is None:
            return x_BLD
        there = torch.arange(x_BLD.shape[1], device=x_BLD.device) < self.place[:, -1:]
        return torch.where(there[..., None], x_BLD.gather(1, self.order[..., None].expand_as(x_BLD)), 0)

    def open(self, y_BLD: Tensor) -> Tensor:
        """Back to where the tokens lay, of no meaning at padded ones."""
        if self.place is None:
            return y_BLD
        at = (self.place - 1).clamp(min=0)
        return y_BLD.gather(1, at[..., None].expand(-1, -1, y_BLD.shape[-1]))


def close_up(tokens: Tokens) -> Closed:
    memory = None if tokens.fresh is None else tokens.fresh.cumsum(1)
    begun = None if memory is None else memory[:, -1]
    if tokens.valid is None:
        return Closed(None, None, memory, begun)
    order = (~tokens.valid).to(torch.uint8).argsort(dim=1, stable=True)
    return Closed(order, tokens.valid.cumsum(1), None if memory is None else memory.gather(1, order), begun)
