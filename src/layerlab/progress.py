"""How far the delivery of a journal came."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from layerlab.folder import write

if TYPE_CHECKING:
    from pathlib import Path


class Progress:
    """How much of a journal is in the store: told after each call, so that little is sent twice.

    Args:
        journal: The journal's path.
    """

    def __init__(self, journal: Path) -> None:
        self._journal, self.path = journal, journal.with_suffix(".sent")

    def read(self) -> tuple[int, str]:
        """Bytes that are sent, and the id that the store gave a run that it did not know.

        Where no entry ends there, none are: it was noted of another journal, or a power loss took what was.
        """
        with suppress(OSError, ValueError, OverflowError), self._journal.open("rb") as file:
            sent, _, run_id = self.path.read_text().partition(" ")
            file.seek(int(sent) - 1)
            if file.read(1) == b"\n":
                return int(sent), run_id.strip()
        return 0, ""

    def write(self, sent: int, run_id: str = "") -> None:
        """Notes it; a disk that is full costs nothing but sending again."""
        with suppress(OSError):
            write(self.path, f"{sent:020d} {run_id}\n")

    def forget(self) -> None:
        """Takes back what was noted."""
        self.path.unlink(missing_ok=True)
