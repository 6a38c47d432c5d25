"""`run`: the only place that knows the order in which an experiment happens.

Everything that can be refused is refused before the first run is recorded: spec, tiers, data, accelerator,
tracking store. After that each tier is one run, and a tier that fails does not stop the others.
"""

from __future__ import annotations

import importlib
import math
import platform
import re
import time
import traceback
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerlab.errors import Interrupted, LayerlabError, TierError, TrackingError
from layerlab.planning import plan
from layerlab.report import Observer, Report, RunReport
from layerlab.signals import StopSignals
from layerlab.spec import build_spec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from layerlab.data.dataset import Prepared
    from layerlab.planning import Job
    from layerlab.report import Status
    from layerlab.tier import Array
    from layerlab.tracking import RunRecord, Store
    from layerlab.training import TierModule

MODELS = Path("models")
# With validation on a full batch, so many times in a run; with minibatches after every epoch.
FULL_BATCH_VALIDATIONS = 50
_VERSIONS = ("layerlab", "torch", "pytorch-lightning", "mlflow", "numpy", "onnx", "onnxruntime")


def run(
    *,
    config: str | Path | None = None,
    settings: Iterable[str] = (),
    tracking_uri: str | None = None,
    observer: Observer | None = None,
    **flags: Any,
) -> Report:
    """Trains tiers, records them in MLflow, and exports them as checked ONNX files.

    Args:
        config: A YAML file with an experiment.
        settings: Dotted assignments over the file, such as ``"train.lr=0.01"``.
        tracking_uri: The MLflow store; None: ``MLFLOW_TRACKING_URI``, or ``sqlite:///mlflow.db``.
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
    observer = observer or Observer()
    with StopSignals() as stop:
        began = time.perf_counter()
        jobs, prepared = plan(spec, observer.stage)
        stop.check()
        observer.stage("loading torch and Lightning")
        importlib.import_module("layerlab.training")
        stop.check()
        observer.stage("opening the tracking store")
        from layerlab.tracking import Store

        store = Store(tracking_uri)
        store.refuse_deleted(spec.experiment)
        stop.check()
        report = Report(store.shown_uri)
        for job in jobs:
            single = _Run(job, prepared, store, stop, observer, began)
            try:
                stop.check()
                report.runs.append(single.execute())
            except Interrupted as interrupted:
                if single.report.run_id:
                    report.runs.append(single.report)
                interrupted.report = report
                raise
            began = time.perf_counter()
    return report


class _Run:
    """One tier, trained once: its record, its report, and how it ends."""

    def __init__(
        self, job: Job, prepared: Prepared, store: Store, stop: StopSignals, observer: Observer, began: float
    ) -> None:
        self.job, self.prepared, self.store, self.stop, self.observer = job, prepared, store, stop, observer
        self.report = RunReport(
            tier=job.row.name,
            distribution=job.row.distribution,
            version=job.row.version,
            status="FAILED",
            run_id="",
            experiment=job.spec.experiment,
        )
        self._began = self._lapped = began

    def execute(self) -> RunReport:
        """Trains and exports; whatever happens, the record is closed with a true status.

        Raises:
            Interrupted: A signal came; the run is KILLED.
        """
        try:
            record = self.store.start_run(_run_info(self.job, self.prepared))
        except TrackingError as error:
            self.report.error, self.report.hint = str(error), error.hint
            self.observer.finished(self.report)
            return self.report
        self.report.run_id = record.run_id
        try:
            self._train_and_export(record)
        except LayerlabError as error:
            if isinstance(error, Interrupted):
                self._close(record, "KILLED", error)
                raise
            if error.__cause__ is not None:
                record.log_text("".join(traceback.format_exception(error)), "traceback.txt")
            self._close(record, "FAILED", _described(error, self.job))
        except (KeyboardInterrupt, SystemExit) as error:
            # A second SIGINT, or Lightning's own way of ending at a SIGTERM.
            if self.stop.signum is None:
                self._close(record, "KILLED", error)
                raise
            interrupted = Interrupted(self.stop.signum)
            self._close(record, "KILLED", interrupted)
            raise interrupted from None
        except BaseException as error:
            self._close(record, "FAILED", error)
            raise
        else:
            self._close(record, "FINISHED", None)
        return self.report

    def _train_and_export(self, record: RunRecord) -> None:
        module = self._train(record)
        module.check_params()
        if self.job.spec.export:
            self._export(module, record)
        self.stop.check()

    def _train(self, record: RunRecord) -> TierModule:
        from layerlab.reference import initial_params
        from layerlab.training import TierModule, make_trainer, quiet_lightning

        job, data = self.job, self.prepared
        train, net = job.spec.train, job.spec.net
        assert train.batch_size is not None
        assert train.lr is not None
        assert net.init is not None
        steps_per_epoch = math.ceil(len(data.train) / train.batch_size)
        steps = train.steps or (train.epochs or 0) * steps_per_epoch
        n_in, n_out = data.dataset.x.shape[1], data.dataset.y.shape[1]
        module = TierModule(
            job.tier_class,
            initial_params(n_in, net.hidden, n_out, init=net.init, bias=bool(net.bias), seed=train.seed),
            _training_data(data),
            lr=train.lr,
            batch_size=train.batch_size,
            seed=train.seed,
            round_steps=_round_steps(steps, steps_per_epoch) if len(data.val) else None,
            sink=_Tee(record, self.observer),
            stop=self.stop,
        )
        with quiet_lightning():
            trainer = make_trainer(
                accelerator=job.accelerator,
                precision=train.precision,
                max_steps=steps,
                validate=len(data.val) > 0,
            )
            self.report.device = str(trainer.strategy.root_device)
            record.set_tags(
                {"layerlab.device": self.report.device, "layerlab.device_name": _device_name(trainer)}
            )
            self.stop.check()
            self._lap("setup")
            self.observer.started(job.row.name, steps)
            try:
                trainer.fit(module)
            finally:
                self._lap("train")
                self.report.steps = trainer.global_step
                self.report.first_loss, self.report.final_loss = module.first_loss, module.last_loss
                self.report.val = module.val_metrics
        return module

    def _export(self, module: TierModule, record: RunRecord) -> None:
        from layerlab.export import export

        self.observer.stage("exporting and checking the ONNX model")
        job, dataset = self.job, self.prepared.dataset
        try:
            exported = export(
                module.tier.params(),
                self.prepared.scaler,
                path=MODELS / f"{_file_name(job.spec.name or job.row.name)}-{record.run_id[:8]}.onnx",
                predict=module.predict,
                rows=dataset.x,
                features=dataset.features,
                metadata={
                    "tier": job.row.name,
                    "distribution": f"{job.row.distribution} {job.row.version}",
                    "layerlab_version": version("layerlab"),
                    "run_id": record.run_id,
                    "data": dataset.name,
                    "task": dataset.task,
                    "features": dataset.features,
                    "outputs": dataset.outputs,
                    **({"classes": dataset.classes} if dataset.classes else {}),
                },
            )
            record.log_model(exported.proto, name=_file_name(job.row.name), step=self.report.steps)
            record.set_tags({"layerlab.onnx": str(exported.path)})
            record.log_metrics(self.report.steps, {"onnx/max_abs_diff": exported.max_abs_diff})
            self.report.onnx = exported.as_dict()
        finally:
            self._lap("export")

    def _lap(self, part: str) -> None:
        now = time.perf_counter()
        self.report.seconds[part] = round(now - self._lapped, 6)
        self._lapped = now

    def _close(self, record: RunRecord, status: Status, error: BaseException | None) -> None:
        report = self.report
        report.status = status
        if error is not None:
            report.error = (
                str(error) if isinstance(error, LayerlabError) else f"{type(error).__name__}: {error}"
            )
            report.hint = getattr(error, "hint", None)
        seconds = {f"seconds/{part}": took for part, took in report.seconds.items()}
        with self.stop.held():
            record.log_metrics(report.steps, seconds)
            unsent = record.finish(status, report.error)
        report.unsent = None if unsent is None else asdict(unsent)
        report.seconds["total"] = round(time.perf_counter() - self._began, 6)
        self.observer.finished(report)


class _Tee:
    """Hands the figures of a training to the record and to the observer."""

    def __init__(self, record: RunRecord, observer: Observer) -> None:
        self._record, self._observer = record, observer

    def log_losses(self, first_step: int, losses: Array, began: float, ended: float) -> None:
        self._record.log_losses(first_step, losses, began, ended)
        self._observer.advanced(first_step + len(losses), float(losses[-1]))

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self._record.log_metrics(step, metrics)


def _round_steps(steps: int, steps_per_epoch: int) -> int:
    return steps_per_epoch if steps_per_epoch > 1 else math.ceil(steps / FULL_BATCH_VALIDATIONS)


def _training_data(data: Prepared) -> Any:
    from layerlab.training import TrainingData

    classification = data.dataset.classes is not None
    return TrainingData(*data.arrays(data.train), *data.arrays(data.val), classification)


def _run_info(job: Job, prepared: Prepared) -> Any:
    from layerlab.provenance import describe_dataset, source_tags
    from layerlab.tracking import RunInfo

    spec, row, dataset = job.spec, job.row, prepared.dataset
    return RunInfo(
        experiment=spec.experiment,
        name=spec.name or row.name,
        params={**spec.flat(), "optimizer": job.tier_class.recipe.optimizer},
        tags={
            **source_tags("layerlab run"),
            "layerlab.tier": row.name,
            "layerlab.distribution": row.distribution,
            "layerlab.version": row.version,
            "layerlab.task": dataset.task,
            "version.python": platform.python_version(),
            **{f"version.{name}": version(name) for name in _VERSIONS},
        },
        spec_yaml=spec.as_yaml(),
        dataset=describe_dataset(dataset, spec.data.target),
    )


def _described(error: LayerlabError, job: Job) -> LayerlabError:
    """Adds to what a tier raised what it was given."""
    if not isinstance(error, TierError):
        return error
    net, train = job.spec.net, job.spec.train
    context = f"{net.hidden} hidden, batch {train.batch_size}, {job.accelerator}, {train.precision}"
    return TierError(
        f"tier '{job.row.name}': {error} ({context})", hint="the traceback is in the run's artifacts"
    )


def _device_name(trainer: Any) -> str:
    import torch

    device = trainer.strategy.root_device
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def _file_name(name: str) -> str:
    """A name without anything that a file system or a shell would take for something else."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".-")[:100] or "model"
