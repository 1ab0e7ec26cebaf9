"""Runs a claim: every arm with every seed, one run after the other or several side by side, and the record of what was measured.

A run is a function of its experiment and seed, so how many go side by side changes what is measured of speed and nothing else;
figures are therefore taken when all runs are finished, with nothing beside them.

A worker is a process of its own, `python -m foretoken.claims`. It is told its experiment as JSON, in a line on stdin, which stays
open while the worker is wanted: where it closes, because the claim stops or is gone, the worker saves a checkpoint and ends.
"""

import datetime
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foretoken.core.errors import ConfigError, ForetokenError
from foretoken.experiment import Claim, Experiment, Run, run, surroundings
from foretoken.training.signals import Signals

Tell = Callable[[str], None]
STOPPED = 130  # exit code of a worker that was asked to stop, as of the command line

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Job:
    """One arm with one seed, and where its run goes."""

    arm: str
    seed: int
    experiment: Experiment
    folder: Path

    def __str__(self) -> str:
        return f"arm {self.arm}, seed {self.seed}"

    def begun(self) -> bool:
        return self.folder.exists() and any(self.folder.iterdir())

    def finished(self) -> bool:
        if not (self.folder / "run.json").exists():
            return False
        before = Run.open(self.folder)
        if before.experiment != self.experiment:
            raise ConfigError(
                f"{self.folder} holds a run with other settings than this arm's; remove it, or give another folder by --out"
            )
        return before.about["status"] == "finished"


def default_workers(claim: Claim) -> int:
    """Runs side by side that keep every core busy which this process may use; 1 where a run takes all of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    trainings = [arm.training for arm in claim.arms.values()]
    trainings += [stage.training for arm in claim.arms.values() for stage in arm.before]
    return max(1, cores // max((one.threads or cores) * one.devices for one in trainings))


def run_claim(
    key: str, claim: Claim, out: Path, *, workers: int = 1, progress: bool = True, tell: Tell = log.info
) -> dict[str, Any]:
    """Runs every arm over its seeds, continuing what an earlier call left, and answers the record that `results/<key>.json` holds.

    Args:
        key: the system's, for messages and the record.
        claim: what to run.
        out: folder of the runs, `<arm>/seed-<seed>` each.
        workers: runs side by side, each in a process of its own; a single one runs in this process.
        progress: shows a progress line on stderr, where runs do not go side by side.
        tell: is given a line for every run.

    Raises:
        ConfigError: `out` holds a run with other settings.
        ForetokenError: a worker failed; the others have saved and ended.
        KeyboardInterrupt: Ctrl-C or SIGTERM; what was running has saved, and another call goes on.
    """
    began = time.monotonic()
    jobs = [
        _Job(arm, seed, experiment.replace(seed=seed), out / arm / f"seed-{seed}")
        for arm, experiment in claim.arms.items()
        for seed in claim.seeds
    ]
    fresh = not any(job.begun() for job in jobs)
    left = []
    for job in jobs:
        if job.finished():
            tell(f"claim {key}: {job} (done before)")
        else:
            left.append(job)
    workers = max(1, min(workers, len(left)))
    if workers > 1:
        _side_by_side(key, left, workers, tell)
    else:
        for job in left:
            tell(f"claim {key}: {job}")
            run(job.experiment, job.folder, resume=job.begun(), progress=progress)
    runs: dict[str, list[Run]] = {arm: [] for arm in claim.arms}
    for job in jobs:
        runs[job.arm].append(Run.open(job.folder))
    figures = {arm: [claim.metric(one) for one in done] for arm, done in runs.items()}
    conditions = {name: bool(value) for name, value in claim.holds(figures).items()}
    return {
        "key": key,
        "verdict": "holds" if all(conditions.values()) else "does not hold",
        "says": claim.says,
        "conditions": conditions,
        "arms": {arm: _summaries(rows) | {"seeds": list(claim.seeds)} for arm, rows in figures.items()},
        "minutes": round(sum(_minutes(one) for done in runs.values() for one in done), 1),
        "workers": workers,
        "wall_minutes": round((time.monotonic() - began) / 60, 1) if fresh else None,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **surroundings(),
    }


def _summaries(rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {name: _summary([row[name] for row in rows]) for name in rows[0]}


def _summary(values: list[float]) -> dict[str, Any]:
    """Mean, its 95 % interval by Student's t over seeds, and the values themselves."""
    from scipy import stats

    array = np.asarray(values, dtype=np.float64)
    mean, count = float(array.mean()), len(array)
    if count == 1:
        return {"mean": mean, "interval": None, "values": array.tolist()}
    half = float(stats.t.ppf(0.975, count - 1) * array.std(ddof=1) / count**0.5)
    return {"mean": mean, "interval": [mean - half, mean + half], "values": array.tolist()}


def _minutes(done: Run) -> float:
    """What its training took, earlier stages included."""
    files = [folder / "metrics.jsonl" for folder in (done.path, *(done.path / "stages").glob("*"))]
    lines = [file.read_text(encoding="utf-8").splitlines() for file in files if file.exists()]
    return sum(json.loads(of_file[-1]).get("time/seconds", 0.0) for of_file in lines if of_file) / 60


# -- several side by side: this process


def _side_by_side(key: str, jobs: Iterable[_Job], workers: int, tell: Tell) -> None:
    waiting, running = deque(jobs), list[_Worker]()
    with Signals() as signals:
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    tell(f"claim {key}: {waiting[0]}")
                    running.append(_Worker(waiting.popleft()))
                time.sleep(0.1)
                if signals.received:
                    raise KeyboardInterrupt("stopped, and saved; run the claim again to go on")
                for worker in [worker for worker in running if worker.process.poll() is not None]:
                    if worker.process.returncode:
                        raise worker.failure(f"claim {key}: {worker.job}")
                    running.remove(worker)
                    worker.dismiss()
                    tell(f"claim {key}: {worker.job}: {_minutes(Run.open(worker.job.folder)):.1f} minutes")
        finally:
            _stop(running)


def _stop(workers: Sequence["_Worker"]) -> None:
    """Has them save and end; a second Ctrl-C ends them at once."""
    try:
        for worker in workers:
            worker.dismiss()
        for worker in workers:
            worker.process.wait()
    finally:
        for worker in workers:
            worker.process.kill()


class _Worker:
    """A worker from here, in a process group of its own, so that a terminal's Ctrl-C reaches this process alone."""

    def __init__(self, job: _Job) -> None:
        self.job = job
        # finds packages as this process does, those of plug-ins too
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
        words = [sys.executable, "-P", "-m", "foretoken.claims"]
        self._answer = tempfile.TemporaryFile("w+")  # noqa: SIM115  read when the worker has ended
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=self._answer, text=True, env=environment, process_group=0
        )
        order = {
            "name": str(job),
            "experiment": job.experiment.to_json(),
            "folder": str(job.folder),
            "resume": job.begun(),
        }
        assert self.process.stdin
        self._orders = self.process.stdin
        with suppress(BrokenPipeError):  # it has ended already, and `failure` will tell
            self._orders.write(json.dumps(order) + "\n")
            self._orders.flush()

    def dismiss(self) -> None:
        """Closes its stdin."""
        with suppress(BrokenPipeError):
            self._orders.close()

    def failure(self, where: str) -> ForetokenError:
        """What ended it before its run was finished, in its own words where it left some."""
        self._answer.seek(0)
        code, told = self.process.returncode, self._answer.read()
        if not told:
            how = "was stopped" if code == STOPPED else f"was killed by signal {-code}" if code < 0 else "broke off"
            return ForetokenError(f"{where}: its process {how}; run the claim again to go on")
        words = json.loads(told)
        error = ForetokenError(f"{where}: {words['problem']}")
        error.add_note(words["traceback"])
        return error


# -- several side by side: the worker


def main() -> int:
    """One run, as a line on stdin tells it; what went wrong goes to stdout as JSON. Exit code 0, 1, or 130 where it was stopped."""
    answer, sys.stdout = sys.stdout, sys.stderr
    order = json.loads(sys.stdin.readline() or "null")
    if order is None:
        return STOPPED
    threading.Thread(target=_stop_when_unwanted, daemon=True).start()
    logging.basicConfig(format=f"{order['name']}: %(message)s")
    logging.getLogger(Signals.__module__).disabled = True
    try:
        experiment = Experiment.from_json(order["experiment"])
        run(experiment, order["folder"], resume=order["resume"], progress=False)
    except KeyboardInterrupt:
        return STOPPED
    except Exception as problem:
        known = isinstance(problem, ForetokenError | OSError)
        told = str(problem) if known else f"unexpected {type(problem).__name__}: {problem}; --debug shows where"
        json.dump({"problem": told, "traceback": traceback.format_exc()}, answer)
        return 1
    return 0


def _stop_when_unwanted() -> None:
    """As Ctrl-C does, once stdin is closed; not a second time where a signal came from elsewhere."""
    while os.read(0, 1):
        pass
    noting = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    if not (isinstance(noting, Signals) and noting.received):
        signal.raise_signal(signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
