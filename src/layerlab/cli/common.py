"""What several commands share: how they print, and the options that describe an experiment."""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

from layerlab.errors import Interrupted
from layerlab.streams import results_alone, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerlab.errors import LayerlabError

# A flag is False where it is not given: of a bool typer has nothing to convert, and need not load what does.
Json = Annotated[bool, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")]

Steps = Annotated[int | None, typer.Option(help="Number of updates. [default: 500 for random data]")]
Epochs = Annotated[int | None, typer.Option(help="Passes through the data. [default: 30 for real data]")]
LearningRate = Annotated[float | None, typer.Option("--lr", help="Learning rate. [default: the tier's]")]
BatchSize = Annotated[
    int | None, typer.Option(help="Rows a step. [default: all for random data, 32 for real data]")
]
Hidden = Annotated[int | None, typer.Option(help="Hidden units. [default: 100]")]
InitOption = Annotated[
    str | None, typer.Option("--init", help="First weights: normal or linear. [default: the tier's]")
]
Bias = Annotated[bool | None, typer.Option("--bias/--no-bias", help="Biases. [default: the tier's]")]
Seed = Annotated[int | None, typer.Option(help="Of weights, data, split and order. [default: 0]")]
Data = Annotated[
    str | None,
    typer.Option(
        help="random, digits, breast_cancer, diabetes, wine, iris, linnerud, or a CSV or Parquet file. "
        "[default: random]"
    ),
]
Target = Annotated[
    list[str] | None, typer.Option(help="Column to learn, for a file; may be repeated. Text is a class.")
]
RowsOption = Annotated[int | None, typer.Option("--n", help="Rows of random data. [default: 64]")]
Inputs = Annotated[int | None, typer.Option("--d-in", help="Inputs of random data. [default: 1000]")]
Outputs = Annotated[int | None, typer.Option("--d-out", help="Outputs of random data. [default: 10]")]
ValFraction = Annotated[
    float | None,
    typer.Option(help="Share of rows for validation. [default: 0 for random data, else 0.2]"),
]
Accelerator = Annotated[
    str | None, typer.Option(help="auto, cpu, gpu, cuda or mps; one device a run. [default: auto]")
]
PrecisionOption = Annotated[
    str | None, typer.Option("--precision", help="32-true, 64-true or bf16-mixed. [default: 32-true]")
]
Experiment = Annotated[str | None, typer.Option(help="MLflow experiment. [default: layerlab]")]
TrackingUri = Annotated[
    str | None,
    typer.Option(help="MLflow store. [default: MLFLOW_TRACKING_URI, or sqlite:///mlflow.db in this folder]"),
]


class _Report(Protocol):
    def as_json(self) -> str: ...


Reported = TypeVar("Reported", bound=_Report)


def emit(text: str) -> None:
    """Prints a result: results go to stdout."""
    print(text)  # noqa: T201 -- as said


def complain(error: LayerlabError) -> None:
    """Prints an error and its hint to stderr."""
    say(f"error: {error}")
    if error.hint:
        say(f"hint: {error.hint}")


def tell(
    action: Callable[[], Reported],
    text: Callable[[Reported], str],
    *,
    quiet: bool,
    as_json: bool,
) -> Reported:
    """Prints the report of what is done, also of what was done until a signal, whose exit code stays."""

    def show(report: Reported) -> None:
        if as_json:
            emit(report.as_json())
        elif not quiet:
            emit(text(report))

    try:
        with results_alone(as_json):
            report = action()
    except Interrupted as interrupted:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)  # the report is printed whole
        if interrupted.report is not None:
            with suppress(BrokenPipeError):  # whoever would have read it was stopped as well
                show(interrupted.report)
        raise
    show(report)
    return report


def given(values: dict[str, Any], names: Any) -> dict[str, Any]:
    """The flags that were given, of a command's local names."""
    return {name: values[name] for name in names if values.get(name) not in (None, [])}
