"""`sync`: what waits in this folder goes to its store; and runs that were killed are closed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from layerlab import folder, journal
from layerlab.errors import JournalError, LayerlabError
from layerlab.journal import Journal
from layerlab.progress import Progress
from layerlab.report import Observer
from layerlab.storeuri import is_own, with_credentials

if TYPE_CHECKING:
    from layerlab.journal import Header
    from layerlab.tracking import Recorder


@dataclass
class Synced:
    """What became of one journal.

    Attributes:
        run_id: The run, by the id that it has in this folder.
        tracking_uri: Its store, without credentials.
        points: Points that were to be sent.
        unsent: Those of them that the store did not take.
        path: The journal, where something is left in it; else "".
        reason: Why something is left.
        stored_as: The run's id in the store: another than the journal's where it was recorded without one;
            "" where it was not reached, or somebody else sent the journal.
    """

    run_id: str
    tracking_uri: str
    points: int = 0
    unsent: int = 0
    path: str = ""
    reason: str | None = None
    stored_as: str = ""


@dataclass
class SyncReport:
    """What `sync` returns.

    Attributes:
        runs: One entry a journal.
        running: The runs that go on, and send their journals themselves.
    """

    runs: list[Synced] = field(default_factory=list)
    running: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is left."""
        return all(run.reason is None for run in self.runs)

    def as_json(self) -> str:
        """The report as JSON."""
        return json.dumps({"runs": [asdict(run) for run in self.runs], "running": self.running}, indent=2)


def sync(*, tracking_uri: str | None = None, observer: Observer | None = None) -> SyncReport:
    """Sends the journals in this folder that nobody sends, each to its store.

    Args:
        tracking_uri: For all of them; None: the store that each is meant for, with the credentials of
            ``MLFLOW_TRACKING_URI`` where that is the same store.
        observer: Told what happens while it happens.

    Returns:
        One entry a journal. One that cannot be sent is in there with its reason; it does not raise.
    """
    observer = observer or Observer()
    report = SyncReport()
    waiting: list[tuple[Path, Header]] = []
    for path in journal.journals():
        try:
            if is_held(path):
                report.running.append(path.stem)
            else:
                waiting.append((path, journal.header(path)))
        except FileNotFoundError:
            continue  # somebody else sent it meanwhile
        except LayerlabError as error:
            report.runs.append(Synced(path.stem, "", path=str(path), reason=str(error)))
    if waiting:
        from layerlab.tracking import Recorder

        with Recorder() as recorder:
            for path, known in waiting:
                observer.stage(f"sending run {path.stem}")
                report.runs.append(_send(recorder, path, known, tracking_uri))
    return report


def is_held(path: Path) -> bool:
    """Whether somebody works on a journal.

    Raises:
        FileNotFoundError: Somebody sent all of it.
        JournalError: It cannot be opened.
    """
    try:
        Journal(path, alone=True).close()
    except BlockingIOError:
        return True
    except FileNotFoundError:
        raise
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}") from None
    return False


def close_killed(say: Callable[[str], None]) -> None:
    """Closes the runs of this folder whose processes are gone, as KILLED, and says so.

    The store is asked only where there is such a run. One that cannot be closed now waits for `sync`.
    """
    killed, waiting = folder.notes(), list[str]()
    for path in journal.journals():
        try:
            with Journal(path, alone=True) as held:
                if journal.finished(path):
                    continue
                known = journal.header(path)
                killed[path.stem] = journal.kind(known)
                waiting.append(path.stem)
                held.end("KILLED", journal.GONE)
                # While it is held: a run that somebody goes on with is not told to be over.
                if _told(known):
                    waiting.pop()
        except (LayerlabError, OSError):
            continue  # somebody works on it, or sent it; or `sync` says what is wrong with it
    for run_id, kind in killed.items():
        cure = f"begin the {kind} again" if kind else f"go on with it: layerlab resume {run_id}"
        later = "; its store is told by: layerlab sync" if run_id in waiting else ""
        say(f"run {run_id} was killed; {cure}{later}")


def _told(known: Header) -> bool:
    """Tells the store of a run that it was killed; whether that could be done."""
    # Nobody asked for this: another store than the user's own, or one on this machine, is not called, and of
    # what the journal has nothing is sent but that the run is over. The rest waits for resume or sync.
    if known.experiment_id is None or not is_own(known.tracking_uri):
        return False
    from layerlab.tracking import Recorder  # most commands find nothing to tell

    with Recorder() as recorder:
        recorder.open(with_credentials(known.tracking_uri, None))
        recorder.opened()
        recorder.close_killed(known.run_id, journal.GONE)
    return True


def _send(recorder: Recorder, path: Path, known: Header, tracking_uri: str | None) -> Synced:
    synced = Synced(known.run_id, known.tracking_uri)
    try:
        uri = tracking_uri or with_credentials(known.tracking_uri, None)
        synced.points = synced.unsent = journal.count_points(path, Progress(path).read()[0])
        recorder.open(uri)
        recorder.opened()
        synced.tracking_uri = recorder.shown_uri
        synced.stored_as, unsent = recorder.deliver(path)
    except FileNotFoundError:  # somebody else sent it meanwhile
        synced.unsent = 0
        return synced
    except (LayerlabError, OSError) as error:
        synced.path, synced.reason = str(path), str(error)
        return synced
    if unsent is None:
        synced.unsent = 0
    else:
        synced.unsent, synced.path, synced.reason = unsent.points, unsent.path, unsent.reason
    return synced
