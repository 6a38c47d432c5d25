"""What cannot fit into memory is refused before it is tried: the system would end the process in mid-air."""

from __future__ import annotations

import os

from layerlab.errors import DataError


def check_memory(what: str, numbers: int) -> None:
    """Looks whether so many numbers of 8 bytes fit into this machine's memory, were it all free.

    Args:
        what: What needs them, for the complaint: "are more than ..." is added.
        numbers: How many.

    Raises:
        DataError: They do not.
    """
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return
    if 8 * numbers > memory > 0:
        raise DataError(f"{what} are more than this machine's memory holds")
