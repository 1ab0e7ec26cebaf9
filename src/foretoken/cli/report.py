"""`foretoken report RUN`: films the best, median and worst episode of the last evaluation, and writes report.html.

What the method shows of itself is made here too, where it was not kept with that evaluation. The checkpoint is read only for
what has to be played.
"""

from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from foretoken.cli.compare import newest
from foretoken.cli.evaluate import checkpoint_update, single_spec, trained
from foretoken.cli.terminal import Parser, say, some
from foretoken.core.errors import CheckpointError, DataError, ForetokenError

if TYPE_CHECKING:
    from foretoken.core.method import Method
    from foretoken.evaluation.evaluate import Evaluated
    from foretoken.experiment import Run


def main(argv: list[str]) -> int:
    parser = Parser("report", "Writes RUN/report.html, one page that needs nothing else, and RUN/videos/*.mp4.")
    parser.add_argument("run", help="the run's folder")
    parser.add_argument("--out", metavar="FILE", help="the page to write (default: RUN/report.html)")
    parser.add_argument("--no-videos", action="store_true", help="leave the videos as they are")
    options = parser.parse_args(argv)
    from foretoken.evaluation.evaluate import read_evaluations
    from foretoken.evaluation.report import write_report
    from foretoken.experiment import Run

    run = Run.open(options.run)
    read_evaluations(run.path)  # a broken one is an error, and none at all is no reason to write no page
    try:
        last = newest(run.path)
        method = cache(partial(_method, run, last))
        for made in (*_show(run, last, method), *([] if options.no_videos else _film(run, last, method))):
            print(made)
    except ForetokenError as problem:
        say(f"foretoken: nothing played: {problem}")
    print(write_report(run.path, out=Path(options.out) if options.out else None))
    return 0


def _method(run: "Run", last: "Evaluated") -> "Method":
    """The method as it was at the last evaluation."""
    best = last.update != checkpoint_update(run)
    if best and last.update != checkpoint_update(run, best=True):
        raise CheckpointError(
            f"the checkpoint of update {last.update}, which was evaluated last, is gone; evaluate again"
        )
    return trained(run, best=best)


def _show(run: "Run", last: "Evaluated", method: "Callable[[], Method]") -> list[Path]:
    """What the method shows of itself, where it was not kept with the evaluation."""
    from foretoken.evaluation.exhibits import read_exhibits, replay, shows, write_exhibits

    if last.file is None or isinstance(run.spec, Mapping) or not shows(type(run.experiment.system).owner):
        return []
    shown = None
    with suppress(DataError):  # a broken file is made anew
        shown = read_exhibits(last.file)
    if shown and not shown.missing:
        return []
    again = partial(replay, method(), run.spec, last, run.experiment.evaluation.max_steps)
    made = write_exhibits(last.file, method(), last.update, again)
    return [] if made is None else [made]


def _film(run: "Run", last: "Evaluated", method: "Callable[[], Method]") -> list[Path]:
    """The films made; a page without films is still a page, so what prevents them is told and no more."""
    from foretoken.evaluation.rollout import job_of, rollout
    from foretoken.evaluation.video import choose, write_videos

    try:
        # later episodes of a trial would need the memory of those before
        jobs = [job_of(record) for record in choose([one for one in last.records if not one.index]).values()]
        policy = method().policy
        say(f"filming {some(len(jobs), 'episode')}")
        played = rollout(
            policy, last.environment, jobs, spec=single_spec(run), seed=last.seed, num_slots=len(jobs),
            max_steps=run.experiment.evaluation.max_steps, keep_actions=True,
        )  # fmt: skip
    except ForetokenError as problem:
        say(f"foretoken: no videos: {problem}")
        return []
    folder, name = run.path / "videos", last.file.stem if last.file else ""
    made = write_videos(folder, last.environment, played, update=last.update, evaluation=name)
    return [folder / video.file for video in made]
