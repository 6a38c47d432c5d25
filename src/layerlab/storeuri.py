"""Which tracking store is meant, and what of its URI may be shown."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

DEFAULT_URI = "sqlite:///mlflow.db"


def resolve_uri(given: str | None) -> str:
    """The store to use: what was given, ``MLFLOW_TRACKING_URI``, or MLflow's own default in this folder."""
    return given or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def without_credentials(uri: str) -> str:
    """A URI that may be shown and stored: no user, no password, no query."""
    parts = urlsplit(uri)
    if not parts.netloc:
        return uri.partition("?")[0]
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def absolute(uri: str) -> str:
    """A URI that means the same after the working folder changed: MLflow keeps one store a URI."""
    path = sqlite_path(uri)
    return uri if path is None else uri.replace(f":///{path}", f":///{Path(path).absolute()}", 1)


def sqlite_path(uri: str) -> str | None:
    """The file of a SQLite store, whatever driver the URI names; None of another store, or one in memory."""
    scheme, colon, rest = uri.partition(":///")
    path = rest.partition("?")[0]
    known = bool(colon) and scheme.partition("+")[0] == "sqlite"
    return path if known and path not in {"", ":memory:"} else None
