"""foretoken's speed beside d3rlpy's, TorchRL's, Hugging Face's and sb3-contrib's, measured in one run.

    pip install "foretoken[bench,minari]"
    pip install --no-deps d3rlpy==2.8.1                   it pins gymnasium 1.0.0, which TorchRL and foretoken refuse
    python -m benchmarks                                  all jobs, printed
    python -m benchmarks training acting --rounds 9
    python -m benchmarks --full --out docs/performance.md
    python -m benchmarks streaming mixers --out docs/performance.md      renews these sections of the page, keeps the others

Every job makes the same thing with every library, each in a process of its own, in turns whose order changes from round to
round. It prints medians over rounds, the ratio to the best peer, and the distance to the floor: the bare matrix products, or
the bytes copied. Turns that other programs disturbed are repeated, and marked when they stay so. A library that is not
installed is skipped, and a line says so. Take a quiet machine: on a busy one the ratios move, and with several threads far.
"""

import argparse
import importlib
import os
import shlex
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import machine
from benchmarks.made import Data
from benchmarks.report import Job, renewed
from benchmarks.rounds import CLOCKS, TOLERANCE, Settings, tell

JOBS = (
    "training", "acting", "evaluating", "rounding", "streaming", "windows", "reading", "mixers", "memory", "worlds", "starting",
    "growth", "capped",
)  # fmt: skip
LEAST = 60_000
HEAD = f"""# Performance

Made by the command that each section names; nothing here is typed by hand. Absolute figures belong to the machine, ratios
travel better. A turn is disturbed when other processes took over {TOLERANCE:.0%} of the processors in each of three tries. Medians
over rounds; ratios are medians of the ratios within rounds.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the jobs asked for and prints or writes the page."""
    parser = _parser()
    asked = parser.parse_args(arguments)
    if asked.transitions < LEAST:
        parser.error(
            f"--transitions must be at least {LEAST} (more episodes than a batch has rows), got {asked.transitions}"
        )
    settings = Settings(asked.threads, asked.clock, asked.rounds, asked.seconds)
    settings.apply()
    done: list[Job] = []
    with tempfile.TemporaryDirectory(prefix="foretoken-benchmarks-") as folder:
        Data(Path(folder), asked.transitions).store.close()
        for name in asked.jobs or JOBS:
            done.append(_job(name, Data(Path(folder), asked.transitions), settings, asked))
            if asked.out:  # at once, lest a later job's failure lose it
                asked.out.parent.mkdir(parents=True, exist_ok=True)
                page = asked.out.read_text(encoding="utf-8") if asked.out.exists() else ""
                asked.out.write_text(renewed(page, HEAD, done[-1:]), encoding="utf-8")
    print(renewed("", HEAD, done), end="")
    return 0


def _job(name: str, data: Data, settings: Settings, asked: argparse.Namespace) -> Job:
    tell(f"{name}:")
    began = time.monotonic()
    job = importlib.import_module(f"benchmarks.{name}").run(data, settings, full=asked.full)
    job.facts = _facts(asked, time.monotonic() - began)
    return job


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "jobs", nargs="*", choices=[*JOBS, []], metavar="job", help=f"of {', '.join(JOBS)}; all by default"
    )
    parser.add_argument("--rounds", type=int, default=5, help="turns of each contestant (default 5)")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn (default 2)")
    parser.add_argument(
        "--threads", type=int, default=os.cpu_count() or 1, help="threads of torch (default: all cores)"
    )
    parser.add_argument("--transitions", type=int, default=1_000_000, help="size of the made data (default a million)")
    parser.add_argument("--full", action="store_true", help="train larger batches, longer windows and in bfloat16 too")
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="processor: own time only, for busy machines",
    )
    parser.add_argument(
        "--out", type=Path, help="also write to this page, for example docs/performance.md; sections of other jobs stay"
    )
    return parser


def _facts(asked: argparse.Namespace, seconds: float) -> str:
    versions = ", ".join(f"{name} {machine.version(name)}" for name in machine.LIBRARIES if machine.version(name))
    clock = (
        "" if asked.clock == "wall" else " Clock: time of this process on the processors, which hides what others took."
    )
    return (
        f"Measured on {time.strftime('%Y-%m-%d')} in {seconds / 60:.0f} minutes at commit {machine.commit()} by "
        f"`python -m benchmarks {shlex.join(sys.argv[1:])}".rstrip()
        + f"` on {machine.describe()}. Python {sys.version.split()[0]}, {versions}.{clock} "
        f"Data, where there are any: {asked.transitions:,} made transitions of Hopper's shape (observation 11, action 3), "
        "episodes of 200 to 1000 steps."
    )


if __name__ == "__main__":
    sys.exit(main())
