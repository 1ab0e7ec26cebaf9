"""What an update costs as things grow: time, and most memory over the start, of Decision Transformer trained by
`foretoken.training.train`. From 20 steps, width 128, batch 64 and 1,700 episodes one thing grows at a time; the context does so
at batch 1 too, in tokens, with attention and with a recurrent mixer. `foretoken train --dry-run` measures the same for any run.
"""

import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.machine import peak_memory
from benchmarks.made import SPEC, Data
from benchmarks.report import Job, Sheet, time_of
from benchmarks.rounds import Contestant, Maker, Settings, compete, now
from foretoken.nn.mixers.attention import AttentionConfig
from foretoken.nn.mixers.mamba2 import Mamba2Config
from foretoken.nn.stack import uniform_stack
from foretoken.systems.offline import decision_transformer
from foretoken.training.loop import train
from foretoken.training.sources import Offline

SERIES: dict[str, tuple[str, Sequence[int]]] = {
    "context in steps, batch 64": ("context", (20, 40, 80, 160)),
    "context in tokens, batch 1, attention": ("tokens", (120, 510, 2040, 8190)),
    "context in tokens, batch 1, Mamba-2": ("tokens-mamba2", (120, 510, 2040, 8190)),
    "width": ("width", (64, 128, 256, 512)),
    "batch": ("batch", (16, 64, 256)),
    "episodes in the store": ("episodes", (170, 1_700, 17_000)),
}
WARM = 2
PICTURE = Path("docs/images/growth.svg")


def run(data: Data, settings: Settings, *, full: bool) -> Job:
    settings = replace(settings, rounds=3)
    sheets, points = [], {}
    for title, (what, sizes) in SERIES.items():
        scores = compete([Maker(one, (data, what, size)) for size in sizes], settings)
        seconds, memory = [s.median for s in scores], [max(1, s.contestant.memory) for s in scores]
        points[title] = sizes, seconds
        rows = [
            [f"{size:,}", time_of(taken), f"{held / 2**20:,.0f} MiB"]
            for size, taken, held in zip(sizes, seconds, memory, strict=True)
        ]
        grown = f"time grows as size to the power {_power(sizes, seconds):.2f}, memory {_power(sizes, memory):.2f}"
        sheets.append(
            Sheet(
                title.capitalize(),
                (title, "time of an update", "most memory over the start"),
                rows,
                [f"Fitted: {grown}."],
            )
        )
    _draw(points)
    sheets[-1].sentences = [*sheets[-1].sentences, f"![time of an update against size](images/{PICTURE.name})"]
    return Job("Growth", __doc__ or "", sheets, [])


def _power(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The slope of the line through the logarithms."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def one(data: Data, what: str, size: int) -> Iterator[Contestant]:
    """An update at one size."""
    tokens = what.startswith("tokens")
    context = size // 3 if tokens else size if what == "context" else 20
    batch = 1 if tokens else size if what == "batch" else 64
    width = size if what == "width" else 128
    mixer = Mamba2Config() if what.endswith("mamba2") else AttentionConfig(dropout=0.1)
    lengths = max(4, size) if what == "episodes" else 1_700
    made = Data(Path(tempfile.mkdtemp(dir=data.folder)), lengths * 600)
    backbone = uniform_stack(mixer, width, 3, dropout=0.1)
    experiment = decision_transformer.paper()
    system = experiment.system.replace(context=context, backbone=backbone)
    training = experiment.training.replace(
        batch_size=batch, checkpoint_every=0, evaluate_every=0, validate_every=0, accelerator="cpu"
    )
    made.store.close()
    torch.manual_seed(0)
    method = system.build(SPEC)

    def turn(count: int) -> float:
        source, began = Offline(store=str(made.folder / "store"), held_out=0.0).build(batch_size=batch, seed=0), []
        advance = source.advance
        source.advance = lambda update: (began.append(now()), advance(update))[1]  # type: ignore[method-assign]
        with tempfile.TemporaryDirectory(dir=data.folder) as folder:
            train(method, source, training.replace(updates=WARM + count + 1), Path(folder), seed=0, progress=False)
        return began[WARM + count] - began[WARM]

    yield Contestant(f"{what} {size}", turn, ours=True, memory=peak_memory(lambda: turn(2)))


def _draw(points: dict[str, tuple[Sequence[int], Sequence[float]]]) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    for title, (sizes, seconds) in points.items():
        axes.loglog(sizes, [1e3 * taken for taken in seconds], marker="o", label=title)
    axes.set_xlabel("size")
    axes.set_ylabel("milliseconds of an update")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False, fontsize=8)
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(PICTURE, metadata={"Date": None})
    assert math.isfinite(sum(sum(seconds) for _, seconds in points.values()))
