"""What a run will cost, measured by beginning it: each stage is trained for some seconds in a folder of its own, and thrown away.

An update costs what the updates after the first few cost in the mean, drawing and environments included. An evaluation costs
its decisions, at the rate of a full set of slots; as many as the recorded episodes are long, or the environment allows.
"""

import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from foretoken.core.method import Method, Source
from foretoken.core.spec import Spec
from foretoken.envs.make import make
from foretoken.envs.slots import Tick
from foretoken.evaluation.evaluate import Evaluation, default_targets, evaluate
from foretoken.experiment import Experiment, build
from foretoken.training.loop import Training, train

log = logging.getLogger(__name__)
WARM, LEAST = 3, 8  # updates that do not count, and how many must
PATIENCE = 10  # times the seconds asked for: after so long one that counts is enough
CHECKED = 0.4  # of an update, a held-out batch: it needs no gradient


@dataclass(frozen=True)
class Estimate:
    """Seconds by part, in the order in which they are spent, and the most bytes of memory that cannot be given back."""

    seconds: dict[str, float] = field(default_factory=dict)
    memory: int = 0
    device: str = "cpu"

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def text(self) -> str:
        """One sentence; parts of less than a hundredth are left out."""
        parts = [f"{_time(value)} for {name}" for name, value in self.seconds.items() if value >= 0.01 * self.total]
        where = "memory" if self.device == "cpu" else f"memory on {self.device}"
        return f"about {_time(self.total)} ({', '.join(parts)}) and {self.memory / 2**30:.2g} GiB of {where}"


class _Enough(Exception):
    """Measured for long enough."""


def estimate(experiment: Experiment, seconds: float = 3.0) -> Estimate:
    """What `run(experiment, ...)` will take on this machine; each measurement takes about `seconds`, longer where updates do.

    Raises what the run would raise at its start.
    """
    spent: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="foretoken-estimate-") as folder, Memory() as memory:
        began = time.perf_counter()
        source = _source(experiment.source, experiment, experiment.training, Path(folder))
        method = build(experiment, source)
        spent["opening the data"] = time.perf_counter() - began
        for stage in experiment.before:
            own = source if stage.source is None else _source(stage.source, experiment, stage.training, Path(folder))
            spent |= _training(f"stage {stage.name}", method, own, stage.training, seconds)
        spent |= _training("training", method, source, experiment.training, seconds)
        where, every = experiment.evaluation.environment, experiment.training.evaluate_every
        if isinstance(source.spec, Spec) and every and (where or source.spec.environment):
            count = -(-experiment.training.updates // every)
            name = f"{count} evaluation{'s' if count > 1 else ''}"
            spent[name] = count * _evaluation(method, source, experiment, seconds)
    device = next(method.parameters()).device
    most = memory.most if device.type != "cuda" else torch.cuda.max_memory_allocated(device)
    return Estimate(spent, most, device.type)


def _source(config, experiment: Experiment, training: Training, folder: Path) -> Source:  # type: ignore[no-untyped-def]
    return config.build(batch_size=training.batch_size, seed=experiment.seed, rank=0, world_size=1, folder=folder)


def _training(name: str, method: Method, source: Source, training: Training, seconds: float) -> dict[str, float]:
    """Seconds until the first update, and of all of them."""
    marks: list[float] = []
    advance = source.advance

    def timed(update: int):  # type: ignore[no-untyped-def]
        marks.append(time.perf_counter())
        patient = marks[-1] - marks[0] <= PATIENCE * seconds
        if len(marks) > WARM + (LEAST if patient else 1) and marks[-1] - marks[WARM] > seconds:
            raise _Enough
        return advance(update)

    quiet = training.replace(checkpoint_every=0, evaluate_every=0, validate_every=0, tensorboard=False, devices=1)
    began = time.perf_counter()
    source.advance = timed  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory(prefix="foretoken-estimate-") as folder, suppress(_Enough), _silent():
            train(method, source, quiet, Path(folder), seed=0, stage=name.removeprefix("stage "), progress=False)
        marks.append(time.perf_counter())
    finally:
        del source.advance
    each = (marks[-1] - marks[WARM]) / (len(marks) - 1 - WARM) if len(marks) > WARM + 1 else marks[-1] - marks[0]
    checks = (
        -(-training.updates // training.validate_every) * training.validate_batches if training.validate_every else 0
    )
    update = f"{training.updates:,} updates of {_time(each)}"
    label = update if name == "training" else f"{name}: {update}"
    return {f"setting up {name}": marks[0] - began, label: each * (training.updates + CHECKED * checks)}


def _evaluation(method: Method, source: Source, experiment: Experiment, seconds: float) -> float:
    """Seconds of one evaluation."""
    config, marks, rows = experiment.evaluation, list[float](), list[int]()
    returns = [np.asarray(store.episodes["return"], np.float64) for store in source.stores.values()]
    known = np.concatenate(returns) if returns else np.zeros(0)

    def watch(tick: Tick) -> None:
        marks.append(time.perf_counter())
        rows.append(len(tick.number))
        if len(marks) > LEAST and marks[-1] - marks[0] > seconds:
            raise _Enough

    training, done = method.training, None
    many = config.replace(episodes=max(config.episodes, 100))
    assert isinstance(source.spec, Spec)
    try:
        with suppress(_Enough), _silent():
            done = evaluate(
                method, source.spec, many, seed=0, update=0, data_returns=known, watch=watch, on_warning=log.debug
            )
    finally:
        method.train(training)
    rate = sum(rows[:-1]) / max(marks[-1] - marks[0], 1e-9)
    targets = (config.targets or default_targets(known)) if "target_return" in method.asks else ()
    jobs = config.episodes * config.trial * max(1, len(targets)) * max(1, len(config.costs))
    length = _length(source, config) or (np.mean([one.length for one in done.records]) if done else len(marks))
    return float(jobs * length / rate)


def _length(source: Source, config: Evaluation) -> float:
    """Steps of an episode: as recorded, or as the environment allows; 0 where neither is known."""
    lengths = [store.episodes["length"] for store in source.stores.values()]
    if lengths:
        return float(np.concatenate(lengths).mean())
    assert isinstance(source.spec, Spec)
    env = make(config.environment or source.spec.environment)
    limit = config.max_steps or getattr(env.spec, "max_episode_steps", 0) or 0
    env.close()
    return float(limit)


@contextmanager
def _silent() -> Iterator[None]:
    """Nothing logged: what is measured is no run."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


class Memory:
    """The most memory that this process holds, files that it maps left out, looked at every few milliseconds."""

    def __enter__(self) -> "Memory":
        self.most, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *problem: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        held = _held()
        while not self._over.wait(0.02):
            self.most = max(self.most, held())


def _held() -> Callable[[], int]:
    status = Path("/proc/self/status")
    if status.exists():
        return lambda: 1024 * int(status.read_text().split("RssAnon:")[1].split()[0])
    import resource

    return lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _time(seconds: float) -> str:
    """Two units at most."""
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
