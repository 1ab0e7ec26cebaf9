"""Trains one mixer on the five tasks, measures what it costs, and keeps a record that can be continued.

Every mixer gets the same network around it (width 64, two layers, the usual feed-forward), the same budget and the same
sequences. All on one thread: the figures are to be compared with each other, on any machine.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foretoken.core.errors import ConfigError, DataError, UnknownName
from foretoken.core.memory import keep_freed_memory
from foretoken.core.names import nearest
from foretoken.evaluation.probe.tasks import TASKS, Problem, Task
from foretoken.nn.mixer import Mixer, MixerConfig
from foretoken.nn.stack import BlockConfig, StackConfig

FORMAT, VERSION = "foretoken-probe", 1
WIDTH, LAYERS, HEADS = 64, 2, 4
ROWS, JUDGED_ROWS = 32, 256
SEEDS = (0, 1, 2)


def probed(kind: type[MixerConfig]) -> MixerConfig:
    """The mixer's own defaults, but four heads where it has heads, and rotary positions where it offers them.

    Nothing around the mixer tells positions, so what it knows of order is its own.
    """
    config = kind()
    for field, value in {"num_heads": HEADS, "positions": "rotary"}.items():
        if hasattr(config, field):
            try:
                config = config.replace(**{field: value})
            except ConfigError:
                continue
    return config


class Learner(nn.Module):
    """`head(stack(embed(x)))`: what is said at each token, (B, L, classes or 1)."""

    def __init__(self, config: MixerConfig, task: Task) -> None:
        super().__init__()
        self.embed = nn.Linear(task.features, WIDTH)
        self.stack = StackConfig(width=WIDTH, num_layers=LAYERS, pattern=(BlockConfig(mixer=config),)).build()
        self.head = nn.Linear(WIDTH, task.classes or 1)

    def forward(self, x_BLF: Tensor) -> Tensor:
        said: Tensor = self.head(self.stack(self.embed(x_BLF)).y)
        return said


def train(config: MixerConfig, task: Task, seed: int, updates: int | None = None) -> dict[str, Any]:
    """Trains a new network on new sequences at every update; the scores at the trained length and at twice that.

    AdamW, a tenth of the updates warming up, then a cosine to zero; gradients are clipped to norm 1.
    """
    budget = updates or task.updates
    with _apart():
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        learner = Learner(config, task)
        optimiser = torch.optim.AdamW(learner.parameters(), lr=task.lr, weight_decay=0.01)
        rate = lambda n: min((n + 1) / (0.1 * budget), 0.5 + 0.5 * math.cos(math.pi * n / budget))  # noqa: E731
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
        began = time.process_time()
        for _ in range(budget):
            loss = _loss(learner, task, task.draw(generator, ROWS, task.length))
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        seconds = time.process_time() - began
        scores = {name: _judge(learner, task, n * task.length) for name, n in (("trained", 1), ("twice", 2))}
    last = loss.item()
    return {**scores, "loss": last if math.isfinite(last) else None, "cpu_seconds": round(seconds, 2)}


def _loss(learner: Learner, task: Task, problem: Problem) -> Tensor:
    said, target = learner(problem.x_BLF)[problem.scored_BL], problem.target_BL[problem.scored_BL]
    return F.cross_entropy(said, target) if task.classes else F.mse_loss(said[:, 0], target)


def _judge(learner: Learner, task: Task, length: int) -> float:
    """The score on sequences that are the same for every mixer and seed; a network that has diverged says zero."""
    problem = task.draw(torch.Generator().manual_seed(length), JUDGED_ROWS, length)
    with torch.no_grad():
        said = learner.eval()(problem.x_BLF).nan_to_num(0.0, 0.0, 0.0)
    return task.score(said.argmax(-1) if task.classes else said[..., 0], problem)


class _PlainAttention(nn.Module):
    """What training time is compared with: causal attention as PyTorch offers it, and its projections."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x_BLD: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x_BLD).chunk(3, dim=-1))
        said: Tensor = self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return said


def measure_costs(
    config: MixerConfig, *, steps: int = 2000, length: int = 512, rows: int = 4, seconds: float = 3.0
) -> dict[str, Any]:
    """Times of one layer on one thread, each beside a yardstick measured in turn with it, so that a busy machine slows both.

    Args:
        steps: how many streamed steps of one row the medians are over; the yardstick is `torch.nn.LSTMCell` of equal width.
        length, rows: of the sequences for forward and backward; the yardstick is plain causal attention.
        seconds: about how long the second measurement may take; at least three rounds are made.
    """
    with _apart():
        mixer: Mixer = config.build(WIDTH)
        step, cell = _step_times(mixer, nn.LSTMCell(WIDTH, WIDTH), steps)
        training, plain = _training_times(mixer, _PlainAttention(), torch.randn(rows, length, WIDTH), seconds)
    return {
        "step_us": round(1e6 * step, 2), "lstm_cell_us": round(1e6 * cell, 2), "step_ratio": round(step / cell, 3),
        "train_ms": round(1e3 * training, 3), "plain_attention_ms": round(1e3 * plain, 3),
        "train_ratio": round(training / plain, 3), "steps": steps, "length": length, "rows": rows,
    }  # fmt: skip


def _step_times(mixer: Mixer, cell: nn.LSTMCell, steps: int, turn: int = 50) -> tuple[float, float]:
    x_BLD, state, hidden = torch.randn(1, 1, WIDTH), mixer.eval().initial_state(1), None
    ours: list[float] = []
    theirs: list[float] = []
    with torch.no_grad():
        for n in range(-turn, steps):  # the first turn warms up
            began = time.perf_counter()
            _, state, _ = mixer(x_BLD, state)
            ours += [time.perf_counter() - began] * (n >= 0)
            if n % turn == 0:
                for m in range(-turn, turn):
                    began = time.perf_counter()
                    hidden = cell(x_BLD[:, 0], hidden)
                    theirs += [time.perf_counter() - began] * (m >= 0)
    return median(ours), median(theirs)


def _training_times(mixer: Mixer, plain: nn.Module, x_BLD: Tensor, seconds: float) -> tuple[float, float]:
    weight = torch.randn_like(x_BLD)
    ours: list[float] = []
    theirs: list[float] = []
    first = time.perf_counter()
    while len(ours) < 4 or time.perf_counter() - first < seconds:
        for layer, times in ((mixer.train(), ours), (plain, theirs)):
            x = x_BLD.clone().requires_grad_()
            began = time.perf_counter()
            said = layer(x)
            ((said if isinstance(said, Tensor) else said.y) * weight).sum().backward()
            times.append(time.perf_counter() - began)
    return median(ours[1:]), median(theirs[1:])


@contextmanager
def _apart() -> Iterator[None]:
    """On one thread, and leaving the caller's random numbers as they were."""
    keep_freed_memory()
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(before)


def probe(
    key: str,
    config: MixerConfig,
    file: Path,
    *,
    tasks: Sequence[str] = tuple(TASKS),
    seeds: Sequence[int] = SEEDS,
    updates: int | None = None,
    again: bool = False,
    about: Mapping[str, Any] | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Probes a mixer and answers its record, which is written after every training: a second call goes on where one was stopped.

    Args:
        key: what the record calls the mixer.
        file: where the record is kept.
        tasks, seeds: what is trained; other results of the same protocol stay in the record.
        updates: another budget than the tasks' own; such results are kept apart from usual ones by starting over.
        again: start over in any case, as after a change of the mixer's code.
        about: further entries of the record: date, commit, versions, machine.
        tell: told each result.

    Raises:
        UnknownName: a task does not exist.
        DataError: the file is no record.
    """
    for name in tasks:
        if name not in TASKS:
            raise UnknownName(f"no task is called {name!r}{nearest(name, TASKS)}; there are {', '.join(TASKS)}")
    protocol = _protocol(updates)
    record = read_record(file) if file.is_file() and not again else {}
    if record and (record["mixer"], record["protocol"]) != (config.to_json(), protocol):
        tell(f"{key}: other settings than in {file}, which starts over")
        record = {}
    with _apart():
        facts = config.build(WIDTH).facts
    record = {
        "format": FORMAT, "version": VERSION, "key": key, "mixer": config.to_json(), "protocol": protocol,
        "facts": {name: getattr(facts, name) for name in ("state_bytes", "streaming", "max_context", "parallel")},
        "costs": record.get("costs", {}), "tasks": record.get("tasks", {}), **(about or {}),
    }  # fmt: skip
    if not record["costs"]:
        record["costs"] = measure_costs(config)
        _write(file, record)
        tell(f"{key}: {record['costs']['step_us']:.0f} us a step, {record['costs']['step_ratio']:.1f} x nn.LSTMCell")
    for name in tasks:
        for seed in seeds:
            runs = record["tasks"].get(name, {}).get("runs", {})
            if str(seed) not in runs:
                runs[str(seed)] = train(config, TASKS[name], seed, updates)
                record["tasks"][name] = _summary(runs)
                _write(file, record)
            one = runs[str(seed)]
            tell(f"{key}: {name}, seed {seed}: {one['trained']:.3f}, at twice the length {one['twice']:.3f}")
    return record


def _protocol(updates: int | None) -> dict[str, Any]:
    """What must be equal for figures to stand beside each other."""
    tasks = {
        task.name: {"length": task.length, "updates": updates or task.updates, "lr": task.lr, "chance": task.chance}
        for task in TASKS.values()
    }
    return {"width": WIDTH, "layers": LAYERS, "rows": ROWS, "judged_rows": JUDGED_ROWS, "tasks": tasks}


def _summary(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation over seeds, None for one seed, besides the runs themselves."""
    told: dict[str, Any] = {}
    for name in ("trained", "twice"):
        values = [run[name] for run in runs.values()]
        told[name] = {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else None}
    return {**told, "runs": dict(runs)}


def read_record(file: Path) -> dict[str, Any]:
    """A record that `probe` wrote. Raises DataError for anything else."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
        if (record["format"], record["version"]) == (FORMAT, VERSION):
            return dict(record)
        came = f"{record['format']!r} version {record['version']!r}"
    except (ValueError, KeyError, TypeError) as problem:
        came = repr(problem)
    raise DataError(
        f"{file} must be {FORMAT!r} version {VERSION}, as `foretoken probe` writes it, got {came}; remove it"
    )


def _write(file: Path, record: Mapping[str, Any]) -> None:
    """Whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(part, file)
