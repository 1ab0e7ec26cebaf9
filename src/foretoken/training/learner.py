"""What one objective does in an update: draws its views, computes loss and gradient, and moves the weights it trains."""

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from foretoken.core.batch import Batch, Loss
from foretoken.core.errors import ConfigError, DataError, NonFiniteLoss
from foretoken.core.method import Method, Objective, Source
from foretoken.training import checkpoint
from foretoken.training.optim import Optimiser
from foretoken.training.reduction import mean, reduce
from foretoken.training.seeding import reseed

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from foretoken.training.loop import Training


@dataclass(frozen=True)
class Place:
    """Which process this is, of how many, and where and how it computes."""

    rank: int
    world: int
    device: torch.device
    autocast: Callable[[], contextlib.AbstractContextManager]

    @classmethod
    def of(cls, fabric: "Fabric", precision: str) -> "Place":
        autocast = fabric.autocast if precision != "32-true" else contextlib.nullcontext
        return cls(fabric.global_rank, fabric.world_size, fabric.device, autocast)

    def take(self, batch: Batch) -> Batch:
        return batch if self.device.type == "cpu" else batch.to(self.device, non_blocking=True)


class Learner:
    """An objective with its optimiser and the names of its metrics.

    Args:
        objective: one of the method's.
        source: where its views are drawn.
        seed: the run's.
        out: the run's folder, for a batch whose loss is not finite.
        alone: whether it is the method's only objective.
    """

    def __init__(
        self,
        objective: Objective,
        method: Method,
        source: Source,
        training: "Training",
        *,
        seed: int,
        place: Place,
        out: Path,
        alone: bool,
    ) -> None:
        self.objective, self.name, self.every = objective, objective.name, objective.every
        self.method, self.source, self.training = method, source, training
        self.seed, self.place, self.out = seed, place, out
        mine = {id(p) for module in objective.trains for p in module.parameters() if p.requires_grad}
        named = [(name, p) for name, p in method.named_parameters() if id(p) in mine]
        if len(named) < len(mine) or not named:
            raise ConfigError(
                f"objective {self.name!r} must train parameters of {type(method).__name__}, and at least one"
            )
        self.optimiser: Optimiser = training.optimiser.build(named)
        # gradients of parameters that others train are not computed
        everything = sum(p.requires_grad for p in method.parameters())
        self.only = None if len(named) == everything else self.optimiser.parameters
        self.total_key = f"train/{self.name}"
        self.lead = "train/" if alone else f"train/{self.name}/"
        self.norm_key = f"{self.lead}gradient_norm"
        # one loss is a whole update, so that nothing has to be weighted or reduced
        self._whole = training.accumulate == 1 and place.world == 1

    def learn(self, update: int, last_good: Path | None) -> dict[str, Any]:
        """One update; returns its metrics. Raises NonFiniteLoss, which names the last good checkpoint, before any weight changes."""
        self.optimiser.zero()
        losses = [self._backward(update, micro) for micro in range(self.training.accumulate)]
        loss = losses[0] if self._whole else reduce(losses, self.optimiser, self.place.world)
        norm = self._rescale(self.training.clip)
        found = {self.total_key: loss.total, self.norm_key: norm}
        if not (math.isfinite(norm) and math.isfinite(float(loss.total))):
            self._refuse(update, found | {self.lead + name: value for name, value in loss.metrics.items()}, last_good)
        self.optimiser.step(self.training.optimiser.factor(update, self.training.updates))
        self.method.after_update(self.name, loss.notes)
        return found | {self.lead + name: value for name, value in loss.metrics.items()}

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Loss and metrics over the first held-out batches, averaged by weight; {} where there are none."""
        losses = []
        for number in range(self.training.validate_batches):
            drawn = [self.source.held_out(view, window, number) for view, window in self.objective.reads.items()]
            batches = [self.place.take(batch) for batch in drawn if batch is not None]
            if len(batches) == len(drawn):
                losses.append(self._loss(batches, -1 - number, 0))
        if not losses:
            return {}
        loss = mean(losses)
        return {self.total_key: float(loss.total)} | {self.lead + k: float(v) for k, v in loss.metrics.items()}

    def _backward(self, update: int, micro: int) -> Loss:
        loss = self._loss(self._batches(update, micro), update, micro)
        total = loss.total if self._whole else loss.total * loss.weight
        total.backward(inputs=self.only)
        return loss._replace(total=loss.total.detach())

    def _batches(self, update: int, micro: int) -> list[Batch]:
        batches = []
        for view, window in self.objective.reads.items():
            reseed(self.place.device, self.seed, update, self.place.rank, micro, view, "draw")
            batches.append(self.place.take(self.source.draw(view, window, update, micro)))
        return batches

    def _loss(self, batches: list[Batch], update: int, micro: int) -> Loss:
        reseed(self.place.device, self.seed, update, self.place.rank, micro, self.name, "loss")
        with self.place.autocast():
            loss = self.objective.loss(*batches)
        if loss.total.dim() != 0:
            raise DataError(
                f"objective {self.name!r} must return a scalar Loss.total, got shape {tuple(loss.total.shape)}"
            )
        return loss

    def _rescale(self, clip: float) -> float:
        """Scales the gradients down to norm `clip` where they exceed it; returns the norm before."""
        gradients = self.optimiser.gradients()
        if not gradients:
            raise ConfigError(f"objective {self.name!r} gave no gradient to any parameter that it trains")
        norm = float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients))))
        if clip and norm > clip and math.isfinite(norm):
            torch._foreach_mul_(gradients, clip / norm)
        return norm

    def _refuse(self, update: int, found: Mapping[str, Any], last_good: Path | None) -> None:
        """Raises NonFiniteLoss, after saving the batches of this update, which are drawn again."""
        broken = [key for key, value in found.items() if not bool(torch.as_tensor(value).isfinite().all())]
        columns: dict[str, Tensor] = {}
        for micro in range(self.training.accumulate):
            for view, batch in zip(self.objective.reads, self._batches(update, micro), strict=True):
                columns |= flat_columns(batch, f"{view}/" if self.training.accumulate == 1 else f"micro{micro}/{view}/")
        rank = f"-rank{self.place.rank}" if self.place.world > 1 else ""
        file = self.out / f"nan-update-{update:08d}{rank}.safetensors"
        checkpoint.replace_file(file, checkpoint.to_bytes(columns))
        bad = [name for name, value in columns.items() if value.is_floating_point() and not value.isfinite().all()]
        raise NonFiniteLoss(
            f"update {update}: {', '.join(broken)} not finite. "
            + (
                f"The batch itself is not finite in {', '.join(bad)}. "
                if bad
                else "All batch columns are finite: try a lower lr or clip. "
            )
            + f"The weights were not changed; the batch is in {file}; last good checkpoint: {last_good or 'none yet'}"
        )


def flat_columns(tree: Any, lead: str = "") -> dict[str, Tensor]:
    """The tensors of a batch by path, for example `data/observation`."""
    if isinstance(tree, Mapping):
        return {
            path: leaf for key, value in tree.items() for path, leaf in flat_columns(value, f"{lead}{key}/").items()
        }
    return {lead.removesuffix("/"): tree} if isinstance(tree, Tensor) else {}
