"""The working folder: what layerlab writes in it, and what it keeps there for itself in ``.layerlab``."""

from __future__ import annotations

import json
import os
import re
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerlab.errors import DataError, looked_at

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO

HOME = Path(".layerlab")
RUNS = HOME / "runs"
CHECKPOINTS, MODELS = Path("checkpoints"), Path("models")
JOURNAL, NOTE = ".jsonl", ".killed"
# What a run may be: a training, or one of these.
KINDS = ("", "comparison", "bench")
_LAST = HOME / "last.json"
_OWN = "run in a folder of your own"


def is_run_id(text: Any) -> bool:
    """Whether something is the id of a run, and nothing that leads out of a folder."""
    return isinstance(text, str) and re.fullmatch(r"[0-9a-f]{32}", text) is not None


def write(path: Path, text: str) -> None:
    """Writes a file, but never through a link, which somebody else may have left there.

    Raises:
        OSError: It cannot be written, or is a link.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0)
    file = os.open(path, flags, 0o644)
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)


@contextmanager
def written_whole(path: Path) -> Iterator[TextIO]:
    """A file of text that has its name once all of it is on the disk; until then what was there stays.

    Through a link it is the file where that leads. What is no regular file is written to as it is, a named
    pipe or ``/dev/stdout``, wherever that leads; and so is a file in a folder that may not be written.

    Raises:
        OSError: It cannot be written.
    """
    place = Path(os.path.realpath(path))
    special = path.absolute().parts[1:2] in {("dev",), ("proc",)} or (path.exists() and not place.is_file())
    if not special and place.exists():
        place.open("a").close()  # one that may not be written is not replaced either
    begun = None if special else _beside(place)
    if begun is None:
        with path.open("w", newline="", encoding="utf-8") as file:
            yield file
        return
    aside = Path(begun.name)
    try:
        with begun as file:
            with suppress(FileNotFoundError):
                aside.chmod(place.stat().st_mode & 0o777)
            yield file
            file.flush()
            os.fsync(file.fileno())
        try:
            aside.replace(place)
        except OSError:  # it is mounted by itself, as into a container
            shutil.copyfile(aside, place)
    finally:
        aside.unlink(missing_ok=True)


def _beside(place: Path) -> TextIO | None:
    """A new file in the folder of another; None: nobody may make one there."""
    # Its name is not made of the other's, which may be as long as a name can be.
    aside = place.with_name(f".layerlab-{os.urandom(8).hex()}.part")
    try:
        return aside.open("x", newline="", encoding="utf-8")
    except PermissionError:
        return None


def something_there() -> bool:
    """Whether this folder has a journal, or a note of a run that was killed; not behind a link."""
    with suppress(OSError):
        return not (HOME.is_symlink() or RUNS.is_symlink()) and any(
            path.suffix in {JOURNAL, NOTE} for path in RUNS.iterdir()
        )
    return False


def remember(run_id: str, tracking_uri: str) -> None:
    """Notes in the folder which run began last, and where it is recorded."""
    with suppress(OSError):
        _LAST.parent.mkdir(exist_ok=True)
        write(_LAST, json.dumps({"run_id": run_id, "tracking_uri": tracking_uri}) + "\n")


def remembered() -> tuple[str, str] | None:
    """The run that began last in this folder, and its store; None: there was none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        last = json.loads(_LAST.read_text())
        if is_run_id(last["run_id"]):
            return last["run_id"], str(last["tracking_uri"])
    return None


def leave_note(run_id: str, kind: str) -> None:
    """Notes that a run was killed, for whoever comes next; `notes` takes it."""
    with suppress(OSError):
        write(RUNS / f"{run_id}{NOTE}", kind)


def notes() -> dict[str, str]:
    """The runs that were killed since this was asked last, and the kind of each."""
    found = {}
    with suppress(OSError):
        for path in sorted(RUNS.glob(f"*{NOTE}")):
            kind = "" if path.is_symlink() else path.read_text(errors="replace")
            path.unlink()
            if is_run_id(path.stem) and kind in KINDS:
                found[path.stem] = kind
    return found


def here() -> Path:
    """The working folder.

    Raises:
        DataError: It is gone: it was removed under whoever is in it.
    """
    with looked_at("the working folder", DataError, hint=_OWN):
        return Path.cwd()


def refuse_unwritable() -> None:
    """Refuses a folder in which no journal could be written, or what a run writes would leave the folder.

    Raises:
        DataError: As said.
    """
    here()
    refuse_links(HOME, RUNS, CHECKPOINTS, MODELS)
    with looked_at(RUNS, DataError, hint=_OWN):
        existing = next(path for path in (RUNS, HOME, Path()) if path.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        raise DataError(f"{existing.absolute()}: cannot be written", hint=_OWN)


def refuse_links(*paths: Path) -> None:
    """Refuses links where folders are written into: they may have come with a folder that somebody else made.

    Raises:
        DataError: One is a link, or nobody may look.
    """
    for path in paths:
        with looked_at(path, DataError, hint=_OWN):
            is_link = path.is_symlink()
        if is_link:
            raise DataError(
                f"{path} is a link, and nothing is written outside of this folder",
                hint="remove the link, or run in a folder that is on the disk you want",
            )


def name_whole(begun: Path, path: Path) -> None:
    """Gives a file its name, all of it at once, where no other file has it.

    Raises:
        FileExistsError: Another file has it.
    """
    try:
        os.link(begun, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links: who makes the name replaces what is nothing yet
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        try:
            begun.replace(path)
        except BaseException:
            path.unlink(missing_ok=True)
            raise
