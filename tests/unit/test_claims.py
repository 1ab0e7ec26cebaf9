"""Claims: side by side as one after the other, stopped and gone on, failing with a name; and the cache that workers share."""

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from foretoken import claims
from foretoken.claims import default_workers, run_claim
from foretoken.core.config import Config
from foretoken.core.errors import ForetokenError
from foretoken.data.embedded import cached_store
from foretoken.data.imports import import_dataset
from foretoken.experiment import Claim, Experiment, Stage
from foretoken.systems.memory import trxl_ppo
from foretoken.training.loop import Training

EMBEDDED = Path(claims.__file__).parent / "data" / "embedded" / "hopper-mixed"


def experiment(lr: float, updates: int) -> Experiment:
    run = trxl_ppo.smoke()
    training = run.training.replace(updates=updates, evaluate_every=updates, log_every=1, checkpoint_every=0)
    return run.replace(training=training.replace(optimiser=training.optimiser.replace(lr=lr)))


def claim(updates: int = 40, **arms: Experiment) -> Claim:
    """Of two short runs, unlike each other; the metric closes over something local, as no pickle could keep it."""
    arms = arms or {"slow": experiment(1e-4, updates), "fast": experiment(1e-2, updates)}
    return Claim(
        says="It learns.",
        arms=arms,
        metric=lambda run: {"return": float(run.evaluations()[-1].returns(None).mean()), "arms": float(len(arms))},
        seeds=(0,),
        holds=lambda results: {"both ran": len(results) == 2},
        minutes=1,
    )


def lines(run: Path) -> list[dict]:
    """What a run wrote, but for times."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in found]


def test_runs_side_by_side_stop_with_the_claim_and_go_on_to_the_same_bits(tmp_path) -> None:
    begun = [tmp_path / "two" / arm / "seed-0" for arm in ("slow", "fast")]

    def stop() -> None:
        while not all((run / "metrics.jsonl").exists() and lines(run) for run in begun):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt, match="again to go on"):
        run_claim("it", claim(), tmp_path / "two", workers=5, tell=told.append)
    assert told == ["claim it: arm slow, seed 0", "claim it: arm fast, seed 0"]
    assert all(list((run / "checkpoints").iterdir()) for run in begun)
    two = run_claim("it", claim(), tmp_path / "two", progress=False)
    one = run_claim("it", claim(), tmp_path / "one", progress=False)
    assert two["arms"] == one["arms"] and two["verdict"] == one["verdict"] == "holds"
    assert all(lines(run) == lines(tmp_path / "one" / run.relative_to(tmp_path / "two")) for run in begun)
    assert two["wall_minutes"] is None and one["wall_minutes"] is not None and one["workers"] == 1


@dataclass(frozen=True, kw_only=True)
class Strange(Config):
    """Lives where no worker may import it."""


def test_a_failing_run_ends_the_claim_in_its_own_words(tmp_path) -> None:
    whole = experiment(1e-4, 1_000_000)
    with pytest.raises(ForetokenError, match=r"claim it: arm strange, seed 0: refusing to import") as caught:
        run_claim("it", claim(whole=whole, strange=whole.replace(source=Strange())), tmp_path, workers=2)
    assert "Traceback" in caught.value.__notes__[0]
    assert not (tmp_path / "strange").exists()


def test_a_worker_that_is_gone_is_told(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(claims.sys, "executable", "/bin/false")
    with pytest.raises(ForetokenError, match="its process broke off; run the claim again"):
        run_claim("it", claim(), tmp_path, workers=2)


def test_workers_are_cores_over_threads(monkeypatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)

    def of(**training: int) -> Experiment:
        return experiment(1e-4, 1).replace(training=Training(**training))

    assert default_workers(claim(a=of(threads=1), b=of(threads=1))) == 8
    assert default_workers(claim(a=of(threads=1), b=of(threads=3))) == 2
    assert default_workers(claim(a=of(threads=1), b=of())) == 1
    earlier = of(threads=1).replace(before=(Stage(name="first", training=Training(threads=4)),))
    assert default_workers(claim(a=earlier, b=of(threads=1))) == 2
    assert default_workers(claim(a=of(threads=16))) == 1


def test_the_cache_makes_a_store_once_and_whole(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("FORETOKEN_CACHE", str(tmp_path))
    made: list[Path] = []

    def write(out: Path) -> None:
        made.append(out)
        out.mkdir()
        time.sleep(0.2)
        out.rmdir()
        import_dataset(EMBEDDED, out)

    def fail(out: Path) -> None:
        out.mkdir()
        (out / "torn").touch()
        raise OSError("disk full")

    with pytest.raises(OSError, match="full"):
        cached_store("it", fail)
    with ThreadPoolExecutor(3) as pool:
        stores = list(pool.map(lambda _: cached_store("it", write), range(3)))
    assert len(made) == 1 and len({store.num_steps for store in stores}) == 1
    assert [file.name for file in (tmp_path / "stores").iterdir()] == ["it"]
