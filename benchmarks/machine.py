"""What the measurements ran on, and how much of the processors others used meanwhile."""

import gc
import os
import platform
import subprocess
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import torch

LIBRARIES = (
    "torch", "numpy", "d3rlpy", "torchrl", "tensordict", "transformers", "stable-baselines3", "sb3-contrib", "minari", "gymnasium",
)  # fmt: skip


def version(library: str) -> str:
    """The installed version, "" where there is none."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""


def describe() -> str:
    """Processor, cores, threads and what matters of its instruction set, in one line."""
    name, flags = platform.processor() or platform.machine(), set()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        name, flags = fields.get("model name", name), set(fields.get("flags", "").split())
    known = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return f"{name}, {os.cpu_count()} cores ({', '.join(known) or 'instruction set unknown'}), {torch.get_num_threads()} threads of torch"


def has_fast_bf16() -> bool:
    """Whether the processor multiplies bfloat16 itself; elsewhere it is emulated, and slow."""
    info = Path("/proc/cpuinfo")
    return info.exists() and any(flag in info.read_text() for flag in ("avx512_bf16", "amx_bf16"))


def commit() -> str:
    """The commit measured, with "+" where files differ from it; "unknown" outside a checkout."""
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "src", "benchmarks")
        return git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def peak_memory(work: Callable[[], object]) -> int:
    """Bytes that this process held at most during `work`, over what it held before; 0 where the system does not tell."""
    reset = Path("/proc/self/clear_refs")  # writing 5 sets the high-water mark back to what is held now
    gc.collect()
    try:
        reset.write_text("5")
    except OSError:
        return 0
    before = _held("VmRSS")
    work()
    return _held("VmHWM") - before


def _held(entry: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{entry}:"))


def _ticks() -> Sequence[int]:
    return [int(x) for x in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]


class Watch:
    """Inside `with Watch() as watch:` counts what other processes took; then `watch.others` is their share of all processors.

    0 where the system does not tell (only Linux does). Time stolen by other machines on the same host counts as theirs.
    """

    others = 0.0

    def __enter__(self) -> "Watch":
        self._known = Path("/proc/stat").exists()
        if self._known:
            self._before, self._own = _ticks(), sum(os.times()[:4])
        return self

    def __exit__(self, *error: object) -> None:
        if self._known:
            passed = [after - before for after, before in zip(_ticks(), self._before, strict=True)]
            idle, total = passed[3] + passed[4], sum(passed)
            own = (sum(os.times()[:4]) - self._own) * os.sysconf("SC_CLK_TCK")
            self.others = max(0.0, (total - idle - own) / total) if total else 0.0
