"""`foretoken claim SYSTEM`: runs every arm of its claim over the seeds, and records whether the claim holds. Can be restarted."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from foretoken.cli import results
from foretoken.cli.show import result_text
from foretoken.cli.terminal import Parser, count, print_json, say, whole_numbers
from foretoken.core import catalogue
from foretoken.core.catalogue import Entry
from foretoken.core.errors import ConfigError


def main(argv: list[str]) -> int:
    parser = Parser(
        "claim",
        "Trains and measures every arm of a system's claim over its seeds, and writes results/<key>.json.\n"
        "Run again after an interruption: finished runs are kept, the others are resumed.",
    )
    parser.add_argument("system", help="file name or key, as `foretoken list` shows it")
    parser.add_argument("--seeds", type=whole_numbers, metavar="N,N", help="other seeds than the claim's own")
    parser.add_argument("--out", metavar="FOLDER", help="where the runs go (default: runs/claims/<key>)")
    parser.add_argument(
        "--workers",
        type=count,
        metavar="N",
        help="runs side by side, each in a process of its own that takes about half a gigabyte (default: one for each core that "
        "this process may use, over the threads of a run); results are the same, 1 trains in this process",
    )
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    entry = catalogue.find(options.system)
    claim = _claim(entry)
    if options.seeds is not None:
        claim = replace(claim, seeds=options.seeds)
    from foretoken.claims import default_workers, run_claim

    workers = options.workers or default_workers(claim)
    out = Path(options.out or Path("runs") / "claims" / entry.card.key)
    say(
        f"{len(claim.arms)} arms, {len(claim.seeds)} seeds, runs in {out}, up to {workers} at a time; "
        f"its own seeds take about {claim.minutes:g} minutes on two cores"
    )
    record = run_claim(entry.card.key, claim, out, workers=workers, progress=not options.quiet, tell=say)
    file = results.file_of(entry)
    _write(file, record)
    if options.json:
        print_json(record)
    else:
        print(f"{result_text(record)}\n\nrecorded in {file}")
    return 0


def _claim(entry: Entry) -> Any:
    module = entry.load()
    if not hasattr(module, "claim"):
        raise ConfigError(f"{entry.name} has no claim: {entry.file} defines no `def claim() -> Claim`")
    return module.claim()


def _write(file: Path, record: Any) -> None:
    """Whole or not at all; an earlier record is replaced."""
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.part")
    part.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    os.replace(part, file)
