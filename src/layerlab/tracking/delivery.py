"""From the journal of a run to its store: in order, as often as it takes, each point once.

A thread looks into the journal once a second and sends what is new. A store that fails is asked again, ever
more seldom, and at the end once more; what it refuses for good, such as a point of a run that somebody
deleted, is passed over and told. Nothing waits in memory: what is not sent is in the journal.
"""

from __future__ import annotations

import base64
import os
import re
import threading
import time
from dataclasses import dataclass, field
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

# Nothing leaves the machine but to the store that the user names; said before mlflow is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException

from layerlab import journal
from layerlab.errors import JournalError, one_line
from layerlab.journal import Journal, Unsent
from layerlab.progress import Progress
from layerlab.steps import Steps
from layerlab.storeuri import without_secrets
from layerlab.tracking.bulk import POINTS_AT_ONCE, bulk_writer
from layerlab.tracking.loggedmodel import confirm_model, log_model
from layerlab.tracking.talk import SECONDS_BETWEEN_CALLS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mlflow import MlflowClient

    from layerlab.journal import Entry, Point

LONGEST_TAG = 5000  # MLflow's limit
POINTS_A_CALL = 1000  # MLflow's limit
# A store that fails is asked again after so long, twice as long each time, and at last once in so long.
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 15.0
# Entries between which the order does not matter: neighbours of these kinds may share a call.
_ANY_ORDER = {"header", "series", "metrics", "tags"}
# What MLflow does not take in the name of a metric.
_NOT_IN_A_METRIC = re.compile(r"[^\w .:/-]")


@dataclass(frozen=True)
class Late:
    """What a store has of a run whose journal was left behind.

    Attributes:
        recorded: The steps of every metric.
        superseded: Whether somebody else went on with the run.
    """

    recorded: Mapping[str, Steps] = field(default_factory=dict)
    superseded: bool = False


@dataclass
class _Parcel:
    """Neighbouring entries of a journal that go out together.

    Attributes:
        points: Their points.
        tags: Their tags.
        entry: Or one entry that goes out alone.
        end: Where the last of them ends.
    """

    points: list[Point] = field(default_factory=list)
    tags: dict[str, str] = field(default_factory=dict)
    entry: Entry | None = None
    end: int = 0


class Delivery:
    """Sends a run's journal, from where the last delivery of it came to.

    Args:
        client: MLflow's client of its store.
        run_id: The MLflow run.
        experiment_id: Its experiment.
        held: Its journal, held by this process.
        late: What the store has of the run where its journal was left behind: steps that are recorded since
            are not sent again, and where somebody else went on with the run, only points are sent.
        uri: Of the store, for what must not be said.
        new: Whether the run was made in this moment, so that the store has nothing of its journal yet.
    """

    def __init__(
        self,
        client: MlflowClient,
        run_id: str,
        experiment_id: str,
        held: Journal,
        late: Late | None = None,
        uri: str = "",
        *,
        new: bool = False,
    ) -> None:
        self.run_id = run_id
        self._client, self._experiment_id, self._journal = client, experiment_id, held
        self._late, self._uri = late or Late(), uri
        # This process may be in another folder by the time that all is sent.
        self._folder = Path.cwd()
        self._bulk = bulk_writer(client)
        self._progress = Progress(held.path)
        self._sent, _ = self._progress.read()
        # Whether the store may have some of it already: sent by somebody else, or its answer was lost.
        self._unsure = not new
        # Where the first entry is that was refused; all before it is in the store.
        self._refused: int | None = None
        self.reason: str | None = None
        self._pause, self._not_before = FIRST_PAUSE, 0.0
        # The last entry, where the disk does not take it.
        self._last: Entry | None = None
        self._ending = threading.Event()
        # Held by whoever sends, or wants that nobody does.
        self._turn = threading.Lock()
        self._held = False
        self._thread = threading.Thread(target=self._run, name="layerlab-delivery", daemon=True)
        self._thread.start()

    def end(self, status: str, reason: str | None) -> Unsent | None:
        """Sends what the journal has by now, and lets go of it: of a whole one nothing is left.

        Args:
            status: How the run ended, if the journal does not say it.
            reason: Why.

        Returns:
            What the store did not take, or None.
        """
        try:
            self._journal.end(status, reason)
        except (JournalError, FileNotFoundError):  # the disk is full, or somebody removed the file: what is
            self._last = journal.finish(status, reason)  # left to do is to tell the store
        finally:
            self._ending.set()
            self._release()
        self._thread.join()
        return None if self.reason is None else self._unsent(self.reason)

    @property
    def path(self) -> Path:
        """The journal."""
        return self._journal.path

    def hold(self) -> str | None:
        """Sends what there is, and nothing more until `let_go` or `end`: for whoever measures.

        Returns:
            Why the store did not take all of it, or None.
        """
        if not self._held:
            self._turn.acquire()
            self._held = True
        self._deliver()
        return self.reason

    def let_go(self) -> str | None:
        """Sends what there is by now, and goes on; as `hold`."""
        if self._held:
            self._deliver()
            self._release()
        return self.reason

    def _release(self) -> None:
        if self._held:
            self._held = False
            self._turn.release()

    def _why(self, error: BaseException) -> str:
        return f"{type(error).__name__}: {without_secrets(error, self._uri)}"

    def _unsent(self, reason: str) -> Unsent:
        sent = self._sent if self._refused is None else self._refused
        try:
            return Unsent(journal.count_points(self._journal.path, sent), str(self._journal.shown), reason)
        except (JournalError, FileNotFoundError):
            return Unsent(0, "", reason)

    def _run(self) -> None:
        while not self._ending.wait(SECONDS_BETWEEN_CALLS):
            with self._turn:
                if time.monotonic() >= self._not_before and not self._ending.is_set():
                    self._deliver()
        self._deliver()
        if self._last is not None and not self._late.superseded:
            try:
                self._apply(self._last)
            except Exception as error:  # noqa: BLE001 -- as below
                self.reason = self.reason or self._why(error)
        if self.reason is None:
            self._journal.discard()
        else:
            self._journal.close()

    def _deliver(self) -> None:
        """Sends all that is there, until it is done or the store fails."""
        try:
            for parcel in _parcels(self._journal.path, self._sent, self._most):
                self._offer(parcel)
                self._sent = parcel.end
                self._progress.write(self._sent if self._refused is None else self._refused, self.run_id)
        except Exception as error:  # noqa: BLE001 -- stores raise whatever their drivers raise
            self.reason, self._unsure = self._why(error), True
            self._not_before = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        else:
            self._pause, self._not_before = FIRST_PAUSE, 0.0
            if self._refused is None:
                self.reason = None

    @property
    def _most(self) -> int:
        return POINTS_AT_ONCE if self._bulk else POINTS_A_CALL

    def _offer(self, parcel: _Parcel) -> None:
        points, had = parcel.points, self._late.recorded
        if had:
            points = [point for point in points if point[3] not in had.get(point[0], Steps())]
        tags = {} if self._late.superseded else parcel.tags
        try:
            for start in range(0, len(points), self._most):
                self._send(points[start : start + self._most], tags)
                tags = {}
            if tags:
                self._send_by_mlflow([], tags)
            if parcel.entry is not None and not self._late.superseded:
                self._apply(parcel.entry)
        except (MlflowException, JournalError) as error:
            self._refusal(error)
            if points and tags:  # what is wrong with the points is not wrong with these
                try:
                    self._send_by_mlflow([], tags)
                except MlflowException as again:
                    self._refusal(again)

    def _refusal(self, error: MlflowException | JournalError) -> None:
        """Passes over what is refused for good, and raises what the store may take later."""
        if not _for_good(error):
            raise error
        self.reason = self.reason or self._why(error)
        self._refused = self._sent if self._refused is None else self._refused

    def _send(self, points: list[Point], tags: dict[str, str]) -> None:
        # The last point of each metric goes MLflow's own way, which looks whether the run may be written to
        # and keeps what a list of runs shows; the bulk goes beside it.
        if self._bulk is not None:
            # in MLflow's order: by step, then by time
            last = {point[0]: point for point in sorted(points, key=itemgetter(3, 2))}
            if len(last) < len(points):
                self._send_by_mlflow(list(last.values()), tags)
                self._bulk.write(self.run_id, points)
                return
        self._send_by_mlflow(points, tags)

    def _send_by_mlflow(self, points: list[Point], tags: dict[str, str]) -> None:
        # MLflow drops a point that it has: one that was taken although its answer was lost is not doubled.
        # Its client makes as many requests of a call as its limits ask for.
        self._client.log_batch(
            self.run_id,
            metrics=[Metric(*point) for point in points],
            tags=run_tags(tags),
        )

    def _apply(self, entry: Entry) -> None:
        """Does what an entry without points says; doing it twice is doing it once."""
        if "text" in entry:
            self._client.log_text(self.run_id, entry["text"], entry["name"])
        elif "file" in entry:
            self._client.log_artifact(self.run_id, str(self._own(entry["file"])))
        elif "model" in entry:
            if not (self._unsure and confirm_model(self._client, self.run_id, entry["step"])):
                model, name, step = base64.b64decode(entry["model"]), entry["name"], entry["step"]
                log_model(self._client, self._experiment_id, self.run_id, model, name=name, step=step)
        elif "running" in entry:
            set_running(self._client, self.run_id)
        elif "finish" in entry:
            if entry["reason"] is not None:
                self._send_by_mlflow([], {"layerlab.reason": entry["reason"]})
            self._client.set_terminated(self.run_id, status=entry["finish"], end_time=entry["time"])

    def _own(self, name: str) -> Path:
        """A file of the working folder: a journal that somebody else wrote gets no other.

        Raises:
            JournalError: It is elsewhere, or no file that can be read.
        """
        path = (self._folder / name).resolve()
        if not path.is_relative_to(self._folder.resolve()):
            raise JournalError(f"{name}: is not in this folder, and is not sent")
        # Looked for before it is sent: an OSError of sending may be the network's, which will be there again.
        if not (os.access(path, os.R_OK) and path.is_file()):
            raise JournalError(f"{name}: is no file that can be read, and is not sent")
        return path


def _parcels(path: Path, offset: int, most: int) -> Iterator[_Parcel]:
    """The entries of a journal, with points and tags put together up to what one call takes."""
    parcel = _Parcel()
    try:
        for end, entry in journal.entries(path, offset):
            points = journal.points(entry)
            if any(_metric_name(key) != key for key in {point[0] for point in points}):
                points = [(_metric_name(point[0]), *point[1:]) for point in points]
            tags = journal.tags(entry)
            alone = not _ANY_ORDER & entry.keys()
            if (parcel.points or parcel.tags) and (alone or len(parcel.points) + len(points) > most):
                yield parcel
                parcel = _Parcel()
            if alone:
                yield _Parcel(entry=entry, end=end)
            else:
                parcel.points += points
                parcel.tags |= tags
                parcel.end = end
    except JournalError:  # what comes before an entry that is damaged is whole
        if parcel.points or parcel.tags:
            yield parcel
        raise
    if parcel.points or parcel.tags:
        yield parcel


@lru_cache
def _metric_name(key: str) -> str:
    """A name that MLflow takes; most of them do not change, and each comes with every point."""
    return _NOT_IN_A_METRIC.sub("-", key)


def run_tags(tags: Mapping[str, str]) -> list[RunTag]:
    """Tags as MLflow takes them: a line each, and no longer than its limit."""
    return [RunTag(key, one_line(value)[:LONGEST_TAG]) for key, value in tags.items()]


def set_running(client: MlflowClient, run_id: str) -> None:
    """Makes a run RUNNING again: that it ended, and why, is no longer true of it."""
    client.update_run(run_id, status="RUNNING")
    if "layerlab.reason" in client.get_run(run_id).data.tags:
        client.delete_tag(run_id, "layerlab.reason")


def _for_good(error: MlflowException | JournalError) -> bool:
    """Whether asking again would be answered in the same way."""
    if isinstance(error, JournalError):  # of a file that a journal names
        return True
    code = int(error.get_http_status_code())  # type: ignore[no-untyped-call]  # MLflow's is untyped
    return 400 <= code < 500 and code not in {408, 429}
