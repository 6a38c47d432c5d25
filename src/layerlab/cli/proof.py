"""``layerlab check`` and ``layerlab compare``."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerlab.cli import common
from layerlab.cli.common import emit
from layerlab.errors import AcceleratorError, DataError, PluginError, SpecError, looked_at
from layerlab.folder import here
from layerlab.streams import results_alone

if TYPE_CHECKING:
    from layerlab.conformance import CheckReport
    from layerlab.registry import TierRow

Plugins = Annotated[
    list[str] | None,
    typer.Option("--plugin", "-p", help="Tier to compare; give two or more. The first one leads."),
]
Runs = Annotated[tuple[str, str] | None, typer.Option(help="Two finished MLflow runs instead, by their ids.")]


def check(
    tiers: Annotated[list[str] | None, typer.Argument(help="Tiers, or DISTRIBUTION:TIER.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every tier that is installed, other people's too.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="Name of a check; may be repeated. [default: all of them]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="What problems are drawn from. [default: 0]")] = None,
    accelerator: Annotated[
        str | None, typer.Option(help="Where: auto, cpu or gpu. [default: the CPU where the tier runs there]")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write a JUnit file for CI as well.")] = None,
    as_json: common.Json = False,
) -> None:
    """Prove that tiers compute what they should and keep the contract; exit 1 if one does not."""
    from layerlab import registry

    if every and tiers:
        raise SpecError("tiers and --all exclude each other", hint="give one of them")
    if not every and not tiers:
        raise SpecError("name a tier, or give --all", hint="layerlab plugins lists them")
    if junit is not None:
        with looked_at(f"--junit {junit}", DataError):
            if junit.is_dir() or not junit.absolute().parent.is_dir():
                there = "is a folder" if junit.is_dir() else f"there is no folder {junit.parent}"
                raise DataError(f"--junit {junit}: {there}")
    here()  # where it is gone oneMKL ends the process, as soon as torch computes something
    rows = registry.rows()
    if tiers:
        rows = list({row.selector: row for row in (registry.find(name, rows) for name in tiers)}.values())
    options = {"seed": seed or 0, "accelerator": accelerator or "auto", "only": only or ()}
    with results_alone(as_json):
        reports = _check_each(rows, options, tolerant=every, as_json=as_json)
    if as_json:
        emit(json.dumps({"reports": [report.as_dict() for report in reports]}, indent=2))
    if junit is not None:
        from layerlab.conformance import write_junit

        try:
            write_junit(reports, junit)
        except OSError as error:
            raise DataError(f"--junit {junit}: cannot be written: {error.strerror}") from None
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


def _check_each(
    rows: list[TierRow], options: dict[str, Any], *, tolerant: bool, as_json: bool
) -> list[CheckReport]:
    """Checks tiers and prints their scorecards.

    Args:
        rows: The tiers.
        options: As `layerlab.check` takes them.
        tolerant: Whether a tier that cannot be loaded, or does not run where it is asked to, has a report
            that says so; otherwise that is an error.
        as_json: Whether nothing is printed here.
    """
    from layerlab import console
    from layerlab.conformance import check as check_tier
    from layerlab.conformance import not_examined

    reports = []
    for row in rows:
        with console.Progress() as watch:
            try:
                said = partial(_say_stage, watch, row.selector)
                report = check_tier(row.selector, **options, watch=said)
            except (PluginError, AcceleratorError) as error:
                if not tolerant:
                    raise
                report = not_examined(row, error, seed=options["seed"])
        reports.append(report)
        if not as_json:
            emit(console.scorecard_text(report))
    return reports


def _say_stage(watch: Any, tier: str, check: str) -> None:
    watch.stage(f"{tier}: {check}")


def compare(
    plugin: Plugins = None,
    runs: Runs = None,
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
    quiet: common.Quiet = False,
    as_json: common.Json = False,
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
    here()  # as `check`
    from layerlab import console

    def action() -> Any:
        with console.Progress(silent=quiet) as watch:
            if runs is not None:
                from layerlab.comparison import compare_runs

                return compare_runs(*runs, tracking_uri=tracking_uri, observer=watch)
            from layerlab.comparison import compare as compare_tiers

            return compare_tiers(**flags, tracking_uri=tracking_uri, observer=watch)

    text: Any = console.compare_text if runs is None else console.runs_text
    report = common.tell(action, text, quiet=quiet, as_json=as_json)
    if report.unsent is not None or (runs is None and not report.agree):
        raise typer.Exit(1)
