"""Experiment, Stage, Weights, Claim, Run, and what runs an experiment: plain dataclasses and a few short functions."""

import contextlib
import datetime
import json
import os
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foretoken import __version__
from foretoken.core.config import Config
from foretoken.core.errors import CheckpointError, ConfigError
from foretoken.core.method import Method, Source
from foretoken.core.spec import Spec
from foretoken.envs.make import make
from foretoken.envs.spaces import check_same
from foretoken.evaluation.evaluate import Evaluated, Evaluation, evaluate, read_evaluation
from foretoken.evaluation.exhibits import EPISODES, Watch, shows, write_exhibits
from foretoken.evaluation.scores import ScoreCard, score_card
from foretoken.training import checkpoint
from foretoken.training.loop import Training, launch, train

FORMAT, VERSION = "foretoken-run", 1


@dataclass(frozen=True, kw_only=True)
class Weights(Config):
    """Weights to start from.

    Args:
        run: a run folder, or a safetensors file.
        from_prefix, to_prefix: which part of the saved weights goes where; empty takes everything.
    """

    run: str
    from_prefix: str = ""
    to_prefix: str = ""


@dataclass(frozen=True, kw_only=True)
class Stage(Config):
    """An earlier stage of an experiment; `Method.fit` is told its name, and its objectives may depend on it.

    Args:
        name: what `fit` is told, and the folder of the stage's checkpoints.
        training: how long and how.
        source: where its data come from; None is the experiment's own source.
    """

    name: str
    training: Training
    source: Config | None = None


@dataclass(frozen=True, kw_only=True)
class Experiment(Config):
    """A system, where its data come from, how it is trained and how it is measured.

    Args:
        system: config of the method.
        source: config of the source.
        training: the main stage.
        evaluation: how the policy is measured, while training and at the end.
        seed: decides everything random.
        before: earlier stages, in order.
        start: weights to start from.
    """

    system: Config
    source: Config
    training: Training = Training()
    evaluation: Evaluation = Evaluation()
    seed: int = 0
    before: tuple[Stage, ...] = ()
    start: tuple[Weights, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        self.at_least(seed=0)


@dataclass(frozen=True)
class Claim:
    """A paper's claim as an experiment with a verdict.

    Args:
        says: what is claimed, in one sentence, with its thresholds.
        arms: experiments by name; baselines are arms of the same code with the same budget.
        metric: figures of one finished run.
        seeds: every arm is run once with each.
        holds: named conditions on `{arm: [figures by seed]}`; the claim holds when all of them do.
        minutes: expected on two cores, with as many runs side by side as `foretoken claim` takes unasked.
    """

    says: str
    arms: Mapping[str, Experiment]
    metric: Callable[["Run"], Mapping[str, float]]
    seeds: Sequence[int]
    holds: Callable[[Mapping[str, list[Mapping[str, float]]]], Mapping[str, bool]]
    minutes: float


@dataclass(frozen=True)
class Run:
    """A run folder and what stands in it."""

    path: Path
    experiment: Experiment
    spec: Spec | Mapping[str, Spec]
    about: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> "Run":
        """Reads `run.json`. Raises CheckpointError where the folder is no run, or of another version."""
        file = Path(path) / "run.json"
        try:
            about = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise CheckpointError(
                f"{path} is no run: it has no run.json; give the folder that `foretoken train` made"
            ) from None
        except json.JSONDecodeError as problem:
            raise CheckpointError(f"{file} is not JSON ({problem}); was it cut short?") from None
        if about.get("format") != FORMAT or about.get("version") != VERSION:
            came = f"{about.get('format')!r} version {about.get('version')!r}"
            raise CheckpointError(
                f"{file} must be {FORMAT!r} version {VERSION}, got {came}; use the foretoken that wrote it"
            )
        return cls(Path(path), Experiment.from_json(about["experiment"]), _spec_from_json(about["spec"]), about)

    def evaluations(self) -> list[Evaluated]:
        """All evaluations so far, by update."""
        return [read_evaluation(file) for file in sorted((self.path / "evaluations").glob("update-*.json"))]

    def score_card(self) -> ScoreCard:
        """All numbers of the run's evaluations, each with the rule that made it; printing it draws the table."""
        return score_card(self.evaluations())

    def data_returns(self) -> np.ndarray:
        """Returns of the episodes it was trained on; empty when there were none."""
        return np.asarray(self.about.get("data_returns", ()), dtype=np.float64)


def _spec_to_json(spec: Spec | Mapping[str, Spec]) -> Any:
    return spec.to_json() if isinstance(spec, Spec) else {name: part.to_json() for name, part in spec.items()}


def _spec_from_json(tree: Any) -> Spec | Mapping[str, Spec]:
    return Spec.from_json(tree) if "class" in tree else {name: Spec.from_json(part) for name, part in tree.items()}


def build(experiment: Experiment, source: Source) -> Method:
    """The untrained method, its weights drawn from the experiment's seed."""
    torch.manual_seed(experiment.seed)
    method = experiment.system.build(source.spec)
    for weights in experiment.start:
        checkpoint.load_weights(method, Path(weights.run), from_prefix=weights.from_prefix, to_prefix=weights.to_prefix)
    return method


def run(
    experiment: Experiment,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    command: str = "",
    progress: bool = True,
) -> Run:
    """Trains, measures and leaves everything in the folder `out`.

    Raises:
        ConfigError: `out` holds something and `resume` is false.
        EnvironmentMismatch: it shall be evaluated in an environment of other spaces than the data's.
        CheckpointError: `resume` is true and the run cannot be continued.
    """
    path = Path(out)
    fabric = launch(experiment.training)
    leads = fabric.global_rank == 0
    if leads and not resume and path.exists() and any(path.iterdir()):
        raise ConfigError(f"{path} is not empty; choose a new folder, or continue it with --resume {path}")

    def build_source(config: Config, training: Training, folder: Path) -> Source:
        part = {"rank": fabric.global_rank, "world_size": fabric.world_size, "folder": folder}
        return config.build(batch_size=training.batch_size, seed=experiment.seed, **part)

    source = build_source(experiment.source, experiment.training, path)
    where = _environment(experiment, source)
    method = build(experiment, source)
    returns = _returns(source)
    if leads and not (resume and (path / "run.json").exists()):
        _write_json(path / "run.json", _describe(experiment, source, command, returns))
    for stage in experiment.before:
        folder = path / "stages" / stage.name
        own = source if stage.source is None else build_source(stage.source, stage.training, folder)
        train(
            method,
            own,
            stage.training,
            folder,
            seed=experiment.seed,
            stage=stage.name,
            resume=resume,
            progress=progress,
            fabric=fabric,
        )

    train(
        method,
        source,
        experiment.training,
        path,
        seed=experiment.seed,
        evaluate=partial(_measure, experiment, source.spec, returns, path) if where else None,
        resume=resume,
        progress=progress,
        fabric=fabric,
    )
    if leads:
        _write_json(path / "run.json", {**Run.open(path).about, "status": "finished"})
    return Run.open(path)


def _environment(experiment: Experiment, source: Source) -> str:
    """Where it is evaluated, "" for nowhere; what it could not be evaluated in is refused here, before anything is trained."""
    where = experiment.evaluation.environment or getattr(source.spec, "environment", "")
    if where and experiment.training.evaluate_every and isinstance(source.spec, Spec):
        with contextlib.closing(make(where)) as environment:
            check_same(source.spec, environment)
    return where


def _measure(
    experiment: Experiment, spec: Any, returns: np.ndarray, path: Path, method: Method, update: int
) -> Mapping[str, float]:
    """An evaluation while it is trained, written into the run; the last one with what the method shows."""
    assert isinstance(spec, Spec)
    last = update == experiment.training.updates and shows(type(method))
    watch = Watch(min(EPISODES, experiment.evaluation.episodes)) if last else None
    done = evaluate(
        method,
        spec,
        experiment.evaluation,
        seed=experiment.seed,
        update=update,
        data_returns=returns,
        device=next(method.parameters()).device,
        watch=watch,
    )
    kept = done.write(path / "evaluations" / f"update-{update:08d}.json")
    if watch is not None:
        write_exhibits(kept, method, update, watch.episodes)
    return done.metrics()


def _routes(source: Source) -> dict[str, int]:
    """How many recorded episodes took each of several ways, where the stores tell."""
    found = [store.episodes["route"] for store in source.stores.values() if "route" in store.episodes]
    known = np.concatenate([routes[np.isfinite(routes)] for routes in found]) if found else np.zeros(0)
    return {str(int(route)): int(count) for route, count in zip(*np.unique(known, return_counts=True), strict=True)}


def _returns(source: Source) -> np.ndarray:
    """Returns of the recorded episodes, (N,) float64."""
    columns = [np.asarray(store.episodes["return"], dtype=np.float64) for store in source.stores.values()]
    return np.concatenate(columns) if columns else np.zeros(0)


def load(path: str | os.PathLike[str], *, which: str = "latest") -> Method:
    """The trained method of a run, on the CPU, ready to act: `which` is "latest" or "best"."""
    current = Run.open(path)
    method = current.experiment.system.build(current.spec)
    folder = checkpoint.best(current.path) if which == "best" else checkpoint.latest(current.path)
    if folder is None:
        raise CheckpointError(f"{path} holds no complete checkpoint yet; train it, or continue it with --resume {path}")
    checkpoint.load_weights(method, folder.folder)
    return method.eval()


def _describe(experiment: Experiment, source: Source, command: str, returns: np.ndarray) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "status": "started",
        "experiment": experiment.to_json(),
        "spec": _spec_to_json(source.spec),
        "command": command or "python",
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "data_returns": returns[:100_000].tolist(),
        "data_routes": _routes(source),
        **surroundings(),
    }


def surroundings() -> dict[str, Any]:
    """Commit, versions and machine, for records."""
    versions = {"foretoken": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "gymnasium", "mujoco", "lightning-fabric"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    machine = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }
    return {"commit": _commit(), "versions": versions, "machine": machine}


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def _commit() -> str:
    try:
        words = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        folder = Path(__file__).parent
        return subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def _write_json(file: Path, tree: Any) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(json.dumps(tree, indent=1) + "\n", encoding="utf-8")
    os.replace(part, file)
