"""`foretoken probe MIXER`: what a mixer learns in seconds and what it costs, recorded beside the others. Can be restarted."""

import datetime
import os
from pathlib import Path
from typing import Any

from foretoken.cli import results
from foretoken.cli.terminal import Parser, count, print_json, say, table, whole_numbers
from foretoken.core.errors import ConfigError, DataError

MIXERS = "mixers"


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    folder = Path(options.out) if options.out else _results() / MIXERS
    if options.table:
        if options.mixer:
            raise ConfigError(f"--table draws all mixers, got {options.mixer!r} besides; leave one of them out")
        return _draw(folder, Path(options.page) if options.page else _page())
    from foretoken.evaluation import probe
    from foretoken.experiment import surroundings
    from foretoken.nn.mixers import find, shelf

    if not options.mixer:
        raise ConfigError(f"probe needs a mixer or `all`; there are {', '.join(shelf())}")
    chosen = {key: probe.probed(find(key)) for key in (shelf() if options.mixer == "all" else (options.mixer,))}
    tasks = tuple(name.strip() for name in options.tasks.split(",")) if options.tasks else tuple(probe.TASKS)
    about = {"date": datetime.datetime.now(datetime.UTC).date().isoformat(), **surroundings()}
    records = []
    for name, config in chosen.items():
        key = name.replace("-", "_")
        records.append(
            probe.probe(
                key,
                config,
                folder / f"{key}.json",
                tasks=tasks,
                seeds=options.seeds or probe.SEEDS,
                updates=options.updates,
                again=options.again,
                about=about,
                tell=(lambda line: None) if options.quiet else say,
            )
        )
    if options.json:
        print_json(records if options.mixer == "all" else records[0])
    else:
        print("\n\n".join(_told(record) for record in records) + f"\n\nrecorded in {folder}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        "probe",
        "Trains a mixer on five small tasks, measures its steps and its training on one thread, and writes\n"
        "results/mixers/<mixer>.json. Run again after an interruption: what was done is kept.\n"
        "--table draws the records into docs/mixers.md instead.",
    )
    parser.add_argument(
        "mixer", nargs="?", metavar="MIXER", help="a name of docs/mixers.md, or all; without one, all are named"
    )
    parser.add_argument("--seeds", type=whole_numbers, metavar="N,N", help="seeds of each task (default: 0,1,2)")
    parser.add_argument("--tasks", metavar="NAME,NAME", help="only these tasks (default: all)")
    parser.add_argument("--updates", type=count, metavar="N", help="updates of every training, to try things out")
    parser.add_argument("--again", action="store_true", help="start over: after a change of the mixer's code")
    parser.add_argument("--out", metavar="FOLDER", help="where the records are (default: results/mixers)")
    parser.add_argument("--table", action="store_true", help="draw the table of all records, and probe nothing")
    parser.add_argument("--page", metavar="FILE", help="the page with the table (default: docs/mixers.md)")
    parser.add_argument("--quiet", action="store_true", help="no progress on stderr")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _told(record: dict[str, Any]) -> str:
    """A mixer's scores as a table, its costs in a line."""
    rows = [
        (name, *(task[when][figure] for when in ("trained", "twice") for figure in ("mean", "sd")), len(task["runs"]))
        for name, task in record["tasks"].items()
    ]
    costs, facts = record["costs"], record["facts"]
    return (
        f"{record['key']}\n{table(rows, ('task', 'score', 'sd', 'twice the length', 'sd', 'seeds'))}\n"
        f"a step {costs['step_us']:.0f} us ({costs['step_ratio']:.2f} x nn.LSTMCell), "
        f"training {costs['train_ms']:.1f} ms ({costs['train_ratio']:.2f} x plain attention), "
        f"state {facts['state_bytes']} bytes, {facts['parallel']}, {facts['streaming']}"
    )


def _draw(folder: Path, page: Path) -> int:
    from foretoken.evaluation import probe

    records = [probe.read_record(file) for file in sorted(folder.glob("*.json"))]
    if not records:
        raise DataError(f"{folder} holds no records yet; make them with: foretoken probe all")
    probe.fill(page, records)
    print(f"{len(records)} mixers in {page}")
    return 0


def _home() -> Path | None:
    """The checkout this runs from; None for an installed package."""
    return results.checkout_of(Path(__file__))


def _results() -> Path:
    """As for claims: `$FORETOKEN_RESULTS`, else `./results` where it exists, else that of the checkout, else `./results`."""
    if os.environ.get("FORETOKEN_RESULTS"):
        return Path(os.environ["FORETOKEN_RESULTS"])
    here, home = Path("results"), _home()
    return here if here.is_dir() or home is None else home / "results"


def _page() -> Path:
    home = _home()
    return Path("docs/mixers.md") if home is None else home / "docs" / "mixers.md"
