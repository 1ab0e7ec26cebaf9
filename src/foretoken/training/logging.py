"""What a run tells: metrics.jsonl always, a progress line on stderr, TensorBoard on request.

One line of metrics.jsonl is a JSON object with the counter `update` (updates done), `time/seconds` (spent so far, over
all parts of an interrupted run) and keys `train/`, `held_out/`, `eval/` and `time/`. Everything but `time/` is a function of
the configuration and the seed.
"""

import json
import math
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

import torch
from torch import Tensor

from foretoken.core.errors import CheckpointError, MissingExtra


class Listener(Protocol):
    """Is told every line of metrics."""

    def write(self, update: int, metrics: Mapping[str, float]) -> None: ...
    def close(self) -> None: ...


class MetricsFile:
    """Appends lines to metrics.jsonl; a resumed run continues it from its checkpoint.

    Args:
        file: the file; made when missing.
        keep: lines of updates up to this number stay, later ones and a torn last line are cut off.
    """

    def __init__(self, file: Path, keep: int) -> None:
        file.touch()
        os.truncate(file, _end_of(file, keep))
        self._out = file.open("ab", buffering=0)

    def write(self, update: int, metrics: Mapping[str, float]) -> None:
        """One line, handed to the system at once. Raises CheckpointError where it cannot be written (full disk)."""
        line = json.dumps({"update": update, **{key: _json(value) for key, value in metrics.items()}}).encode() + b"\n"
        try:
            written = self._out.write(line)
        except OSError as problem:
            raise CheckpointError(
                f"could not write {self._out.name}: {problem.strerror}. Make room and resume"
            ) from problem
        if written != len(line):
            raise CheckpointError(
                f"could not write {self._out.name}: only {written} of {len(line)} bytes fit. Make room and resume"
            )

    def sync(self) -> None:
        """Puts all lines on the disk: before a checkpoint that presumes them."""
        os.fsync(self._out.fileno())

    def close(self) -> None:
        self._out.close()


def _end_of(file: Path, keep: int) -> int:
    """Bytes of the whole lines with `update` at most `keep`."""
    end = 0
    with file.open("rb") as lines:
        for line in lines:
            if not line.endswith(b"\n") or json.loads(line)["update"] > keep:
                break
            end += len(line)
    return end


def _json(value: float) -> float | None:
    # NaN and infinity are no JSON; a reader of the file sees null
    return value if math.isfinite(value) else None


def read_metrics(file: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, a torn last one left out."""
    with file.open("rb") as lines:
        return [json.loads(line) for line in lines if line.endswith(b"\n")]


class TensorBoard:
    """Writes every metric as a scalar into `<folder>`. Needs the extra "tensorboard"."""

    def __init__(self, folder: Path, keep: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtra(
                "training.tensorboard=True needs TensorBoard: pip install 'foretoken[tensorboard]'"
            ) from None
        self._writer = SummaryWriter(str(folder), purge_step=keep + 1)

    def write(self, update: int, metrics: Mapping[str, float]) -> None:
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, update)

    def close(self) -> None:
        self._writer.close()


class Meter:
    """Means of metrics over the updates since the last line. Values stay tensors until they are read."""

    def __init__(self) -> None:
        self._values: dict[str, list[Tensor | float]] = {}

    def add(self, key: str, value: Tensor | float) -> None:
        self._values.setdefault(key, []).append(value.detach() if isinstance(value, Tensor) else value)

    def state(self) -> dict[str, list[float]]:
        """The values so far, as numbers."""
        return {key: _numbers(values) for key, values in self._values.items()}

    def load(self, state: Mapping[str, list[float]]) -> None:
        self._values = {key: list(values) for key, values in state.items()}

    def read(self) -> dict[str, float]:
        """The means, and starts anew."""
        means = {key: math.fsum(numbers) / len(numbers) for key, numbers in self.state().items()}
        self._values = {}
        return means


def _numbers(values: list[Tensor | float]) -> list[float]:
    """All values as Python numbers, with one transfer for all tensors."""
    where = [i for i, value in enumerate(values) if isinstance(value, Tensor)]
    numbers = [0.0 if isinstance(value, Tensor) else float(value) for value in values]
    if where:
        tensors = [value.reshape(()) for value in values if isinstance(value, Tensor)]
        # Apple's GPUs have no float64
        exact = torch.float32 if tensors[0].device.type == "mps" else torch.float64
        for i, number in zip(where, torch.stack([tensor.to(exact) for tensor in tensors]).tolist(), strict=True):
            numbers[i] = number
    return numbers


class Progress:
    """A bar that is redrawn in a terminal; one plain line about every ten seconds in a pipe or file.

    Args:
        updates: how many there will be.
        done: how many there have been before.
        out: where to; stderr by default.
    """

    def __init__(self, updates: int, done: int, out: TextIO | None = None) -> None:
        self.updates, self.began_at = updates, done
        self.out = out if out is not None else sys.stderr
        self.live = self.out.isatty()
        self.pause = 0.2 if self.live else 10.0
        self.started = self.last = time.monotonic()
        self.note = ""

    def tell(self, metrics: Mapping[str, float]) -> None:
        """Remembers what to show beside the counter: the loss and what was evaluated."""
        shown = {key: value for key, value in metrics.items() if key == "train/loss" or key.startswith("eval/")}
        self.note = "  ".join(f"{key} {value:.4g}" for key, value in list(shown.items())[:3]) or self.note

    def update(self, done: int) -> None:
        """Draws when it is time to; cheap otherwise."""
        now = time.monotonic()
        if now - self.last >= self.pause:
            self.last = now
            self._draw(done, now)

    def close(self, done: int) -> None:
        """Draws for the last time and leaves the line."""
        self._draw(done, time.monotonic())
        if self.live:
            self.out.write("\n")
            self.out.flush()

    def _draw(self, done: int, now: float) -> None:
        rate = (done - self.began_at) / max(now - self.started, 1e-9)
        left = clock((self.updates - done) / rate) if rate > 0 else "?"
        speed = f"{rate:.1f}/s  {left} left" if done > self.began_at or done < self.updates else "done before"
        line = f"{done}/{self.updates} updates  {speed}  {self.note}".rstrip()
        if self.live:
            filled = 20 * done // max(1, self.updates)
            self.out.write(f"\r[{'#' * filled}{'.' * (20 - filled)}] {line}\x1b[K")
        else:
            self.out.write(line + "\n")
        self.out.flush()


def clock(seconds: float) -> str:
    """Seconds as `1:02:03` or `2:03`."""
    whole = int(seconds + 0.5)
    hours, minutes = divmod(whole // 60, 60)
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"
