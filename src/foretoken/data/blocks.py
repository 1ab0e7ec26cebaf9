"""Append-only two-dimensional arrays, in memory or in a memory-mapped file.

Row 0 of every block is zeros: the step at address a is row a + 1, so that the padding address -1 reads zeros without a
mask. What was appended counts; bytes in the file beyond it are leftovers of a writer that died.
"""

import mmap
import os
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from foretoken.core.errors import DataError

LARGE, NARROW = 1 << 28, 512
"""Bytes of a file, and of a row. Where a file is larger and its rows are narrower, the system shall not read ahead of a drawn
row: it would fetch a hundred times what a window holds, and drop the pages of others for it where memory is short."""


class Block(Protocol):
    """`rows` rows of `width` entries after the row of zeros."""

    rows: int

    @property
    def array(self) -> np.ndarray:
        """(1 + rows, width), read-only by convention; kept arrays stay valid when the block grows."""

    @property
    def in_order(self) -> np.ndarray:
        """The same rows, for who reads from one end to the other."""

    def append(self, values: np.ndarray) -> None:
        """Adds (n, width) rows; durable only after `sync`."""

    def truncate(self, rows: int) -> None: ...
    def sync(self) -> None: ...


class MemoryBlock:
    """A block in memory; grows by doubling."""

    def __init__(self, dtype: str, width: int) -> None:
        self.rows = 0
        self._kept = np.zeros((64, width), dtype)
        self._view = self._kept[:1]

    @property
    def array(self) -> np.ndarray:
        if len(self._view) != 1 + self.rows or self._view.base is not self._kept:
            self._view = self._kept[: 1 + self.rows]
        return self._view

    @property
    def in_order(self) -> np.ndarray:
        return self.array

    def append(self, values: np.ndarray) -> None:
        needed = 1 + self.rows + len(values)
        if needed > len(self._kept):
            grown = np.zeros((max(needed, 2 * len(self._kept)), self._kept.shape[1]), self._kept.dtype)
            grown[: 1 + self.rows] = self.array
            self._kept = grown
        self._kept[1 + self.rows : needed] = values
        self.rows += len(values)

    def truncate(self, rows: int) -> None:
        # A copy, because arrays handed out earlier share the memory that later rows will overwrite.
        self._kept = self._kept[: 1 + rows].copy()
        self.rows = rows

    def sync(self) -> None:
        pass


class FileBlock:
    """A block in a file of raw values in this machine's byte order, mapped into memory when it is read.

    Raises:
        DataError: the file is missing or shorter than `rows` rows.
    """

    def __init__(self, path: Path, dtype: str, width: int, rows: int) -> None:
        self.path, self.rows = path, rows
        self._dtype, self._width = np.dtype(dtype), width
        self._mapped: np.ndarray | None = None
        self._ordered: np.ndarray | None = None
        self._file: IO[bytes] | None = None
        self._check_size()

    @classmethod
    def create(cls, path: Path, dtype: str, width: int) -> "FileBlock":
        """A new file with the row of zeros."""
        path.write_bytes(bytes(np.dtype(dtype).itemsize * width))
        return cls(path, dtype, width, 0)

    def _size(self, rows: int) -> int:
        return (1 + rows) * self._width * self._dtype.itemsize

    def _check_size(self) -> None:
        if not self.path.exists():
            raise DataError(f"{self.path} is missing; the store is incomplete, copy or import it again")
        needed, found = self._size(self.rows), self.path.stat().st_size
        if found < needed:
            raise DataError(
                f"{self.path} is truncated: {self.rows} steps need {needed} bytes, it has {found}; copy or import it again"
            )

    @property
    def array(self) -> np.ndarray:
        if self._mapped is None or len(self._mapped) != 1 + self.rows:
            self._mapped = self._map(scattered=self._is_scattered())
        return self._mapped

    @property
    def in_order(self) -> np.ndarray:
        if not self._is_scattered():
            return self.array
        if self._ordered is None or len(self._ordered) != 1 + self.rows:
            self._ordered = self._map(scattered=False)
        return self._ordered

    def _is_scattered(self) -> bool:
        """Whether a drawn window is some pages of a large file; where the system takes no such advice, never."""
        narrow = self._width * self._dtype.itemsize <= NARROW
        return narrow and self._size(self.rows) >= LARGE and hasattr(mmap, "MADV_RANDOM")

    def _map(self, scattered: bool) -> np.ndarray:
        with open(self.path, "rb") as file:
            pages = mmap.mmap(file.fileno(), self._size(self.rows), access=mmap.ACCESS_READ)
        if scattered:
            pages.madvise(mmap.MADV_RANDOM)
        return np.frombuffer(pages, self._dtype).reshape(1 + self.rows, self._width)

    def append(self, values: np.ndarray) -> None:
        if self._file is None:
            self._file = open(self.path, "r+b")  # noqa: SIM115  kept open between appends, closed with the block
        self._file.seek(self._size(self.rows))
        self._file.write(np.ascontiguousarray(values, self._dtype).data)
        self._file.flush()
        self.rows += len(values)

    def truncate(self, rows: int) -> None:
        """Forgets later rows, in the file too; leftovers beyond the block's rows go with them."""
        self._mapped = self._ordered = None
        os.truncate(self.path, self._size(rows))
        self.rows = rows

    def sync(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
