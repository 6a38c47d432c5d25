"""How a comparison is kept: an MLflow run with the report and the picture, and the picture in a file."""

from __future__ import annotations

import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerlab.errors import DataError, Interrupted
from layerlab.provenance import source_tags
from layerlab.tracking import RunInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from layerlab.comparison.report import CompareReport, RunsReport
    from layerlab.tracking import RunRecord, Store

COMPARISONS = Path("comparisons")


def recorded(
    store: Store,
    report: CompareReport | RunsReport,
    work: Callable[[RunRecord], None],
    *,
    name: str,
    experiment: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    dataset: Any = None,
    spec_yaml: str | None = None,
) -> None:
    """Does the work of a comparison within an MLflow run, which ends with a true status whatever happens.

    Args:
        store: Where the run is kept.
        report: What is filled in by the work; kept as ``comparison.json``.
        work: What is to be done.
        name: Name of the run.
        experiment: Its experiment.
        params: Its parameters.
        tags: Its tags.
        dataset: The data set, as MLflow describes it.
        spec_yaml: The resolved spec.

    Raises:
        TrackingError: The store refuses the run.
    """
    about = {
        **source_tags("layerlab compare"),
        "layerlab.kind": "comparison",
        **tags,
        "version.python": platform.python_version(),
        **{f"version.{package}": version(package) for package in ("layerlab", "torch", "numpy", "mlflow")},
    }
    info = RunInfo(experiment, name, params, about, spec_yaml, dataset)
    record = store.start_run(info)
    report.run_id, report.experiment, report.tracking_uri = record.run_id, experiment, store.shown_uri
    try:
        work(record)
        record.log_text(report.as_json(), "comparison.json")
        if report.picture:
            record.log_file(Path(report.picture))
    except BaseException as error:
        stopped = isinstance(error, (Interrupted, KeyboardInterrupt))
        record.finish("KILLED" if stopped else "FAILED", f"{type(error).__name__}: {error}")
        raise
    unsent = record.finish("FINISHED")
    report.unsent = None if unsent is None else asdict(unsent)


def picture_path(stem: str) -> Path:
    """Where the picture of a comparison goes; its folder is made.

    Raises:
        DataError: The folder cannot be made.
    """
    try:
        COMPARISONS.mkdir(exist_ok=True)
    except OSError as error:
        raise DataError(f"{COMPARISONS}: cannot be made: {error.strerror}") from None
    return COMPARISONS / f"{stem}.png"
