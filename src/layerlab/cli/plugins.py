"""``layerlab plugins`` and its subcommands."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from layerlab.cli.common import Json, emit
from layerlab.errors import SpecError
from layerlab.streams import results_alone

if TYPE_CHECKING:
    from layerlab.registry import TierRow

app = typer.Typer(help="List tiers, look into one, begin one.", rich_markup_mode=None)


@app.callback()
def plugins(
    context: typer.Context,
    check: Annotated[
        bool,
        typer.Option("--check", help="Load each tier: accelerators, recipe, and what is broken and why."),
    ] = False,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="How long --check waits for a distribution. [default: 60]"),
    ] = None,
    as_json: Json = False,
) -> None:
    """List tiers, look into one."""
    if context.invoked_subcommand is not None:
        return
    if timeout is not None and not check:
        raise SpecError("--timeout belongs to --check", hint="a listing runs no code that could take long")
    if timeout is not None and not 0 < timeout < float("inf"):
        raise SpecError(f"--timeout {timeout:g}: should be a finite number of seconds above 0")
    from layerlab import console, registry

    rows = registry.rows()
    entries = _inspected(rows, timeout) if check else [row.as_dict() for row in rows]
    if as_json:
        emit(json.dumps(entries, indent=2))
        return
    columns = [
        "selector",
        "distribution",
        "version",
        *(["contract", "accelerators", "recipe", "status"] if check else ["summary"]),
    ]
    cells = [[str(_cell(entry[column])) for column in columns] for entry in entries]
    emit(console.table(["tier", *columns[1:]], cells))


@app.command("show")
def show_plugin(
    name: Annotated[str, typer.Argument(help="A tier, or DISTRIBUTION:TIER.")], as_json: Json = False
) -> None:
    """Print a tier's documentation, recipe and source."""
    from layerlab import registry

    row = registry.find(name)
    with results_alone(as_json):
        details = registry.describe(row, registry.load(row))
    if as_json:
        emit(json.dumps(details, indent=2))
        return
    source = details.pop("source")
    documentation = details.pop("documentation")
    for key, value in details.items():
        emit(f"{key + ':':18}{_cell(value)}")
    emit(f"\n{documentation}\n\n{source}")


@app.command("new")
def new_plugin(
    name: Annotated[str, typer.Argument(help="Name of the tier, such as my-tier.")],
    directory: Annotated[
        Path | None, typer.Option(help="Where the new folder goes. [default: this folder]")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a pip-installable plugin with one tier that passes, in a new folder."""
    from layerlab import scaffold

    made = scaffold.new_plugin(name, directory or Path())
    if as_json:
        emit(json.dumps(made.as_dict(), indent=2))
        return
    path = made.path if made.path.is_absolute() else f"./{made.path}"
    emit("\n".join([f"made {path}", *(f"  {file}" for file in made.files), "", "next:"]))
    emit(f"  pip install -e {shlex.quote(str(path))}")
    emit(f"  layerlab check {name}\n  layerlab run --plugin {name}")


def _inspected(rows: list[TierRow], timeout: float | None) -> list[dict[str, Any]]:
    from layerlab.inspection import TIME_LIMIT, inspect_tiers

    return inspect_tiers(rows, time_limit=TIME_LIMIT if timeout is None else timeout)


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    if isinstance(value, list):
        return ", ".join(value)
    return "" if value is None else value
