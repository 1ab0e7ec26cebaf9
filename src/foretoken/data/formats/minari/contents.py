"""What both storages hold: their file names, pictures, facts of episodes, and infos that cannot be kept."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from foretoken.core.errors import DataError
from foretoken.data.findings import Finding
from foretoken.data.table import RESERVED

MAIN = "main_data.hdf5"
METADATA = "metadata.json"


def pictures(frames: Any, where: str) -> np.ndarray:
    """(n, H, W[, C]) uint8 from n JPEG byte strings."""
    import io

    from PIL import Image

    try:
        return np.stack([np.asarray(Image.open(io.BytesIO(bytes(frame)), formats=("JPEG",))) for frame in frames])
    except (OSError, ValueError, TypeError) as problem:
        raise DataError(
            f"{where}: an image is not readable as JPEG ({problem}); the dataset is damaged: fetch it again"
        ) from None


def facts(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The single numbers and texts among an episode's attributes; those that a store has a column for are called `source_<name>`."""
    found = {}
    for name, value in attributes.items():
        if name in ("id", "total_steps"):
            continue
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
            found[f"source_{name}" if name in RESERVED else name] = value
    return found


def note_infos(left: list[str], found: list[Finding]) -> None:
    """Tells which infos were left out."""
    if left:
        found.append(
            Finding(
                "infos-left-out",
                "note",
                f"{len(left)} infos are not numbers per step in every episode and were left out: {left[:8]}.",
                {"names": left},
            )
        )
