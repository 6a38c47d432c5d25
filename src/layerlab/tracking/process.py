"""The recording process: answers until its trainer is gone, and then closes the run that is open.

A message is a method of `Recording` and its arguments; each is answered by ("done", value), ("refused",
(kind, message, hint)) or ("failed", traceback).
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import traceback
from contextlib import suppress
from typing import TYPE_CHECKING, Any, BinaryIO

from layerlab import startup
from layerlab.errors import LayerlabError
from layerlab.folder import leave_note
from layerlab.journal import GONE, header, kind
from layerlab.storeuri import scrubbed
from layerlab.streams import Unheard, open_closed
from layerlab.tracking.opening import take_over

if TYPE_CHECKING:
    from pathlib import Path

    from layerlab.journal import Unsent
    from layerlab.tracking.delivery import Delivery
    from layerlab.tracking.info import KnownRun, RunInfo
    from layerlab.tracking.store import Store

# The training comes first: where both want a processor, it gets the larger share.
NICENESS = 5


class Recording:
    """The store that is open, and the run that is being recorded."""

    def __init__(self) -> None:
        self._store: Store
        self._uri = ""
        self._delivery: Delivery | None = None

    def open(self, uri: str, experiment: str | None, folder: str, environment: dict[str, str]) -> None:
        """Opens a store as the trainer would: in its folder, with its environment.

        Raises:
            TrackingError: It cannot be opened, or the experiment is deleted.
        """
        self.close("its trainer began another run")
        take_over(environment)
        startup.claim()  # the trainer may be somebody else's process
        self._uri = uri
        os.chdir(folder)
        from layerlab.tracking.store import Store

        self._store = Store(uri)
        if experiment is not None:
            self._store.refuse_deleted(experiment)

    def start_run(self, info: RunInfo) -> str:
        """Makes a run.

        Raises:
            TrackingError: The store refuses it.
        """
        self.close("its trainer began another run")
        self._delivery = self._store.start_run(info)
        return self._delivery.run_id

    def known(self, run_id: str) -> KnownRun:
        """What the store has of a run that has ended.

        Raises:
            TrackingError: There is no such run, it runs, or its journal cannot be sent.
        """
        return self._store.known(run_id)

    def resume_run(self, known: KnownRun, info: RunInfo) -> str:
        """Makes a run RUNNING again.

        Raises:
            TrackingError: The store refuses it.
        """
        self._delivery = self._store.resume_run(known, info)
        return self._delivery.run_id

    def deliver(self, path: Path, reason: str | None) -> tuple[str, Unsent | None]:
        """Sends a journal that nobody holds, and closes its run.

        Raises:
            TrackingError: The store is gone, or the run goes on.
        """
        return self._store.deliver(path, reason)

    def close_killed(self, run_id: str, reason: str) -> None:
        """Closes a run whose processes are gone, and does nothing else to it.

        Raises:
            TrackingError: The store refuses it.
        """
        self._store.close_killed(run_id, reason)

    def hold(self) -> str | None:
        """Sends what there is, and nothing more until `let_go` or the end; why not all, or None."""
        return None if self._delivery is None else self._delivery.hold()

    def let_go(self) -> str | None:
        """Sends what there is by now, and goes on; why not all, or None."""
        return None if self._delivery is None else self._delivery.let_go()

    def finish(self, status: str, reason: str | None) -> Unsent | None:
        """Sends what the journal has, and closes the run."""
        delivery, self._delivery = self._delivery, None
        return None if delivery is None else delivery.end(status, reason)

    def close(self, reason: str) -> None:
        """Closes a run that its trainer left open as KILLED, and leaves a note of it in the folder."""
        if self._delivery is not None:
            with suppress(LayerlabError, OSError):
                path = self._delivery.path
                leave_note(path.stem, kind(header(path)))
            self.finish("KILLED", reason)

    def answer(self, method: str, arguments: tuple[Any, ...]) -> tuple[str, Any]:
        """Does what a message says."""
        try:
            return "done", getattr(self, method)(*arguments)
        except LayerlabError as error:
            return "refused", (type(error), str(error), error.hint)
        except Exception:  # noqa: BLE001 -- told to the trainer, which raises it there
            return "failed", scrubbed(traceback.format_exc(), self._uri)


def _answered(recording: Recording, answers: BinaryIO) -> bool:
    """Takes one message and answers it; whether there may be more."""
    try:
        method, arguments = pickle.load(sys.stdin.buffer)
        pickle.dump(recording.answer(method, arguments), answers)
        answers.flush()
    except (EOFError, OSError, pickle.UnpicklingError):  # the last: it was killed in the midst of a message
        return False
    return True


def _let_go_of_stderr() -> None:
    """Leaves the trainer's stderr to it: who reads that to its end need not wait for a slow store."""
    with Unheard():
        sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def main() -> None:
    """Answers until stdin ends."""
    open_closed()  # the trainer may be somebody else's process, without a stderr
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)  # the trainer says when it is over
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    startup.claim()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    recording = Recording()
    with startup.collector_paused():
        # Imported while the trainer imports what it needs, before it asks for anything.
        import layerlab.tracking.store  # noqa: F401 -- imported for the time it takes

        # The first is to open a store: importing the rest of MLflow, and migrations.
        more = _answered(recording, answers)
    _let_go_of_stderr()  # it works: what fails from here on is an answer
    while more:
        more = _answered(recording, answers)
    recording.close(GONE)
    os._exit(0)  # nothing is left to do, and taking MLflow apart takes a second


if __name__ == "__main__":
    main()
