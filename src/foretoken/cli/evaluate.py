"""`foretoken evaluate RUN`: plays episodes with the trained policy, keeps them in the run, and prints the score card."""

import itertools
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretoken.cli.terminal import Parser, count, numbers, print_json, say, some, whole
from foretoken.core.errors import CheckpointError, ConfigError
from foretoken.core.spec import Spec

if TYPE_CHECKING:
    from foretoken.core.method import Method
    from foretoken.evaluation.evaluate import Evaluated, Evaluation
    from foretoken.experiment import Run


def main(argv: list[str]) -> int:
    options = _parser().parse_args(argv)
    from foretoken.experiment import Run

    run = Run.open(options.run)
    found = play(run, options)
    file = found.write(_new_file(run.path / "evaluations", found))
    if options.json:
        print_json(found.to_json() | {"file": str(file)})
        return 0
    from foretoken.evaluation.scores import for_card, score_card

    card = score_card(for_card([*run.evaluations(), found]))
    print(f"{card.text()}\n{some(len(found.records), 'episode')} in {found.seconds:.1f} s, kept in {file}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        "evaluate",
        "Plays episodes with a run's policy. They are kept in RUN/evaluations; nothing there is overwritten.",
    )
    parser.add_argument("run", help="the run's folder")
    parser.add_argument(
        "--episodes", type=count, metavar="N", help="episodes per target (default: as in the run's settings)"
    )
    parser.add_argument(
        "--targets",
        type=numbers,
        metavar="R,R",
        help="returns to ask for, main one first (default: as set, or from the data)",
    )
    parser.add_argument("--costs", type=numbers, metavar="C,C", help="limits of cost to ask for (default: as set)")
    parser.add_argument("--best", action="store_true", help="the best checkpoint instead of the last")
    parser.add_argument(
        "--seed", type=whole, metavar="N", help="fixes initial states and noise (default: the run's seed)"
    )
    parser.add_argument("--num-slots", type=count, metavar="N", help="episodes played at once; changes the speed only")
    parser.add_argument(
        "--engine",
        choices=["torch", "onnx", "onnx-int8"],
        help="what runs the policy: onnx is faster for few slots, onnx-int8 twice as fast and rounded (default: as set)",
    )
    parser.add_argument("--environment", metavar="ID", help="another environment of the same spaces")
    parser.add_argument("--device", default="cpu", help="where the policy runs (default: cpu)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def play(run: "Run", options: Namespace) -> "Evaluated":
    """The evaluation that the options describe."""
    from foretoken.evaluation.evaluate import evaluate

    update = checkpoint_update(run, best=options.best)
    method = trained(run, best=options.best).to(_device(options.device))
    _check_asked(method, options)
    config = _settings(run.experiment.evaluation, options)
    progress = _Progress(config.episodes * config.trial * max(1, len(config.targets)) * max(1, len(config.costs)))
    seed = run.experiment.seed if options.seed is None else options.seed
    try:
        return evaluate(
            method,
            single_spec(run),
            config,
            seed=seed,
            update=update,
            data_returns=run.data_returns(),
            device=options.device,
            on_episode=progress.tick,
            on_warning=lambda text: say(f"foretoken: {text}"),
        )
    finally:
        progress.close()


def _settings(config: "Evaluation", options: Namespace) -> "Evaluation":
    given = {
        name: getattr(options, name) for name in ("episodes", "targets", "costs", "num_slots", "engine", "environment")
    }
    return config.replace(**{name: value for name, value in given.items() if value is not None})


def _device(name: str) -> str:
    """The name, where there is such a device."""
    import torch

    try:
        torch.empty(0, device=name)
    # torch without CUDA asserts, an unknown name is a RuntimeError
    except (RuntimeError, AssertionError) as problem:
        raise ConfigError(f"--device {name} cannot be used here: {str(problem).splitlines()[0]}") from None
    return name


def _check_asked(method: "Method", options: Namespace) -> None:
    for key, asked, option in (("target_return", "return", "targets"), ("target_cost", "limit of cost", "costs")):
        if getattr(options, option) and key not in method.asks:
            raise ConfigError(
                f"the policy of {options.run} is asked for no {asked}, so it takes no --{option}; leave them out"
            )


def single_spec(run: "Run") -> Spec:
    """The run's spec; a ConfigError where it was trained on several."""
    if isinstance(run.spec, Mapping):
        kinds = ", ".join(run.spec)
        raise ConfigError(
            f"{run.path} was trained on several kinds of experience ({kinds}); evaluating it needs Python"
        )
    return run.spec


def checkpoint_update(run: "Run", *, best: bool = False) -> int:
    """Updates done at the last or best checkpoint. Raises CheckpointError where there is none."""
    from foretoken.training import checkpoint

    found = checkpoint.best(run.path) if best else checkpoint.latest(run.path)
    if found is None and best:
        raise CheckpointError(
            f"{run.path} has no best checkpoint, because it was not evaluated while training; leave out --best"
        )
    if found is None:
        raise CheckpointError(
            f"{run.path} has no checkpoint yet; continue it with: foretoken train --resume {run.path}"
        )
    return found.update


def trained(run: "Run", *, best: bool = False) -> "Method":
    """The run's method at its last or best checkpoint."""
    from foretoken.experiment import load

    checkpoint_update(run, best=best)
    return load(run.path, which="best" if best else "latest")


def _new_file(folder: Path, found: "Evaluated") -> Path:
    """A name that is not taken; "user" keeps it apart from the evaluations of training, which claims read."""
    name = f"user-{found.update:08d}-seed-{found.seed}"
    files = (folder / f"{name}{f'-{number}' if number > 1 else ''}.json" for number in itertools.count(1))
    return next(file for file in files if not file.exists())


class _Progress:
    """A counter of episodes, redrawn in a terminal; nothing elsewhere."""

    def __init__(self, jobs: int) -> None:
        self.jobs, self.done, self.live = jobs, 0, sys.stderr.isatty()

    def tick(self, result: Any) -> None:
        self.done += 1
        if self.live:
            # targets chosen from the data are not known beforehand, so there may be more than `jobs`
            sys.stderr.write(f"\r{self.done}/{max(self.jobs, self.done)} episodes\x1b[K")
            sys.stderr.flush()

    def close(self) -> None:
        if self.live and self.done:
            sys.stderr.write("\r\x1b[K")
