"""Arrays that live in a file: written once, a chunk at a time, and mapped into memory as they are read.

The file has no name from the moment it is there, so that nothing is left behind however the process ends.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from layerlab.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from layerlab.tier import Array

# Rows that are worked on at once: a few megabytes of them stay in the processor's cache.
CHUNK_BYTES = 2**23


class ArrayWriter:
    """Rows on their way into a file; a context manager, after which only what was mapped is left.

    Args:
        what: What they are, for what is said where the disk is full.
        width: Numbers a row.
        dtype: Their type.
        least_rows: How many rows there will be at least, to look for room first.

    Raises:
        DataError: There is no room for so many.
    """

    def __init__(self, what: str, width: int, dtype: npt.DTypeLike, *, least_rows: int) -> None:
        self._what, self._width, self._dtype = what, width, np.dtype(dtype)
        self._folder = os.environ.get("TMPDIR") or os.curdir
        needed = least_rows * width * self._dtype.itemsize
        try:
            free = shutil.disk_usage(self._folder).free
            if free < needed:
                raise self._full(f"at least {size(needed)} are needed and {size(free)} are free")
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 -- closed by `__exit__`
        except OSError as error:
            raise self._full(error.strerror or str(error)) from None
        self.rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with suppress(OSError):  # what could not be written was said
            self._file.close()

    def append(self, rows: Array) -> None:
        """Adds rows, shape (n, width).

        Raises:
            DataError: The disk is full.
        """
        try:
            self._file.write(np.ascontiguousarray(rows, self._dtype).data)
        except OSError as error:
            raise self._full(error.strerror or str(error)) from None
        self.rows += len(rows)

    def mapped(self) -> Array:
        """All rows, shape (rows, width): pages of the file, which whoever writes to them gets for himself."""
        if self.rows == 0:
            return np.empty((0, self._width), self._dtype)
        try:
            self._file.flush()
        except OSError as error:
            raise self._full(error.strerror or str(error)) from None
        return np.memmap(self._file, self._dtype, mode="c", shape=(self.rows, self._width))

    def _full(self, why: str) -> DataError:
        return DataError(
            f"{self._what}: cannot be laid out in {self._folder}: {why}",
            hint="free some space, or name a larger folder in the environment variable TMPDIR",
        )


def size(count: int) -> str:
    """So many bytes, for people."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count / 1e3:.1f} kB"


def is_mapped(array: Any) -> bool:
    """Whether an array lives in a file."""
    return isinstance(array, np.memmap)


def chunks(rows: Any, width: int) -> Iterator[Any]:
    """Parts of a sequence of rows of so many numbers, none larger than `CHUNK_BYTES` in float64."""
    length = max(1, CHUNK_BYTES // (8 * max(width, 1)))
    return (rows[start : start + length] for start in range(0, len(rows), length))
