"""The dispatcher: help without torch, near names, errors in one or two lines, exit codes."""

import errno
import subprocess
import sys
from importlib import import_module

import pytest

from foretoken import cli
from foretoken.core.errors import DataError

VERBS = [verb for verbs in cli.VERBS.values() for verb in verbs]


def test_help_lists_every_command(foretoken) -> None:
    answer = foretoken("--help")
    for verb in VERBS:
        assert f"\n  {verb} " in answer.out


def test_looking_and_help_need_no_torch() -> None:
    light = [
        ["--help"],
        ["list"],
        ["show", "dt"],
        *([verb, "--help"] for verb in VERBS if verb not in ("in-context", "probe")),
    ]
    program = (
        f"import sys; from foretoken.cli import main; codes = [main(words) for words in {light}]; "
        "assert not any(codes), codes; heavy = {'torch', 'numpy', 'tyro'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_python_m_foretoken_is_the_command_line() -> None:
    done = subprocess.run([sys.executable, "-m", "foretoken", "--version"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()[0]) == (0, "foretoken")


@pytest.mark.parametrize("verb", VERBS)
def test_every_command_explains_itself(verb, foretoken) -> None:
    answer = foretoken(verb, "--help")
    assert answer.code == 0 and f"usage: foretoken {verb}" in answer.out


def test_unknown_command_names_the_nearest(foretoken) -> None:
    answer = foretoken("evaluat", "run")
    assert answer.code == 2 and "'evaluat'" in answer.err and "did you mean 'evaluate'" in answer.err


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "train"])
def test_unknown_option_is_an_error_of_two_lines(verb, foretoken) -> None:
    answer = foretoken(verb, "a", "b", "--episodes", "1", "--jsno")
    assert answer.code == 2 and answer.out == ""
    assert answer.err.startswith("foretoken: error: ") and len(answer.err.splitlines()) <= 2


def test_option_near_a_known_one_is_suggested(foretoken) -> None:
    assert "did you mean '--json'" in foretoken("list", "--jsno").err


@pytest.mark.parametrize(
    ("problem", "code", "told"),
    [
        (DataError("the store is broken"), 2, "foretoken: error: the store is broken\n"),
        (
            FileNotFoundError(2, "No such file or directory", "x/y"),
            2,
            "foretoken: error: x/y: No such file or directory\n",
        ),
        (
            NotADirectoryError(errno.ENOTDIR, "Not a directory", "x/y"),
            2,
            "foretoken: error: x/y: a file is there and a folder is needed; give another path\n",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "x/y"),
            2,
            "foretoken: error: x/y: permission denied; give a path that you may read and write\n",
        ),
        (KeyError("inner"), 2, "foretoken: error: unexpected KeyError: 'inner'; --debug shows where\n"),
        (KeyboardInterrupt(), 130, "foretoken: stopped\n"),
        (KeyboardInterrupt("stopped after update 3"), 130, "foretoken: stopped after update 3\n"),
    ],
)
def test_errors_are_told_without_a_traceback(problem, code, told, foretoken, monkeypatch) -> None:
    def fail(argv: list[str]) -> int:
        raise problem

    monkeypatch.setattr(import_module("foretoken.cli.list"), "main", fail)
    assert foretoken("list") == (code, "", told)
    assert "Traceback" in foretoken("list", "--debug").err


def test_a_reader_that_left_is_no_error() -> None:
    program = "import sys; from foretoken.cli import main; input(); sys.exit(main(['--help']))"
    with subprocess.Popen([sys.executable, "-c", program], stdin=-1, stdout=-1, stderr=-1, text=True) as writer:
        assert writer.stdin and writer.stdout and writer.stderr
        writer.stdout.close()
        writer.stdin.write("\n")
        writer.stdin.flush()
        assert writer.stderr.read() == ""
        assert writer.wait() == 1


def test_a_full_disk_is_told_with_a_way_out(monkeypatch, foretoken) -> None:
    def full(words):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("foretoken.cli.list.main", full)
    assert foretoken("list").err == "foretoken: error: the disk is full; make room, or write elsewhere (--out)\n"
