"""How long a new process takes to begin: importing the library, and the command line's first answers."""

import subprocess
import sys
import time
from statistics import median

from benchmarks.made import Data
from benchmarks.report import Job, Sheet, judged, time_of
from benchmarks.rounds import Settings

OVER_TORCH, HELP = 0.3, 0.4
COMMANDS = {
    "import torch": ["-c", "import torch"],
    "import foretoken": ["-c", "import foretoken"],
    "from foretoken import run": ["-c", "from foretoken import run"],
    "foretoken --help": ["-m", "foretoken", "--help"],
    "foretoken list": ["-m", "foretoken", "list"],
}


def run(data: Data, settings: Settings, *, full: bool) -> Job:
    """Every command in turn, in rounds; the first round warms the disk and does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(settings.rounds + 1):
        for name, words in COMMANDS.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, *words], check=True, capture_output=True)
            seconds[name].append(time.perf_counter() - began)
    found = {name: median(taken[1:]) for name, taken in seconds.items()}
    words = [
        sys.executable,
        "-c",
        "import sys, foretoken.cli as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\nassert 'torch' not in sys.modules",
    ]
    light = subprocess.run(words, capture_output=True).returncode == 0
    whole = found["from foretoken import run"] - found["import torch"]
    sentences = [
        judged(f"`from foretoken import run` at most {OVER_TORCH:g} s over importing torch", {"": whole <= OVER_TORCH}),
        judged(
            f"`foretoken --help` at most {HELP:g} s, without importing torch",
            {"": light and found["foretoken --help"] <= HELP},
        ),
        "The interpreter's own start is in all of them.",
    ]
    rows = [[name, time_of(taken)] for name, taken in found.items()]
    return Job("Starting", __doc__ or "", [Sheet("New processes", ("command", "time"), rows, sentences)], [])
