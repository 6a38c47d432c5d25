"""The standard streams of the command: who reads them, and whether anybody does."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import pytest
from mlflow import MlflowClient

from helpers import TIERS, Site
from layerlab.console import Progress

# A tier that says what it does, as does C code that it calls.
CHATTY = (
    TIERS
    + """

class Chatty(Good):
    def __init__(self, params, **options):
        print("made")
        super().__init__(params, **options)

    def forward(self, x):
        print("forward")
        return super().forward(x)

    def step(self, x, y):
        import ctypes

        ctypes.CDLL(None).printf(b"from C\\n")
        return super().step(x, y)

    def params(self):
        print("asked")
        return super().params()
"""
)
SMALL = ("run", "-p", "numpy", "--steps", "3", "--n", "4", "--d-in", "3", "--hidden", "2", "--no-export")


def command(*arguments: str, stderr: IO[bytes], site: Path | None = None) -> tuple[int, bytes]:
    """The exit code of a command, and its stdout, with its stderr somewhere."""
    line = [sys.executable, "-m", "layerlab", *arguments]
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])] if site else []
    env = os.environ | ({"PYTHONPATH": os.pathsep.join(paths)} if site else {})
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=stderr, env=env, timeout=120, check=False)
    return done.returncode, done.stdout


def full() -> IO[bytes]:
    """A disk that is full."""
    return Path("/dev/full").open("wb")


def unread() -> IO[bytes]:
    """A pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "wb")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("stderr", [full, unread])
def test_progress_that_cannot_be_told_fails_no_run(
    empty_folder: Path, stderr: Callable[[], IO[bytes]]
) -> None:
    """The run is FINISHED and the exit code 0; that of a command that is refused stays 2."""
    with stderr() as nowhere:
        code, out = command(*SMALL, "--offline", "--json", stderr=nowhere)
        refused, _ = command("run", "-p", "nosuch", stderr=nowhere)
    assert (code, [run["status"] for run in json.loads(out)["runs"]], refused) == (0, ["FINISHED"], 2)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_fails_no_run(folder: Path, closed: str) -> None:
    """The run is FINISHED, in the store too, and the exit code 0; no file has the number of the stream."""
    shell = ["sh", "-c", f'exec "$0" -m layerlab "$@" {closed}', sys.executable, *SMALL]
    done = subprocess.run(shell, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    (run,) = MlflowClient(f"sqlite:///{folder}/mlflow.db").search_runs(["1"])
    assert run.info.status == "FINISHED"
    assert (">&-" in closed.split()) == (done.stdout == "")


def test_what_a_tier_prints_is_no_part_of_the_json(site: Site, empty_folder: Path) -> None:
    """Wherever it prints from, it is read on stderr; stdout has the report, and nothing else."""
    site.add("chatty-dist", {"chatty": "MODULE:Chatty"}, CHATTY)
    site.allow("chatty-dist")
    chatty = tuple("chatty" if word == "numpy" else word for word in SMALL)
    with Path("said.txt").open("wb") as told:
        code, out = command(*chatty, "--offline", "--json", stderr=told, site=site.path)
    assert (code, json.loads(out)["runs"][0]["status"]) == (0, "FINISHED")
    assert {"made", "asked", "from C"} <= set(Path("said.txt").read_text().splitlines())


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "chatty", "--only", "smallest"),
        ("compare", "-p", "nn", "-p", "chatty", "--steps", "3", "--n", "4", "--d-in", "3", "--no-bias"),
    ],
    ids=["check", "compare"],
)
def test_what_a_tier_prints_is_no_part_of_any_json(
    site: Site, folder: Path, layerlab_cli: Any, arguments: tuple[str, ...]
) -> None:
    """The same of every other command that trains."""
    site.add("chatty-dist", {"chatty": "MODULE:Chatty"}, CHATTY)
    site.allow("chatty-dist")
    result = layerlab_cli(*arguments, "--json")
    json.loads(result.stdout)
    assert {"made", "forward"} <= set(result.stderr.splitlines())


class Terminal(io.TextIOWrapper):
    """A terminal, whatever is behind it."""

    def isatty(self) -> bool:
        return True


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_bar_that_cannot_be_drawn_fails_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """By whoever it is drawn: rich has a thread of its own for it."""
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal(full())
    monkeypatch.setattr(sys, "stderr", terminal)
    with Progress() as watch:
        watch.started("nn", 100)
        watch._bar.refresh()
        watch.advanced(3, 1.0)
    with pytest.raises(OSError, match="No space left"):  # nor is there for what was drawn
        terminal.close()
