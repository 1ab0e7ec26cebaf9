"""A tiny store and a tiny run, made once by the command line itself, and a way to call it in this process."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from foretoken.cli import main


class Answer(NamedTuple):
    code: int
    out: str
    err: str


def call(*words: object) -> Answer:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return Answer(code, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands write below the present folder, the cache and the results folder: all of them temporary."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FORETOKEN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("FORETOKEN_RESULTS", str(tmp_path / "results"))


@pytest.fixture(scope="session")
def foretoken() -> Callable[..., Answer]:
    return call


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "pendulum"
    answer = call("collect", "Pendulum-v1", "--episodes", 4, "--out", folder, "--max-steps", 30)
    assert answer.code == 0, answer.err
    return folder


@pytest.fixture(scope="session")
def run(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for 4 updates, evaluated after 2 and 4. Tests may add evaluations, and change nothing else."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    settings = [
        "--source.store",
        store,
        "--training.updates",
        4,
        "--training.evaluate-every",
        2,
        "--evaluation.targets",
        -300,
        -100,
    ]
    answer = call("train", "decision_transformer", "smoke", *settings, "--evaluation.episodes", 2, "--out", folder)
    assert answer.code == 0, answer.err
    return folder
