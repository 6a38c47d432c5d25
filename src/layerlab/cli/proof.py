"""``layerlab check`` and ``layerlab compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from layerlab.cli import common
from layerlab.cli.common import complain, emit
from layerlab.errors import DataError, PluginError, SpecError


def check(
    tiers: Annotated[list[str] | None, typer.Argument(help="Tiers, or DISTRIBUTION:TIER.")] = None,
    every: Annotated[
        common.Flag, typer.Option("--all", help="Every tier that is installed, other people's too.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(help="Name of a check; may be repeated. [default: all of them]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="What problems are drawn from. [default: 0]")] = None,
    accelerator: Annotated[
        str | None, typer.Option(help="Where: auto, cpu or gpu. [default: the CPU where the tier runs there]")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write a JUnit file for CI as well.")] = None,
    as_json: common.Json = None,
) -> None:
    """Prove that tiers compute what they should and keep the contract; exit 1 if one does not."""
    from layerlab import registry

    if every and tiers:
        raise SpecError("tiers and --all exclude each other", hint="give one of them")
    if not every and not tiers:
        raise SpecError("name a tier, or give --all", hint="layerlab plugins lists them")
    if junit is not None and not junit.absolute().parent.is_dir():
        raise DataError(f"--junit {junit}: there is no folder {junit.parent}")
    rows = registry.rows()
    if tiers:
        rows = list({row.selector: row for row in (registry.find(name, rows) for name in tiers)}.values())
    from layerlab import console
    from layerlab.conformance import check as check_tier
    from layerlab.conformance import write_junit

    reports = []
    broken = False
    for row in rows:
        with console.Progress() as watch:
            try:
                report = check_tier(
                    row.selector,
                    seed=seed or 0,
                    accelerator=accelerator or "auto",
                    only=only or (),
                    watch=lambda name, row=row, watch=watch: watch.stage(f"{row.selector}: {name}"),  # type: ignore[misc]
                )
            except PluginError as error:
                if not every:
                    raise
                broken = True  # the others are checked all the same
                complain(error)
                continue
        reports.append(report)
        if not as_json:
            emit(console.scorecard_text(report))
    if as_json:
        emit(json.dumps({"reports": [report.as_dict() for report in reports]}, indent=2))
    if junit is not None:
        try:
            write_junit(reports, junit)
        except OSError as error:
            raise DataError(f"--junit {junit}: cannot be written: {error.strerror}") from None
    if broken or not all(report.ok for report in reports):
        raise typer.Exit(1)


def compare(
    plugin: Annotated[
        list[str] | None,
        typer.Option("--plugin", "-p", help="Tier to compare; give two or more. The first one leads."),
    ] = None,
    runs: Annotated[
        tuple[str, str] | None, typer.Option(help="Two finished MLflow runs instead, by their ids.")
    ] = None,
    steps: common.Steps = None,
    epochs: common.Epochs = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate. [default: the first tier's]")] = None,
    batch_size: common.BatchSize = None,
    hidden: common.Hidden = None,
    init: Annotated[
        str | None, typer.Option(help="First weights: normal or linear. [default: the first tier's]")
    ] = None,
    bias: Annotated[
        bool | None, typer.Option("--bias/--no-bias", help="Biases. [default: the first tier's]")
    ] = None,
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
    name: Annotated[str | None, typer.Option(help="Name of the MLflow run of the comparison.")] = None,
    tracking_uri: common.TrackingUri = None,
    quiet: common.Quiet = None,
    as_json: common.Json = None,
) -> None:
    """Train tiers in lockstep and say where they part (exit 1 if they do), or compare two finished runs."""
    values = locals()
    from layerlab.spec import FLAGS

    flags = common.given(values, FLAGS)
    if runs is not None and flags:
        flag = next(iter(flags)).replace("_", "-")
        raise SpecError(f"--runs and --{flag} exclude each other", hint="finished runs are as they are")
    if runs is None and not plugin:
        raise SpecError(
            "there is nothing to compare",
            hint="give --plugin A --plugin B, or --runs with the ids of two runs",
        )
    from layerlab import console

    report: Any
    with console.Progress(silent=bool(quiet)) as watch:
        if runs is not None:
            from layerlab.comparison import compare_runs

            report = compare_runs(*runs, tracking_uri=tracking_uri, observer=watch)
        else:
            from layerlab.comparison import compare as compare_tiers

            report = compare_tiers(**flags, tracking_uri=tracking_uri, observer=watch)
    if as_json:
        emit(report.as_json())
    elif not quiet:
        emit(console.compare_text(report) if runs is None else console.runs_text(report))
    if report.unsent is not None or (runs is None and not report.agree):
        raise typer.Exit(1)
