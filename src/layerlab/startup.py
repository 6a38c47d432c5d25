"""What makes a start short, in a process that is layerlab's own and in one that is somebody else's."""

from __future__ import annotations

import gc
import os
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
