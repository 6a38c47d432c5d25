"""The command line: parse, call, print. Whatever is heavy is imported inside the command that needs it."""

from __future__ import annotations

import atexit
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from layerlab.errors import Interrupted, LayerlabError

if TYPE_CHECKING:
    from layerlab.registry import TierRow

app = typer.Typer(
    name="layerlab",
    help="One two-layer network at every level of abstraction: trained under Lightning, tracked in MLflow, "
    "shipped as a checked ONNX file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a traceback is for a bug report: plain, whole
    rich_markup_mode=None,
)
plugins_app = typer.Typer(help="List tiers, look into one.", rich_markup_mode=None)
app.add_typer(plugins_app, name="plugins", invoke_without_command=True)

# A flag that is not given is None: then typer has nothing to convert, and need not load what converts.
Flag = bool | None
Json = Annotated[Flag, typer.Option("--json", help="Print JSON, and nothing else, on stdout.")]


def main() -> NoReturn:
    """Runs the command line and exits with its code."""
    signal.signal(signal.SIGINT, _interrupt)
    try:
        app()
    except LayerlabError as error:
        _complain(error)
        sys.exit(error.exit_code)
    sys.exit(0)


def entry() -> NoReturn:
    """The command itself: `main`, and then the process is gone.

    Python would first take apart every module that was imported: with torch and MLflow that takes seconds,
    and even without them a good part of a short command.
    """
    # Looking for pydantic's plugins means reading the metadata of every distribution there is.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    code: Any = 1
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001 -- shown as Python would show it
        sys.excepthook(*sys.exc_info())
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # nobody reads: a closed pipe is no reason to complain
        code = code or 1
    os._exit(code if isinstance(code, int) else int(code is not None))


def _interrupt(signum: int, frame: Any) -> NoReturn:  # noqa: ARG001 -- the handler's signature
    signal.signal(signum, signal.SIG_IGN)  # it is ending: once is enough
    raise Interrupted(signum)


def _complain(error: LayerlabError) -> None:
    print(f"error: {error}", file=sys.stderr)  # noqa: T201 -- the one place where errors are printed
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)  # noqa: T201


def _print(text: str) -> None:
    print(text)  # noqa: T201 -- results go to stdout


def _version(wanted: Flag) -> None:
    if wanted:
        from importlib.metadata import version

        _print(f"layerlab {version('layerlab')}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        Flag, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = None,
) -> None:
    """One two-layer network at every level of abstraction."""


@app.command()
def run(
    plugin: Annotated[
        list[str] | None,
        typer.Option(
            "--plugin", "-p", help="Tier to train; may be repeated; 'all' is the seven built-in ones."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Number of updates. [default: 500 for random data]")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Passes through the data. [default: 30 for real data]")
    ] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate. [default: the tier's]")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Rows a step. [default: all for random data, 32 for real data]")
    ] = None,
    hidden: Annotated[int | None, typer.Option(help="Hidden units. [default: 100]")] = None,
    init: Annotated[
        str | None, typer.Option(help="First weights: normal or linear. [default: the tier's]")
    ] = None,
    bias: Annotated[
        bool | None, typer.Option("--bias/--no-bias", help="Biases. [default: the tier's]")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, data, split and order. [default: 0]")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="random, digits, breast_cancer, diabetes, wine, iris, linnerud, or a CSV or Parquet file. "
            "[default: random]"
        ),
    ] = None,
    target: Annotated[
        list[str] | None, typer.Option(help="Column to learn, for a file; may be repeated. Text is a class.")
    ] = None,
    n: Annotated[int | None, typer.Option("--n", help="Rows of random data. [default: 64]")] = None,
    d_in: Annotated[int | None, typer.Option(help="Inputs of random data. [default: 1000]")] = None,
    d_out: Annotated[int | None, typer.Option(help="Outputs of random data. [default: 10]")] = None,
    val_fraction: Annotated[
        float | None,
        typer.Option(help="Share of rows for validation. [default: 0 for random data, else 0.2]"),
    ] = None,
    accelerator: Annotated[
        str | None, typer.Option(help="auto, cpu, gpu, cuda or mps; one device a run. [default: auto]")
    ] = None,
    precision: Annotated[
        str | None, typer.Option(help="32-true, 64-true or bf16-mixed. [default: 32-true]")
    ] = None,
    experiment: Annotated[str | None, typer.Option(help="MLflow experiment. [default: layerlab]")] = None,
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
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            help="MLflow store. [default: MLFLOW_TRACKING_URI, or sqlite:///mlflow.db in this folder]"
        ),
    ] = None,
    print_config: Annotated[
        Flag, typer.Option("--print-config", help="Print the resolved spec of every run, and run nothing.")
    ] = None,
    quiet: Annotated[Flag, typer.Option("--quiet", "-q", help="No progress and no summary.")] = None,
    as_json: Json = None,
) -> None:
    """Train tiers, record every step in MLflow, leave checked ONNX files in ./models."""
    given = locals()  # the flags, by the names that the spec knows them by
    from layerlab.spec import FLAGS

    flags = {flag: given[flag] for flag in FLAGS if given[flag] not in (None, [])}
    source: dict[str, Any] = {"config": config, "settings": settings or ()}
    if print_config:
        from layerlab.planning import resolve

        specs = resolve(**source, **flags)
        _print("---\n".join(spec.as_yaml() for spec in specs).rstrip())
        return
    _run_and_show(source | flags | {"tracking_uri": tracking_uri}, quiet=bool(quiet), as_json=bool(as_json))


def _run_and_show(arguments: dict[str, Any], *, quiet: bool, as_json: bool) -> None:
    from layerlab import console, runner

    def show(report: Any) -> None:
        if as_json:
            _print(report.as_json())
        elif not quiet:
            _print(console.report_text(report))

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
                _complain(LayerlabError(f"{single.tier}: {single.error}", hint=single.hint))
            if single.unsent:
                _complain(LayerlabError(console.unsent_text(single)))
    if not report.ok:
        raise typer.Exit(1)


@plugins_app.callback()
def plugins(
    context: typer.Context,
    check: Annotated[
        Flag,
        typer.Option("--check", help="Load each tier: accelerators, recipe, and what is broken and why."),
    ] = None,
    as_json: Json = None,
) -> None:
    """List tiers, look into one."""
    if context.invoked_subcommand is not None:
        return
    from layerlab import console, registry

    rows = registry.rows()
    entries = [_checked(row) if check else row.as_dict() for row in rows]
    if as_json:
        _print(json.dumps(entries, indent=2))
        return
    columns = [
        "selector",
        "distribution",
        "version",
        *(["accelerators", "recipe", "status"] if check else ["summary"]),
    ]
    cells = [[str(_cell(entry[column])) for column in columns] for entry in entries]
    _print(console.table(["tier", *columns[1:]], cells))


@plugins_app.command("show")
def show_plugin(
    name: Annotated[str, typer.Argument(help="A tier, or DISTRIBUTION:TIER.")], as_json: Json = None
) -> None:
    """Print a tier's documentation, recipe and source."""
    from layerlab import registry

    row = registry.find(name)
    details = registry.describe(row, registry.load(row))
    if as_json:
        _print(json.dumps(details, indent=2))
        return
    source = details.pop("source")
    documentation = details.pop("documentation")
    for key, value in details.items():
        _print(f"{key + ':':15}{_cell(value)}")
    _print(f"\n{documentation}\n\n{source}")


def _checked(row: TierRow) -> dict[str, Any]:
    from layerlab import registry
    from layerlab.errors import PluginError

    try:
        loaded = registry.describe(row, registry.load(row))
    except PluginError as error:
        return {**row.as_dict(), "accelerators": [], "recipe": {}, "status": f"broken: {error}"}
    return {
        **row.as_dict(),
        "accelerators": loaded["accelerators"],
        "recipe": loaded["recipe"],
        "status": "ok",
    }


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return ", ".join(value) if isinstance(value, list) else value


@app.command()
def verify(
    model: Annotated[Path, typer.Argument(help="An exported ONNX file.")], as_json: Json = None
) -> None:
    """Check an exported ONNX file again under onnxruntime."""
    from layerlab import console
    from layerlab.modelfile import verify as verify_model

    report = verify_model(model)
    if as_json:
        _print(json.dumps(report.as_dict(), indent=2))
    else:
        _print(console.verify_text(report))
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(help="An exported ONNX file.")],
    rows: Annotated[Path, typer.Argument(help="A CSV or Parquet file with the model's input columns.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write here instead of stdout.")
    ] = None,
) -> None:
    """Predict the rows of a table, as CSV."""
    from layerlab.prediction import predict_table, write_csv

    predicted = predict_table(model, rows)
    write_csv(predicted, output)
