"""Tables of scores, as Markdown, and the page that holds them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.rounds import Maker, Score


def skipped(makers: Sequence[Maker]) -> list[str]:
    """A line for every library that is not installed."""
    libraries = dict.fromkeys(library for maker in makers for library in maker.missing())
    return [
        f"{library} is not installed and was skipped; `python -m benchmarks --help` says how to install it"
        for library in libraries
    ]


@dataclass
class Table:
    """Scores of one setting.

    Args:
        title: the setting.
        scores: ours first.
        floor: seconds per unit that the machine needs at least.
        unit: what is counted, in the plural.
        target: how many times faster than the best peer we mean to be; 0 = no target.
        note: where the floor comes from.
        complete: whether every peer took part; otherwise the target is not judged.
    """

    title: str
    scores: Sequence[Score]
    floor: float
    unit: str
    target: float = 0.0
    note: str = ""
    complete: bool = True

    @property
    def best_peer(self) -> Score | None:
        peers = [score for score in self.scores if not score.contestant.ours and score.contestant.counts]
        return min(peers, key=lambda score: score.median, default=None)

    @property
    def ratio(self) -> tuple[float, float, float] | None:
        """How many times our first entry is faster than the best peer: median, lowest and highest over rounds."""
        return self.scores[0].over(self.best_peer) if self.best_peer else None

    def markdown(self) -> list[str]:
        rounds = len(self.scores[0].seconds)
        head = f"| | {self.unit}/s | time for one | against the best peer | times its floor | disturbed rounds of {rounds} |"
        rows = [head, "|---|---|---|---|---|---|", *map(self._row, self.scores)]
        return [f"### {self.title}", "", *rows, "", *self._verdict(), *self._notes(), ""]

    def _row(self, score: Score) -> str:
        peer = self.best_peer
        against = f"{score.over(peer)[0]:.2f}x" if peer else ""
        speed = [number(score.rate), time_of(score.median), against, f"{score.median / self.floor:.1f}"]
        return f"| {' | '.join([score.contestant.name, *speed, str(score.disturbed)])} |"

    def _verdict(self) -> list[str]:
        if not self.ratio or not self.best_peer:
            return []
        middle, low, high = self.ratio
        name, span = self.best_peer.contestant.name, f"{low:.2f} to {high:.2f} over rounds"
        line = f"{self.scores[0].contestant.name} is **{middle:.2f} times** as fast as the best peer, {name} ({span})"
        if self.target:
            judged = "met" if middle >= self.target else "**not met**"
            line += (
                f"; the goal is {self.target:g} times: {judged if self.complete else 'not judged, peers are missing'}"
            )
        return [line + ".", ""]

    def _notes(self) -> list[str]:
        notes = [f"{score.contestant.name}: {score.contestant.note}." for score in self.scores if score.contestant.note]
        return [" ".join([self.note, *notes])]


@dataclass
class Sheet:
    """A table of any other form.

    Args:
        title: the setting.
        head: names of the columns.
        rows: their cells.
        sentences: what follows from it: judged goals, then notes.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    sentences: Sequence[str]

    def markdown(self) -> list[str]:
        line = lambda cells: f"| {' | '.join(cells)} |"  # noqa: E731
        below = [part for sentence in self.sentences if sentence for part in (sentence, "")]
        return [
            f"### {self.title}",
            "",
            line(self.head),
            "|---" * len(self.head) + "|",
            *map(line, self.rows),
            "",
            *below,
        ]


def judged(goal: str, results: Mapping[str, bool]) -> str:
    """A sentence that says which of the named met a goal."""
    missed, met = ([name for name, good in results.items() if good is which] for which in (False, True))
    if not results:
        return f"The goal is {goal}: not judged, peers are missing."
    if len(results) == 1:
        return f"The goal is {goal}: {'**not met**' if missed else 'met'}."
    parts = (("**not met** by", missed), ("met by", met))
    return f"The goal is {goal}: " + "; ".join(f"{word} {', '.join(names)}" for word, names in parts if names) + "."


@dataclass
class Job:
    """What one module measured. `facts` says how, in one line: command, machine, versions, date."""

    title: str
    text: str
    tables: Sequence[Table | Sheet]
    missing: Sequence[str] = field(default_factory=list)
    facts: str = ""

    def markdown(self) -> list[str]:
        lines = [f"## {self.title}", "", " ".join(self.text.split()), "", *([self.facts, ""] if self.facts else [])]
        for table in self.tables:
            lines += table.markdown()
        return lines + [line for missing in self.missing for line in (f"- {missing}", "")]


def renewed(page: str, head: str, jobs: Sequence[Job]) -> str:
    """The page with a new head and these jobs' sections renewed in their places, or added; other sections stay as they are."""
    _, *old = re.split(r"^(?=## )", page, flags=re.MULTILINE)
    sections = {part.split("\n", 1)[0].removeprefix("## "): part.rstrip() for part in old}
    sections |= {job.title: "\n".join(job.markdown()).rstrip() for job in jobs}
    return "\n\n".join([head.rstrip(), *sections.values()]) + "\n"


def number(value: float) -> str:
    """Three digits that matter, with thousands set apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def time_of(seconds: float) -> str:
    """Seconds in the unit that reads best."""
    for scale, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def megabytes(size: int) -> str:
    """Bytes as MB, "" where they were not measured."""
    return f"{size / 1e6:,.0f} MB" if size else ""


def bytes_of(size: float) -> str:
    """Bytes in the unit that reads best."""
    for scale, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.3g} B"
