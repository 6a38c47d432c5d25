"""The tracking store: opened or refused with one line, and where runs begin."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

# Nothing leaves the machine but to the store that the user names; said before mlflow is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag, Param
from mlflow.exceptions import MlflowException

from layerlab.errors import TrackingError, one_line
from layerlab.folder import is_run_id
from layerlab.journal import (
    GONE,
    Header,
    Journal,
    header,
    path_of,
)
from layerlab.liveness import is_alive
from layerlab.progress import Progress
from layerlab.steps import Steps
from layerlab.storeuri import (
    DEFAULT_URI,
    absolute,
    refuse_unclear,
    refuse_unreachable,
    resolve_uri,
    sqlite_path,
    without_credentials,
)
from layerlab.tracking.artifacts import keep_text
from layerlab.tracking.delivery import Delivery, Late, run_tags, set_running
from layerlab.tracking.info import OFFLINE_TAG, DatasetInfo, KnownRun, RunInfo
from layerlab.tracking.opening import (
    alone,
    few_tries,
    one_at_a_time,
    refuse_old_file_store,
    soon,
    translated,
)

if TYPE_CHECKING:
    from typing import Any

    from mlflow.entities import Run

    from layerlab.journal import Unsent

# The client would print the address of every run to stdout, which belongs to the report, and draw bars on the
# terminal.
_QUIET = {
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
LONGEST_PARAM = 6000  # MLflow's limit; spec.yaml has every value whole
# Points that are asked for at once.
PAGE = 25_000


class Store:
    """An open tracking store.

    Args:
        uri: As MLflow writes it; None: ``MLFLOW_TRACKING_URI``, or MLflow's own default in this folder.

    Raises:
        TrackingError: The store cannot be reached or opened.
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri = resolve_uri(uri)
        refuse_unclear(uri)
        self.shown_uri = without_credentials(uri)
        # What MLflow does to its tables is no news to whoever trains a network.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        # What a database refuses is raised as well, and told in a line; here it would be told with its trace.
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        path = sqlite_path(uri)
        if path is not None and Path(path).absolute() == Path("mlflow.db").absolute():
            refuse_old_file_store()
        if path is None and uri.startswith("sqlite"):
            raise TrackingError(
                f"tracking store {self.shown_uri} would be gone when the command ends",
                hint=f"name a file: {DEFAULT_URI}",
            )
        there = absolute(uri)
        with translated(self.uri, "cannot be opened"), one_at_a_time(uri), soon(), few_tries(uri):
            refuse_unreachable(uri)
            self.client = MlflowClient(tracking_uri=there)
            # The first call creates or migrates a database, or finds that there is no server.
            self.client.search_experiments(max_results=1)
        self._experiments: dict[str, str] = {}

    def refuse_deleted(self, experiment: str) -> None:
        """Refuses an experiment that nobody would see.

        Raises:
            TrackingError: The experiment is deleted, or the store cannot be asked.
        """
        with translated(self.uri, "cannot be asked"):
            found = self.client.get_experiment_by_name(experiment)
            if found is not None and found.lifecycle_stage == "deleted":
                raise TrackingError(
                    f"experiment '{experiment}' is deleted", hint="restore it, or use another --experiment"
                )

    def start_run(self, info: RunInfo) -> Delivery:
        """Makes a run, with all that is known of it before it starts, and its journal.

        Raises:
            TrackingError: The store refuses something; a run that was made is FAILED.
            JournalError: The journal cannot be written; likewise.
        """
        with translated(self.uri, "refuses the run"):
            experiment_id = self._experiment_id(info.experiment)
            run = self._create(info, experiment_id)
            run_id = run.info.run_id
            known = Header(run_id, experiment_id, self.shown_uri, asdict(info), **_process(info))
            try:
                # From here on, whatever happens to this process, the journal says that the run is open.
                held = Journal.create(known)
            except BaseException:
                self._give_up(run_id, "FAILED")
                raise
            try:
                self._describe(run, info)
            except BaseException:
                if self._give_up(run_id, "FAILED"):
                    held.discard()
                held.close()  # where it stays, another process can send it: this one goes on
                raise
            return Delivery(self.client, run_id, experiment_id, held, uri=self.uri, new=True)

    def resume_run(self, known: KnownRun, info: RunInfo) -> Delivery:
        """Goes on with a run that has ended: RUNNING again, with a journal of its own.

        Args:
            known: The run, as `known` said.
            info: What is known of it, for the journal; tags that it has are replaced.

        Raises:
            TrackingError: The store refuses it, or somebody else went on with the run in the meantime.
            JournalError: The journal cannot be written.
        """
        with translated(self.uri, "refuses to go on with the run"):
            run_id = known.run_id
            run = self.client.get_run(run_id).info
            experiment_id = run.experiment_id
            held = Journal.create(
                Header(run_id, experiment_id, self.shown_uri, asdict(info), **_process(info))
            )
            try:
                if _state(self.client.get_run(run_id)) != known.state:
                    raise TrackingError(
                        f"run {run_id} is not as it was a moment ago: somebody else works on it",
                        hint="try again",
                    )
                set_running(self.client, run_id)
                try:
                    self.client.log_batch(run_id, tags=run_tags(info.tags))
                    if info.spec_yaml is not None:
                        keep_text(self.client, run.artifact_uri, info.spec_yaml, "spec.yaml")
                except BaseException:
                    if self._give_up(run_id, known.status):
                        held.discard()
                    raise
            except TrackingError:
                held.discard()
                raise
            except BaseException:
                held.close()
                raise
            return Delivery(self.client, run_id, experiment_id, held, uri=self.uri)

    def deliver(self, path: Path, reason: str | None = None) -> tuple[str, Unsent | None]:
        """Sends what is left of a journal that nobody holds; its run is made if it is not there, and closed.

        Args:
            path: The journal.
            reason: Why its run is KILLED, where it does not say how it ended.

        Returns:
            The run's id in the store, which of a run that was recorded without one is another than its
            journal's, or "" where somebody else sent it meanwhile; and what the store did not take, or None:
            then the journal is gone.

        Raises:
            TrackingError: The store does not know the run, or the run goes on.
            JournalError: The journal is damaged.
        """
        held = alone(path)
        if held is None:
            return "", None
        try:
            known = header(path)
            with translated(self.uri, "does not take the run"):
                if known.experiment_id is None:
                    run = self._made_late(path, known)
                else:
                    run = self.client.get_run(known.run_id)
                mine = all(run.data.tags.get(key) == value for key, value in _who(known.info["tags"]).items())
                late = Late(
                    self._recorded_steps(run), superseded=known.experiment_id is not None and not mine
                )
        except BaseException:
            held.close()
            raise
        delivery = Delivery(self.client, run.info.run_id, run.info.experiment_id, held, late, self.uri)
        return run.info.run_id, delivery.end("KILLED", reason or GONE)

    def close_killed(self, run_id: str, reason: str) -> None:
        """Closes a run as KILLED if it is RUNNING, and does nothing else to it.

        Raises:
            TrackingError: The store does not know the run, or refuses it.
        """
        with translated(self.uri, "cannot be told that the run was killed"):
            if self.client.get_run(run_id).info.status == "RUNNING":
                self.client.set_tag(run_id, "layerlab.reason", reason)
                self.client.set_terminated(run_id, status="KILLED")

    def known(self, run_id: str) -> KnownRun:
        """What there is of a run that has ended, after all that its journal has was sent.

        Raises:
            TrackingError: There is no such run, it runs, or its journal cannot be sent.
        """
        if path_of(run_id).exists() and (unsent := self.deliver(path_of(run_id))[1]) is not None:
            raise TrackingError(
                f"run {run_id}: {unsent.points} points are not in {self.shown_uri}: {unsent.reason}",
                hint="layerlab sync, once that is mended",
            )
        run = self.find_run(run_id)
        if run is None or run.info.lifecycle_stage == "deleted":
            raise TrackingError(
                f"tracking store {self.shown_uri} has no run '{one_line(run_id)}'",
                hint="layerlab run --json prints the ids, and mlflow ui shows them",
            )
        tags = run.data.tags
        process = [tags.get(f"layerlab.{name}", "") for name in ("host", "pid", "started")]
        pid = int(process[1]) if process[1].isdecimal() else 0
        if run.info.status == "RUNNING" and pid and is_alive(process[0], pid, process[2]):
            raise TrackingError(
                f"run {run_id} is still running, as process {process[1]} on {process[0]}",
                hint="if it is not, say so to MLflow: MlflowClient().set_terminated(run_id, 'KILLED')",
            )
        inputs = [] if run.inputs is None else run.inputs.dataset_inputs
        with translated(self.uri, "cannot be asked"):
            return KnownRun(
                run_id=run.info.run_id,
                status=run.info.status,
                experiment=self.client.get_experiment(run.info.experiment_id).name,
                spec_yaml=self._spec_of(run.info.run_id),
                data_digest=inputs[0].dataset.digest if inputs else None,
                recorded=self._recorded_steps(run),
                tags=dict(tags),
                state=_state(run),
            )

    def find_run(self, run_id: str) -> Run | None:
        """A run by its id, or by the id that it had before a store knew it; None: there is none.

        Raises:
            TrackingError: The store cannot be asked.
        """
        with translated(self.uri, "cannot be asked"):
            with suppress(MlflowException):
                return self.client.get_run(run_id)
            if not is_run_id(run_id):
                return None
            experiments = [found.experiment_id for found in self.client.search_experiments()]
            runs = self.client.search_runs(experiments, f"tags.`{OFFLINE_TAG}` = '{run_id}'", max_results=1)
            return runs[0] if runs else None

    def _recorded_steps(self, run: Run) -> dict[str, Steps]:
        """The steps of every metric of a run that the store has.

        Raises:
            TrackingError: The store cannot be asked.
        """
        store, found = self.client._tracking_client.store, {}
        with translated(self.uri, "cannot be asked"):
            for key in run.data.metrics:
                steps = Steps()
                token = None
                while True:  # a page at a time: a point is much larger than its step
                    page = store.get_metric_history(run.info.run_id, key, max_results=PAGE, page_token=token)
                    steps |= Steps.of(point.step for point in page)
                    token = page.token
                    if not token:
                        break
                found[key] = steps
        return found

    def _spec_of(self, run_id: str) -> str | None:
        """The resolved spec that was kept with a run, as YAML; None: there is none.

        Raises:
            TrackingError: The store cannot be asked.
        """
        with translated(self.uri, "cannot be asked"), tempfile.TemporaryDirectory() as folder:
            if not any(file.path == "spec.yaml" for file in self.client.list_artifacts(run_id)):
                return None
            return Path(self.client.download_artifacts(run_id, "spec.yaml", folder)).read_text("utf-8")

    def _made_late(self, path: Path, known: Header) -> Run:
        """Makes the run of a journal that was written without a store, if it is not there."""
        found = self.find_run(known.run_id)
        sent, run_id = Progress(path).read()
        if found is not None and sent and run_id == found.info.run_id:
            return found
        Progress(path).write(0)  # what another store may have got of it, this one has not
        kept = known.info
        dataset = None if kept["dataset"] is None else DatasetInfo(**kept["dataset"])
        info = RunInfo(**{**kept, "dataset": dataset, "tags": {**kept["tags"], OFFLINE_TAG: known.run_id}})
        experiment_id = self._experiment_id(info.experiment)
        run = self._create(info, experiment_id) if found is None else found
        self._describe(run, info)  # said twice, it is what it was
        return self.client.get_run(run.info.run_id)

    def _give_up(self, run_id: str, status: str) -> bool:
        """Closes a run that cannot be begun; whether the store could be told. If not, its journal stays."""
        try:
            self.client.set_terminated(run_id, status=status)
        except Exception:  # noqa: BLE001 -- what is told is why it could not be begun
            return False
        return True

    def _create(self, info: RunInfo, experiment_id: str) -> Run:
        tags = {tag.key: tag.value for tag in run_tags(info.tags)}
        return self.client.create_run(experiment_id, tags=tags, run_name=info.name)

    def _describe(self, run: Run, info: RunInfo) -> None:
        run_id = run.info.run_id
        params = [Param(key, value[:LONGEST_PARAM]) for key, value in info.params.items()]
        self.client.log_batch(run_id, params=params)
        if info.spec_yaml is not None:
            keep_text(self.client, run.info.artifact_uri, info.spec_yaml, "spec.yaml")
        if info.dataset is not None:
            context = [InputTag("mlflow.data.context", "training")]
            inputs = [DatasetInput(Dataset(**asdict(info.dataset)), context)]
            try:
                self.client.log_inputs(run_id, inputs)
            except MlflowException:  # another process made the same data set known in this moment
                self.client.log_inputs(run_id, inputs)

    def _experiment_id(self, name: str) -> str:
        """The id of an experiment, which is made where there is none; asked for once by all runs."""
        if name not in self._experiments:
            self._experiments[name] = self._found_or_made(name)
        return self._experiments[name]

    def _found_or_made(self, name: str) -> str:
        experiment = self.client.get_experiment_by_name(name)
        if experiment is None:
            try:
                return str(self.client.create_experiment(name))
            except MlflowException as error:
                # another process may have been faster
                experiment = self.client.get_experiment_by_name(name)
                if experiment is None:
                    raise error from None
        return str(experiment.experiment_id)


def _process(info: RunInfo) -> dict[str, Any]:
    """The process that trains, as its tags say it."""
    return {"host": info.tags.get("layerlab.host", ""), "pid": int(info.tags.get("layerlab.pid", 0))}


def _who(tags: Mapping[str, str]) -> dict[str, str | None]:
    """The process that trains, as tags say it."""
    return {key: tags.get(key) for key in ("layerlab.host", "layerlab.pid", "layerlab.started")}


def _state(run: Run) -> str:
    """Differs once somebody else went on with a run."""
    return f"{run.info.status} {run.info.end_time} {_who(run.data.tags)}"
