"""Parts that learn scales, bins or clusters from data: once, since the weights around them are trained for what they found."""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

Part = TypeVar("Part", bound="Fitted")
P = ParamSpec("P")


class Fitted(nn.Module):
    """A module whose first `fit` stays: later stages, and runs that begin from its weights, go on with what it found.

    Attributes:
        fitted: () bool, a buffer, so that a checkpoint knows.
    """

    fitted: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fitted", torch.zeros((), dtype=torch.bool))


def once(fit: Callable[Concatenate[Part, P], None]) -> Callable[Concatenate[Part, P], None]:
    """Makes a method of a Fitted part do nothing once it has ended well."""

    @wraps(fit)
    def guarded(part: Part, *args: P.args, **more: P.kwargs) -> None:
        if not part.fitted:
            fit(part, *args, **more)
            part.fitted.fill_(True)

    return guarded
