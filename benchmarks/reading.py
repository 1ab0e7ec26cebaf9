"""Importing a million transitions from files: seconds from the file to a store on the disk, checked, with derived columns.

Beside it, what the file's own library does with the same file: Minari reads every episode into memory; h5py reads the flat
columns of a D4RL file, which is the floor of any reader.
"""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import h5py
import numpy as np

from benchmarks.machine import peak_memory
from benchmarks.made import Data
from benchmarks.report import Job, Table, judged, skipped, time_of
from benchmarks.rounds import Contestant, Maker, Settings, calls, compete
from benchmarks.windows import minari_dataset
from foretoken.data import import_dataset

COLUMNS = {
    "observations": "observation",
    "next_observations": "next_observation",
    "actions": "action",
    "rewards": "reward",
}
GOAL, SLOWER, LARGER = 2.0, 1.1, 1.2  # times Minari's own; times the flat read, in time and in memory


def run(data: Data, settings: Settings, *, full: bool) -> Job:
    """Minari's HDF5, then D4RL's."""
    settings = replace(settings, seconds=0.1, rounds=max(3, settings.rounds // 2))
    d4rl_file(data)
    if not skipped([Maker(minari, (data,), ("minari",))]):
        minari_dataset(data)
    from_minari = [Maker(ours, (data, "minari"), ("minari",)), Maker(minari, (data,), ("minari",))]
    from_d4rl = [Maker(ours, (data, "d4rl")), Maker(flat, (data,))]
    tables = []
    for title, makers, goal in (("Minari", from_minari, GOAL), ("D4RL", from_d4rl, 0.0)):
        if any(maker.missing() for maker in makers):
            continue
        scores = compete(makers, settings)
        mine, peer = scores
        note = f"At most {_megabytes(mine)} of memory over the start, {peer.contestant.name} {_megabytes(peer)}."
        if not goal:
            slower, lighter = mine.median / peer.median, mine.contestant.memory <= LARGER * peer.contestant.memory
            note += " " + judged(f"at most {SLOWER:g} times the time of the flat read", {"": slower <= SLOWER})
            note += " " + judged(f"at most {LARGER:g} times its memory", {"": lighter})
        floor = _flat_seconds(data) if goal else peer.median
        note = (
            f"Floor: the flat read of the same columns by h5py, {time_of(floor * len(data.arrays['reward']))}. {note}"
        )
        tables.append(Table(f"{title} file", scores, floor, "transitions", target=goal, note=note))
    return Job("Reading", __doc__ or "", tables, skipped(from_minari))


def _megabytes(score) -> str:  # type: ignore[no-untyped-def]
    return f"{score.contestant.memory / 2**20:,.0f} MiB"


def d4rl_file(data: Data) -> Path:
    """The data as D4RL keeps them, flat and compressed."""
    file = data.folder / "made.hdf5"
    if not file.exists():
        with h5py.File(file, "w") as out:
            for name, column in COLUMNS.items():
                out.create_dataset(name, data=data.arrays[column], compression="gzip")
            out["terminals"], out["timeouts"] = data.arrays["done"], np.zeros_like(data.arrays["done"])
    return file


def ours(data: Data, format: str) -> Iterator[Contestant]:
    """`import_dataset` into a new store at every call."""
    file = d4rl_file(data) if format == "d4rl" else Path(minari_dataset(data).storage.data_path).parent
    folder, numbers = tempfile.mkdtemp(dir=data.folder), count()

    def read() -> None:
        store, _ = import_dataset(file, Path(folder) / str(next(numbers)), environment="Hopper-v5")
        assert store.episodes["length"].sum() == len(data.arrays["reward"]), store
        store.close()

    yield _measured("foretoken", read, data, ours=True)


def minari(data: Data) -> Iterator[Contestant]:
    dataset = minari_dataset(data)

    def read() -> None:
        assert sum(len(episode) for episode in list(dataset.iterate_episodes())) == len(data.arrays["reward"])

    yield _measured("Minari, all episodes into memory", read, data)


def flat(data: Data) -> Iterator[Contestant]:
    yield _measured("h5py, flat columns into memory", _flat(data), data)


def _flat(data: Data) -> Callable[[], None]:
    file = d4rl_file(data)

    def read() -> None:
        with h5py.File(file) as given:
            columns = {name: given[name][:] for name in given}
        assert len(columns["rewards"]) == len(data.arrays["reward"])

    return read


def _flat_seconds(data: Data) -> float:
    """Seconds per transition of the flat read, the best of three."""
    read = calls(_flat(data))
    return min(read(1) for _ in range(3)) / len(data.arrays["reward"])


def _measured(name: str, read: Callable[[], None], data: Data, *, ours: bool = False) -> Contestant:
    return Contestant(name, calls(read), len(data.arrays["reward"]), ours=ours, memory=peak_memory(read))
