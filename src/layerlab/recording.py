"""How a comparison or a bench is kept: an MLflow run with the report and the picture."""

from __future__ import annotations

import platform
import re
from contextlib import ExitStack
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from layerlab.errors import DataError, Interrupted, JournalError
from layerlab.folder import refuse_links
from layerlab.journal import Unsent
from layerlab.provenance import source_tags
from layerlab.tracking import DatasetInfo, RunInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from layerlab.signals import StopSignals
    from layerlab.tracking import Record, Recorder


class Kept(Protocol):
    """A report that can be kept."""

    run_id: str
    experiment: str
    tracking_uri: str
    picture: str
    unsent: dict[str, Any] | None

    def as_json(self) -> str:
        """The report as JSON."""


def recorded(
    recorder: Recorder,
    report: Kept,
    work: Callable[[Record], str | None],
    *,
    stop: StopSignals,
    kind: str,
    name: str,
    experiment: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    dataset: DatasetInfo | None = None,
    spec_yaml: str | None = None,
) -> None:
    """Does the work within an MLflow run, which ends with a true status whatever happens.

    Args:
        recorder: Where the run is kept: an open store.
        report: What is filled in by the work; kept as ``KIND.json``.
        work: What is to be done; a text that it returns says why nothing came of it: the run is FAILED.
        stop: Held while what was done is kept; after a signal a slow store is not waited for.
        kind: What it is: "comparison", "bench".
        name: Name of the run.
        experiment: Its experiment.
        params: Its parameters.
        tags: Its tags.
        dataset: The data set.
        spec_yaml: The resolved spec.

    Raises:
        TrackingError: The store refuses the run.
        Interrupted: The work was stopped, or a signal came while it was kept; what report it left was kept,
            and is in the error.
    """
    about = {
        **source_tags(f"layerlab {'compare' if kind == 'comparison' else kind}"),
        "layerlab.kind": kind,
        **tags,
        "version.python": platform.python_version(),
        **{f"version.{package}": version(package) for package in ("layerlab", "torch", "numpy", "mlflow")},
    }
    info = RunInfo(experiment, name, params, about, spec_yaml, dataset)
    record = recorder.start_run(info)
    report.experiment, report.tracking_uri = experiment, recorder.shown_uri
    _keep_whole(record, report, work, stop, kind)


def _keep_whole(
    record: Record, report: Kept, work: Callable[[Record], str | None], stop: StopSignals, kind: str
) -> None:
    """As `recorded`, of a run that is being begun."""

    def close(status: str, reason: str | None = None) -> None:
        unsent = record.finish(status, reason).unsent(hurry=lambda: stop.signum is not None)
        report.unsent = None if unsent is None else asdict(unsent)

    with ExitStack() as closing:
        try:
            report.run_id = record.started(stop.check)
            nothing = work(record)
            closing.enter_context(stop.held())
            _keep(record, report, kind)
        except BaseException as error:
            closing.enter_context(stop.held())
            lost = None
            if isinstance(error, Interrupted) and error.report is not None:
                try:
                    _keep(record, report, kind)
                except JournalError as fault:  # whoever catches the error has the report
                    lost = asdict(Unsent(0, "", f"{kind}.json is not in the run: {fault}"))
            stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
            close("KILLED" if stopped else "FAILED", f"{type(error).__name__}: {error}")
            report.unsent = report.unsent or lost
            if report.unsent is not None and isinstance(error, Interrupted) and error.report is None:
                error.hint = f"layerlab sync sends what is not in the store yet: {report.unsent['reason']}"
            raise
        close("FINISHED" if nothing is None else "FAILED", nothing)
    stop.check(report)  # since the work was done: all of it is in the report


def _keep(record: Record, report: Kept, kind: str) -> None:
    record.log_text(report.as_json(), f"{kind}.json")
    if report.picture:
        record.log_file(Path(report.picture))


def picture_path(folder: str, stem: str) -> Path:
    """Where a picture goes; its folder is made.

    Raises:
        DataError: The folder cannot be made, or is a link.
    """
    path = Path(folder)
    refuse_links(path)
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f"{path}: cannot be made: {error.strerror}") from None
    return path / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', stem)}.png"
