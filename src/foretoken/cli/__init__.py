"""The command line: `foretoken VERB ...`, one file per verb, imported when it is used.

Results go to stdout, progress to stderr. Errors are one or two lines and exit code 2; `--debug` shows the traceback.
"""

import errno
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import Any

VERBS: dict[str, dict[str, tuple[str, str]]] = {
    "Look": {
        "list": ("list", "the systems by family, and whether their claims hold"),
        "show": ("show", "one system: card, token stream, presets, deviations, last claim"),
        "doctor": ("doctor", "look through a store for what spoils training"),
    },
    "Data": {
        "import": ("import_", "turn a dataset of Minari, D4RL or npz files into a store"),
        "collect": ("collect", "play episodes in an environment into a store"),
    },
    "Train and measure": {
        "train": ("train", "train a system from a preset, or resume a run"),
        "evaluate": ("evaluate", "play episodes with a trained policy, print the score card"),
        "compare": ("compare", "the difference of two runs, with an interval"),
        "report": ("report", "write a run's report.html and its videos"),
        "claim": ("claim", "test a system's claim with all its arms and seeds"),
        "in-context": ("in_context", "the table of in-context learners on held-out tasks"),
        "probe": ("probe", "what a mixer learns in seconds, and what it costs"),
    },
    "Write": {
        "new": ("new", "start a system file that already passes its laws"),
    },
}
"""By group and verb: the module in this package, and one line of help."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 1 (bad news, for example from `doctor`), 2 (error) or 130 (Ctrl-C)."""
    given = sys.argv[1:] if argv is None else argv
    debug = "--debug" in given
    words = [word for word in given if word != "--debug"]
    try:
        code = _dispatch(words)
        sys.stdout.flush()
        return code
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else _say(str(end.code))
    except BrokenPipeError:
        # the reader of a pipe (head, less) has left; nothing more may be written while Python shuts down
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (Exception, KeyboardInterrupt) as problem:
        if debug:
            traceback.print_exc()
            return 130 if isinstance(problem, KeyboardInterrupt) else 2
        return _explain(problem)


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if words[0] in ("-V", "--version"):
        from foretoken import __version__

        print(f"foretoken {__version__}")
        return 0
    verbs = {verb: module for group in VERBS.values() for verb, (module, _) in group.items()}
    if words[0] not in verbs:
        from foretoken.core.names import nearest

        return _say(f"no command is called {words[0]!r}{nearest(words[0], verbs)}; `foretoken --help` lists them")
    return import_module(f"foretoken.cli.{verbs[words[0]]}").main(words[1:])


def _help() -> str:
    lines = [
        "usage: foretoken COMMAND [ARGUMENTS] [--debug]",
        "",
        "Sequence models that act: train, measure and compare them.",
        "",
    ]
    width = max(len(verb) for verbs in VERBS.values() for verb in verbs)
    for group, verbs in VERBS.items():
        lines += [group, *(f"  {verb:<{width}}  {line}" for verb, (_, line) in verbs.items()), ""]
    return "\n".join([*lines, "`foretoken COMMAND --help` explains each; --debug shows the traceback of an error."])


def _explain(problem: BaseException) -> int:
    if isinstance(problem, KeyboardInterrupt):
        return _say(str(problem) or "stopped", code=130)
    from foretoken.core.errors import ForetokenError

    if isinstance(problem, ForetokenError):
        return _say(str(problem))
    if isinstance(problem, OSError):
        return _say(_os_error(problem))
    return _say(f"unexpected {type(problem).__name__}: {problem}; --debug shows where", code=2)


_WAYS_OUT = {
    errno.EACCES: "permission denied; give a path that you may read and write",
    errno.EPERM: "permission denied; give a path that you may read and write",
    errno.EROFS: "nothing can be written there; give another path",
    errno.EEXIST: "a file is there and a folder is needed; give another path",
    errno.ENOTDIR: "a file is there and a folder is needed; give another path",
    errno.EISDIR: "a folder is there and a file is needed; give another path",
    errno.ENAMETOOLONG: "the name is too long; give a shorter one",
}


def _os_error(problem: OSError) -> str:
    about: Any = f"{problem.filename}: " if problem.filename else ""
    if problem.errno == errno.ENOSPC:
        return f"{about}the disk is full; make room, or write elsewhere (--out)"
    told = _WAYS_OUT.get(problem.errno or 0, problem.strerror)
    return f"{about}{told}" if about and told else str(problem)


def _say(message: str, code: int = 2) -> int:
    print(f"foretoken: error: {message}" if code == 2 else f"foretoken: {message}", file=sys.stderr)
    return code
