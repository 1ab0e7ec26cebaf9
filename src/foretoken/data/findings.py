"""Finding: one thing noticed about data, by a reader while importing or by the doctor afterwards."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

Severity: TypeAlias = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """What was noticed and what to do about it.

    Args:
        code: short stable name, for tests and scripts ("timeouts-as-terminals").
        severity: "error": training on this data would be wrong; "warning": it probably costs performance;
            "note": good to know.
        message: one or two sentences, the last of which is the way out.
        detail: plain JSON values (counts, dimensions, episode numbers).
    """

    code: str
    severity: Severity
    message: str
    detail: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.severity}: {self.message} [{self.code}]"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `Finding(**tree)` reads them back."""
        return asdict(self)
