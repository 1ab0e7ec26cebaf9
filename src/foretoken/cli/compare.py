"""`foretoken compare RUN_A RUN_B`: how much more return B earns than A, paired by episode, with an interval."""

from pathlib import Path
from typing import TYPE_CHECKING

from foretoken.cli.terminal import Parser, print_json, some, table
from foretoken.core.errors import DataError

if TYPE_CHECKING:
    from foretoken.evaluation.evaluate import Evaluated


def main(argv: list[str]) -> int:
    parser = Parser(
        "compare",
        "The difference in return of two runs' last evaluations, over the episodes that both played from the same initial state.\n"
        "It is of these two trained policies: other training seeds may differ (`foretoken claim` runs several).",
    )
    parser.add_argument("a", metavar="RUN_A", help="a run's folder, or a file of RUN/evaluations")
    parser.add_argument("b", metavar="RUN_B", help="the same")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    from foretoken.evaluation.compare import compare

    a, b = newest(Path(options.a)), newest(Path(options.b))
    found = compare(a, b)
    if options.json:
        print_json(found.to_json() | {"a": str(a.file), "b": str(b.file)})
        return 0
    sides = (("a", found.difference.a, a.file), ("b", found.difference.b, b.file))
    print(table([(name, mean, str(file)) for name, mean, file in sides], ("", "mean return", "evaluation")))
    print(f"\n{found.verdict}")
    if found.unpaired:
        print(f"left out: {some(found.unpaired, 'episode')} that only one side played")
    return 0


def newest(path: Path) -> "Evaluated":
    """The evaluation in a file, or the one that a run played last."""
    from foretoken.evaluation.evaluate import read_evaluation, read_evaluations
    from foretoken.experiment import Run

    if path.is_file():
        return read_evaluation(path)
    Run.open(path)
    if not (found := read_evaluations(path)):
        raise DataError(f"{path} has no evaluation yet; make one with: foretoken evaluate {path}")
    return found[-1]
