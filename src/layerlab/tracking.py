"""The record of a run in MLflow: opened before training, written beside it, closed truthfully after it.

Points travel through a bounded queue to a thread that sends them, up to 1000 a call. A store that fails in
the middle of a training does not stop it: what cannot be sent is kept in a file and named in the report.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

# Nothing leaves the machine but to the store that the user names; said before mlflow is imported.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

from mlflow import MlflowClient
from mlflow.entities import (
    Dataset,
    DatasetInput,
    InputTag,
    LoggedModelOutput,
    Metric,
    Param,
    RunTag,
)
from mlflow.exceptions import MlflowException

from layerlab.errors import TrackingError, one_line
from layerlab.spool import POINTS_A_CALL, Point, Spool, Unsent
from layerlab.storeuri import DEFAULT_URI, absolute, resolve_uri, sqlite_path, without_credentials

if TYPE_CHECKING:
    import onnx

    from layerlab.tier import Array

# MLflow's limits for one call.
PARAMS_A_CALL = 100
LONGEST_TAG = 5000
LONGEST_PARAM = 6000  # spec.yaml has every value whole
# Blocks that may wait to be sent: a bound on memory. A training that is faster than its store waits here.
QUEUED_BLOCKS = 16
# What MLflow does not take in the name of a metric.
_NOT_IN_A_METRIC = re.compile(r"[^\w .:/-]")
SPOOL = Path(".layerlab") / "spool"


@dataclass(frozen=True)
class RunInfo:
    """What is recorded of a run before it starts.

    Attributes:
        experiment: Name of the experiment; it is made if it is not there.
        name: Name of the run.
        params: Flat parameters.
        tags: Flat tags.
        spec_yaml: The resolved spec, kept as ``spec.yaml``; None: there is none.
        dataset: The data set, as MLflow describes it; None: there is none.
    """

    experiment: str
    name: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    spec_yaml: str | None
    dataset: Dataset | None


class Store:
    """An open tracking store.

    Args:
        uri: As MLflow writes it; None: ``MLFLOW_TRACKING_URI``, or MLflow's own default in this folder.

    Raises:
        TrackingError: The store cannot be reached or opened.
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri = resolve_uri(uri)
        self.shown_uri = without_credentials(uri)
        # What MLflow does to its tables is no news to whoever trains a network.
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        # The client would print the address of every run to stdout, which belongs to the report.
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
        path = sqlite_path(uri)
        if path is not None and Path(path).absolute() == Path("mlflow.db").absolute():
            _refuse_old_file_store()
        if path is None and uri.startswith("sqlite"):
            raise TrackingError(
                f"tracking store {self.shown_uri} would be gone when the command ends",
                hint=f"name a file: {DEFAULT_URI}",
            )
        # MLflow would retry a server that is gone for minutes, each time anew. Whoever sets these is heard.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        with _translated(self, "cannot be opened"), _one_at_a_time(uri):
            self.client = MlflowClient(tracking_uri=absolute(uri))
            # The first call creates or migrates a database, or finds that there is no server.
            self.client.search_experiments(max_results=1)

    def refuse_deleted(self, experiment: str) -> None:
        """Refuses an experiment that nobody would see.

        Raises:
            TrackingError: The experiment is deleted, or the store cannot be asked.
        """
        with _translated(self, "cannot be asked"):
            found = self.client.get_experiment_by_name(experiment)
            if found is not None and found.lifecycle_stage == "deleted":
                raise TrackingError(
                    f"experiment '{experiment}' is deleted", hint="restore it, or use another --experiment"
                )

    def start_run(self, info: RunInfo) -> RunRecord:
        """Makes a run, with all that is known of it before it starts.

        Raises:
            TrackingError: The store refuses something; a run that was made is FAILED.
        """
        with _translated(self, "refuses the run"):
            experiment_id = self._experiment_id(info.experiment)
            tags = {key: one_line(value)[:LONGEST_TAG] for key, value in info.tags.items()}
            run = self.client.create_run(experiment_id, tags=tags, run_name=info.name)
            record = RunRecord(self, run.info.run_id, experiment_id)
            try:
                params = [Param(key, value[:LONGEST_PARAM]) for key, value in info.params.items()]
                for start in range(0, len(params), PARAMS_A_CALL):
                    self.client.log_batch(record.run_id, params=params[start : start + PARAMS_A_CALL])
                if info.spec_yaml is not None:
                    self.client.log_text(record.run_id, info.spec_yaml, "spec.yaml")
                if info.dataset is not None:
                    context = [InputTag("mlflow.data.context", "training")]
                    self.client.log_inputs(record.run_id, [DatasetInput(info.dataset, context)])
            except BaseException:
                record.finish("FAILED", "the record could not be started")
                raise
            return record

    def _experiment_id(self, name: str) -> str:
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


class RunRecord:
    """The record of one run, while it runs.

    Args:
        store: Where it is kept.
        run_id: The MLflow run.
        experiment_id: Its experiment.
    """

    def __init__(self, store: Store, run_id: str, experiment_id: str) -> None:
        self.run_id = run_id
        self._client, self._experiment_id = store.client, experiment_id
        self._spool = Spool(SPOOL / f"{run_id}.jsonl")
        self._queue: queue.Queue[list[Point] | None] = queue.Queue(QUEUED_BLOCKS)
        self._thread = threading.Thread(target=self._send_all, name="layerlab-tracking", daemon=True)
        self._thread.start()

    def log_losses(self, first_step: int, losses: Array, began: float, ended: float) -> None:
        """Queues the losses of consecutive steps as metric ``loss``; the block's time is spread over them."""
        pace = (ended - began) / len(losses)
        self._queue.put(
            [
                ("loss", float(loss), int((began + pace * (i + 1)) * 1000), first_step + i)
                for i, loss in enumerate(losses)
            ]
        )

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queues figures of the network as it is after ``step`` updates."""
        now = int(time.time() * 1000)
        self._queue.put([(key, float(value), now, step) for key, value in metrics.items()])

    def log_series(self, key: str, first_step: int, values: Iterable[float]) -> None:
        """Queues the values of a metric at consecutive steps."""
        now = int(time.time() * 1000)
        name = _NOT_IN_A_METRIC.sub("-", key)
        self._queue.put([(name, float(value), now, first_step + i) for i, value in enumerate(values)])

    def drain(self) -> None:
        """Waits until the store has been told all that was queued."""
        self._queue.join()

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Adds tags."""
        with self._noted():
            self._client.log_batch(
                self.run_id, tags=[RunTag(k, one_line(v)[:LONGEST_TAG]) for k, v in tags.items()]
            )

    def log_text(self, text: str, name: str) -> None:
        """Keeps a text as an artifact."""
        with self._noted():
            self._client.log_text(self.run_id, text, name)

    def log_file(self, path: Path) -> None:
        """Keeps a file as an artifact."""
        with self._noted():
            self._client.log_artifact(self.run_id, str(path))

    def log_model(self, model: onnx.ModelProto, *, name: str, step: int) -> None:
        """Keeps an ONNX model with its signature, linked to the run.

        `mlflow.onnx.log_model` would do, but it works on a run that is active in the whole process, and reads
        back every metric of the run.
        """
        from mlflow.models import Model
        from mlflow.onnx import save_model

        with self._noted(), tempfile.TemporaryDirectory() as folder:
            logged = self._client.create_logged_model(
                self._experiment_id, name=name, source_run_id=self.run_id, model_type="DoubleLayerNet"
            )
            try:
                path = Path(folder) / "model"
                save_model(
                    model,
                    str(path),
                    mlflow_model=Model(
                        artifact_path=logged.artifact_location,
                        model_uuid=logged.model_id,
                        model_id=logged.model_id,
                        run_id=self.run_id,
                    ),
                    signature=_signature(model),
                    pip_requirements=_requirements("mlflow", "onnx", "onnxruntime", "numpy"),
                    onnx_execution_providers=["CPUExecutionProvider"],
                    save_as_external_data=False,
                )
                self._client.log_model_artifacts(logged.model_id, str(path))
                self._client.log_outputs(self.run_id, [LoggedModelOutput(logged.model_id, step=step)])
                self._client.finalize_logged_model(logged.model_id, "READY")
            except BaseException:
                self._client.finalize_logged_model(logged.model_id, "FAILED")
                raise

    def finish(self, status: str, reason: str | None = None) -> Unsent | None:
        """Sends what is queued and closes the run.

        Args:
            status: FINISHED, FAILED or KILLED.
            reason: Why, if not FINISHED.

        Returns:
            What the store did not take, or None.
        """
        self._queue.put(None)
        self._thread.join()
        self._deliver_spool()
        if reason is not None:
            self.set_tags({"layerlab.reason": reason})
        with self._noted():
            self._client.set_terminated(self.run_id, status=status)
        return self._spool.unsent()

    @contextmanager
    def _noted(self) -> Iterator[None]:
        """A store that fails is not worth a training: the failure is noted, and told at the end."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- stores raise whatever their drivers raise
            self._spool.reason = self._spool.reason or _reason(error)

    def _send_all(self) -> None:
        while (points := self._queue.get()) is not None:
            for start in range(0, len(points), POINTS_A_CALL):
                self._send_or_spool(points[start : start + POINTS_A_CALL])
            self._queue.task_done()

    def _send_or_spool(self, points: list[Point]) -> None:
        if self._spool.count:  # order is kept: once one is spooled, all that follow are
            self._spool.add(points)
            return
        try:
            self._send(points)
        except Exception as error:  # noqa: BLE001 -- as above
            self._spool.reason = _reason(error)
            self._spool.add(points)

    def _send(self, points: list[Point]) -> None:
        self._client.log_batch(self.run_id, metrics=[Metric(*point) for point in points])

    def _deliver_spool(self) -> None:
        # MLflow drops a point that it has, so one that was taken although its answer was lost is not doubled.
        try:
            for points in self._spool.chunks():
                self._send(points)
        except Exception as error:  # noqa: BLE001 -- as above
            self._spool.reason = _reason(error)
        else:
            self._spool.clear()


def _signature(model: onnx.ModelProto) -> Any:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec
    from onnx import helper

    def schema(value: Any) -> Schema:
        tensor = value.type.tensor_type
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        return Schema([TensorSpec(dtype, (-1, tensor.shape.dim[1].dim_value), value.name)])

    return ModelSignature(inputs=schema(model.graph.input[0]), outputs=schema(model.graph.output[0]))


def _requirements(*names: str) -> list[str]:
    from importlib.metadata import version

    return [f"{name}=={version(name)}" for name in names]


def _text(error: BaseException) -> str:
    """What an error says, in one line and without the credentials that a URI in it may have."""
    return re.sub(r"://[^/\s]+@", "://", one_line(str(error)))[:300]


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {_text(error)}"


def _refuse_old_file_store() -> None:
    old = [p for p in Path("mlruns").glob("*/meta.yaml") if p.parent.name.isdigit()]
    if old:
        raise TrackingError(
            f"{old[0]} belongs to an MLflow file store, which 'mlflow ui' no longer opens beside mlflow.db",
            hint="mlflow migrate-filestore moves it, or use another folder or --tracking-uri",
        )


@contextmanager
def _translated(store: Store, what: str) -> Iterator[None]:
    """Turns what a store raises, whatever its driver, into one line."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        text = _text(error)
        hint = None
        if "out-of-date database schema" in text or "Can't locate revision" in text:
            hint = "another version of MLflow wrote the database: upgrade MLflow, or use another store"
        elif store.uri.startswith(("http://", "https://")):
            hint = "is the server running? start it with: mlflow server --host 127.0.0.1"
        raise TrackingError(f"tracking store {store.shown_uri} {what}: {text}", hint=hint) from error


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Processes that create or migrate one SQLite database at once would break it."""
    path = sqlite_path(uri)
    if path is None:
        yield
        return
    if not Path(path).absolute().parent.is_dir():
        raise TrackingError(f"tracking store {uri}: there is no folder {Path(path).parent}")
    with FileLock(f"{path}.lock"):
        yield
