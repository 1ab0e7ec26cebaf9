"""The films of single episodes, inside the page while they are small."""

import base64
import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from foretoken.evaluation.report.record import Record
from foretoken.evaluation.report.words import count, number, section
from foretoken.evaluation.video import read_index

EMBED_LIMIT = 6_000_000
"""Bytes of video, all films together, up to which they go into the page itself."""


def draw(run: Record) -> str:
    """Of the last evaluation; where it was not filmed, of the newest one before it in the same environment."""
    folder = run.folder / "videos"
    index = read_index(folder)
    there = [video for video in index["videos"] if (folder / video["file"]).exists()]
    played = (found.file.stem for found in reversed(run.evaluations) if found.file is not None)
    films = next(filter(None, ([one for one in there if one["evaluation"] == name] for name in played)), [])
    if not films:
        which = "the best, the median and the worst episode of the last evaluation"
        films_them = f"<code>{escape(run.report_command)}</code> films {which}"
        return section("Videos", f"<p>There are none. {escape(index['missing']) or films_them}.</p>")
    embedded = sum((folder / video["file"]).stat().st_size for video in films) < EMBED_LIMIT
    figures = "".join(_film(video, folder, run.out, embedded) for video in films)
    note = [
        f"Replayed from the reset seed and the recorded actions, with the recorded return checked; update {number(films[0]['update'])}."
    ]
    if any(video["renderer"] == "sketch" for video in films):
        note.append("Drawn as a sketch, for want of OpenGL.")
    if not embedded:
        note.append("Too large to be part of this page: they play from the run folder.")
    return section("Videos", f'<p class="note">{" ".join(note)}</p><div class="videos">{figures}</div>')


def _film(video: Mapping[str, Any], folder: Path, out: Path, embedded: bool) -> str:
    file = folder / video["file"]
    if embedded:
        source = "data:video/mp4;base64," + base64.b64encode(file.read_bytes()).decode()
    else:
        source = escape(Path(os.path.relpath(file, out.parent)).as_posix())
    asked = "" if video["target"] is None else f"asked {number(video['target'])}, "
    told = f"{asked}achieved {number(video['achieved'])} in {count(video['length'], 'step')}"
    cut = f"; the first {number(video['shown'])} are shown" if video["shown"] < video["length"] else ""
    name = escape(str(video["name"]))
    return (
        f'<figure><video controls muted loop playsinline preload="metadata" aria-label="{name} episode: {told}" src="{source}"></video>'
        f'<figcaption><span class="name">{name}</span>: {told}{cut}. Episode {video["episode"]}, reset seed {video["reset_seed"]}.'
        "</figcaption></figure>"
    )
