"""`foretoken train SYSTEM PRESET [settings]`: trains into a new run folder, or resumes a run.

    foretoken train decision_transformer cpu --source.store stores/hopper --training.updates 5000
    foretoken train --resume runs/decision_transformer-cpu-20260304-101500

Every setting of the preset is an option, by its path in the Experiment.
"""

import contextlib
import io
import os
import re
import shlex
from argparse import Namespace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretoken.cli.presets import find_preset, presets
from foretoken.cli.terminal import Parser, print_json, say
from foretoken.core import catalogue
from foretoken.core.errors import ConfigError, ForetokenError

if TYPE_CHECKING:
    from foretoken.experiment import Experiment, Run


def main(argv: list[str]) -> int:
    words, rest = _split(argv)
    parser = _parser()
    options, settings = parser.parse_known_args(rest)
    if options.help:
        return _explain(parser, words, options.mixer)
    if options.resume:
        return _resume(options, words, settings)
    experiment = _experiment(words, settings, options.mixer)
    return _run(experiment, _folder(experiment, words, options.out), options, argv, resume=False)


def _folder(experiment: "Experiment", words: list[str], given: str | None) -> Path:
    """Where the run goes. With several devices, the other processes run this again later and must find the same folder."""
    if given:
        return Path(given)
    name = f"{words[0]}-{words[1]}-{datetime.now():%Y%m%d-%H%M%S}"
    if experiment.training.devices > 1:
        name = os.environ.setdefault("FORETOKEN_RUN_NAME", name)
    return Path("runs") / name


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Up to two leading words (system and preset), and everything else."""
    leading = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    return argv[: min(leading, 2)], argv[min(leading, 2) :]


def _parser() -> Parser:
    parser = Parser(
        "train", "Trains a system from one of its presets into a new run folder.", add_help=False,
        usage="foretoken train SYSTEM PRESET [options] [--SETTING VALUE ...]\n       foretoken train --resume RUN",
        epilog="Any setting of the preset can be given, for example --source.store STORE --training.updates 5000;\n"
        "`foretoken train SYSTEM PRESET --help` lists them all, and `foretoken show SYSTEM` its presets.",
    )  # fmt: skip
    parser.add_argument("-h", "--help", action="store_true", help="show this help; after SYSTEM PRESET, all settings")
    parser.add_argument("--out", metavar="RUN", help="the new run's folder (default: runs/<system>-<preset>-<time>)")
    parser.add_argument(
        "--mixer", metavar="NAME", help="in every layer, with its defaults; docs/mixers.md has the shelf"
    )
    parser.add_argument("--resume", metavar="RUN", help="continue this run with its own settings")
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved settings as JSON, and what the run would cost"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    return parser


def _explain(parser: Parser, words: list[str], mixer: str | None) -> int:
    if len(words) == 2:
        _experiment(words, ["--help"], mixer)
    print(parser.format_help())
    return 0


def _experiment(words: list[str], settings: list[str], mixer: str | None = None) -> "Experiment":
    if not words:
        raise ConfigError(
            "train needs a system and a preset, for example `train decision_transformer cpu`; `foretoken list` shows the systems"
        )
    entry = catalogue.find(words[0])
    if len(words) == 1:
        raise ConfigError(f"train needs a preset of {entry.name}: {', '.join(presets(entry.file))}")
    default = find_preset(entry, words[1])()
    if mixer:
        from foretoken.nn.mixers import find
        from foretoken.nn.stack import with_mixer

        default = with_mixer(default, find(mixer)())
    return read_settings(default, settings, f"foretoken train {entry.name} {words[1]}")


_DESCRIPTION = (
    "Trains with these settings; `foretoken train --help` explains --out, --mixer, --resume, --dry-run and --quiet."
)


def read_settings(default: "Experiment", words: list[str], program: str) -> "Experiment":
    """The experiment with the settings of the command line; a ConfigError of one line where they are refused."""
    import tyro

    caught = io.StringIO()
    plain: Any = tyro.conf.AvoidSubcommands
    try:
        with contextlib.redirect_stderr(caught):
            return tyro.cli(plain[type(default)], default=default, args=words, prog=program, description=_DESCRIPTION)
    except SystemExit as end:
        if not end.code:
            raise
        raise ConfigError(f"{_unboxed(caught.getvalue())}; `{program} --help` lists the settings") from None


def _unboxed(text: str) -> str:
    """The message inside tyro's box in one line, with the nearest option where it names some."""
    # where the terminal has no lines to draw with, tyro takes - and |
    lines = [line.strip("╭╮╰╯│─| ") for line in text.splitlines()[1:] if line.strip("+- ")]
    ends = (i for i, line in enumerate(lines) if line.startswith(("For full helptext", "Argument helptext")))
    message, _, near = " ".join(filter(None, lines[: next(ends, len(lines))])).partition("Perhaps you meant:")
    found = re.search(r"--[\w.-]+", near)
    # of a config that refused its values, the message itself says which
    message = re.sub(r"^Error parsing (?:(--[\w.-]+: )|[\w.-]+: )", r"\1", message)
    return message.strip().removesuffix(".") + (f" (did you mean {found[0]!r}?)" if found else "")


def _resume(options: Namespace, words: list[str], settings: list[str]) -> int:
    from foretoken.experiment import Run

    if settings or options.out or options.mixer:
        given = " ".join(settings or (["--out", options.out] if options.out else ["--mixer", options.mixer]))
        raise ConfigError(f"a resumed run keeps its settings and folder, got {given!r}; start a new run to change them")
    run = Run.open(options.resume)
    if words:
        _check_same(run, words)
    return _run(run.experiment, run.path, options, [], resume=True)


def _check_same(run: "Run", words: list[str]) -> None:
    """Refuses a system that is not the run's."""
    theirs = run.experiment.system
    ours = _experiment(words, []).system if len(words) == 2 else None
    if ours is not None and type(ours) is not type(theirs):
        both = f"{type(theirs).__name__}, but {words[0]} has {type(ours).__name__}"
        raise ConfigError(f"{run.path} was trained with {both}; leave the system and preset out")


def _run(experiment: "Experiment", out: Path, options: Namespace, argv: list[str], *, resume: bool) -> int:
    if options.dry_run:
        return _tell(experiment)
    from foretoken.experiment import run

    try:
        done = run(
            experiment,
            out,
            resume=resume,
            command=shlex.join(["foretoken", "train", *argv]),
            progress=not options.quiet,
        )
    except KeyboardInterrupt as stop:
        if not (out / "run.json").exists():
            raise
        if _leads():
            say(f"foretoken: {_stopped(stop, out)}; continue with: foretoken train --resume {shlex.quote(str(out))}")
        return 130
    if _leads():
        print(_told(done))
    return 0


def _leads() -> bool:
    """Whether this is the process that speaks, of several that train together."""
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _stopped(stop: KeyboardInterrupt, out: Path) -> str:
    """What is kept of an interrupted run: all of it, or what the last checkpoint holds where Ctrl-C was pressed twice."""
    from foretoken.training import Interrupted, checkpoint

    if isinstance(stop, Interrupted):
        return f"stopped, saved in {stop.checkpoint}"
    last = checkpoint.latest(out)
    return f"stopped at once, {f'last saved in {last.folder}' if last else 'nothing was saved yet'}"


def _tell(experiment: "Experiment") -> int:
    """Settings on stdout; what they would cost, measured for some seconds, on stderr."""
    print_json(experiment.to_json())
    say("foretoken: measuring what it would cost; Ctrl-C leaves that out")
    from foretoken import estimate

    try:
        found = estimate.estimate(experiment).text()
    except KeyboardInterrupt:
        found = "no estimate"
    except (ForetokenError, OSError) as problem:
        found = f"no estimate, the run would fail: {problem}"
    say(f"foretoken: {found}")
    return 0


def _told(run: "Run") -> str:
    from foretoken.evaluation.scores import score_card

    path = shlex.quote(str(run.path))
    if not (run.experiment.evaluation.environment or getattr(run.spec, "environment", "")):
        return f"run: {run.path}\nnothing was played: the data name no environment; `foretoken evaluate {path} --environment ID` plays one"
    found = run.evaluations()
    card = score_card(found).text() + "\n" if found else ""
    return f"{card}run: {run.path}\n`foretoken evaluate {path} --episodes 100` measures it, `foretoken report {path}` writes its page"
