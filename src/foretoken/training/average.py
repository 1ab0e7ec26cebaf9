"""The running average of weights that evaluation uses."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from foretoken.core.errors import CheckpointError
from foretoken.training.checkpoint import Checkpoint


class Average:
    """The running average of the trained weights."""

    def __init__(self, method: nn.Module, decay: float) -> None:
        self.method, self.decay = method, decay
        self.live = {name: p for name, p in method.named_parameters() if p.requires_grad}
        self.kept = {name: p.detach().clone() for name, p in self.live.items()}

    @torch.no_grad()
    def update(self, update: int) -> None:
        decay = min(self.decay, (1 + update) / (10 + update))
        torch._foreach_lerp_(list(self.kept.values()), [p.detach() for p in self.live.values()], 1 - decay)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The method acts with the averaged weights inside the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.live.items():
            parameter.data, self.kept[name] = self.kept[name], parameter.data

    def state(self) -> dict[str, Tensor]:
        """A whole state_dict: averaged weights and the method's buffers."""
        return {**self.method.state_dict(), **self.kept}

    def load(self, found: Checkpoint) -> None:
        if not found.has("ema"):
            raise CheckpointError(f"{found.folder} holds no averaged weights; it was saved with ema=0")
        saved = found.tensors("ema")
        for name, kept in self.kept.items():
            kept.copy_(saved[name])
