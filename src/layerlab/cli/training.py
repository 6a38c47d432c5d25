"""``layerlab run``."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Annotated, Any

import typer

from layerlab.cli import common
from layerlab.cli.common import complain, emit
from layerlab.errors import Interrupted, LayerlabError


def run(
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin", "-p", help="Tier to train; may be repeated; 'all' is the seven built-in ones."
        ),
    ] = None,
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
    config: Annotated[
        Path | None, typer.Option(help="YAML file of an experiment; flags override it.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="KEY=VALUE over the file, such as train.lr=0.01.")
    ] = None,
    tracking_uri: common.TrackingUri = None,
    print_config: Annotated[
        common.Flag,
        typer.Option("--print-config", help="Print the resolved spec of every run, and run nothing."),
    ] = None,
    quiet: common.Quiet = None,
    as_json: common.Json = None,
) -> None:
    """Train tiers, record every step in MLflow, leave checked ONNX files in ./models."""
    values = locals()  # the flags, by the names that the spec knows them by
    from layerlab.spec import FLAGS

    flags = common.given(values, FLAGS)
    source: dict[str, Any] = {"config": config, "settings": settings or ()}
    if print_config:
        from layerlab.planning import resolve

        specs = resolve(**source, **flags)
        emit("---\n".join(spec.as_yaml() for spec in specs).rstrip())
        return
    _run_and_show(source | flags | {"tracking_uri": tracking_uri}, quiet=bool(quiet), as_json=bool(as_json))


def _run_and_show(arguments: dict[str, Any], *, quiet: bool, as_json: bool) -> None:
    from layerlab import console, runner

    def show(report: Any) -> None:
        if as_json:
            emit(report.as_json())
        elif not quiet:
            emit(console.report_text(report))

    try:
        if quiet:
            report = runner.run(**arguments)
        else:
            with console.Progress() as watch:
                report = runner.run(**arguments, observer=watch)
    except Interrupted as interrupted:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the report is printed whole
        if interrupted.report is not None:
            show(interrupted.report)
        raise
    show(report)
    if quiet:
        for single in report.runs:
            if single.error:
                complain(LayerlabError(f"{single.tier}: {single.error}", hint=single.hint))
            if single.unsent:
                complain(LayerlabError(console.unsent_text(single)))
    if not report.ok:
        raise typer.Exit(1)
