"""`foretoken collect ENV`: plays episodes, at random or with a trained policy, into a store that Minari can open as well."""

import re
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretoken.cli.terminal import Parser, count, number, say, some, whole
from foretoken.core.errors import ConfigError, DataError

if TYPE_CHECKING:
    from foretoken.data.store import Store


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    from foretoken.envs.collect import collect

    name = _name(options.environment, options.policy)
    out = Path(options.out or Path("stores") / name)
    beside = Path(options.minari) if options.minari else out / "minari"
    _check_free(out)
    identifier = f"{name}-v0"
    if not options.no_minari:
        _check_free(beside / identifier)
    policy, more = _player(options)
    say(f"playing {some(options.episodes, 'episode')} of {options.environment} into {out}")
    store = collect(
        options.environment,
        policy,
        episodes=options.episodes,
        seed=options.seed,
        num_slots=options.num_slots,
        out=out,
        max_steps=options.max_steps,
        floats=options.floats,
        explore=not options.mode,
        trial=options.trial,
        tasks=options.tasks,
        **more,
    )
    print(_told(store, out))
    if not options.no_minari:
        print(_write_minari(store, beside, identifier))
    return 0


def _parser() -> Parser:
    parser = Parser(
        "collect",
        "Plays episodes into a new store. A copy in Minari's layout is written to STORE/minari, which Minari's own package opens.",
    )
    parser.add_argument("environment", metavar="ENV", help="Gymnasium id")
    parser.add_argument("--policy", default="random", metavar="RUN", help='a run\'s folder, or "random" (default)')
    parser.add_argument("--episodes", type=count, required=True, metavar="N", help="how many")
    parser.add_argument(
        "--out", metavar="STORE", help="the new store's folder (default: stores/<environment>-<policy>)"
    )
    parser.add_argument("--target", type=float, metavar="R", help="the return that the run's policy is asked for")
    parser.add_argument("--best", action="store_true", help="the run's best checkpoint instead of the last")
    parser.add_argument("--mode", action="store_true", help="the policy's likeliest actions, without exploring")
    parser.add_argument(
        "--seed", type=whole, default=0, metavar="N", help="fixes initial states and noise (default: 0)"
    )
    parser.add_argument(
        "--num-slots",
        type=count,
        default=8,
        metavar="N",
        help="episodes played at once; changes the speed only (default: 8)",
    )
    parser.add_argument(
        "--max-steps",
        type=whole,
        default=0,
        metavar="N",
        help="cut episodes after so many actions (default: its limit)",
    )
    parser.add_argument(
        "--floats",
        choices=("float32", "keep"),
        default="float32",
        help="float64 is stored as float32 (default), or kept",
    )
    parser.add_argument(
        "--trial", type=count, default=1, metavar="N", help="play N episodes with one memory for each (default: 1)"
    )
    parser.add_argument(
        "--tasks",
        choices=("train", "held-out"),
        default="",
        help="episode i plays this part's i-th task (default: drawn)",
    )
    parser.add_argument("--minari", metavar="FOLDER", help="where the Minari dataset goes (default: STORE/minari)")
    parser.add_argument("--no-minari", action="store_true", help="write no Minari dataset")
    return parser


def _name(environment: str, policy: str) -> str:
    """A folder name that is also a valid name in Minari."""
    return re.sub(r"[^\w-]+", "-", f"{environment}-{Path(policy).resolve().name}").strip("-")


def _check_free(folder: Path) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not empty; give another folder with --out, or remove it")


def _player(options: Namespace) -> tuple[Any, dict[str, Any]]:
    """The policy, and what `collect` must be told with it."""
    if options.policy == "random":
        if options.target is not None or options.best:
            raise ConfigError("random actions take no --target and no --best; give a run with --policy RUN")
        return "random", {}
    from foretoken.cli.evaluate import checkpoint_update, single_spec, trained
    from foretoken.experiment import Run

    run = Run.open(options.policy)
    asked = {} if options.target is None else {"target_return": options.target}
    about = {"run": str(run.path), "update": checkpoint_update(run, best=options.best), **asked}
    return trained(run, best=options.best).policy, {"spec": single_spec(run), "context": asked, "about": about}


def _told(store: "Store", out: Path) -> str:
    returns = store.episodes["return"]
    known = {"mean": returns.mean(), "lowest": returns.min(), "highest": returns.max()}
    figures = ", ".join(f"{name} {number(float(value))}" for name, value in known.items())
    return f"store: {out}\n{some(store.num_episodes, 'episode')}, {some(store.num_actions, 'action')}; return {figures}"


def _write_minari(store: "Store", folder: Path, identifier: str) -> str:
    """Writes the dataset, and says how Minari opens it."""
    from foretoken.data.formats import minari

    folder.mkdir(parents=True, exist_ok=True)
    minari.write(store, folder / identifier, dataset_id=identifier)
    return f"Minari opens it with: MINARI_DATASETS_PATH={folder.resolve()} python -c 'import minari; minari.load_dataset(\"{identifier}\")'"
