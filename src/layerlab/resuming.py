"""`resume`: a run goes on where it was, in the same MLflow run, to the same bits."""

from __future__ import annotations

import importlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerlab import checkpoint, folder, journal, planning
from layerlab.errors import CheckpointError, DataError, SpecError, one_line
from layerlab.execution import Execution, GoingOn, about
from layerlab.report import Observer, Report
from layerlab.runner import execute
from layerlab.signals import StopSignals
from layerlab.spec import ExperimentSpec, parse_spec
from layerlab.startup import collector_paused
from layerlab.steps import Steps
from layerlab.storeuri import refuse_missing, resolve_uri, with_credentials
from layerlab.strictyaml import parse_yaml
from layerlab.tracking import OfflineRecorder, Recorder

if TYPE_CHECKING:
    from layerlab.checkpoint import Checkpoint
    from layerlab.registry import TierRow
    from layerlab.tracking import KnownRun

# Fewer digits of an id are not taken for one.
SHORTEST = 4
_LENGTH = ("steps", "epochs")


def resume(
    run: str | Path | None = None,
    *,
    steps: int | None = None,
    epochs: int | None = None,
    tracking_uri: str | None = None,
    observer: Observer | None = None,
) -> Report:
    """Goes on with a run that ended before its last step, or adds steps to one that is finished.

    What is recorded is not recorded again, and what was lost is made up for: losses, parameters and the ONNX
    file are those of a run that was never broken, bit by bit on the CPU.

    Args:
        run: The id of a run, the beginning of one that has checkpoints in this folder, or the path of a
            checkpoint; None: the run that began last in this folder.
        steps: Updates in all; None: as many as the run was to have.
        epochs: Passes through the data in all; None: likewise.
        tracking_uri: The MLflow store; None: the one that the run is recorded in.
        observer: Told what happens while it happens.

    Returns:
        One entry.

    Raises:
        InputError: It cannot be gone on with as asked; nothing was recorded but what it had not sent.
        Interrupted: SIGINT or SIGTERM; its ``report`` says what was done until then.
    """
    if steps is not None and epochs is not None:
        raise SpecError("steps and epochs exclude each other", hint="give --steps or --epochs")
    observer = observer or Observer()
    folder.refuse_unwritable()
    with StopSignals() as stop:
        began = time.perf_counter()
        run_id, shown_uri, chosen = _target(run)
        folder.refuse_links(checkpoint.folder_of(run_id))
        uri = resolve_uri(tracking_uri) if shown_uri is None else with_credentials(shown_uri, tracking_uri)
        if not (offline := _is_offline(run_id)):
            refuse_missing(uri)
        with OfflineRecorder() if offline else Recorder() as recorder:
            recorder.open(uri)
            observer.stage("loading torch and Lightning")
            with collector_paused():
                importlib.import_module("layerlab.training")
            recorder.opened(stop.check)
            observer.stage("reading what is recorded of the run")
            known = recorder.known(run_id, stop.check)
            spec = _spec(known, {"steps": steps, "epochs": epochs})
            rows, prepared = planning.read(spec, observer.stage)
            (job,) = planning.assign(spec, rows, prepared, observer.stage)
            _refuse_other_data(known, spec.data.name, prepared.dataset.digest)
            total = planning.total_steps(job.spec, len(prepared.train))
            goes_on = _going_on(known, run_id, chosen, total, job.row)
            stop.check()
            tags = about("layerlab resume")
            execution = Execution(job, prepared, recorder, tags, stop, observer, goes_on)
            return execute([execution], Report(recorder.shown_uri), stop, began)


def _target(run: str | Path | None) -> tuple[str, str | None, Checkpoint | None]:
    """The run that is meant, its store as far as it is known, and the checkpoint that is asked for."""
    if run is None:
        last = folder.remembered()
        if last is None:
            raise CheckpointError(
                "no run began in this folder", hint="name one: layerlab resume RUN_ID, or a checkpoint"
            )
        return last[0], last[1], None
    text = str(run)
    if text.endswith(checkpoint.SUFFIX) or os.sep in text:
        chosen = checkpoint.read(Path(run))
        return chosen.run_id, chosen.tracking_uri, chosen
    here = sorted({*checkpoint.runs(), *(path.stem for path in journal.journals())})
    found = [run_id for run_id in here if run_id.startswith(text) and len(text) >= SHORTEST]
    if len(found) > 1:
        raise CheckpointError(f"several runs begin with '{one_line(text)}': {', '.join(found)}")
    run_id = found[0] if len(found) == 1 else text
    if not folder.is_run_id(run_id):
        raise CheckpointError(
            f"no run in this folder begins with '{one_line(text)}', and a whole id has 32 digits",
            hint="layerlab run --json prints the ids, and mlflow ui shows them",
        )
    last = folder.remembered()
    if last is not None and last[0] == run_id:
        return run_id, last[1], None
    for path in checkpoint.of_run(run_id)[:1]:
        return run_id, checkpoint.read(path).tracking_uri, None
    return run_id, None, None


def _is_offline(run_id: str) -> bool:
    path = journal.path_of(run_id)
    with suppress(FileNotFoundError):  # it was sent in this moment: the store knows the run
        return path.exists() and journal.header(path).experiment_id is None
    return False


def _spec(known: KnownRun, length: dict[str, int | None]) -> ExperimentSpec:
    kind = known.tags.get("layerlab.kind")
    if known.spec_yaml is None or kind:
        what = f"is a {one_line(kind)}" if kind else "has no spec.yaml"
        raise SpecError(
            f"run {known.run_id} {what}: it is no training",
            hint="layerlab resume goes on with runs of layerlab run",
        )
    tree: Any = parse_yaml(known.spec_yaml, f"spec.yaml of run {known.run_id}")
    spec = parse_spec(tree, f"spec.yaml of run {known.run_id}")
    given = {name: value for name, value in length.items() if value is not None}
    if given:
        train = {key: value for key, value in tree["train"].items() if key not in _LENGTH}
        spec = parse_spec({**tree, "train": {**train, **given}}, None)
    return spec


def _refuse_other_data(known: KnownRun, name: str, digest: str) -> None:
    if known.data_digest not in (None, digest):
        raise DataError(
            f"{name} is not what the run saw: its digest was {known.data_digest}, and is {digest}",
            hint="put the data back, or begin a new run",
        )


def _going_on(known: KnownRun, run_id: str, chosen: Checkpoint | None, total: int, row: TierRow) -> GoingOn:
    """From where a run goes on: as late as it can without leaving a step out.

    Raises:
        SpecError: The run has all the steps that it is to have.
        CheckpointError: The checkpoint that was asked for is not of this run, or is too late.
    """
    losses = known.recorded.get("loss", Steps())
    if losses.end > total:
        raise SpecError(f"run {known.run_id} has {losses.end} steps, and {total} are asked for")
    if known.status == "FINISHED" and len(losses) >= total:
        raise SpecError(
            f"run {known.run_id} is finished after {len(losses)} steps", hint="more of them: --steps"
        )
    # Points are sent in their order: where one is missing, all that follow may be.
    whole = losses.whole
    if chosen is not None:
        _refuse_other(chosen, known, run_id, row)
        if chosen.step > whole:
            raise CheckpointError(
                f"checkpoint {chosen.path} is of step {chosen.step}, and the losses from step {whole} on are "
                "not recorded",
                hint=f"layerlab resume {known.run_id} begins before that",
            )
        return GoingOn(known, chosen.path, chosen.step, chosen.round_steps)
    for path in checkpoint.of_run(run_id):
        found = checkpoint.read(path)
        _refuse_other(found, known, run_id, row)
        if found.step <= min(whole, total):
            return GoingOn(known, found.path, found.step, found.round_steps)
    rounds = known.tags.get("layerlab.round_steps", "")
    return GoingOn(known, round_steps=int(rounds) if rounds.isdecimal() and int(rounds) else None)


def _refuse_other(found: Checkpoint, known: KnownRun, run_id: str, row: TierRow) -> None:
    if found.run_id != run_id:
        raise CheckpointError(
            f"checkpoint {found.path} is of run {found.run_id}, not of {run_id}",
            hint=checkpoint.before(found.path),
        )
    mine = _plain(parse_spec(parse_yaml(known.spec_yaml or "", "spec.yaml"), "spec.yaml"))
    other = _plain(parse_spec(found.spec, str(found.path)))
    differing = [key for key in {**mine, **other} if mine.get(key) != other.get(key)]
    if differing:
        key = sorted(differing)[0]
        raise CheckpointError(
            f"checkpoint {found.path} is of another spec: {key} is {other.get(key)}, and in the run "
            f"{mine.get(key)}",
            hint=checkpoint.before(found.path),
        )
    if (found.distribution, found.tier_version) != (row.distribution, row.version):
        raise CheckpointError(
            f"checkpoint {found.path} is of {found.distribution} {found.tier_version}, and '{row.name}' is "
            f"now of {row.distribution} {row.version}",
            hint=f"install that version; or {checkpoint.before(found.path)}",
        )


def _plain(spec: ExperimentSpec) -> dict[str, str]:
    own = {f"train.{name}" for name in (*_LENGTH, "checkpoint_every")}
    return {key: value for key, value in spec.flat().items() if key not in own}
