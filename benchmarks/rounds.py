"""Side by side in one run: turns of a fixed number of calls, in an order that changes from round to round.

Each library works in a process of its own, so that none pays for another's objects, threads or allocator; only one process
works at a time. A turn in which other programs took more than `TOLERANCE` of the processors is repeated; when it never comes
undisturbed the least disturbed one counts, and is marked. Ratios are medians over rounds of the ratio within a round.
"""

import gc
import logging
import multiprocessing
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

import torch

from benchmarks.machine import Watch, version

TOLERANCE = 0.06
RETRIES = 2
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


@dataclass
class Settings:
    """The same for all processes.

    Args:
        threads: of torch.
        clock: "wall", or "processor": the time that the measured process itself got, for a machine that is not quiet; it
            is meant for one thread.
        rounds: turns of each contestant.
        seconds: length of a turn, about.
    """

    threads: int = 1
    clock: str = "wall"
    rounds: int = 5
    seconds: float = 2.0

    def apply(self) -> None:
        """Puts threads and clock into force in this process, and silences libraries that talk while they work."""
        global _clock
        _clock = CLOCKS[self.clock]
        torch.set_num_threads(self.threads)
        warnings.filterwarnings("ignore")
        logging.disable(logging.WARNING)


_clock = time.perf_counter


def now() -> float:
    """Seconds on the chosen clock."""
    return _clock()


def _gone(count: int) -> float:
    raise RuntimeError("a contestant can only be timed in its own process")


@dataclass(frozen=True)
class Contestant:
    """Something to be timed.

    Args:
        name: as the tables call it.
        turn: makes so many calls and returns the seconds that they took.
        units: what one call makes (windows, decisions, updates).
        ours: whether it is foretoken.
        counts: whether a peer takes part in "the best peer" (a bare model without its loop does not).
        note: what differs, for the notes below the table.
        memory: the most bytes held during a call, over what the process held before; 0 = not measured.
    """

    name: str
    turn: Callable[[int], float] = _gone
    units: int = 1
    ours: bool = False
    counts: bool = True
    note: str = ""
    memory: int = 0


@dataclass(frozen=True)
class Maker:
    """A module's function that makes the contestants of one library, and the libraries that it needs."""

    make: Callable[..., Iterable[Contestant]]
    arguments: tuple[Any, ...] = ()
    needs: tuple[str, ...] = ()

    def missing(self) -> list[str]:
        """The libraries that are not installed."""
        return [library for library in self.needs if not version(library)]


@dataclass
class Score:
    """The turns of one contestant: seconds per unit, and others' share of the processors, one entry per round."""

    contestant: Contestant
    seconds: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def rate(self) -> float:
        """Units per second."""
        return 1 / self.median

    @property
    def disturbed(self) -> int:
        return sum(share > TOLERANCE for share in self.others)

    def over(self, other: "Score") -> tuple[float, float, float]:
        """How many times faster than `other`: median, lowest and highest over rounds."""
        ratios = [theirs / mine for mine, theirs in zip(self.seconds, other.seconds, strict=True)]
        return median(ratios), min(ratios), max(ratios)


def calls(step: Callable[[], object]) -> Callable[[int], float]:
    """A turn that calls `step` again and again."""

    def turn(count: int) -> float:
        began = now()
        for _ in range(count):
            step()
        return now() - began

    return turn


def compete(makers: Sequence[Maker], settings: Settings) -> list[Score]:
    """Every contestant's score, in the order of the makers; makers whose libraries are missing are left out."""
    workers = [_Worker(maker, settings) for maker in makers if not maker.missing()]
    try:
        entries = [(worker, index) for worker in workers for index in range(len(worker.contestants))]
        counts = []
        for worker, index in entries:
            once = worker.turn(index, 2)[0] / 2
            if once < settings.seconds:
                once = worker.turn(index, 3)[0] / 3
            counts.append(max(2, round(settings.seconds / max(once, 1e-9))))
        scores = [Score(worker.contestants[index]) for worker, index in entries]
        for number in range(settings.rounds):
            for i in _order(len(entries), number):
                worker, index = entries[i]
                spent, others = worker.turn(index, counts[i])
                scores[i].seconds.append(spent / (counts[i] * scores[i].contestant.units))
                scores[i].others.append(others)
            tell(f"  round {number + 1} of {settings.rounds}")
        return scores
    finally:
        for worker in workers:
            worker.close()


def _order(count: int, number: int) -> list[int]:
    """Each round begins one further on, and every other one runs backwards."""
    order = [(number + i) % count for i in range(count)]
    return order if number % 2 == 0 else order[::-1]


class _Worker:
    """A process that holds one library's contestants and takes their turns when asked."""

    def __init__(self, maker: Maker, settings: Settings) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, maker, settings), daemon=True)
        self._process.start()
        theirs.close()
        self.contestants: list[Contestant] = self._answer()

    def turn(self, index: int, count: int) -> tuple[float, float]:
        """Seconds for `count` calls, and the share of the processors that others took."""
        self._pipe.send((index, count))
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"the process of a contestant ended with exit code {self._process.exitcode}") from None
        if isinstance(answer, str):
            raise RuntimeError(f"a contestant failed:\n{answer}")
        return answer

    def close(self) -> None:
        self._pipe.close()
        self._process.join(timeout=10)
        if self._process.is_alive():
            self._process.terminate()


def _serve(pipe: Connection, maker: Maker, settings: Settings) -> None:
    """The other process: makes the contestants, then takes turns until the pipe is closed."""
    settings.apply()
    try:
        contestants = list(maker.make(*maker.arguments))
        gc.collect()
        gc.freeze()  # the data shall not be walked by every garbage collection
        pipe.send([replace(contestant, turn=_gone) for contestant in contestants])
        while True:
            index, count = pipe.recv()
            pipe.send(_turn(contestants[index], count, settings))
    except (EOFError, BrokenPipeError):
        return
    except Exception:
        pipe.send(traceback.format_exc())


def _turn(contestant: Contestant, count: int, settings: Settings) -> tuple[float, float]:
    turns = []
    for _ in range(1 + RETRIES):
        with Watch() as watch:
            spent = contestant.turn(count)
        turns.append((watch.others, spent))
        if watch.others <= TOLERANCE or settings.clock == "processor":
            break
    others, spent = min(turns)
    return spent, others


def apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's answer, from a process of its own: neither memory nor threads of others are in it."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def tell(line: str) -> None:
    """Progress, on stderr."""
    print(line, file=sys.stderr, flush=True)
