"""Two finished runs against each other, by what MLflow holds of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from layerlab.comparison.picture import draw
from layerlab.comparison.report import RunsReport
from layerlab.errors import SpecError, TrackingError, one_line
from layerlab.folder import refuse_unwritable
from layerlab.recording import picture_path, recorded
from layerlab.report import Observer
from layerlab.signals import StopSignals
from layerlab.storeuri import refuse_missing, resolve_uri
from layerlab.tracking import Recorder
from layerlab.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run

    from layerlab.tracking import Record

# The metric of `layerlab run`, a point a step.
_LOSS = "loss"


def compare_runs(
    first: str, second: str, *, tracking_uri: str | None = None, observer: Observer | None = None
) -> RunsReport:
    """Compares two runs of one store: parameters, loss curves, final figures.

    Args:
        first: Id of an MLflow run.
        second: Id of another.
        tracking_uri: The MLflow store; None: ``MLFLOW_TRACKING_URI``, or ``sqlite:///mlflow.db``.
        observer: Told what happens while it happens.

    Raises:
        SpecError: Both are the same run, or one is not finished.
        TrackingError: The store cannot be opened, or has no such run.
        Interrupted: SIGINT or SIGTERM; the run is KILLED, or FINISHED and in the ``report`` if all was done.
    """
    observer = observer or Observer()
    if first == second:
        raise SpecError("a run does not differ from itself", hint="give the ids of two runs")
    refuse_unwritable()
    observer.stage("opening the tracking store")
    refuse_missing(resolve_uri(tracking_uri))
    store = Store(tracking_uri)
    runs = [_find(store, run_id) for run_id in (first, second)]
    _refuse_running(runs)
    observer.stage("reading the losses")
    curves = [_losses(store, run.info.run_id) for run in runs]
    report = RunsReport([_about(run, len(curve)) for run, curve in zip(runs, curves, strict=True)])
    report.params = _differing(*(dict(run.data.params) for run in runs))
    report.figures = _figures(*runs)
    report.losses = _curves_compared(*curves)
    names = _names(runs)

    def work(record: Record) -> None:
        stop.check()
        if not any(curves):
            return
        path = picture_path("comparisons", f"runs-{first[:8]}-{second[:8]}-{record.run_id[:8]}")
        drawn = {name: (list(c), list(c.values())) for name, c in zip(names, curves, strict=True) if c}
        draw(path, drawn, title=" and ".join(names))
        report.picture = str(path)

    experiment = store.client.get_experiment(runs[0].info.experiment_id).name
    if experiment == "Default":  # where MLflow's own default is, nothing of ours is written
        experiment = "layerlab"
    with StopSignals() as stop, Recorder() as recorder:
        recorder.open(tracking_uri, experiment)
        recorder.opened(stop.check)
        recorded(
            recorder,
            report,
            work,
            stop=stop,
            kind="comparison",
            name=f"compare {', '.join(names)}",
            experiment=experiment,
            params={"first": first, "second": second},
            tags={"layerlab.runs": f"{first}, {second}"},
        )
    return report


def _find(store: Store, run_id: str) -> Run:
    from mlflow.exceptions import MlflowException  # after layerlab.tracking.store, for its telemetry

    try:
        run = store.client.get_run(run_id)
    except MlflowException:
        raise TrackingError(
            f"tracking store {store.shown_uri} has no run '{one_line(run_id)}'",
            hint="layerlab run --json prints the ids, and mlflow ui shows them",
        ) from None
    if run.info.lifecycle_stage == "deleted":
        raise TrackingError(f"run {run_id} is deleted", hint=f"mlflow runs restore --run-id {run_id}")
    return run


def _refuse_running(runs: list[Run]) -> None:
    for run in runs:
        if run.info.status == "RUNNING":
            raise SpecError(f"run {run.info.run_id} is still running", hint="wait until it has ended")


def _losses(store: Store, run_id: str) -> dict[int, float]:
    """Every recorded loss by its step."""
    points = store.client.get_metric_history(run_id, _LOSS)
    return {point.step: point.value for point in sorted(points, key=lambda point: point.step)}


def _about(run: Run, points: int) -> dict[str, Any]:
    return {
        "run_id": run.info.run_id,
        "name": run.info.run_name,
        "tier": run.data.tags.get("layerlab.tier"),
        "status": run.info.status,
        "reason": run.data.tags.get("layerlab.reason"),
        "losses": points,
    }


def _names(runs: list[Run]) -> list[str]:
    names = [one_line(run.info.run_name or run.info.run_id[:8]) for run in runs]
    if names[0] == names[1]:
        names = [f"{name} {run.info.run_id[:8]}" for name, run in zip(names, runs, strict=True)]
    return names


def _differing(first: dict[str, str], second: dict[str, str]) -> dict[str, list[str | None]]:
    keys = list(dict.fromkeys([*first, *second]))
    return {key: [first.get(key), second.get(key)] for key in keys if first.get(key) != second.get(key)}


def _figures(first: Run, second: Run) -> dict[str, list[float | None]]:
    keys = sorted({*first.data.metrics, *second.data.metrics})
    return {key: [run.data.metrics.get(key) for run in (first, second)] for key in keys}


def _curves_compared(first: dict[int, float], second: dict[int, float]) -> dict[str, Any]:
    both = [step for step in first if step in second]
    differ = [step for step in both if first[step] != second[step]]
    compared: dict[str, Any] = {
        "steps": [len(first), len(second)],
        "common": len(both),
        "equal": len(both) - len(differ),
    }
    if differ:
        step = differ[0]
        compared["first_difference"] = {"step": step, "values": [first[step], second[step]]}

        def relative(at: int) -> float:
            size = max(abs(first[at]), abs(second[at]))
            return abs(first[at] - second[at]) / size if size else 0.0

        worst = max(differ, key=relative)
        compared["largest_relative_difference"] = {"step": worst, "value": relative(worst)}
    return compared
