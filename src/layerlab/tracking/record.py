"""The trainer's record of a run: written into its journal, from where it is sent."""

from __future__ import annotations

import base64
import time
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from layerlab.errors import JournalError, TrackingError
from layerlab.journal import Journal, Unsent, count_points, series
from layerlab.progress import Progress
from layerlab.steps import Steps
from layerlab.tracking.talk import LOOK, RecorderGoneError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from concurrent.futures import Future
    from pathlib import Path

    from layerlab.tier import Array

# Seconds that somebody who wants to leave waits for a slow store.
PATIENCE = 3.0


class Closing:
    """A run that is being closed.

    Args:
        answer: What the store did not take.
        path: The journal.
    """

    def __init__(self, answer: Future[Unsent | None], path: Path | None) -> None:
        self._answer, self._path = answer, path

    def unsent(self, hurry: Callable[[], bool] = lambda: False) -> Unsent | None:
        """Waits until the run is closed; what the store did not take, or None.

        Args:
            hurry: Whether somebody wants to leave: a slow store is then waited for no longer than
                `PATIENCE`. The recording process goes on without anybody waiting.
        """
        deadline: float | None = None
        while True:
            if deadline is None and hurry():
                deadline = time.monotonic() + PATIENCE
            try:
                return self._answer.result(LOOK)
            except NotYet:
                if deadline is not None and time.monotonic() > deadline:
                    return self._left("the store is slow, and is still being sent to")
            except RecorderGoneError as error:
                return self._left(str(error))

    def _left(self, reason: str) -> Unsent | None:
        if self._path is None:
            return Unsent(0, "", f"{reason}; the run may not be closed")
        try:
            return Unsent(count_points(self._path, Progress(self._path).read()[0]), str(self._path), reason)
        except FileNotFoundError:  # all of it was sent in this moment
            return None


class Record:
    """The record of one run, while it runs: written into its journal, from where it is sent.

    Args:
        starting: Waits for the run's journal, or raises what the store said; it calls what it is given now
            and then, which raises to stop waiting.
        finishing: Has all of the journal sent and the run closed.
        recorded: The steps of every metric that the run has already: they are not recorded twice.
    """

    def __init__(
        self,
        starting: Callable[[Callable[[], None]], Journal],
        finishing: Callable[[str, str | None], Future[Unsent | None]],
        recorded: Mapping[str, Steps] | None = None,
    ) -> None:
        self._starting, self._finishing = starting, finishing
        self._recorded = dict(recorded or {})
        self._journal: Journal | None = None
        # Once the journal cannot be written, or there is none, nothing more is.
        self._broken = False
        self.run_id = ""

    def started(self, check: Callable[[], None] = lambda: None) -> str:
        """Waits until the run is there; its id.

        Args:
            check: Called now and then; it raises to stop waiting.

        Raises:
            TrackingError: The store refuses something; a run that was made is FAILED.
            JournalError: The journal cannot be written; likewise.
        """
        if self._journal is None:
            try:
                self._journal = self._starting(check)
            except OSError as error:
                self._broken = True
                raise JournalError(f"the journal of the run is gone: {error.strerror}") from None
            except BaseException:
                self._broken = True
                raise
            self.run_id = self._journal.shown.stem
        return self.run_id

    def log_losses(self, first_step: int, losses: Array, began: float, ended: float) -> None:
        """Records the losses of consecutive steps, metric ``loss``; the block's time is spread over them.

        Raises:
            JournalError: The disk does not take them.
        """
        self._series("loss", first_step, losses, began, (ended - began) / len(losses))

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records figures of the network as it is after ``step`` updates."""
        new = {
            key: float(value)
            for key, value in metrics.items()
            if step not in self._recorded.get(key, Steps())
        }
        if new:
            self._append({"metrics": new, "step": step, "time": int(time.time() * 1000)})

    def log_series(self, key: str, first_step: int, values: Iterable[float]) -> None:
        """Records the values of a metric at consecutive steps."""
        import numpy as np

        self._series(key, first_step, np.array(list(values), np.float64), time.time(), 0.0)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Adds tags."""
        self._append({"tags": dict(tags)})

    def log_text(self, text: str, name: str) -> None:
        """Keeps a text as an artifact."""
        self._append({"text": text, "name": name})

    def log_file(self, path: Path) -> None:
        """Keeps a file of the working folder as an artifact."""
        self._append({"file": str(path)})

    def log_model(self, model: bytes, name: str, step: int) -> None:
        """Keeps an ONNX model, given as a file's bytes, with its signature, linked to the run."""
        self._append({"model": base64.b64encode(model).decode(), "name": name, "step": step})

    def finish(self, status: str, reason: str | None = None) -> Closing:
        """Has all that was recorded sent, and the run closed.

        Args:
            status: FINISHED, FAILED or KILLED.
            reason: Why, if not FINISHED.
        """
        path = None
        if self._journal is None and not self._broken:  # it failed before anybody asked for it
            with suppress(Exception):  # whatever that is, how the run ended is told
                self.started(_patience())
        if self._journal is not None:
            path = self._journal.shown
            # A disk that took no more losses has room for this. If not: the recording process is told.
            with suppress(JournalError, OSError):
                self._journal.end(status, reason)
            self._journal.close()
        self._broken = True
        return Closing(self._finishing(status, reason), path)

    def _series(self, key: str, first_step: int, values: Array, began: float, pace: float) -> None:
        had = self._recorded.get(key, Steps())
        for start, end in had.missing(first_step, first_step + len(values)):
            i, j = start - first_step, end - first_step
            self._append(series(key, start, values[i:j], began + i * pace, pace))

    def _append(self, entry: dict[str, Any]) -> None:
        if not self._broken:
            self.started()
            assert self._journal is not None
            try:
                self._journal.append(entry)
            except JournalError:
                self._broken = True
                raise


def _patience() -> Callable[[], None]:
    """Stops somebody who waits for a store, once it is slow."""
    deadline = time.monotonic() + PATIENCE

    def check() -> None:
        if time.monotonic() > deadline:
            raise TrackingError("the store is slow")

    return check
