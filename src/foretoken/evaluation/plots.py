"""The figures of a run's report, as SVG text to be put inside an HTML page.

Deterministic, without fonts or colours of their own: text stays text and takes the page's font, and the named colours
below become CSS variables, so one figure serves a light and a dark page. Hues are Okabe and Ito's, told apart by
colour-blind readers; lines also differ by marker.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import StringIO
from typing import Any

import numpy as np

Curve = tuple[np.ndarray, np.ndarray]
"""x and y, (N,) each."""

INK, MUTED, RULE, DATA = "#1b1f24", "#5f666d", "#dde0e3", "#9aa1a8"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900")
_MARKERS = ("o", "s", "^", "D", "v")
_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", DATA: "--data"} | {
    colour: f"--series-{number}" for number, colour in enumerate(SERIES, 1)
}
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "foretoken",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.limits": (-4, 6),
    "axes.formatter.useoffset": False,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.6,
}


def calibration(
    targets_N: np.ndarray,
    returns_N: np.ndarray,
    means: Sequence[tuple[float, float, float, float]],
    data_returns: np.ndarray | None,
) -> str:
    """Asked against achieved.

    Args:
        targets_N, returns_N: one entry per episode.
        means: per target (target, mean, low, high).
        data_returns: (M,) returns in the training data, or None.
    """
    with canvas("calibration", (4.6, 4.5)) as (axes, finish):
        low, high = _limits(np.concatenate([targets_N, returns_N]))
        if data_returns is not None and len(data_returns):
            begin, end = float(data_returns.min()), float(data_returns.max())
            axes.axvspan(begin, end, color=DATA, alpha=0.16, linewidth=0, label="returns in the data")
            low, high = min(low, max(begin, low - (high - low) / 3)), max(high, min(end, high + (high - low) / 3))
        axes.plot([low, high], [low, high], color=MUTED, linewidth=1, dashes=(4, 3), label="achieved = asked")
        # Moved sideways a little, by order, so that equal returns stay countable.
        aside_N = 0.012 * (high - low) * (np.arange(len(targets_N)) % 7 - 3) / 3
        axes.scatter(
            targets_N + aside_N, returns_N, s=14, color=SERIES[0], alpha=0.35, linewidths=0, label="one episode"
        )
        asked, mean, below, above = (np.array(column) for column in zip(*means, strict=True))
        # A bootstrap interval need not contain the mean.
        bars = np.maximum(np.stack([mean - below, above - mean]), 0)
        axes.errorbar(
            asked,
            mean,
            yerr=bars,
            fmt="o",
            color=SERIES[1],
            markersize=6,
            capsize=4,
            linewidth=1.6,
            label="mean, 95 % interval",
        )
        axes.set(xlim=(low, high), ylim=(low, high), xlabel="return asked for", ylabel="return achieved")
        axes.set_aspect("equal")
        axes.figure.legend(
            *axes.get_legend_handles_labels(), loc="upper center", ncols=2, columnspacing=1.5, handlelength=1.8
        )
        return finish(top=0.86)


def histogram(returns_N: np.ndarray, data_returns: np.ndarray | None) -> str:
    """Shares of episodes by return; the data's behind."""
    with canvas("histogram", (4.6, 4.1)) as (axes, finish):
        everything = returns_N if data_returns is None else np.concatenate([returns_N, data_returns])
        edges = np.histogram_bin_edges(everything, bins=_number_of_bins(everything))
        if data_returns is not None and len(data_returns):
            shares = np.full(len(data_returns), 1 / len(data_returns))
            axes.hist(
                data_returns,
                edges,
                weights=shares,
                color=DATA,
                alpha=0.55,
                label=f"training data ({len(data_returns):,} episodes)",
            )
        shares = np.full(len(returns_N), 1 / len(returns_N))
        label = f"evaluation ({len(returns_N):,} episodes)"
        axes.hist(returns_N, edges, weights=shares, color=SERIES[0], alpha=0.75, label=label)
        axes.set(xlabel="return", ylabel="share of episodes")
        axes.yaxis.set_major_formatter(percent_label)
        return finish(legend=True)


def routes(
    labels: Sequence[str], shares_N: np.ndarray, arrived_N: np.ndarray, demonstrated_N: np.ndarray | None = None
) -> str:
    """Shares of episodes by the route they took, and the part of each that succeeded; the data's shares beside them."""
    with canvas("routes") as (axes, finish):
        width, places = (0.6, 0.0) if demonstrated_N is None else (0.38, 0.2)
        middle_N = np.arange(len(labels))
        if demonstrated_N is not None:
            axes.bar(middle_N - places, demonstrated_N, width=width, color=DATA, alpha=0.55, label="data")
        axes.bar(middle_N + places, shares_N, width=width, color=SERIES[0], alpha=0.35, label="evaluation")
        axes.bar(middle_N + places, arrived_N, width=width, color=SERIES[0], label="successful")
        axes.set_xticks(middle_N, labels)
        axes.set(xlabel="route", ylabel="share of episodes")
        axes.yaxis.set_major_formatter(percent_label)
        return finish(legend=True)


def losses(train: Curve, held_out: Curve | None) -> str:
    """Training loss, and held-out loss where there is one; logarithmic where it falls by more than a factor of thirty."""
    with canvas("losses") as (axes, finish):
        updates, values = thin(train)
        axes.plot(updates, values, color=SERIES[0], label="training")
        drawn = [values]
        if held_out is not None and len(held_out[0]):
            marker = "o" if len(held_out[0]) <= 40 else ""
            axes.plot(*held_out, color=SERIES[1], marker=marker, markersize=3.5, label="held-out episodes")
            drawn.append(held_out[1])
        joined = np.concatenate(drawn)
        if joined.min() > 0 and joined.max() > 30 * joined.min():
            axes.set_yscale("log")
        axes.set(xlabel="updates", ylabel="loss")
        return finish(legend=len(drawn) > 1)


Band = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""x, mean, and the ends of its interval, (N,) each."""


def bands(
    name: str,
    lines: Mapping[str, Band],
    x: str,
    y: str,
    *,
    percent: bool = False,
    shade: tuple[float, float, str] | None = None,
) -> str:
    """Means with their intervals, one line per label.

    Args:
        name: keeps the figures of a page apart.
        x, y: names of the axes.
        percent: the means are shares, from 0 to 1.
        shade: a stretch of the x axis to mark, and its name.
    """
    with canvas(name) as (axes, finish):
        if shade is not None:
            low_end, high_end, meant = shade
            if low_end < high_end:
                axes.axvspan(low_end, high_end, color=DATA, alpha=0.16, linewidth=0, label=meant)
            else:
                axes.axvline(low_end, color=DATA, linewidth=1.6, label=meant)
        for number, (label, (places, mean, low, high)) in enumerate(lines.items()):
            look = number % len(SERIES)
            marker = _MARKERS[look] if len(places) <= 40 else ""
            axes.fill_between(places, low, high, color=SERIES[look], alpha=0.15, linewidth=0)
            axes.plot(places, mean, color=SERIES[look], marker=marker, markersize=4.5, label=label)
        axes.set(xlabel=x, ylabel=y)
        if percent:
            axes.set_ylim(-0.03, 1.03)
            axes.yaxis.set_major_formatter(percent_label)
        return finish(legend=len(lines) > 1 or shade is not None)


def speed(curve: Curve) -> str:
    """Updates per second over training."""
    with canvas("speed") as (axes, finish):
        updates, values = thin(curve)
        axes.plot(updates, values, color=SERIES[2])
        axes.set(xlabel="updates", ylabel="updates per second")
        axes.set_ylim(bottom=0)
        return finish()


def thin(curve: Curve, points: int = 300) -> Curve:
    """At most `points` points: the means of blocks of neighbours."""
    x_N, y_N = curve
    if len(x_N) <= points:
        return curve
    blocks = np.linspace(0, len(x_N), points + 1).astype(np.int64)
    sizes = np.diff(blocks)
    return np.add.reduceat(x_N, blocks[:-1]) / sizes, np.add.reduceat(y_N, blocks[:-1]) / sizes


@contextmanager
def canvas(name: str, inches: tuple[float, float] = (4.2, 3.1)) -> Iterator[tuple[Any, Callable[..., str]]]:
    """One set of axes, and what turns the figure into SVG; `name` keeps the figures of a page apart."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=inches)
        axes = figure.add_subplot()

        def finish(legend: bool = False, top: float = 1.0, whole: bool = False) -> str:
            """Whole: only whole numbers along x."""
            _plain_numbers(axes.xaxis, whole)
            _plain_numbers(axes.yaxis)
            if legend:
                figure.legend(
                    *axes.get_legend_handles_labels(), loc="upper center", ncols=3, columnspacing=1.5, handlelength=1.8
                )
                top = 0.91 if len(axes.get_legend_handles_labels()[1]) <= 3 else 0.85
            figure.tight_layout(rect=(0, 0, 1, top), pad=0.4)
            return _svg(figure, name)

        yield axes, finish


def _svg(figure: Any, name: str) -> str:
    text = StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    # Ids must differ between the figures of one page.
    svg = re.sub(r'( id="|url\(#|xlink:href="#)', rf"\g<1>{name}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = re.sub(colour, f"var({variable})", svg, flags=re.IGNORECASE)
    svg = re.sub(r"(font(?:-family)?: [^;\"]*?)'DejaVu Sans'[^;\"]*", r"\1var(--font)", svg)
    # Matplotlib's style sheet is for `*`, which in a page is everything.
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    head, rest = svg.split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    return f'{head} aria-hidden="true" style="stroke-linejoin: round; stroke-linecap: butt">{rest}'


def _plain_numbers(axis: Any, whole: bool = False) -> None:
    """12,000 rather than 12000 or 1.2e4, on linear axes that have no formatter of their own."""
    from matplotlib.ticker import FuncFormatter, ScalarFormatter

    if isinstance(axis.get_major_formatter(), ScalarFormatter):
        axis.set_major_locator(_locator(whole))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}".replace("-", "\u2212")))


def _locator(whole: bool) -> Any:
    from matplotlib.ticker import MaxNLocator

    return MaxNLocator(nbins=6, steps=[1, 2, 5, 10] if whole else [1, 2, 2.5, 5, 10], integer=whole)


def percent_label(value: float, _: Any = None) -> str:
    """A share as text of an axis."""
    return f"{100 * value:.0f} %"


def _limits(values_N: np.ndarray) -> tuple[float, float]:
    low, high = float(values_N.min()), float(values_N.max())
    margin = 0.06 * (high - low) or max(1.0, 0.06 * abs(high))
    return low - margin, high + margin


def _number_of_bins(values_N: np.ndarray) -> int:
    return int(np.clip(2 * np.sqrt(len(values_N)), 12, 36))
