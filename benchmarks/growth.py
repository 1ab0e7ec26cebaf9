"""What an update costs as things grow: time and memory of Decision Transformer, three layers, as `foretoken train --dry-run`
tells them, measured anew at every size in a process of its own. From 20 steps (60 tokens), width 128, batch 64 and 1,700
episodes one thing grows at a time; the context does so at batch 1 too, with attention and with a recurrent mixer.

Time is the mean of the updates after the first three (of few where they are slow). Memory is the most that the whole process
held while it trained, Python and torch included; pages of the mapped store are not, the system takes those back as it needs them.
"""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import Watch
from benchmarks.made import Data, repeated
from benchmarks.report import Job, Sheet, bytes_of, megabytes, time_of
from benchmarks.rounds import Settings, apart, tell
from foretoken.estimate import estimate
from foretoken.evaluation.plots import INK, MUTED, RULE, SERIES
from foretoken.experiment import Experiment
from foretoken.experiment import run as run_experiment
from foretoken.nn.embed.time import EpisodeTimeConfig
from foretoken.nn.mixer import MixerConfig
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.mixers.mamba2 import Mamba2Config
from foretoken.nn.stack import uniform_stack
from foretoken.systems.memory import trxl_ppo
from foretoken.systems.offline import decision_transformer
from foretoken.training.sources import Offline

LONGEST, USUAL = 4096, 600  # steps of an episode where the context grows, and elsewhere
UPDATES = 10_000
CLOSE = 0.05
PICTURE = Path("docs/images/growth.svg")


@dataclass(frozen=True)
class Case:
    """One size of everything; `context` in steps of three tokens."""

    context: int = 20
    width: int = 128
    batch: int = 64
    episodes: int = 1_700
    length: int = USUAL
    mixer: MixerConfig = AttentionConfig(dropout=0.1)

    @property
    def store(self) -> str:
        return f"{self.episodes}x{self.length}"

    def experiment(self, folder: Path) -> Experiment:
        paper = decision_transformer.paper()
        stack = uniform_stack(self.mixer, self.width, 3, dropout=0.1)
        # windows are full, and every step of an episode has its place in the table
        system = paper.system.replace(
            context=self.context, backbone=stack, anchor="full", time=EpisodeTimeConfig(max_steps=self.length)
        )
        training = paper.training.replace(
            updates=UPDATES, batch_size=self.batch, evaluate_every=0, validate_every=0, accelerator="cpu"
        )
        return paper.replace(
            system=system, source=Offline(store=str(folder / self.store), held_out=0.0), training=training
        )


@dataclass(frozen=True)
class Series:
    """What grows, as its table is called, the panel and the name of its line in the picture, and a case for each size.

    The picture shows a size times `scale`.
    """

    title: str
    panel: str
    line: str
    cases: Mapping[int, Case]
    scale: int = 1


@dataclass(frozen=True)
class Cost:
    """Seconds of an update, of opening the store and of setting up; bytes; others' share of the processors."""

    update: float
    opening: float
    setting_up: float
    memory: int
    others: float


def _long(tokens: int, **more: Any) -> Case:
    return Case(context=tokens // 3, batch=1, episodes=40, length=LONGEST, **more)


TOKENS = (60, 240, 1_020, 2_040, 4_080, 8_190)
EPISODES = "Episodes in the store"
SERIES_OF = (
    Series("Context in steps, batch 64", "context in tokens", "attention, batch 64", {
        steps: Case(context=steps) for steps in (20, 40, 80, 160)
    }, scale=3),
    Series("Context in tokens, batch 1, attention", "context in tokens", "attention, batch 1", {
        tokens: _long(tokens) for tokens in TOKENS
    }),
    Series("Context in tokens, batch 1, Mamba-2", "context in tokens", "Mamba-2, batch 1", {
        tokens: _long(tokens, mixer=Mamba2Config()) for tokens in TOKENS
    }),
    Series("Width", "width", "", {width: Case(width=width) for width in (64, 128, 256, 512)}),
    Series("Batch", "batch", "", {batch: Case(batch=batch) for batch in (4, 16, 64, 256)}),
    Series(EPISODES, "episodes in the store", "", {count: Case(episodes=count) for count in (170, 1_700, 17_000)}),
)  # fmt: skip


def run(data: Data, settings: Settings, *, full: bool) -> Job:
    """Every case once, then whether what was foretold of two whole runs came true; draws the picture."""
    sheets, found = [], list[tuple[Series, list[Cost]]]()
    for series in SERIES_OF:
        for case in series.cases.values():
            repeated(data.folder / case.store, case.episodes, case.length)
        costs = [apart(_cost, case, data.folder, settings) for case in series.cases.values()]
        found.append((series, costs))
        sheets.append(_sheet(series, costs, data.folder))
        tell(f"  {series.title}")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure(found).savefig(PICTURE, metadata={"Date": None})
    sheets.append(_foretold(data.folder, settings))
    sheets[0].sentences = [f"![Time and memory of an update against size](images/{PICTURE.name})", *sheets[0].sentences]
    return Job("Growth", __doc__ or "", sheets, [])


def _cost(case: Case, folder: Path, settings: Settings) -> Cost:
    import lightning_fabric  # noqa: F401  what its import takes is no setting up

    settings.apply()
    with Watch() as watch:
        told = estimate(case.experiment(folder), settings.seconds)
    opening, setting_up, training = told.seconds.values()
    return Cost(training / UPDATES, opening, setting_up, told.memory, watch.others)


def _sheet(series: Series, costs: Sequence[Cost], folder: Path) -> Sheet:
    sizes = list(series.cases)
    head = [series.title.split(",")[0].lower(), "time of an update", "memory"]
    rows = [
        [f"{size:,}", time_of(cost.update), megabytes(cost.memory)] for size, cost in zip(sizes, costs, strict=True)
    ]
    if series.title == EPISODES:
        head += ["store", "opening it", "measuring its columns"]
        for row, case, cost in zip(rows, series.cases.values(), costs, strict=True):
            size = sum(file.stat().st_size for file in (folder / case.store).iterdir())
            row += [megabytes(size), time_of(cost.opening), time_of(cost.setting_up)]
    seconds, held = fit(sizes, [cost.update for cost in costs]), fit(sizes, [cost.memory for cost in costs])
    sentence = f"At size n an update takes {seconds.text(time_of)}, and memory is {held.text(bytes_of)}."
    busy = f"Other programs took up to {max(cost.others for cost in costs):.0%} of the processors."
    return Sheet(series.title, head, rows, [f"{sentence} {busy}"])


@dataclass(frozen=True)
class Fit:
    """a + b n + c n^2 with no negative part, and how far it is off at most, as a share of the measured value."""

    parts: np.ndarray
    off: float

    def __call__(self, sizes: np.ndarray) -> np.ndarray:
        return _powers(sizes) @ self.parts

    def text(self, unit: Callable[[float], str]) -> str:
        """The formula, for example `12 ms + 3 ms n (within 4%)`."""
        terms = [unit(part) + power for part, power in zip(self.parts, ("", " n", " n^2"), strict=True) if part]
        return f"{' + '.join(terms)} (within {max(0.01, self.off):.0%})"


def _powers(sizes: np.ndarray) -> np.ndarray:
    return np.stack([np.ones_like(sizes), sizes, sizes**2], -1)


def fit(sizes: Sequence[float], values: Sequence[float]) -> Fit:
    """The curve of the fewest parts that comes within CLOSE of every value, or else of the least squared relative errors."""
    size, value = np.asarray(sizes, float), np.asarray(values, float)
    found = []
    for chosen in ([0], [1], [0, 1], [0, 2], [1, 2], [0, 1, 2]):
        parts, relative = np.zeros(3), _powers(size)[:, chosen] / value[:, None]
        scale = np.linalg.norm(relative, axis=0)
        parts[chosen] = np.linalg.lstsq(relative / scale, np.ones_like(value), rcond=None)[0] / scale
        if len(chosen) < len(size) and (parts >= 0).all():
            errors = _powers(size) @ parts / value - 1
            found.append((float((errors**2).sum()), Fit(parts, float(np.abs(errors).max()))))
            if found[-1][1].off <= CLOSE:
                return found[-1][1]
    return min(found, key=lambda entry: entry[0])[1]


def figure(found: Sequence[tuple[Series, Sequence[Cost]]]) -> Any:
    """Time above, memory below; a panel for everything that grows. Points are measured, lines are fitted."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

    looks: Any = {
        "font.size": 9, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "axes.linewidth": 0.8,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True, "grid.color": RULE,
        "xtick.color": MUTED, "ytick.color": MUTED, "legend.frameon": False, "svg.hashsalt": "foretoken",
    }  # fmt: skip
    panels = list(dict.fromkeys(series.panel for series, _ in found))
    kinds = {
        "milliseconds of an update": lambda cost: 1e3 * cost.update,
        "MB of memory": lambda cost: cost.memory / 1e6,
    }
    with matplotlib.rc_context(looks):
        drawing = Figure(figsize=(10, 4.8), layout="constrained")
        grid = drawing.subplots(2, len(panels), sharex="col", sharey="row", squeeze=False)
        for column, panel in enumerate(panels):
            here = [(series, costs) for series, costs in found if series.panel == panel]
            for axes, value in zip(grid[:, column], kinds.values(), strict=True):
                axes.set(xscale="log", yscale="log")
                for colour, marker, (series, costs) in zip(SERIES, "os^", here, strict=False):
                    sizes, values = np.array(list(series.cases), float), [value(cost) for cost in costs]
                    along = np.geomspace(sizes[0], sizes[-1])
                    axes.plot(series.scale * along, fit(list(sizes), values)(along), color=colour, linewidth=1.4)
                    axes.plot(series.scale * sizes, values, marker, color=colour, markersize=5, label=series.line)
                ticks = FixedLocator(list(here[0][0].cases)) if len(here) == 1 else LogLocator(subs=(1, 3))
                for axis, locator in ((axes.xaxis, ticks), (axes.yaxis, LogLocator(subs=(1, 2, 5)))):
                    axis.set_major_locator(locator)
                    axis.set_minor_locator(NullLocator())
                    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
            grid[-1, column].set_xlabel(panel)
        for axes, name in zip(grid[:, 0], kinds, strict=True):
            axes.set_ylabel(name)
        handles, labels = grid[0, 0].get_legend_handles_labels()
        drawing.legend(handles, labels, loc="outside upper left", ncols=3, handletextpad=0.2, columnspacing=1.5)
    return drawing


# -- foretold and taken


def _foretold(folder: Path, settings: Settings) -> Sheet:
    offline = decision_transformer.cpu()
    runs = {
        "Decision Transformer on the embedded Hopper data, with two evaluations": offline.replace(
            training=offline.training.replace(updates=1_000, evaluate_every=500)
        ),
        "TrXL-PPO, which acts as it learns, and its evaluation": trxl_ppo.cpu(),
    }
    rows = [[name, *apart(_took, experiment, folder, settings)] for name, experiment in runs.items()]
    head = ("run", "foretold", "taken", "foretold / taken")
    return Sheet(
        "What --dry-run foretells and what the run takes", head, rows, ["Measured just before the run, in its process."]
    )


def _took(experiment: Experiment, folder: Path, settings: Settings) -> list[str]:
    settings.apply()
    foretold = estimate(experiment, settings.seconds).total
    with tempfile.TemporaryDirectory(dir=folder) as out:
        began = time.perf_counter()
        run_experiment(experiment, out, progress=False)
        taken = time.perf_counter() - began
    return [time_of(foretold), time_of(taken), f"{foretold / taken:.2f}"]
