"""Writes docs/systems/ from the cards and the recorded claims: a gallery by family, and a page for each system.

    python -m scripts.pages

Nothing there is written by hand: a page says what `foretoken show` says, and `tests/docs/test_pages.py` refuses stale ones.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from foretoken.cli import results
from foretoken.cli.presets import presets
from foretoken.cli.show import ACTING, draw, result_text
from foretoken.core import catalogue
from foretoken.core.catalogue import Entry

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "systems"
FAMILIES = {
    "offline": "Offline: policies from recorded trajectories",
    "value": "Value: sequence models that learn what actions are worth",
    "incontext": "In context: learners that are frozen",
    "memory": "Memory: learned online, in environments that must be remembered",
    "imitation": "Imitation: policies from demonstrations",
    "worldmodel": "World models: plans made in a learned world",
    "search": "Search: whole ways, found before they are gone",
    "bodies": "Bodies: policies that know the parts they move",
}


def pages() -> dict[Path, str]:
    """Every page's text by its file."""
    entries = [entry for entry in catalogue.systems().values() if entry.module.startswith("foretoken.systems.")]
    made = {FOLDER / f"{entry.name}.md": "\n\n".join(_page(entry)) + "\n" for entry in entries}
    return {FOLDER / "README.md": "\n\n".join(_gallery(entries)) + "\n"} | made


def _gallery(entries: list[Entry]) -> Iterator[str]:
    yield "# Systems"
    yield (
        "Each is one file that follows its paper; its claim is the paper's, as an experiment that `foretoken claim` runs with all arms and "
        "seeds. *Holds* and *does not hold* are what was measured here, at the size the page of the system says; *3 of 4* counts the "
        "conditions of the claim that hold, all of which must."
    )
    for family, members in groupby(entries, key=lambda entry: entry.family):
        yield f"## {FAMILIES.get(family, family.capitalize())}"
        lines = ["| system | paper | what it claims | measured |", "| --- | --- | --- | --- |"]
        for entry in members:
            card, status = entry.card, results.told(entry)
            lines.append(f"| [{card.title}]({entry.name}.md) | {card.paper} | {card.claim} | {status} |")
        yield "\n".join(lines)


def _page(entry: Entry) -> Iterator[str]:
    card = entry.card
    yield f"# {card.title}"
    yield f"{card.paper}. Key `{card.key}`, family {entry.family}, tags {', '.join(card.tags)}."
    yield f"**Claim.** {card.claim}"
    yield f"One step of the token stream:\n\n```\n{draw(card.stream)}\n```"
    yield f"Acts by {ACTING.get(card.acting, card.acting)}."
    yield "## Presets"
    yield "\n".join(f"- `foretoken train {entry.name} {name}`: {line}" for name, line in presets(entry.file).items())
    yield "## Deviations from the paper"
    yield "\n".join(f"{i}. {text}" for i, text in enumerate(card.deviations, 1)) or "None."
    yield "## Measured"
    record = results.read(entry)
    if record is None:
        yield f"Not yet run; `foretoken claim {entry.name}` runs it."
    else:
        yield f"```\n{result_text(record)}\n```"
    yield f"File: [`{entry.file.relative_to(ROOT)}`](../../{entry.file.relative_to(ROOT)})"


def main() -> None:
    made = pages()
    FOLDER.mkdir(parents=True, exist_ok=True)
    for old in set(FOLDER.glob("*.md")) - made.keys():
        old.unlink()
    for file, text in made.items():
        file.write_text(text, encoding="utf-8")
    print(f"{len(made)} pages in {FOLDER.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
