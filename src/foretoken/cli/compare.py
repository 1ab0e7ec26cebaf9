"""`foretoken compare RUN_A RUN_B`: how much more return B earns than A, paired by episode, with an interval."""

from pathlib import Path
from typing import TYPE_CHECKING

from foretoken.cli.terminal import Parser, print_json, table
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

    (file_a, a), (file_b, b) = newest(Path(options.a)), newest(Path(options.b))
    found = compare(a, b)
    if options.json:
        print_json(found.to_json() | {"a": str(file_a), "b": str(file_b)})
        return 0
    sides = (("a", found.difference.a, file_a), ("b", found.difference.b, file_b))
    print(table([(name, mean, str(file)) for name, mean, file in sides], ("", "mean return", "evaluation")))
    print(f"\n{found.verdict}")
    if found.unpaired:
        print(f"{found.unpaired} episodes that only one side played were left out")
    return 0


def newest(path: Path) -> "tuple[Path, Evaluated]":
    """The evaluation in a file; or of a run the last one asked for by `foretoken evaluate`, else the last of its training."""
    from foretoken.evaluation.evaluate import read_evaluation
    from foretoken.experiment import Run

    if path.is_file():
        return path, read_evaluation(path)
    Run.open(path)
    files = (path / "evaluations").glob("*.json")
    found = max(
        files, key=lambda file: (file.name.startswith("user-"), file.stat().st_mtime_ns, file.name), default=None
    )
    if found is None:
        raise DataError(f"{path} has no evaluation yet; make one with: foretoken evaluate {path}")
    return found, read_evaluation(found)
