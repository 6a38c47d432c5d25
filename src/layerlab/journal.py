"""The journal of a run: everything that its record is to hold, written down before any of it is sent.

One file a run, ``.layerlab/runs/RUN_ID.jsonl``: a header, then an entry a line, in the order of the run. The
process that trains appends; the recording process reads, and sends. So a store that is gone, slow or full
costs the training nothing, and whoever dies, what was written is still there to be sent. A point has its time
from the journal: sent twice, it is the same point, and the store keeps it once.

Whoever works on a journal holds a lock on it, which the operating system takes back with the process. The
file is gone once all of it is in the store and the run is closed.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from layerlab.diskroom import keep_room, kept_room
from layerlab.errors import JournalError, one_line
from layerlab.folder import HOME, JOURNAL, KINDS, RUNS, is_run_id, name_whole, something_there, write
from layerlab.progress import Progress
from layerlab.steps import Steps

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerlab.tier import Array

VERSION = 1
LONGEST_REASON = 5000
# Why a run is KILLED that nobody closed.
GONE = "the process that trained was gone"
# Bytes at the end of a journal that are looked into first: more than most entries have.
TAIL = 2**18
# Bytes that a disk keeps for the last entry of a run: of a character, JSON makes 12 bytes at most.
ROOM_TO_END = 2**16

Point = tuple[str, float, int, int]  # key, value, timestamp in ms, step
Entry = dict[str, Any]


@dataclass(frozen=True)
class Header:
    """What is known of a run before it starts.

    Attributes:
        run_id: Of the MLflow run; of a run that no store knows yet, an id of its own.
        experiment_id: Of its experiment; None: no store knows the run yet.
        tracking_uri: The store, without credentials.
        info: `layerlab.tracking.RunInfo`, as plain values.
        host: Where it runs.
        pid: The process that trains.
        version: Of the journal's format.
    """

    run_id: str
    experiment_id: str | None
    tracking_uri: str
    info: dict[str, Any]
    host: str
    pid: int
    version: int = VERSION


@dataclass
class Unsent:
    """What a store did not take: how many points, where the journal is, and why."""

    points: int
    path: str
    reason: str


def path_of(run_id: str) -> Path:
    """Where the journal of a run is, in this folder."""
    return RUNS / f"{run_id}{JOURNAL}"


def journals() -> list[Path]:
    """The journals in this folder, oldest first."""
    found = list[tuple[int, Path]]()
    if something_there():
        with suppress(OSError):
            for path in RUNS.glob(f"*{JOURNAL}"):
                with suppress(OSError):  # one that was sent in this moment hides no other
                    found.append((path.stat().st_mtime_ns, path))
    return [path for _, path in sorted(found) if is_run_id(path.stem)]


class Journal:
    """An open journal, held by this process together with others, or alone.

    Args:
        path: The file, which is there.
        alone: Whether nobody else may hold it.

    Raises:
        BlockingIOError: Somebody holds it, or, where it is not asked for alone, somebody holds it alone.
        FileNotFoundError: It is gone: somebody sent all of it.
        OSError: It cannot be opened.
    """

    def __init__(self, path: Path, *, alone: bool = False) -> None:
        # Whoever holds it may change folders; what is shown is as it was given.
        self.path, self.shown = path.absolute(), path
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | getattr(os, "O_NOFOLLOW", 0))
        try:
            if sys.platform != "win32":
                fcntl.flock(self._file, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
                # Between the two, whoever held it may have removed it, and another may have its name.
                if not os.path.samestat(os.fstat(self._file), path.lstat()):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        except BaseException:
            os.close(self._file)
            raise
        # Where the room ends that the disk keeps for it.
        self._room = kept_room(self._file)

    @classmethod
    def create(cls, header: Header, *, alone: bool = False) -> Self:
        """Begins the journal of a run.

        Args:
            header: What is known of the run.
            alone: Whether nobody else may hold it.

        Raises:
            JournalError: The folder cannot be written, or the run has a journal.
        """
        path = path_of(header.run_id)
        # Nobody sees it before it is held and has its header; and of two who begin it, one does.
        begun = path.with_suffix(f".{os.getpid()}.new")
        try:
            RUNS.mkdir(parents=True, exist_ok=True)
            if not os.path.lexists(ignore := HOME / ".gitignore"):
                write(ignore, "*\n")  # nothing in there is for a repository
            write(begun, "")
            journal = cls(begun, alone=alone)
        except OSError as error:
            raise JournalError(f"{path}: cannot be written: {error.strerror}") from None
        try:
            journal.append({"header": asdict(header)})
            Progress(path).forget()  # of an earlier journal of this run
            name_whole(begun, path)
        except FileExistsError:
            journal.close()
            raise JournalError(f"{path}: is there already", hint="somebody else works on that run") from None
        except OSError as error:
            journal.close()
            raise JournalError(f"{path}: cannot be written: {error.strerror}") from None
        except BaseException:
            journal.close()
            raise
        finally:
            begun.unlink(missing_ok=True)
        journal.path, journal.shown = path.absolute(), path
        return journal

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def append(self, entry: Entry) -> None:
        """Adds an entry, whole or not at all; where the system can keep room, how a run ended fits after it.

        Raises:
            JournalError: The disk does not take it.
        """
        line = json.dumps(entry).encode() + b"\n"
        size = self.size()
        try:
            if "finish" not in entry:
                self._room = keep_room(self._file, self._room, size + len(line) + ROOM_TO_END)
            rest = memoryview(line)
            while rest:  # a call writes 2 GiB at most; of a disk that is full the next one says so
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            with suppress(OSError):
                self._cut(size)
            raise JournalError(
                f"{self.shown}: the record of the run cannot be written: {error.strerror}",
                hint="what was recorded until then is kept: layerlab sync, once that is mended",
            ) from None

    def end(self, status: str, reason: str | None) -> None:
        """Adds how and when a run ended, unless that is there; the room that was kept for it is given back.

        Args:
            status: FINISHED, FAILED or KILLED.
            reason: Why, if not FINISHED.

        Raises:
            JournalError: The disk does not take it.
        """
        self.mend()
        if not finished(self.path):
            self.append(finish(status, reason))
        with suppress(OSError):
            os.ftruncate(self._file, self.size())
            self._room = kept_room(self._file)

    def _cut(self, size: int) -> None:
        """Takes off what is beyond some byte; where nothing is, it would only give back the room there."""
        if self.size() > size:
            os.ftruncate(self._file, size)
            self._room = kept_room(self._file)
            with suppress(OSError):
                self._room = keep_room(self._file, self._room, size + ROOM_TO_END)

    def mend(self) -> None:
        """Takes off what a process that was killed left of its last entry."""
        tail = _tail(self.path, TAIL)
        if not tail.endswith(b"\n"):
            tail = tail if b"\n" in tail else _tail(self.path, self.size())
            self._cut(self.size() - (len(tail) - tail.rfind(b"\n") - 1))

    def size(self) -> int:
        """Bytes that are written."""
        return os.fstat(self._file).st_size

    def discard(self) -> None:
        """Removes the file: all of it is in the store."""
        # In this order: who is killed in between leaves a journal that is sent again, which doubles nothing.
        Progress(self.path).forget()
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Lets go of it; once is enough."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1


def entries(path: Path, offset: int = 0) -> Iterator[tuple[int, Entry]]:
    """The entries of a journal, and where each ends; what has no end yet is left out.

    Args:
        path: The journal.
        offset: Where an entry begins.

    Raises:
        JournalError: A line is no entry.
    """
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                raise JournalError(f"{path}: is damaged {offset} bytes from its beginning") from None
            offset += len(line)
            if not isinstance(entry, dict):
                raise JournalError(f"{path}: is damaged {offset} bytes from its beginning")
            yield offset, entry


def header(path: Path) -> Header:
    """The header of a journal.

    Raises:
        JournalError: It has none, or is of another version.
    """
    try:
        _, entry = next(entries(path))
        if (version := entry["header"]["version"]) != VERSION:
            raise JournalError(f"{path}: is of version {version}; this layerlab reads {VERSION}")
        known = Header(**entry["header"])
        texts = (known.run_id, known.tracking_uri, known.host, known.info["experiment"], known.info["name"])
        right = known.run_id == path.stem and is_run_id(known.run_id) and isinstance(known.pid, int)
        if right and all(isinstance(text, str) for text in texts) and isinstance(known.info["tags"], dict):
            return known
    except (StopIteration, KeyError, TypeError):
        pass
    raise JournalError(f"{path}: is no journal of a run")


def series(key: str, first_step: int, values: Array, began: float, pace: float) -> Entry:
    """Values of one metric at consecutive steps.

    Args:
        key: The metric.
        first_step: The step of the first.
        values: The values; 4 or 8 bytes each, little-endian.
        began: When the first step began, in seconds since the epoch.
        pace: Seconds a step.
    """
    kind = "f4" if values.dtype.itemsize == 4 else "f8"
    data = base64.b64encode(values.astype(f"<{kind}", copy=False).tobytes()).decode()
    return {"series": key, "step": first_step, "times": [began, pace], kind: data}


def points(entry: Entry) -> list[Point]:
    """The points of an entry: of a series, or of some metrics at one step; otherwise none.

    Raises:
        JournalError: The entry is none of layerlab's.
    """
    try:
        return _points(entry)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise JournalError("an entry of the journal is damaged") from None


def _points(entry: Entry) -> list[Point]:
    if "series" in entry:
        import numpy as np

        kind = "f4" if "f4" in entry else "f8"
        values = np.frombuffer(base64.b64decode(entry[kind]), f"<{kind}").tolist()
        key, first, (began, pace) = entry["series"], entry["step"], map(float, entry["times"])
        count = len(values)
        times = (began + pace * np.arange(1, count + 1)) * 1000
        if not (np.abs(times) < 2.0**63).all():  # nor is what is no number
            raise ValueError("a time that is none")
        whole = times.astype(np.int64).tolist()
        return list(zip([key] * count, values, whole, range(first, first + count), strict=True))
    if "metrics" in entry:
        return [(key, value, entry["time"], entry["step"]) for key, value in entry["metrics"].items()]
    return []


def tags(entry: Entry) -> dict[str, str]:
    """The tags of an entry; most have none.

    Raises:
        JournalError: The entry is none of layerlab's.
    """
    found = entry.get("tags", {})
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise JournalError("an entry of the journal is damaged")
    return found


def count_points(path: Path, offset: int = 0) -> int:
    """How many points a journal has from some entry on."""
    return sum(len(points(entry)) for _, entry in entries(path, offset))


def recorded_steps(path: Path) -> dict[str, Steps]:
    """The steps of every metric that a journal has."""
    found: dict[str, Steps] = {}
    for _, entry in entries(path):
        steps: dict[str, list[int]] = {}
        for key, _, _, step in points(entry):
            steps.setdefault(key, []).append(step)
        found |= {key: found.get(key, Steps()) | Steps.of(more) for key, more in steps.items()}
    return found


def finish(status: str, reason: str | None) -> Entry:
    """How and when a run ended."""
    reason = None if reason is None else one_line(reason)[:LONGEST_REASON]
    return {"finish": status, "reason": reason, "time": int(time.time() * 1000)}


def finished(path: Path) -> bool:
    """Whether the last word of a journal is that its run ended."""
    last = _tail(path, TAIL).rstrip(b"\n").rpartition(b"\n")[2]
    return last.startswith(b'{"finish": ')


def kind(known: Header) -> str:
    """What a run is if it is no training: "comparison", "bench"; else ""."""
    found = known.info["tags"].get("layerlab.kind", "")
    return found if found in KINDS else ""


def _tail(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return file.read()
