"""`run`: the only place that knows the order in which an experiment happens.

Everything that can be refused is refused before the first run is recorded: spec, tiers, data, accelerator,
tracking store. After that each tier is one run, and a tier that fails does not stop the others.
"""

from __future__ import annotations

import importlib
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from layerlab import planning
from layerlab.errors import Interrupted
from layerlab.folder import refuse_unwritable
from layerlab.report import Observer, Report
from layerlab.signals import StopSignals
from layerlab.spec import build_spec
from layerlab.startup import collector_paused

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from layerlab.execution import Execution


def run(
    *,
    config: str | Path | None = None,
    settings: Iterable[str] = (),
    tracking_uri: str | None = None,
    offline: bool = False,
    observer: Observer | None = None,
    **flags: Any,
) -> Report:
    """Trains tiers, records them in MLflow, and exports them as checked ONNX files.

    Args:
        config: A YAML file with an experiment.
        settings: Dotted assignments over the file, such as ``"train.lr=0.01"``.
        tracking_uri: The MLflow store; None: ``MLFLOW_TRACKING_URI``, or ``sqlite:///mlflow.db``.
        offline: Whether to record without the store, for `layerlab.sync` to send later.
        observer: Told what happens while it happens.
        **flags: Whatever ``layerlab run`` takes as flags, by the same names with underscores: ``plugin``,
            ``steps``, ``lr``, ``data``, ... (`layerlab.spec.FLAGS`).

    Returns:
        One entry a tier. A tier that failed is in there with its reason; it does not raise.

    Raises:
        InputError: The experiment cannot be run as asked; nothing was recorded.
        Interrupted: SIGINT or SIGTERM; its ``report`` says what was done until then.
    """
    spec = build_spec(config=config, settings=settings, flags=flags)
    refuse_unwritable()
    observer = observer or Observer()
    with StopSignals() as stop:
        began = time.perf_counter()

        def told(text: str) -> None:
            observer.stage(text)
            stop.check()  # a large table takes a while

        rows, prepared = planning.read(spec, told)
        stop.check()
        # most of what is refused was refused by now
        from layerlab.execution import Execution, about
        from layerlab.tracking import OfflineRecorder, Recorder

        # The recording process imports MLflow while this one imports torch, and opens the store, once nothing
        # is left to refuse, while this one imports Lightning.
        with OfflineRecorder() if offline else Recorder() as recorder:
            with collector_paused():
                jobs = planning.assign(spec, rows, prepared, observer.stage)
                stop.check()
                recorder.open(tracking_uri, spec.experiment)
                observer.stage("loading torch and Lightning")
                importlib.import_module("layerlab.training")
                if spec.export:  # while the store is opened
                    importlib.import_module("onnx")
                    importlib.import_module("onnxruntime")
            tags = about("layerlab run")
            observer.stage("opening the tracking store")
            recorder.opened(stop.check)
            each = (Execution(job, prepared, recorder, tags, stop, observer) for job in jobs)
            return execute(each, Report(recorder.shown_uri), stop, began)


def execute(executions: Iterable[Execution], report: Report, stop: StopSignals, began: float) -> Report:
    """Executes runs one after the other; each is set up while the one before it is closed.

    Args:
        executions: The runs.
        report: Gets an entry each.
        stop: Asked before each.
        began: When the first one began (`time.perf_counter`).

    Returns:
        The report.

    Raises:
        Interrupted: A signal came; it has the report.
    """
    runs: list[Execution] = []
    try:
        for execution in executions:
            stop.check()
            runs.append(execution)
            report.runs.append(execution.report)
            execution.execute(began, settle=partial(_settle, runs[:-1]))
            began = time.perf_counter()
    except Interrupted as interrupted:
        interrupted.report = report
        raise
    finally:
        with stop.held():
            _settle(runs)
    stop.check(report)  # since the last one was trained: nothing of it is missing
    return report


def _settle(runs: Iterable[Execution]) -> None:
    """Waits until runs are closed that are only said to be."""
    for run in runs:
        run.settle()
