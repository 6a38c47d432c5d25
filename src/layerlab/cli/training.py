"""``layerlab run``, ``layerlab resume`` and ``layerlab sync``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerlab.cli import common
from layerlab.cli.common import complain, emit
from layerlab.errors import LayerlabError, SpecError

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerlab.report import Report

Plugins = Annotated[
    list[str] | None,
    typer.Option(
        "--plugin",
        "-p",
        help="Tier to train; may be repeated; 'all' is the seven built-in ones. [default: custom-module]",
    ),
]
Config = Annotated[Path | None, typer.Option(help="YAML file of an experiment; flags override it.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="KEY=VALUE over the file, such as train.lr=0.01.")
]
CheckpointEvery = Annotated[
    int | None, typer.Option(help="Steps between two checkpoints, in ./checkpoints. [default: one a minute]")
]
Offline = Annotated[
    bool, typer.Option("--offline", help="Record without the store; 'layerlab sync' sends it later.")
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print the resolved spec of every run, and run nothing.")
]


def run(
    plugin: Plugins = None,
    steps: common.Steps = None,
    epochs: common.Epochs = None,
    lr: common.LearningRate = None,
    batch_size: common.BatchSize = None,
    hidden: common.Hidden = None,
    init: common.InitOption = None,
    bias: common.Bias = None,
    seed: common.Seed = None,
    data: common.Data = None,
    target: common.Target = None,
    n: common.RowsOption = None,
    d_in: common.Inputs = None,
    d_out: common.Outputs = None,
    val_fraction: common.ValFraction = None,
    accelerator: common.Accelerator = None,
    precision: common.PrecisionOption = None,
    experiment: common.Experiment = None,
    name: Annotated[str | None, typer.Option(help="Name of the MLflow run. [default: the tier's]")] = None,
    export: Annotated[
        bool | None, typer.Option("--export/--no-export", help="Write a checked ONNX file.")
    ] = None,
    config: Config = None,
    settings: Settings = None,
    checkpoint_every: CheckpointEvery = None,
    tracking_uri: common.TrackingUri = None,
    offline: Offline = False,
    print_config: PrintConfig = False,
    quiet: common.Quiet = False,
    as_json: common.Json = False,
) -> None:
    """Train tiers, record every step in MLflow, leave checked ONNX files in ./models."""
    values = locals()  # the flags, by the names that the spec knows them by
    from layerlab.spec import FLAGS

    flags = common.given(values, FLAGS)
    source: dict[str, Any] = {"config": config, "settings": settings or ()}
    if print_config:
        from layerlab.planning import resolve

        specs = resolve(**source, **flags)
        text = "---\n".join(spec.as_yaml() for spec in specs).rstrip()
        emit(json.dumps([spec.as_dict() for spec in specs], indent=2) if as_json else text)
        return
    from layerlab import runner

    runs = partial(runner.run, **source, **flags, tracking_uri=tracking_uri, offline=offline)
    _show(runs, quiet=quiet, as_json=as_json)


def resume(
    run: Annotated[
        str | None,
        typer.Argument(help="The id of a run, or the path of a checkpoint.", show_default=False),
    ] = None,
    last: Annotated[bool, typer.Option("--last", help="The run that began last in this folder.")] = False,
    steps: Annotated[
        int | None, typer.Option(help="Updates in all. [default: as many as it was to have]")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes through the data in all.")] = None,
    tracking_uri: common.TrackingUri = None,
    quiet: common.Quiet = False,
    as_json: common.Json = False,
) -> None:
    """Go on with a run that was broken off, or add steps to one that is finished."""
    if run is not None and last:
        raise SpecError("a run and --last exclude each other", hint="give one of them")
    if run is None and not last:
        raise SpecError("say which run", hint="layerlab resume RUN_ID, a checkpoint's path, or --last")
    from layerlab import resuming

    goes_on = partial(resuming.resume, run, steps=steps, epochs=epochs, tracking_uri=tracking_uri)
    _show(goes_on, quiet=quiet, as_json=as_json)


def sync(
    tracking_uri: common.TrackingUri = None, quiet: common.Quiet = False, as_json: common.Json = False
) -> None:
    """Send what runs recorded in this folder and their stores did not take; each point comes there once."""
    from layerlab import console, syncing

    if quiet:
        report = syncing.sync(tracking_uri=tracking_uri)
    else:
        with console.Progress() as watch:
            report = syncing.sync(tracking_uri=tracking_uri, observer=watch)
    if as_json:
        emit(report.as_json())
    elif not quiet:
        emit(console.sync_text(report))
    if quiet:
        for single in report.runs:
            if single.reason is not None:
                complain(LayerlabError(f"{single.run_id}: {single.reason}"))
    if not report.ok:
        raise typer.Exit(1)


def _show(action: Callable[..., Report], *, quiet: bool, as_json: bool) -> None:
    from layerlab import console

    def watched() -> Report:
        if quiet:
            return action()
        with console.Progress() as watch:
            return action(observer=watch)

    report = common.tell(watched, console.report_text, quiet=quiet, as_json=as_json)
    if quiet:
        for single in report.runs:
            if single.error:
                complain(LayerlabError(f"{single.tier}: {single.error}", hint=single.hint))
            if single.unsent and not single.offline:
                complain(LayerlabError(console.unsent_text(single)))
    if not report.ok:
        raise typer.Exit(1)
