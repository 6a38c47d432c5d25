"""The command line: parse, call, print. Whatever is heavy is imported inside the command that needs it."""

from __future__ import annotations

import atexit
import io
import os
import signal
import sys
from typing import Annotated, Any, NoReturn

import typer

from layerlab import startup
from layerlab.cli import bench, models, plugins, proof, training
from layerlab.cli.common import complain, emit
from layerlab.errors import Interrupted, LayerlabError, Stopped
from layerlab.streams import Unheard, open_closed, say

app = typer.Typer(
    name="layerlab",
    help="One two-layer network at every level of abstraction: trained under Lightning, tracked in MLflow, "
    "proven step by step, shipped as a checked ONNX file.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # a traceback is for a bug report: plain, whole
    rich_markup_mode=None,
)
app.command()(training.run)
app.command()(training.resume)
app.command()(training.sync)
app.add_typer(plugins.app, name="plugins", invoke_without_command=True)
app.command()(proof.check)
app.command()(proof.compare)
app.command()(bench.bench)
app.command()(models.verify)
app.command()(models.predict)


def main() -> NoReturn:
    """Runs the command line and exits with its code."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _interrupt)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names may be in any script
    try:
        app()
    except (Stopped, Exception) as raised:  # noqa: BLE001 -- what is no reason of ours is raised again
        error = _reason(raised)
    else:
        sys.exit(0)
    complain(error)
    sys.exit(error.exit_code)


def _reason(raised: BaseException) -> LayerlabError:
    """Why it ends: a signal, whatever that broke on its way out, half an import say, or an error of ours."""
    before: BaseException | None = raised
    while before is not None:
        if isinstance(before, Stopped):
            return Interrupted(before.signum)
        before = before.__context__
    if isinstance(raised, LayerlabError):
        return raised
    raise raised


def entry() -> NoReturn:
    """The command itself: `main`, and then the process is gone.

    Python would first take apart every module that was imported: with torch and MLflow that takes seconds,
    and even without them a good part of a short command.
    """
    open_closed()
    startup.claim()
    code: Any = 1
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001 -- shown as Python would show it
        sys.excepthook(*sys.exc_info())
    _ignore_signals()
    try:
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except OSError:  # nobody reads: a closed pipe is no reason to complain
        code = code or 1
    with Unheard():
        sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _interrupt(signum: int, frame: Any) -> NoReturn:  # noqa: ARG001 -- the handler's signature
    _ignore_signals()  # it is ending: once is enough
    raise Stopped(signum)


def _ignore_signals() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        emit(f"layerlab {version('layerlab')}")
        raise typer.Exit


@app.callback()
def _root(
    _: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One two-layer network at every level of abstraction."""
    from layerlab import folder

    # Runs of this folder whose processes are gone are closed, whatever the command is.
    if folder.something_there():
        from layerlab import syncing

        syncing.close_killed(say)
