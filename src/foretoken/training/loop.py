"""The only training loop.

    for each update u = 0, 1, ...
        source.advance(u)                                   act, append, refresh, or nothing
        for each objective due (u % every == 0):
            per micro-batch: seed, draw the views, seed, loss, backward of total * weight
            gradients summed over micro-batches and processes, divided by the summed weight, clipped
            refuse if anything is NaN or infinite; optimiser step; method.after_update(notes)       (see `learner`)
        average the weights (ema); log, validate, evaluate, checkpoint when due

Everything is a function of (seed, u) and of what a checkpoint holds, so a run killed at any moment and resumed ends with
the same weights bit for bit, on one machine with one build of torch and one number of threads. Updates are counted from 0
where they are inputs (`advance`, `draw`, schedules) and as *updates done* where they are results (logs, checkpoints).
"""

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from foretoken.core.config import Config
from foretoken.core.errors import CheckpointError, ConfigError
from foretoken.core.memory import keep_freed_memory
from foretoken.core.method import Method, Source
from foretoken.training import checkpoint
from foretoken.training.average import Average
from foretoken.training.learner import Learner, Place
from foretoken.training.logging import Listener, Meter, MetricsFile, Progress, TensorBoard
from foretoken.training.optim import AdamW
from foretoken.training.seeding import reseed
from foretoken.training.signals import Signals

if TYPE_CHECKING:
    from lightning_fabric import Fabric

log = logging.getLogger(__name__)

Evaluate = Callable[[Method, int], Mapping[str, float]]
"""Scores the method after so many updates; the averaged weights are in place when there are any."""


@dataclass(frozen=True, kw_only=True)
class Training(Config):
    """How long, how fast and where a method is trained.

    Args:
        updates: optimiser steps.
        batch_size: rows of one micro-batch over all processes together; an update sees `batch_size * accumulate` rows.
        optimiser: learning rate, schedule, weight decay, settings by module.
        clip: largest allowed norm of the whole gradient of one objective; 0 = no clipping.
        accumulate: micro-batches per update, for batches that do not fit in memory.
        precision: "32-true", or "bf16-mixed" for bfloat16 arithmetic on float32 weights.
        accelerator: "auto" takes a GPU where there is one.
        devices: processes, one per device; on the CPU each is a process with its own threads.
        ema: decay of the running average of weights that evaluation uses, for example 0.999; 0 = off. Early in training
            the decay is at most (1 + n) / (10 + n) after n updates.
        checkpoint_every: updates between checkpoints; 0 = only after the last.
        keep_last: newest checkpoints to keep; the best is kept besides.
        best: metric whose best checkpoint is kept, for example "eval/return"; a leading "-" means lower is better. "" takes
            the first number that evaluation returns, or else the held-out loss.
        log_every: updates per line of train metrics, which are means over these updates.
        validate_every: updates between measurements of the loss on held-out data, where the source has some; 0 = never.
        validate_batches: held-out batches per measurement.
        evaluate_every: updates between evaluations; 0 = never.
        threads: CPU threads of torch; 0 leaves torch's own choice. Small networks are often fastest with 1. A resumed run
            is bit-identical only with the same number.
        deterministic: on a GPU, takes only kernels that give the same bits every time (slower).
        tensorboard: also writes TensorBoard files into the run (extra "tensorboard").
    """

    updates: int = 10_000
    batch_size: int = 64
    optimiser: AdamW = AdamW()
    clip: float = 1.0
    accumulate: int = 1
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    devices: int = 1
    ema: float = 0.0
    checkpoint_every: int = 1000
    keep_last: int = 2
    best: str = ""
    log_every: int = 100
    validate_every: int = 1000
    validate_batches: int = 8
    evaluate_every: int = 0
    threads: int = 0
    deterministic: bool = False
    tensorboard: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("updates", "batch_size", "accumulate", "devices", "keep_last", "log_every", "validate_batches"):
            if getattr(self, name) < 1:
                raise ConfigError(f"training {name} must be at least 1, got {getattr(self, name)}")
        for name in ("clip", "checkpoint_every", "validate_every", "evaluate_every", "threads"):
            if getattr(self, name) < 0:
                raise ConfigError(f"training {name} must not be negative (0 = off), got {getattr(self, name)}")
        if not 0 <= self.ema < 1:
            raise ConfigError(f"training ema must lie in [0, 1), got {self.ema}")


@dataclass(frozen=True)
class Trained:
    """What `train` leaves: updates done, the last checkpoint's folder, the seconds it took, and the last metrics by key."""

    update: int
    checkpoint: Path
    seconds: float
    metrics: Mapping[str, float]


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop (Ctrl-C or SIGTERM); it finished its update and saved a checkpoint, from which it can resume."""

    def __init__(self, message: str, checkpoint: Path) -> None:
        super().__init__(message)
        self.checkpoint = checkpoint


def launch(training: Training) -> "Fabric":
    """Chooses devices and starts the other processes, which run the same script again from its start.

    With `devices` > 1, call it before the run's folder is made and give the result to `train`; only the process with
    `fabric.global_rank == 0` should write files.

    Raises:
        ConfigError: the accelerator, or so many of it, is not here.
    """
    from lightning_fabric import Fabric

    try:
        fabric = Fabric(
            accelerator=training.accelerator,
            devices=training.devices,
            strategy="ddp" if training.devices > 1 else "auto",
            precision=training.precision,
        )
    except (RuntimeError, ValueError) as problem:
        raise ConfigError(
            f"training needs {training.devices} x {training.accelerator!r}, which is not here ({str(problem).split('. ')[0]}); "
            "accelerator='auto' takes what there is"
        ) from None
    fabric.launch()
    return fabric


def train(
    method: Method,
    source: Source,
    training: Training,
    out: Path,
    *,
    seed: int,
    stage: str = "main",
    evaluate: Evaluate | None = None,
    resume: bool = False,
    progress: bool = True,
    description: Mapping[str, Any] | None = None,
    fabric: "Fabric | None" = None,
) -> Trained:
    """Trains `method` on what `source` gives, and keeps metrics and checkpoints in the folder `out`.

    Args:
        method: trained in place; afterwards it holds the last weights (not the averaged ones), on the training device.
        source: built for the same batch size, seed, rank and number of processes.
        training: how.
        out: the run's folder; made when missing.
        seed: with the configuration, decides every bit of the result.
        stage: handed to `method.fit`.
        evaluate: called as `evaluate(method, updates_done)` when due, in eval mode, with averaged weights where there are any.
        resume: goes on from the newest complete checkpoint in `out`, or starts where there is none.
        progress: shows a progress line on stderr.
        description: JSON kept in every checkpoint (experiment, specs).
        fabric: the result of `launch(training)`, where the caller made one.

    Raises:
        CheckpointError: `out` already holds checkpoints and `resume` is off; one does not fit; the disk is full.
        NonFiniteLoss: a loss or gradient was NaN or infinite; the batch was saved in `out`.
        Interrupted: Ctrl-C or SIGTERM; a checkpoint was saved first.
    """
    keep_freed_memory()
    out = Path(out)
    if not resume and checkpoint.checkpoints(out):
        raise CheckpointError(
            f"{out} already holds a run; use resume=True (--resume) to continue it, or another folder"
        )
    with _settings(training), Signals() as signals:
        loop = _Loop(method, source, training, out, seed, fabric or launch(training), description or {}, signals)
        return loop.run(stage, evaluate, resume, progress)


class _Loop:
    """One run of `train`."""

    def __init__(
        self,
        method: Method,
        source: Source,
        training: Training,
        out: Path,
        seed: int,
        fabric: "Fabric",
        description: Mapping[str, Any],
        signals: Signals,
    ) -> None:
        self.method, self.source, self.training, self.out, self.seed = method, source, training, out, seed
        self.description, self.signals = description, signals
        self.place = Place.of(fabric, training.precision)
        self.rank, self.world, self.device = self.place.rank, self.place.world, self.place.device
        self.done = 0
        self.seconds_before = 0.0
        self.best: dict[str, Any] = {}
        self.saved: Path | None = None
        self.meter = Meter()
        self.listeners: list[Listener] = []
        self.last: dict[str, float] = {}

    def run(self, stage: str, evaluate: Evaluate | None, resume: bool, progress: bool) -> Trained:
        """The whole run, from where it stands to the last update."""
        self.evaluate = evaluate
        self.started = time.monotonic()
        self._begin(stage, checkpoint.latest(self.out) if resume else None)
        self.progress = Progress(self.training.updates, self.done) if progress and self.rank == 0 else None
        self.mark = (self.done, time.monotonic())
        try:
            while self.done < self.training.updates:
                self._update(self.done)
                self.done += 1
                self._after()
        finally:
            if self.progress:
                self.progress.close(self.done)
            for listener in self.listeners:
                listener.close()
        self._barrier()
        return Trained(self.done, checkpoint.folder_of(self.out, self.done), self._seconds(), self.last)

    def _begin(self, stage: str, found: checkpoint.Checkpoint | None) -> None:
        self.method.to(self.device).train()
        if found is None:
            reseed(self.device, self.seed, "fit", stage)
            self.method.fit(self.source.stores, stage)
            # statistics that `fit` made on the CPU follow the weights
            self.method.to(self.device)
        else:
            self._restore(found)  # first of all: objectives may depend on what `fit` noted
        self._same_everywhere()
        self.source.connect(self.method)
        self.training.optimiser.check(self.method)
        objectives = self.method.objectives()
        told: dict[str, Any] = {"seed": self.seed, "place": self.place, "out": self.out, "alone": len(objectives) == 1}
        self.learners = [Learner(one, self.method, self.source, self.training, **told) for one in objectives]
        self.average = Average(self.method, self.training.ema) if self.training.ema else None
        if found is not None:
            self._load(found)
        if self.rank == 0:
            (self.out / "checkpoints").mkdir(parents=True, exist_ok=True)
            self.file = MetricsFile(self.out / "metrics.jsonl", self.done)
            self.listeners = [self.file]
            if self.training.tensorboard:
                self.listeners.append(TensorBoard(self.out / "tensorboard", self.done))

    def _restore(self, found: checkpoint.Checkpoint) -> None:
        """The method as it was saved, if it is this run's."""
        state = found.state
        if state["seed"] != self.seed:
            raise CheckpointError(
                f"{found.folder} belongs to a run with seed {state['seed']}, cannot resume it with seed {self.seed}"
            )
        if state["threads"] != torch.get_num_threads():
            log.warning(
                "resuming with %d torch threads instead of %d: not bit-identical",
                torch.get_num_threads(),
                state["threads"],
            )
        checkpoint.load_state(self.method, found.tensors("model"), str(found.folder))

    def _load(self, found: checkpoint.Checkpoint) -> None:
        """What stands beside the method: optimisers, averages, the source, counts."""
        state, saved = found.state, found.tensors("optimiser")
        for learner in self.learners:
            lead = f"{learner.name}/"
            learner.optimiser.load(
                {name.removeprefix(lead): value for name, value in saved.items() if name.startswith(lead)}
            )
        if self.average:
            self.average.load(found)
        self.source.load_state_dict(found.source())
        self.meter.load(state["meter"])
        self.best, self.seconds_before, self.done, self.saved = (
            dict(state["best"]),
            state["seconds"],
            found.update,
            found.folder,
        )
        log.info("resuming after update %d from %s", self.done, found.folder)
        if self.best and self.rank == 0:
            # a kill between the checkpoint and best.json leaves an older best.json
            checkpoint.mark_best(self.out, self.best)

    def _seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def _update(self, update: int) -> None:
        reseed(self.device, self.seed, update, self.rank, "advance")
        for key, value in self.source.advance(update).items():
            self.meter.add(f"train/{key}", value)
        for learner in self.learners:
            if update % learner.every == 0:
                for key, value in learner.learn(update, self.saved).items():
                    self.meter.add(key, value)
        if self.average:
            self.average.update(update)

    def _after(self) -> None:
        """Logs, validates, evaluates and saves, as far as due, and stops if asked to."""
        end = self.done == self.training.updates
        record = self._read_meter() if self.rank == 0 and (end or self.done % self.training.log_every == 0) else {}
        scores = self._scores(end)
        record |= scores
        if record:
            self._write(record)
        improved = self._improves(scores)
        stop = self._asked_to_stop()
        if end or improved or stop or _due(self.done, self.training.checkpoint_every):
            self._save(improved)
        if self.progress:
            self.progress.update(self.done)
        if stop and not end:
            raise self._interrupted()

    def _read_meter(self) -> dict[str, float]:
        done, since = self.mark
        self.mark = (self.done, time.monotonic())
        record = self.meter.read()
        record["train/lr"] = self.training.optimiser.lr * self.training.optimiser.factor(
            self.done - 1, self.training.updates
        )
        record["time/updates_per_second"] = (self.done - done) / max(self.mark[1] - since, 1e-9)
        return record

    def _write(self, record: dict[str, float]) -> None:
        record["time/seconds"] = self._seconds()
        self.last = {**self.last, **record}
        for listener in self.listeners:
            listener.write(self.done, record)
        if self.progress:
            self.progress.tell(record)

    def _scores(self, end: bool) -> dict[str, float]:
        """Held-out losses and evaluation, where due; only on the first process."""
        validate = self.training.validate_every and (end or self.done % self.training.validate_every == 0)
        evaluate = (
            self.evaluate and self.training.evaluate_every and (end or self.done % self.training.evaluate_every == 0)
        )
        if self.rank or not (validate or evaluate):
            return {}
        scores: dict[str, float] = {}
        self.method.eval()
        with self.average.in_place() if self.average else contextlib.nullcontext():
            if validate:
                found = {key: value for learner in self.learners for key, value in learner.held_out().items()}
                scores |= {f"held_out/{key.removeprefix('train/')}": value for key, value in found.items()}
            if evaluate and self.evaluate:
                reseed(self.device, self.seed, self.done, "evaluate")
                began = time.monotonic()
                scores |= {
                    f"eval/{key.removeprefix('eval/')}": float(v)
                    for key, v in self.evaluate(self.method, self.done).items()
                }
                scores["time/evaluate"] = time.monotonic() - began
        self.method.train()
        return scores

    def _improves(self, scores: Mapping[str, float]) -> bool:
        """Notes the best value so far; true where this update has it."""
        metric = self.training.best or _first_metric(scores, bool(self.evaluate and self.training.evaluate_every))
        key = metric.removeprefix("-")
        if not scores or not metric:
            return False
        if key not in scores:
            prefix = key.split("/")[0] + "/"
            if any(name.startswith(prefix) for name in scores):
                raise ConfigError(f"training best={self.training.best!r} is not measured; there are {sorted(scores)}")
            return False
        value = scores[key]
        sign = -1 if metric.startswith("-") else 1
        if not math.isfinite(value) or (self.best and sign * value <= sign * self.best["value"]):
            return False
        self.best = {
            "folder": checkpoint.folder_of(self.out, self.done).name,
            "metric": metric,
            "value": value,
            "update": self.done,
        }
        return True

    def _save(self, improved: bool) -> None:
        if self.rank:
            return
        self.file.sync()
        tensors = {"model": self.method.state_dict(), "optimiser": self._optimiser_state()}
        if self.average:
            tensors["ema"] = self.average.state()
        state = {
            "seed": self.seed,
            "seconds": self._seconds(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "best": self.best,
            "meter": self.meter.state(),
            "description": self.description,
        }
        self.saved = checkpoint.save(self.out, self.done, tensors, state, self.source.state_dict())
        if improved:
            checkpoint.mark_best(self.out, self.best)
        checkpoint.prune(self.out, self.training.keep_last, {self.best.get("folder", "")})

    def _optimiser_state(self) -> dict[str, Tensor]:
        return {
            f"{learner.name}/{name}": value
            for learner in self.learners
            for name, value in learner.optimiser.state().items()
        }

    def _asked_to_stop(self) -> bool:
        """Whether any process was asked to stop: all must stop after the same update."""
        if self.world == 1:
            return self.signals.received
        asked = torch.tensor(float(self.signals.received), device=self.device)
        torch.distributed.all_reduce(asked)
        return bool(asked > 0)

    def _interrupted(self) -> Interrupted:
        folder = self.saved or checkpoint.folder_of(self.out, self.done)
        return Interrupted(
            f"stopped after update {self.done}, saved in {folder}; continue with resume=True (--resume)", folder
        )

    def _same_everywhere(self) -> None:
        """Every process starts from the first one's weights and statistics."""
        if self.world > 1:
            for value in self.method.state_dict().values():
                torch.distributed.broadcast(value, 0)

    def _barrier(self) -> None:
        if self.world > 1:
            torch.distributed.barrier()


@contextlib.contextmanager
def _settings(training: Training) -> Iterator[None]:
    """Threads and determinism of torch as asked for, and as before afterwards."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    if training.threads:
        torch.set_num_threads(training.threads)
    if training.deterministic:
        # cuBLAS refuses to be deterministic without a fixed workspace
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)


def _due(done: int, every: int) -> bool:
    return every > 0 and done % every == 0


def _first_metric(scores: Mapping[str, float], evaluated: bool) -> str:
    if evaluated:
        return next((key for key in scores if key.startswith("eval/")), "")
    return next((f"-{key}" for key in scores if key.startswith("held_out/")), "")
