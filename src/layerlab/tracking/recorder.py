"""Where runs are recorded: in a store that a process of its own holds, or, without one, in their journals.

Nothing heavy is imported here: the recording process imports MLflow while the trainer imports torch.
"""

from __future__ import annotations

import pickle
import uuid
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from layerlab.errors import JournalError, TrackingError, one_line
from layerlab.folder import here
from layerlab.journal import Header, Journal, entries, header, path_of, recorded_steps
from layerlab.liveness import this_process
from layerlab.storeuri import refuse_unclear, refuse_unreachable, resolve_uri, without_credentials
from layerlab.tracking.info import KnownRun
from layerlab.tracking.opening import environment
from layerlab.tracking.record import Record
from layerlab.tracking.talk import LOOK, Message, RecorderGoneError, acquire, give_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layerlab.journal import Unsent
    from layerlab.tracking.info import RunInfo


class Recorder:
    """A tracking store that is held by a process of its own.

    Making one starts the process, which imports MLflow; `open` has it open a store; `opened` waits for that.
    Use it as a context manager: at its end the process is kept for the next recorder, or left to itself where
    it is still busy.
    """

    def __init__(self) -> None:
        self._process = acquire()
        self._opening: Future[Any] | None = None
        self.uri = self.shown_uri = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        give_back(self._process)

    def open(self, uri: str | None, experiment: str | None = None) -> None:
        """Has a store opened; returns at once.

        Args:
            uri: As MLflow writes it; None: ``MLFLOW_TRACKING_URI``, or MLflow's own default in this folder.
            experiment: Refused if it is deleted; None: nothing is begun there.

        Raises:
            TrackingError: There is no server.
            DataError: This folder is gone.
        """
        self.uri = resolve_uri(uri)
        refuse_unclear(self.uri)
        self.shown_uri = without_credentials(self.uri)
        refuse_unreachable(self.uri)
        self._opening = self._call("open", self.uri, experiment, str(here()), environment())

    def opened(self, check: Callable[[], None] = lambda: None) -> None:
        """Waits until the store is open.

        Args:
            check: Called now and then; it raises to stop waiting.

        Raises:
            TrackingError: The store cannot be reached or opened, or the experiment is deleted.
        """
        assert self._opening is not None
        self._result(self._opening, check)

    def start_run(self, info: RunInfo) -> Record:
        """Has a run made, with all that is known of it before it starts; `Record.started` waits for it."""
        starting = self._call("start_run", info)
        return Record(lambda check: Journal(path_of(self._result(starting, check))), self._finish)

    def known(self, run_id: str, check: Callable[[], None] = lambda: None) -> KnownRun:
        """What the store has of a run that has ended, after all that its journal has was sent.

        Args:
            run_id: The run.
            check: Called now and then; it raises to stop waiting.

        Raises:
            TrackingError: There is no such run, it runs, or its journal cannot be sent.
        """
        found: KnownRun = self._result(self._call("known", run_id), check)
        return found

    def resume_run(self, known: KnownRun, info: RunInfo) -> Record:
        """Has a run made RUNNING again."""
        starting = self._call("resume_run", known, info)
        return Record(
            lambda check: Journal(path_of(self._result(starting, check))), self._finish, known.recorded
        )

    def deliver(self, path: Path, reason: str | None = None) -> tuple[str, Unsent | None]:
        """Has a journal sent that nobody holds.

        Args:
            path: The journal.
            reason: Why its run is KILLED, where it does not say how it ended.

        Returns:
            The run's id in the store, and what the store did not take, or None.

        Raises:
            TrackingError: The store is gone.
            JournalError: The journal is damaged.
        """
        delivered: tuple[str, Unsent | None] = self._result(self._call("deliver", path, reason))
        return delivered

    def close_killed(self, run_id: str, reason: str) -> None:
        """Has a run closed as KILLED whose processes are gone, and nothing else.

        Raises:
            TrackingError: The store is gone, or refuses it.
        """
        self._result(self._call("close_killed", run_id, reason))

    @contextmanager
    def held(self) -> Iterator[None]:
        """Has nothing sent meanwhile: what there is goes out before it, and the rest at its end.

        Both are waited for: what a training takes, and what its record takes, can be told apart by the bench.

        Raises:
            TrackingError: The store did not take all of it, or is gone.
        """
        try:
            self._all_sent("hold")
            yield
        except BaseException:
            with suppress(TrackingError):
                self._all_sent("let_go")
            raise
        self._all_sent("let_go")

    def _all_sent(self, method: str) -> None:
        reason = self._result(self._call(method))
        if reason is not None:
            raise TrackingError(f"tracking store {self.shown_uri} did not take all of a run: {reason}")

    def _finish(self, status: str, reason: str | None) -> Future[Unsent | None]:
        return self._call("finish", status, reason)

    def _call(self, method: str, *arguments: Any) -> Future[Any]:
        return self._process.say(Message(pickle.dumps((method, arguments)), Future()))

    def _result(self, answer: Future[Any], check: Callable[[], None] = lambda: None) -> Any:
        while True:
            check()
            try:
                return answer.result(LOOK)
            except NotYet:
                continue
            except RecorderGoneError as error:
                raise TrackingError(f"tracking store {self.shown_uri} cannot be used: {error}") from None


class OfflineRecorder:
    """A recorder without a store: what a run records stays in its journal, for ``layerlab sync``.

    The methods are those of `Recorder`.
    """

    def __init__(self) -> None:
        self.uri = self.shown_uri = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Leaves nothing behind."""

    def open(self, uri: str | None, experiment: str | None = None) -> None:  # noqa: ARG002 -- as `Recorder.open`
        """Notes the store that the runs are meant for."""
        self.uri = resolve_uri(uri)
        refuse_unclear(self.uri)
        self.shown_uri = without_credentials(self.uri)

    def opened(self, check: Callable[[], None] = lambda: None) -> None:
        """There is nothing to wait for."""
        check()

    def start_run(self, info: RunInfo) -> Record:
        """Begins the journal of a run that no store knows yet."""

        def start(_: Callable[[], None]) -> Journal:
            here = this_process()
            run_id = uuid.uuid4().hex
            known = Header(run_id, None, self.shown_uri, asdict(info), here["host"], here["pid"])
            return Journal.create(known, alone=True)

        return Record(start, _stays)

    def known(self, run_id: str, check: Callable[[], None] = lambda: None) -> KnownRun:  # noqa: ARG002 -- as `Recorder.known`
        """What the journal of a run has.

        Raises:
            TrackingError: No run of that id was recorded without a store, or it runs.
        """
        path = path_of(run_id)
        try:
            known = header(path)
            with Journal(path, alone=True) as held:
                held.mend()
                return _as_of(held, known)
        except FileNotFoundError:
            raise TrackingError(f"no run '{one_line(run_id)}' is waiting here for its store") from None
        except BlockingIOError:
            raise TrackingError(f"run {run_id} is still running, as process {known.pid}") from None

    def resume_run(self, known: KnownRun, info: RunInfo) -> Record:
        """Goes on in a journal."""

        def start(_: Callable[[], None]) -> Journal:
            changed = TrackingError(
                f"run {known.run_id} is not as it was a moment ago: somebody else works on it",
                hint="try again",
            )
            try:
                held = Journal(path_of(known.run_id), alone=True)
            except (BlockingIOError, FileNotFoundError):
                raise changed from None
            if str(held.size()) != known.state:
                held.close()
                raise changed
            try:
                held.append({"running": True})
                held.append({"tags": dict(info.tags)})
                if info.spec_yaml is not None:
                    held.append({"text": info.spec_yaml, "name": "spec.yaml"})
            except JournalError as error:
                with suppress(JournalError, OSError):
                    held.end("FAILED", str(error))
                held.close()
                raise
            return held

        return Record(start, _stays, known.recorded)


def _as_of(held: Journal, known: Header) -> KnownRun:
    """What a journal has of its run."""
    info, spec_yaml, status = known.info, known.info["spec_yaml"], "RUNNING"
    tags = dict(info["tags"])
    for _, entry in entries(held.path):
        tags |= entry.get("tags", {})
        if entry.get("name") == "spec.yaml":
            spec_yaml = entry["text"]
        status = "RUNNING" if "running" in entry else entry.get("finish", status)
    return KnownRun(
        run_id=known.run_id,
        status=status,
        experiment=info["experiment"],
        spec_yaml=spec_yaml,
        data_digest=None if info["dataset"] is None else info["dataset"]["digest"],
        recorded=recorded_steps(held.path),
        tags=tags,
        state=str(held.size()),
    )


def _stays(status: str, reason: str | None) -> Future[Unsent | None]:  # noqa: ARG001 -- as `Recorder._finish`
    done: Future[Unsent | None] = Future()
    done.set_result(None)
    return done
