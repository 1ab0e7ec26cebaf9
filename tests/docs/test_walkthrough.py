"""docs/adding-a-system.md: its commands run, in order, and its code is what it says."""

import contextlib
import io
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foretoken.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "adding-a-system.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"```(console|python)\n(.*?)```", re.DOTALL)
SYSTEM = Path("my_systems/offline/my_system.py")


@pytest.fixture
def _installed_package(tmp_path, monkeypatch) -> Iterator[None]:
    """The folder `my_systems`, not made yet, counts as installed with its entry point, as after `pip install -e .`."""
    about = tmp_path / "my_systems-0.1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-systems\nVersion: 0.1\n")
    (about / "entry_points.txt").write_text("[foretoken.systems]\nmy_systems = my_systems\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORETOKEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FORETOKEN_RESULTS", str(tmp_path / "results"))
    yield
    forget()


def forget() -> None:
    """The next import reads the system's file again, as a new process would."""
    for name in [name for name in sys.modules if name.split(".")[0] == "my_systems"]:
        del sys.modules[name]


@pytest.mark.usefixtures("_installed_package")
def test_the_page_runs_from_top_to_bottom() -> None:
    laws = ""
    for kind, text in BLOCK.findall(PAGE):
        if kind == "python" and "def test_" in text:
            laws = text
            check(laws)
        elif kind == "python":
            replace_classes(text)
            forget()
            check(laws)
        else:
            for line in text.splitlines():
                run(line)
    assert Path("runs/second/run.json").is_file()


def check(text: str) -> None:
    """Runs the test that the page gives."""
    names: dict[str, Any] = {}
    exec(text, names)
    names["test_my_system"]()


def replace_classes(text: str) -> None:
    """What the page tells the reader to do: the new import on top, the two classes instead of the old ones, the card's stream."""
    imported, classes = text.split("\n\n\n", 1)
    before, rest = SYSTEM.read_text().split("@configures(", 1)
    after = rest[rest.index("def paper()") :]
    before = before.replace("from foretoken.nn.embed", f"{imported}\nfrom foretoken.nn.embed", 1)
    before = before.replace('"s_t -> a_t"', '"R_t  s_t -> a_t"').replace('"stateless"', '"streaming"')
    SYSTEM.write_text(f"{before}{classes}\n\n{after}")


def run(line: str) -> None:
    """One line of a console block; it must end well."""
    assert line.startswith("$ "), line
    program, *words = shlex.split(line[2:])
    assert program == "foretoken"
    told = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(told):
        code = main(words)
    assert code == 0, f"{line}: {told.getvalue()}"


def test_every_command_on_the_page_exists() -> None:
    from foretoken.cli import VERBS

    verbs = {verb for group in VERBS.values() for verb in group}
    named = re.findall(r"(?:`|^\$ |^)foretoken ([a-z]+)", PAGE, re.MULTILINE)
    assert set(named) >= {"new", "claim"} and set(named) <= verbs
