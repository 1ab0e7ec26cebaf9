"""What sources over stores share: a batch is a pure function of (seed, view, update, micro-batch) and of the data stored."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch

from foretoken.core.batch import Batch
from foretoken.core.method import Method
from foretoken.core.spec import Spec, Window
from foretoken.data.mixture import Mixture
from foretoken.data.windows import WindowSampler
from foretoken.training.seeding import mix


class Drawing(ABC):
    """Abstract: seeds, parts, and annotation of every batch as it is drawn, without gradient."""

    spec: Spec
    stores: Mapping[str, Any]

    def __init__(self, batch_size: int, seed: int, rank: int, world_size: int) -> None:
        self.batch_size, self.seed, self.part = batch_size, seed, (rank, world_size)
        self._method: Method | None = None

    def connect(self, method: Method) -> None:
        self._method = method

    def draw(self, view: str, window: Window, update: int, micro: int = 0) -> Batch:
        """This process's part of the batch for (view, update, micro)."""
        seed = self._draw_seed(view, update, micro)
        return self._annotate(self._sampler(window).draw(self.batch_size, seed, part=self.part))

    def _draw_seed(self, view: str, update: int, micro: int) -> int:
        return mix(self.seed, "draw", view, update, micro)

    def _annotate(self, batch: Batch) -> Batch:
        if self._method is None or type(self._method).annotate is Method.annotate:
            return batch
        with torch.no_grad():
            return self._method.annotate(batch)

    @abstractmethod
    def _sampler(self, window: Window) -> WindowSampler | Mixture: ...
