"""What comes before a store is open: old stores, other processes, servers that do not answer."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from layerlab.errors import JournalError, LayerlabError, TrackingError
from layerlab.journal import Journal, finished, header
from layerlab.liveness import is_alive
from layerlab.storeuri import sqlite_path, without_credentials, without_secrets

# A server that takes longer for an answer is taken to be gone: when it is first asked, and later.
_AT_FIRST = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "6", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0"}
_LATER = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
# What of it this process has set, as against its user.
_set_here: dict[str, str] = {}
# Tries at a database that does not open, a second in all; MLflow by itself makes ten, in almost two minutes.
TRIES = 4
# What another process may take to send the rest of a run whose trainer was killed.
SECONDS_TO_END = 60.0


def refuse_old_file_store() -> None:
    """Refuses a folder in which ``mlflow ui`` would not start.

    Raises:
        TrackingError: There is an old file store.
    """
    old = [p for p in Path("mlruns").glob("*/meta.yaml") if p.parent.name.isdigit()]
    if old:
        raise TrackingError(
            f"{old[0]} belongs to an MLflow file store, which 'mlflow ui' no longer opens beside mlflow.db",
            hint="mlflow migrate-filestore moves it, or use another folder or --tracking-uri",
        )


@contextmanager
def soon() -> Iterator[None]:
    """Within this context a server has to answer soon; after it, in time.

    MLflow by itself would retry for minutes. Whoever sets its variables is heard.
    """
    own = {name for name in _AT_FIRST if os.environ.get(name) in (None, _set_here.get(name))}
    os.environ.update({name: _AT_FIRST[name] for name in own})
    try:
        yield
    finally:
        _set_here.update({name: _LATER[name] for name in own})
        os.environ.update({name: _LATER[name] for name in own})


@contextmanager
def few_tries(uri: str) -> Iterator[None]:
    """Within this context MLflow soon gives up a database that cannot be opened.

    A wrong password, a folder in the place of the file, or a file that may not be read stay as they are. A
    database that another process has locked is waited for as ever: SQLite does that, after these tries.
    """
    if uri.startswith(("http://", "https://")):
        yield  # no database is opened here, and nothing imported for it
        return
    from mlflow.store.db import utils  # the process that trains has no MLflow

    usual = getattr(utils, "MAX_RETRY_COUNT", TRIES)  # a name of MLflow's own, which it may change
    utils.MAX_RETRY_COUNT = min(usual, TRIES)
    try:
        yield
    finally:
        utils.MAX_RETRY_COUNT = usual


@contextmanager
def translated(uri: str, what: str) -> Iterator[None]:
    """Turns what a store raises, whatever its driver, into one line.

    Args:
        uri: The store.
        what: What cannot be done, after its name: "cannot be opened".

    Raises:
        TrackingError: As said.
    """
    try:
        yield
    except LayerlabError:
        raise
    except Exception as error:
        text = without_secrets(error, uri)
        hint = None
        if "out-of-date database schema" in text or "Can't locate revision" in text:
            hint = "another version of MLflow wrote the database: upgrade MLflow, or use another store"
        elif uri.startswith(("http://", "https://")):
            hint = "is the server running? start it with: mlflow server --host 127.0.0.1"
        elif sqlite_path(uri) is None:
            hint = "is the database up, and open to you? layerlab run --offline records without it"
        raise TrackingError(f"tracking store {without_credentials(uri)} {what}: {text}", hint=hint) from error


def environment() -> dict[str, str]:
    """The environment as its user has it, without what `soon` has set in it."""
    return {name: value for name, value in os.environ.items() if _set_here.get(name) != value}


def take_over(users: dict[str, str]) -> None:
    """Takes over the environment of another process, as its user has it."""
    _set_here.clear()
    os.environ.clear()
    os.environ.update(users)


@contextmanager
def one_at_a_time(uri: str) -> Iterator[None]:
    """Within this context nobody else opens a SQLite database: two that create it at once would break it."""
    path = sqlite_path(uri)
    if path is None:
        yield
        return
    if not Path(path).absolute().parent.is_dir():
        raise TrackingError(
            f"tracking store {without_credentials(uri)}: there is no folder {Path(path).parent}"
        )
    from filelock import FileLock  # the process that trains locks nothing, and need not load it

    with FileLock(f"{path}.lock"):
        yield


def alone(path: Path) -> Journal | None:
    """A journal, held by this process alone; None: it was sent in the meantime.

    The recording process of a trainer that was killed may still be sending: it is waited for.

    Raises:
        TrackingError: The run goes on.
    """
    deadline = time.monotonic() + SECONDS_TO_END
    while True:
        try:
            return Journal(path, alone=True)
        except FileNotFoundError:
            return None
        except BlockingIOError:
            with suppress(JournalError, FileNotFoundError):
                known = header(path)
                started = known.info["tags"].get("layerlab.started", "")
                if not finished(path) and is_alive(known.host, known.pid, started):
                    raise TrackingError(
                        f"run {path.stem} is still running, as process {known.pid} on {known.host}"
                    ) from None
            if time.monotonic() > deadline:
                raise TrackingError(
                    f"run {path.stem} is still being sent to its store", hint="try again later"
                ) from None
        time.sleep(0.05)
