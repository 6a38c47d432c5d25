"""Where points wait that a tracking store did not take."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# MLflow's limit for one call.
POINTS_A_CALL = 1000

Point = tuple[str, float, int, int]  # key, value, timestamp in ms, step


@dataclass
class Unsent:
    """Points that a store did not take: how many, where they are kept, and why."""

    points: int
    path: str
    reason: str


@dataclass
class Spool:
    """Points on disk, as JSON lines; the file is there only while it holds something.

    Attributes:
        path: The file.
        count: Points that were put in and are not delivered.
        lost: Those of them that the disk did not take.
        reason: Why something was not sent; None while all was.
    """

    path: Path
    count: int = 0
    lost: int = 0
    reason: str | None = field(default=None)

    def add(self, points: list[Point]) -> None:
        """Keeps points, after those that are there."""
        self.count += len(points)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps(point) + "\n" for point in points)
        except OSError as error:
            self.lost += len(points)
            self.reason = f"{self.reason}; {self.path}: {error.strerror}"

    def chunks(self) -> Iterator[list[Point]]:
        """All points, in their order, as many at a time as one call takes."""
        if not self.count or not self.path.exists():
            return
        with self.path.open(encoding="utf-8") as file:
            chunk: list[Point] = []
            for line in file:
                chunk.append(tuple(json.loads(line)))
                if len(chunk) == POINTS_A_CALL:
                    yield chunk
                    chunk = []
            if chunk:
                yield chunk

    def clear(self) -> None:
        """Forgets what was delivered."""
        if self.lost:
            self.count = self.lost
        elif self.count:
            self.count, self.reason = 0, None
        self.path.unlink(missing_ok=True)

    def unsent(self) -> Unsent | None:
        """What the store did not take, or None."""
        if self.reason is None:
            return None
        return Unsent(self.count, str(self.path) if self.path.exists() else "", self.reason)
