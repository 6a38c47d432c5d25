"""What makes a start short, in a process that is layerlab's own and in one that is somebody else's."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
BLAS_TIMEOUT = "OPENBLAS_THREAD_TIMEOUT"
ENVIRONMENT = {
    # Looking for pydantic's plugins means reading the metadata of every distribution there is.
    "PYDANTIC_DISABLE_PLUGINS": "__all__",
    # Torch asks Linux for huge pages where a tensor has 2 MB or more, which are then faulted in by 2 MB, and
    # not by 4 KB (https://github.com/pytorch/pytorch/pull/107697).
    HUGE_PAGES: "1",
    # After a product the threads of NumPy's OpenBLAS look out for more work, on processors on which torch is
    # to compute next: for 2^28 ticks of the clock, a tenth of a second, where nothing else is said. 2^20,
    # half a millisecond, is still more than lies between two products of a step
    # (https://github.com/OpenMathLib/OpenBLAS/issues/5171).
    BLAS_TIMEOUT: "20",
    # Nothing leaves the machine but to the store that the user names.
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
# mallopt(3), and the variables by which a user says something of the kind
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_THRESHOLDS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")
_LARGEST_KEPT = 1 << 30
_own = _frozen = _kept = False


def claim() -> None:
    """Says that this process is layerlab's own: the command, the recording process, or a worker of a bench.

    To be called before NumPy and torch are imported, or with `ENVIRONMENT` there already. What the user has
    set in the environment stays.
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


def keep_freed_memory() -> None:
    """In a process of layerlab's own has glibc keep what a step frees for the next one.

    It would give blocks of more than 32 MB back to Linux at once, and get them anew, empty, a page at a time:
    at every step the gradient of a layer of that size. From here on blocks of less than 1 GiB stay in the
    heap, whose end is given back where more than 2 GB of it are free (mallopt(3), M_MMAP_THRESHOLD). To be
    called right before a training: what making its tensors leaves behind has gone back by then. All stays as
    it was where glibc refuses such a threshold, as older ones do, and where the user has chosen an allocator,
    or told glibc what to do.
    """
    global _kept  # noqa: PLW0603 -- it is the process that keeps it
    if not _own or _kept or sys.platform != "linux" or _users_allocator():
        return
    import ctypes  # torch has it by now, and commands without torch do not need it

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
        _kept = bool(
            mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT) and mallopt(_M_TRIM_THRESHOLD, _LARGEST_KEPT * 2 - 1)
        )


def allocator() -> str:
    """What becomes of freed memory: "keeps freed memory", what the user said of it, or "default"."""
    return "keeps freed memory" if _kept else _users_allocator() or "default"


def _users_allocator() -> str:
    """What the environment says of the allocator: its thresholds, or that it is another one."""
    said = [f"{name}={os.environ[name]}" for name in _THRESHOLDS if name in os.environ]
    for name, word in (("GLIBC_TUNABLES", "glibc.malloc."), ("LD_PRELOAD", "malloc")):
        if word in os.environ.get(name, ""):
            said.append(f"{name}={os.environ[name]}")
    return " ".join(said)
