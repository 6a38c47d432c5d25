"""One tier, trained once: its record, its checkpoints, its file, and how it ends."""

from __future__ import annotations

import gc
import math
import platform
import re
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerlab.errors import Interrupted, JournalError, LayerlabError, TierError
from layerlab.folder import MODELS, remember
from layerlab.planning import total_steps
from layerlab.provenance import describe_dataset, source_tags
from layerlab.report import Observer, RunReport
from layerlab.startup import keep_freed_memory
from layerlab.tracking import OfflineRecorder, RunInfo

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import torch

    from layerlab.data.dataset import Prepared
    from layerlab.planning import Job
    from layerlab.report import Status
    from layerlab.signals import StopSignals
    from layerlab.tier import Array, Tier
    from layerlab.tracking import Closing, KnownRun, Record, Recorder
    from layerlab.training import TierModule

# With validation on a full batch, so many times in a run; with minibatches after every epoch.
FULL_BATCH_VALIDATIONS = 50
_VERSIONS = ("layerlab", "torch", "pytorch-lightning", "mlflow", "numpy", "onnx", "onnxruntime")


@dataclass(frozen=True)
class GoingOn:
    """Where a run goes on.

    Attributes:
        known: What is recorded of it.
        path: Its checkpoint; None: it begins again, and nothing is recorded twice.
        step: The step of the checkpoint, or 0.
        round_steps: Steps between its validations; None: not known.
    """

    known: KnownRun
    path: Path | None = None
    step: int = 0
    round_steps: int | None = None


class Execution:
    """One tier, trained once: its record, its report, and how it ends."""

    def __init__(
        self,
        job: Job,
        prepared: Prepared,
        recorder: Recorder | OfflineRecorder,
        about: Mapping[str, str],
        stop: StopSignals,
        observer: Observer,
        goes_on: GoingOn | None = None,
    ) -> None:
        self.job, self.prepared, self.recorder, self.about = job, prepared, recorder, about
        self.goes_on = goes_on
        self.stop, self.observer = stop, observer
        self.report = RunReport(
            tier=job.row.name,
            distribution=job.row.distribution,
            version=job.row.version,
            status="FAILED",
            run_id="",
            experiment=job.spec.experiment,
        )
        self._began = self._lapped = self._took = 0.0
        self._closing: Closing | None = None
        self._logged = set[str]()

    def execute(self, began: float, settle: Callable[[], None]) -> None:
        """Trains and exports; whatever happens, the record is closed with a true status.

        Args:
            began: When it began (`time.perf_counter`): reading the data may be part of it.
            settle: Called when this run is there: then those before it are closed.

        Raises:
            Interrupted: A signal came; the run is KILLED.
        """
        self._began = self._lapped = began
        record = self.record = self._begun()
        self._settle_others = settle
        try:
            self._train_and_export(record)
        except LayerlabError as error:
            if isinstance(error, Interrupted):
                self._close(record, "KILLED", error)
                raise
            if error.__cause__ is not None:
                with suppress(JournalError):
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

    def settle(self) -> None:
        """Waits until the run is closed, and says how it ended; once."""
        if self._closing is None:
            return
        began = time.perf_counter()
        self.observer.stage("sending the rest of the record")
        # Whoever interrupts wants to leave: what a slow store has not taken by then, it gets later.
        unsent = self._closing.unsent(hurry=lambda: self.stop.signum is not None)
        self._closing = None
        self.report.run_id = self.record.run_id
        self.report.unsent = None if unsent is None else asdict(unsent)
        self.report.offline = isinstance(self.recorder, OfflineRecorder)
        self.report.seconds["total"] = round(self._took + time.perf_counter() - began, 6)
        self.observer.finished(self.report)

    def _train_and_export(self, record: Record) -> None:
        module = self._train(record)
        module.check_params()
        if self.job.spec.export:
            self._export(module, record)

    def _begun(self) -> Record:
        info = run_info(self.job, self.prepared, self.about)
        if self.goes_on is None:
            return self.recorder.start_run(info)
        tags = {"layerlab.resumed_at_step": str(self.goes_on.step), "layerlab.steps": str(self._steps)}
        return self.recorder.resume_run(self.goes_on.known, replace(info, tags={**info.tags, **tags}))

    @property
    def _steps_per_epoch(self) -> int:
        assert self.job.spec.train.batch_size is not None  # a resolved spec has it
        return math.ceil(len(self.prepared.train) / self.job.spec.train.batch_size)

    @property
    def _steps(self) -> int:
        return total_steps(self.job.spec, len(self.prepared.train))

    def _module(self, record: Record) -> TierModule:
        from layerlab.reference import initial_params
        from layerlab.training import TierModule

        job, data = self.job, self.prepared
        train, net = job.spec.train, job.spec.net
        assert train.batch_size is not None
        assert train.lr is not None
        assert net.init is not None
        n_in, n_out = data.dataset.x.shape[1], data.dataset.y.shape[1]
        every = _round_steps(self._steps, self._steps_per_epoch)
        if self.goes_on is not None and self.goes_on.round_steps is not None:
            every = self.goes_on.round_steps
        return TierModule(
            job.tier_class,
            initial_params(n_in, net.hidden, n_out, init=net.init, bias=bool(net.bias), seed=train.seed),
            _training_data(data, train.precision),
            lr=train.lr,
            batch_size=train.batch_size,
            seed=train.seed,
            round_steps=every if len(data.val) else None,
            sink=_Tee(record, self.observer),
            stop=self.stop,
        )

    def _train(self, record: Record) -> TierModule:
        from layerlab.saving import OwnSignals, Saver, WholeFile
        from layerlab.training import make_trainer, quiet_lightning

        job, train = self.job, self.job.spec.train
        if job.accelerator != "cpu":
            gc.collect()  # a training before this one is a cycle, and would keep its rows on the device
        module = self._module(record)
        with quiet_lightning():
            savers = []
            if job.tier_class.resumable():
                savers = [Saver(record, self._about_checkpoint(module), every=train.checkpoint_every)]
            # Made while the run before this one is closed, and this one is made in the store.
            trainer = make_trainer(
                accelerator=job.accelerator,
                precision=train.precision,
                max_steps=self._steps,
                validate=len(self.prepared.val) > 0,
                callbacks=[*savers, OwnSignals(self.stop)],
                plugins=[WholeFile()],
            )
            run_id = record.started(self.stop.check)
            remember(run_id, self.recorder.shown_uri)
            self._settle_others()
            self.report.run_id, self.report.device = run_id, str(trainer.strategy.root_device)
            tags = _device_tags(trainer.strategy.root_device, job.tier_class)
            if module.round_steps is not None:
                tags["layerlab.round_steps"] = str(module.round_steps)  # for whoever goes on with it
            record.set_tags(tags)
            self.stop.check()
            keep_freed_memory()
            self._lap("setup")
            if self.goes_on is not None:
                self.observer.resumed(job.row.name, self.goes_on.step)
            self.observer.started(job.row.name, self._steps)
            checkpoint = None if self.goes_on is None else self.goes_on.path
            try:
                trainer.fit(module, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
            finally:
                self._lap("train")
                self.report.steps = trainer.global_step
                self.report.first_loss, self.report.final_loss = module.first_loss, module.last_loss
                self.report.val = module.val_metrics
                self.report.checkpoint = savers[0].saved if savers else ""
        return module

    def _about_checkpoint(self, module: TierModule) -> dict[str, Any]:
        return {
            "tracking_uri": self.recorder.shown_uri,
            "spec": self.job.spec.as_dict(),
            "tier": self.job.row.name,
            "distribution": self.job.row.distribution,
            "tier_version": self.job.row.version,
            "version": self.about["version.layerlab"],
            "data_digest": self.prepared.dataset.digest,
            "round_steps": module.round_steps,
        }

    def _export(self, module: TierModule, record: Record) -> None:
        from layerlab.export import export

        self.observer.stage("exporting and checking the ONNX model")
        job, dataset = self.job, self.prepared.dataset
        try:
            exported = export(
                module.params(),
                self.prepared.scaler,
                path=MODELS / f"{_file_name(job.spec.name or job.row.name)}-{record.run_id[:8]}.onnx",
                predict=module.predict,
                rows=dataset.sample(),
                features=dataset.features,
                metadata={
                    "tier": job.row.name,
                    "distribution": f"{job.row.distribution} {job.row.version}",
                    "layerlab_version": self.about["version.layerlab"],
                    "run_id": record.run_id,
                    "data": dataset.name,
                    "task": dataset.task,
                    "features": dataset.features,
                    "outputs": dataset.outputs,
                    **({"classes": dataset.classes} if dataset.classes else {}),
                },
            )
            record.set_tags({"layerlab.onnx": str(exported.path)})
            record.log_metrics(self.report.steps, {"onnx/max_abs_diff": exported.max_abs_diff})
            self.report.onnx = exported.as_dict()
        finally:
            self._lap("export")
        self._log_seconds(record)  # before the model, which parts what could go out in one call
        record.log_model(exported.proto.SerializeToString(), _file_name(job.row.name), self.report.steps)

    def _lap(self, part: str) -> None:
        now = time.perf_counter()
        self.report.seconds[part] = round(now - self._lapped, 6)
        self._lapped = now

    def _log_seconds(self, record: Record) -> None:
        """Records what the parts took that are over, each once."""
        new = {part: took for part, took in self.report.seconds.items() if part not in self._logged}
        record.log_metrics(self.report.steps, {f"seconds/{part}": took for part, took in new.items()})
        self._logged.update(new)

    def _close(self, record: Record, status: Status, error: BaseException | None) -> None:
        report = self.report
        report.status = status
        if error is not None:
            report.error = (
                str(error) if isinstance(error, LayerlabError) else f"{type(error).__name__}: {error}"
            )
            report.hint = getattr(error, "hint", None)
        with self.stop.held():
            with suppress(JournalError):  # then it is the reason for which the run ends
                self._log_seconds(record)
            self._closing = record.finish(status, report.error)
        self._took = time.perf_counter() - self._began


class _Tee:
    """Hands the figures of a training to the record and to the observer."""

    def __init__(self, record: Record, observer: Observer) -> None:
        self._record, self._observer = record, observer

    def log_losses(self, first_step: int, losses: Array, began: float, ended: float) -> None:
        self._record.log_losses(first_step, losses, began, ended)
        self._observer.advanced(first_step + len(losses), float(losses[-1]))

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        self._record.log_metrics(step, metrics)


def _round_steps(steps: int, steps_per_epoch: int) -> int:
    return steps_per_epoch if steps_per_epoch > 1 else math.ceil(steps / FULL_BATCH_VALIDATIONS)


def _training_data(data: Prepared, precision: str) -> Any:
    from layerlab.training import TrainingData

    classification = data.dataset.classes is not None
    dtype = "f8" if precision == "64-true" else "f4"
    # The figures of validation are computed in float64.
    return TrainingData(*data.arrays(data.train, dtype, dtype), *data.arrays(data.val, dtype), classification)


def about(command: str) -> dict[str, str]:
    """What all runs of a command have in common: who, what code, which versions."""
    return {
        **source_tags(command),
        "version.python": platform.python_version(),
        **{f"version.{name}": version(name) for name in _VERSIONS},
    }


def run_info(job: Job, prepared: Prepared, about: Mapping[str, str]) -> RunInfo:
    """What is recorded of a run before it starts."""
    spec, row, dataset = job.spec, job.row, prepared.dataset
    return RunInfo(
        experiment=spec.experiment,
        name=spec.name or row.name,
        params={**spec.flat(), "optimizer": job.tier_class.recipe.optimizer},
        tags={
            **about,
            "layerlab.tier": row.name,
            "layerlab.distribution": row.distribution,
            "layerlab.version": row.version,
            "layerlab.task": dataset.task,
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
    kept = "the traceback is in the run's artifacts" if error.__cause__ is not None else None
    # a tier that knows what the user can do says so in a hint of its own
    return TierError(f"tier '{job.row.name}': {error} ({context})", hint=error.hint or kept)


def _device_tags(device: torch.device, tier_class: type[Tier]) -> dict[str, str]:
    """Where a tier runs, and on CUDA whether its steps are replayed there."""
    import torch

    from layerlab.replay import replays

    tags = {"layerlab.device": str(device)}
    if device.type != "cuda":
        return {**tags, "layerlab.device_name": f"{platform.machine()}, {torch.get_num_threads()} threads"}
    replayed = str(replays(tier_class, device)).lower()
    return {
        **tags,
        "layerlab.device_name": torch.cuda.get_device_name(device),
        "layerlab.replayed": replayed,
    }


def _file_name(name: str) -> str:
    """A name without anything that a file system or a shell would take for something else."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip(".-")[:100] or "model"
