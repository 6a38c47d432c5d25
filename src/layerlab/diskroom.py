"""Room that a disk keeps for a file beyond its end: for what must fit once nothing else does."""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from typing import Any

# A file system gives room by the page.
_PAGE = 2**12
# Linux's way (man 2 fallocate), which Python has not; the size of the file stays what it is.
_KEEP_SIZE = 1
_fallocate: Any = None
if sys.platform == "linux":
    _fallocate = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if _fallocate is not None:
        _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long)


def kept_room(file: int) -> int:
    """Where the room ends, in bytes from the beginning, that a disk has given a file of no holes."""
    about = os.fstat(file)
    return max(about.st_size, 512 * getattr(about, "st_blocks", 0)) // _PAGE * _PAGE


def keep_room(file: int, kept: int, end: int) -> int:
    """Has the disk keep room for a file, where the system and the file system can.

    Args:
        file: Its descriptor, open for writing.
        kept: Where the room ends that it has. It is not asked for again: tmpfs, where it has no more, takes
            back all that was asked for.
        end: Where the room is to end.

    Returns:
        Where it ends now.

    Raises:
        OSError: The disk is full.
    """
    if end <= kept or _fallocate is None:
        return kept
    more = -(-(end - kept) // _PAGE) * _PAGE
    while _fallocate(file, _KEEP_SIZE, kept, more):
        failed = ctypes.get_errno()
        if failed in {errno.ENOSPC, errno.EDQUOT}:
            raise OSError(failed, os.strerror(failed))
        if failed != errno.EINTR:  # of a signal Python has taken note; and else the file system cannot
            return kept
    return kept + more
