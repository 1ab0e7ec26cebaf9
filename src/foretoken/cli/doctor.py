"""`foretoken doctor STORE`: what was noticed about the data, the worst first. Exit code 1 when there are errors."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from foretoken.cli.terminal import Parser, print_json, wrap
from foretoken.core.errors import ConfigError

if TYPE_CHECKING:
    from foretoken.data.findings import Finding


def main(argv: list[str]) -> int:
    parser = Parser(
        "doctor",
        "Looks through a store for what commonly spoils training; changes nothing. Exit code 1 when there are errors.",
    )
    parser.add_argument(
        "store", nargs="?", help="a store's folder, a dataset file, or a packaged dataset; without one, those are named"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    from foretoken.data.doctor import examine
    from foretoken.training.sources import packaged_names, resolve_store

    if options.store is None:
        names = ", ".join(packaged_names())
        raise ConfigError(f"doctor needs a store's folder, a dataset file, or a packaged dataset, one of {names}")
    findings = examine(resolve_store(options.store))
    if options.json:
        print_json([finding.to_json() for finding in findings])
    else:
        print(listed(findings) or "nothing to complain about")
        print(_sum(findings))
    return int(any(finding.severity == "error" for finding in findings))


def listed(findings: "Sequence[Finding]") -> str:
    """One finding a paragraph: severity, code, and what to do about it."""
    width = max((len(finding.code) for finding in findings), default=0)
    lead = len("warning") + width + 6
    return "\n".join(_line(finding, width, lead) for finding in findings)


def _line(finding: "Finding", width: int, lead: int) -> str:
    head = f"  {finding.severity:<7}  {finding.code:<{width}}  "
    return head + wrap(finding.message, indent=lead).lstrip()


def _sum(findings: "Sequence[Finding]") -> str:
    counts = {
        severity: sum(finding.severity == severity for finding in findings) for severity in ("error", "warning", "note")
    }
    return ", ".join(f"{count} {severity}{'' if count == 1 else 's'}" for severity, count in counts.items())
