"""``layerlab bench``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from layerlab.cli.common import Json, Quiet, TrackingUri, given, tell
from layerlab.errors import SpecError, one_line
from layerlab.folder import here

if TYPE_CHECKING:
    from layerlab.benchmarking import BenchReport

# Options that are handed on as they are, and those that are lists of sizes.
_PLAIN = (
    *("rounds", "seconds", "precision", "accelerator", "seed"),
    *("against", "peers", "experiment", "tracking_uri"),
)
_SIZES = ("batch_size", "d_in", "hidden", "d_out")


def bench(
    tiers: Annotated[
        list[str] | None,
        typer.Argument(help="Tiers; 'all' is the seven built-in ones. [default: all]"),
    ] = None,
    batch_size: Annotated[
        str | None, typer.Option(help="Rows a step; several make a sweep: 64,4096. [default: 64]")
    ] = None,
    d_in: Annotated[
        str | None, typer.Option("--d-in", help="Inputs, one or several. [default: 1000]")
    ] = None,
    hidden: Annotated[str | None, typer.Option(help="Hidden units, one or several. [default: 100]")] = None,
    d_out: Annotated[
        str | None, typer.Option("--d-out", help="Outputs, one or several. [default: 10]")
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(help="What to measure: bare, lightning, tracked; may be repeated. [default: all three]"),
    ] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of each tier and mode. [default: 9]")] = None,
    seconds: Annotated[float | None, typer.Option(help="About how long a round is. [default: 0.2]")] = None,
    precision: Annotated[str | None, typer.Option(help="32-true or 64-true. [default: 32-true]")] = None,
    accelerator: Annotated[str | None, typer.Option(help="cpu or gpu. [default: cpu]")] = None,
    seed: Annotated[
        int | None, typer.Option(help="What problems are drawn from. [default: anew each time]")
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(help="A tier: each training takes turns with its bare loop too, for a ratio to it."),
    ] = None,
    peers: Annotated[
        bool,
        typer.Option(
            "--peers", help="Also what others offer for it: a stock Lightning script, skorch, Keras on torch."
        ),
    ] = False,
    experiment: Annotated[
        str | None, typer.Option(help="MLflow experiment. [default: layerlab-bench]")
    ] = None,
    tracking_uri: TrackingUri = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure tiers side by side: no speed without proof (exit 1 if a tier is refused)."""
    values = locals()
    sizes = given(values, _SIZES)
    arguments = given(values, _PLAIN) | {name: _sizes(name, text) for name, text in sizes.items()}
    if mode:
        arguments["modes"] = mode
    here()  # where it is gone oneMKL ends the process, as soon as torch computes something
    from layerlab import console
    from layerlab.benchmarking import bench as measure

    def action() -> BenchReport:
        with console.Progress(silent=quiet) as watch:
            return measure(tiers or ("all",), **arguments, observer=watch)

    report = tell(action, console.bench_text, quiet=quiet, as_json=as_json)
    if not report.ok:
        raise typer.Exit(1)


def _sizes(name: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        flag = name.replace("_", "-")
        raise SpecError(
            f"--{flag} {one_line(text)}: should be whole numbers, joined by commas", hint=f"--{flag} 64,4096"
        ) from None
