"""What makes a start short, in a process that is layerlab's own and in one that is somebody else's."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
ENVIRONMENT = {
    # Looking for pydantic's plugins means reading the metadata of every distribution there is.
    "PYDANTIC_DISABLE_PLUGINS": "__all__",
    # Torch asks Linux for huge pages where a tensor has 2 MB or more. The gradient of a layer of 10,000
    # hidden units is otherwise faulted in anew at every step, page by page, for a quarter of its time
    # (https://github.com/pytorch/pytorch/pull/107697).
    HUGE_PAGES: "1",
}
# mallopt(3); the variables by which a user says the same, or something else
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_ALLOCATOR = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")
_LARGEST_KEPT, _MOST_KEPT = 1 << 30, (1 << 31) - 1
_own = _frozen = False


def claim() -> None:
    """Says that this process is layerlab's own: the command, or the recording process.

    To be called before torch is imported. What the user has set in the environment stays.
    """
    global _own  # noqa: PLW0603 -- it is the process that is claimed
    _own = True
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


@contextmanager
def collector_paused() -> Iterator[None]:
    """Within this context nothing looks for garbage.

    Importing torch, Lightning and MLflow makes most of a million objects, and almost all of them stay: the
    collector goes through them again and again, for a fifth of the time. In a process of layerlab's own, what
    is there at the end of the first pause is never looked through again (`gc.freeze`).
    """
    global _frozen  # noqa: PLW0603 -- as above
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if _own and not _frozen:
            gc.freeze()
            _frozen = True
        gc.enable()


def keep_freed_memory() -> bool:
    """In a process of layerlab's own has glibc keep what is freed, up to 2 GB, for whoever asks next.

    It would give blocks of more than 32 MB back to Linux at once, and get them anew, empty, a page at a time:
    at every step the gradient of a layer of that size (mallopt(3), M_MMAP_THRESHOLD). To be called when the
    data is there, as what reading it leaves behind is not asked for again. What the user has set stays.

    Returns:
        Whether it does.
    """
    if not _own or sys.platform != "linux" or any(name in os.environ for name in _ALLOCATOR):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT) and mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT))
