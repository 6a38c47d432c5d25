"""The standard streams of the command: who reads them, and whether anybody does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

SMALL = ("run", "-p", "numpy", "--steps", "3", "--n", "4", "--d-in", "3", "--hidden", "2", "--no-export")


def command(*arguments: str, stderr: IO[bytes]) -> tuple[int, bytes]:
    """The exit code of a command, and its stdout, with its stderr somewhere."""
    line = [sys.executable, "-m", "layerlab", *arguments]
    done = subprocess.run(line, stdout=subprocess.PIPE, stderr=stderr, timeout=120, check=False)
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
