"""Training from a store ten times as large as the memory that the process may have. Linux refuses it more than the cap, Python
and torch included (`RLIMIT_DATA`, in a shell `ulimit -d`), of what the system could not take back. The store's files are mapped:
their pages come as they are read, belong to the system's cache and go when others need the room, so the cap leaves them out.
The last line shows training without that room: all pages of the store are dropped before every update, and all that is drawn
comes from the disk.

Decision Transformer of width 64, 20 steps x 64 windows, by `foretoken.run` with held-out losses and checkpoints; medians over
rounds. Held is the most memory that the process had, mapped files left out.
"""

import ctypes
import json
import mmap
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import numpy as np

from benchmarks.made import Data, repeated
from benchmarks.report import Job, Sheet, bytes_of, judged, number, time_of
from benchmarks.rounds import Settings, apart, tell
from foretoken.core.store import Statistics
from foretoken.data import Store, open_store
from foretoken.estimate import Memory
from foretoken.experiment import Experiment
from foretoken.experiment import run as run_experiment
from foretoken.systems.offline import decision_transformer
from foretoken.training.sources import Offline, OfflineSource

CAP, TIMES = 500_000_000, 10
LENGTH, ROW = 1_000, 64  # steps of an episode, bytes of a step: observation 11, action 3, reward, return to go
LARGE = CAP * TIMES // (LENGTH * ROW)
FITS = LARGE // 100
GOAL = 0.9  # of the speed from the store that fits


@dataclass(frozen=True)
class Arm:
    """One way to train: from how many episodes, whether under the cap, whether pages are given back."""

    name: str
    episodes: int
    capped: bool = False
    cold: bool = False


FIT, FREE, CAPPED, COLD = ARMS = (
    Arm("a hundredth of the store", FITS),
    Arm("the store without a cap", LARGE),
    Arm("the store under the cap", LARGE, capped=True),
    Arm("the store under the cap with nothing cached", LARGE, capped=True, cold=True),
)


@dataclass(frozen=True)
class Found:
    """Seconds to open the store and to measure its observations; updates per second; bytes held; all else that was logged."""

    opening: float
    measuring: float
    rate: float
    held: int
    logged: list[Any]


def run(data: Data, settings: Settings, *, full: bool) -> Job:
    """All arms in turn, in rounds; then what loading the store comes to under the same cap."""
    missing = _missing(data.folder)
    if missing:
        return Job("Capped", __doc__ or "", [], [missing])
    found: dict[Arm, list[Found]] = {arm: [] for arm in ARMS}
    try:
        began = time.perf_counter()
        store = _store(data.folder, LARGE)
        taken, size = time.perf_counter() - began, sum(file.stat().st_size for file in store.iterdir())
        _store(data.folder, FITS)
        for turn in range(min(2, settings.rounds)):
            for arm in ARMS if turn % 2 == 0 else ARMS[::-1]:
                found[arm].append(apart(_train, arm, data.folder))
            tell(f"  round {turn + 1}")
        loaded = [(name, apart(_load, name, store)) for name in LOADS]
    finally:
        for episodes in (LARGE, FITS):
            shutil.rmtree(data.folder / _name(episodes), ignore_errors=True)
    made = (
        f"The store holds {LARGE:,} episodes of {LENGTH:,} steps in {bytes_of(size)}; writing it took {time_of(taken)}."
    )
    note = "A batch is gathered from the mapped files instead, and holds its own rows alone."
    loading = Sheet("Loading it under the cap", ("way", "what came of it"), loaded, [note])
    return Job("Capped", __doc__ or "", [_sheet(found, size, made), loading])


def _missing(folder: Path) -> str:
    if not sys.platform.startswith("linux"):
        return "only Linux limits a process so, elsewhere this is not measured"
    if shutil.disk_usage(folder).free < 1.5 * CAP * TIMES:
        return f"{folder} has no room for a store of {bytes_of(CAP * TIMES)}; set TMPDIR"
    return ""


def _name(episodes: int) -> str:
    return f"capped-{episodes}"


def _store(folder: Path, episodes: int) -> Path:
    return repeated(folder / _name(episodes), episodes, LENGTH)


def _sheet(found: Mapping[Arm, Sequence[Found]], size: int, made: str) -> Sheet:
    rows, against, base = [], {}, found[FIT]
    for arm, turns in found.items():
        against[arm] = median(mine.rate / fits.rate for mine, fits in zip(turns, base, strict=True))
        rows.append([
            arm.name,
            number(median(turn.rate for turn in turns)),
            f"{against[arm]:.2f}x",
            bytes_of(max(turn.held for turn in turns)),
            time_of(median(turn.opening for turn in turns)),
            time_of(median(turn.measuring for turn in turns)),
        ])  # fmt: skip
    logged = found[FREE][0].logged
    same = {arm.name: all(turn.logged == logged for turn in found[arm]) for arm in (CAPPED, COLD)}
    table = (max(turn.held for turn in found[FREE]) - max(turn.held for turn in base)) / (LARGE - FITS)
    within = max(turn.held for arm in (CAPPED, COLD) for turn in found[arm]) <= CAP
    sentences = [
        f"{made} What is held grows by {bytes_of(max(0.0, table))} per episode, for the table of episodes.",
        judged(
            f"to train within {bytes_of(CAP)} from at least {TIMES} times as much, which is {bytes_of(size)}",
            {"": within and size >= TIMES * CAP},
        ),
        judged(
            f"all {len(logged)} numbers logged, training and held-out losses, as without the cap, to the last bit", same
        ),
        judged(
            f"at least {GOAL:g} times the updates/s from what fits, while the system caches the files",
            {"": against[CAPPED] >= GOAL},
        ),
    ]
    head = (
        "training from",
        "updates/s",
        "against what fits",
        "held",
        "opening the store",
        "measuring its observations",
    )
    return Sheet(f"A store of {bytes_of(size)}, a cap of {bytes_of(CAP)}", head, rows, sentences)


# -- in processes of their own


def _experiment(store: Path) -> Experiment:
    cpu = decision_transformer.cpu()
    training = cpu.training.replace(
        updates=200, batch_size=64, evaluate_every=0, validate_every=100, checkpoint_every=100, log_every=10
    )
    return cpu.replace(system=cpu.system.replace(context=20), source=Offline(store=str(store)), training=training)


def _train(arm: Arm, folder: Path) -> Found:
    import resource

    Settings(1).apply()
    path, measuring = folder / _name(arm.episodes), [0.0]
    advance, statistics = OfflineSource.advance, Store.statistics

    def cold(source: OfflineSource, update: int) -> Mapping[str, float]:
        _give_back(path)
        return advance(source, update)

    def timed(store: Store, column: str) -> Mapping[str, Statistics]:
        began = time.perf_counter()
        found = statistics(store, column)
        measuring[0] += time.perf_counter() - began
        return found

    if arm.capped:
        resource.setrlimit(resource.RLIMIT_DATA, (CAP, CAP))
    (_give_back if arm.cold else _read_through)(path)
    clock = patch.object(Store, "statistics", timed)
    dropper = patch.object(OfflineSource, "advance", cold if arm.cold else advance)
    with Memory() as memory, tempfile.TemporaryDirectory(dir=folder) as out, clock, dropper:
        began = time.perf_counter()
        open_store(path)
        opening = time.perf_counter() - began
        run_experiment(_experiment(path), out, progress=False)
        lines = [json.loads(line) for line in (Path(out) / "metrics.jsonl").read_text().splitlines()]
    rates = [line["time/updates_per_second"] for line in lines if "time/updates_per_second" in line]
    logged = [value for line in lines for name, value in sorted(line.items()) if not name.startswith("time/")]
    return Found(opening, measuring[0], median(rates[1:]), memory.most, logged)


def _give_back(folder: Path) -> None:
    """Unmaps the pages of a folder's files in this process, and drops them from the system's cache."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if f" {folder}/" in line:
            low, high = (int(end, 16) for end in line.split(" ", 1)[0].split("-"))
            ctypes.CDLL(None).madvise(ctypes.c_void_p(low), ctypes.c_size_t(high - low), mmap.MADV_DONTNEED)
    for file in folder.iterdir():
        handle = os.open(file, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def _read_through(folder: Path) -> None:
    """Brings a folder's files into the system's cache, as far as there is room."""
    part = bytearray(1 << 24)
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while file.readinto(part):
                pass


def _read_file(path: Path) -> object:
    return np.fromfile(path / "steps-float32.bin", np.float32)


def _read_episodes(path: Path) -> object:
    store = open_store(path)
    return [store.episode(number) for number in range(store.num_episodes)]


LOADS: Mapping[str, Callable[[Path], object]] = {
    "the file as one array, `np.fromfile`": _read_file,
    "all episodes in a list": _read_episodes,
}


def _load(name: str, path: Path) -> str:
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (CAP, CAP))
    try:
        LOADS[name](path)
    except MemoryError:
        return "MemoryError"
    return "loaded"
