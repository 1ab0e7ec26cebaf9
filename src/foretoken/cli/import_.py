"""`foretoken import PATH`: a dataset of another project becomes a store; says what it found."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from foretoken.cli.doctor import listed
from foretoken.cli.terminal import Parser, numbers, print_json, say, whole
from foretoken.core.errors import ConfigError, ForetokenError

if TYPE_CHECKING:
    from foretoken.data.findings import Finding
    from foretoken.data.store import Store


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    from foretoken.data.imports import import_dataset

    bounds = options.action_bounds
    if bounds is not None and len(bounds) != 2:
        raise ConfigError(
            f"--action-bounds needs a lowest and a highest action, for example -1,1, got {len(bounds)} numbers"
        )
    out = Path(options.out or Path("stores") / _name(Path(options.path)))
    say(f"importing {options.path} into {out}")
    store, findings = import_dataset(
        options.path, out, format=options.format, floats=options.floats, environment=options.environment,
        max_episode_steps=options.max_episode_steps, action_bounds=bounds, ends=options.ends, overwrite=options.overwrite,
    )  # fmt: skip
    findings += _unplayable(options.environment, store)
    if options.json:
        print_json({"store": str(out), "findings": [finding.to_json() for finding in findings]})
    else:
        print(listed(findings))
        print(f"store: {out}\n`foretoken doctor {out}` looks deeper")
    return 0


def _unplayable(environment: str, store: "Store") -> "list[Finding]":
    """A warning where the environment that was named does not exist here, or has other spaces than the data."""
    from foretoken.data.findings import Finding
    from foretoken.envs.make import make
    from foretoken.envs.spaces import check_same

    if not environment:
        return []
    try:
        with contextlib.closing(make(environment)) as env:
            check_same(store.spec, env)
    except ForetokenError as problem:
        return [Finding("environment", "warning", f"the data cannot be played in {environment}: {problem}.")]
    return []


def _parser() -> Parser:
    parser = Parser("import", "Turns a dataset into a store, which sources, `doctor` and `train --source.store` take.")
    parser.add_argument("path", help="a Minari dataset's folder, a D4RL HDF5 file, or an npz file")
    parser.add_argument("--out", metavar="STORE", help="the new store's folder (default: stores/<name of the dataset>)")
    parser.add_argument("--format", metavar="NAME", help="minari, d4rl or npz (default: looks at the files)")
    parser.add_argument(
        "--environment",
        default="",
        metavar="ID",
        help="Gymnasium id the data comes from, where the files do not say it",
    )
    parser.add_argument(
        "--max-episode-steps",
        type=whole,
        default=0,
        metavar="N",
        help="its time limit (default: of the registered environment)",
    )
    parser.add_argument(
        "--action-bounds", type=numbers, metavar="LOW,HIGH", help="allowed actions, where the files do not say them"
    )
    parser.add_argument(
        "--ends",
        type=lambda words: tuple(word.strip() for word in words.split(",")),
        metavar="LIST",
        help="what ends an episode in a D4RL file (default: terminals,timeouts); jumps are rows that do not follow each other: "
        "timeouts,jumps for AntMaze",
    )
    parser.add_argument(
        "--floats",
        choices=("float32", "keep"),
        default="float32",
        help="float64 is stored as float32 (default), or kept",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing store")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _name(path: Path) -> str:
    """The dataset's name: of its folder where the file inside has the same name in every dataset."""
    path = path.resolve()
    while path.name in ("data", "main_data.hdf5") and path.parent != path:
        path = path.parent
    return path.name.removesuffix(path.suffix) if path.is_file() else path.name
