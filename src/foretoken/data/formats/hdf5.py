"""Careful HDF5 reading shared by the formats that are HDF5 files.

h5py's convenient interface costs about as much as the reading itself when a file holds thousands of small arrays, so
arrays are opened by their full path and read whole through the low-level interface (about twice as fast).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from foretoken.core.errors import DataError


@contextmanager
def opened(path: Path, *, walked: bool = False) -> Iterator[Any]:
    """The h5py.File at `path` for reading.

    Args:
        path: the file.
        walked: its links have been looked at before; walking a large file takes a while.

    Raises:
        DataError: if it is cut short or no HDF5 file, or if something in it lies in another file.
    """
    import h5py

    if not path.is_file():
        raise DataError(f"{path} does not exist; give the path of an HDF5 file")
    try:
        file = h5py.File(path, "r")
    except OSError as problem:
        raise DataError(
            f"{path} is not a whole HDF5 file ({problem}); it may have been cut short: fetch it again"
        ) from None
    with file:
        if not walked:
            walk(file)
        yield file


def walk(file: Any) -> list[str]:
    """The paths of everything in a file. Links into other files are refused: only what the user named is opened."""
    import h5py

    names: list[bytes] = []
    outside: list[bytes] = []

    # Returning None goes on; an exception must not be raised through the library's own loop
    def visit(name: bytes, info: Any) -> None:
        names.append(name)
        if info.type == h5py.h5l.TYPE_EXTERNAL:
            outside.append(name)

    file.id.links.visit(visit, info=True)
    if outside:
        name = outside[0].decode(errors="replace")
        raise DataError(
            f"{file.filename}: {name!r} is a link into another file, refused; copy the data into the file itself"
        )
    return [name.decode(errors="replace") for name in names]


class Arrays:
    """Reads the arrays of one open file; types are looked up once, because that costs as much as reading a small array."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self._types: list[tuple[Any, np.dtype, Any]] = []

    def read(self, name: str, rows: slice | None = None) -> np.ndarray:
        """The numbers stored at `name`, or some rows of them, in native byte order.

        Raises:
            DataError: if there is no such array, if it is not numeric, if its values lie in other files, or if it cannot
                be read (a damaged chunk).
        """
        import h5py

        found = self._open(name)
        try:
            dtype, memory = self._type(found, name)
            if rows is not None:
                return np.ascontiguousarray(h5py.Dataset(found)[rows], dtype)
            values = np.empty(found.shape, dtype)
            found.read(h5py.h5s.ALL, h5py.h5s.ALL, values, memory)
        except OSError as problem:
            raise DataError(
                f"{self.file.filename}: {name!r} cannot be read ({problem}); the file is damaged: fetch it again"
            ) from None
        return values

    def _open(self, name: str) -> Any:
        import h5py

        try:
            found = h5py.h5d.open(self.file.id, name.encode())
        except (KeyError, TypeError, ValueError, OSError):
            raise DataError(
                f"{self.file.filename} has no array {name!r}; it may have been cut short or be of another format"
            ) from None
        # Values with a place in this file need no further look
        if found.get_offset() is None:
            refuse_elsewhere(found, f"{self.file.filename}: {name!r}")
        return found

    def _type(self, found: Any, name: str) -> tuple[np.dtype, Any]:
        import h5py

        kind = found.get_type()
        for known, dtype, memory in self._types:
            if known.equal(kind):
                return dtype, memory
        dtype = numeric(found.dtype, f"{self.file.filename}: {name!r}")
        self._types.append((kind, dtype, h5py.h5t.py_create(dtype)))
        return self._types[-1][1:]


def refuse_elsewhere(found: Any, what: str) -> None:
    """Refuses arrays whose values lie in other files."""
    import h5py

    layout = found.get_create_plist()
    if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count():
        raise DataError(f"{what} has its values in other files, refused; copy them into the file itself")


def numeric(dtype: np.dtype, what: str) -> np.dtype:
    """The native form of a dtype of numbers or booleans; everything else is refused by name."""
    if dtype.kind == "O":
        raise DataError(f"{what} holds Python objects or text, refused; store it as an array of numbers")
    if dtype.kind not in "biuf":
        raise DataError(f"{what} has dtype {dtype}, needs numbers or booleans; convert it or leave it out")
    return dtype.newbyteorder("=")
