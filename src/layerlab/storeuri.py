"""Which tracking store is meant, and what of its URI, and of its errors, may be shown."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from layerlab.errors import TrackingError, looked_at, one_line

if TYPE_CHECKING:
    from urllib.parse import SplitResult

DEFAULT_URI = "sqlite:///mlflow.db"
# A server that takes no connection in so many seconds is not there.
SECONDS_TO_CONNECT = 4.0
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306}


def resolve_uri(given: str | None) -> str:
    """The store to use: what was given, ``MLFLOW_TRACKING_URI``, or MLflow's own default in this folder."""
    return given or os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT_URI


def with_credentials(shown: str, given: str | None) -> str:
    """The URI of a store that is known without its credentials, which only the user has.

    Raises:
        TrackingError: A URI has no parts.
    """
    asked = resolve_uri(given)
    return asked if given or without_credentials(asked) == shown else shown


def is_own(shown: str) -> bool:
    """Whether a store may be called unasked: the one that is used here anyway, or one on this machine.

    Args:
        shown: Its URI, without credentials.

    Raises:
        TrackingError: A URI has no parts.
    """
    if shown == without_credentials(resolve_uri(None)):
        return True
    path = sqlite_path(shown)
    if path is not None:
        return Path(path).resolve().is_relative_to(Path.cwd().resolve())
    return _parts(shown).hostname in {"127.0.0.1", "::1", "localhost"}


def refuse_unreachable(uri: str) -> None:
    """Refuses a server that takes no connection, before anybody waits for it.

    Raises:
        TrackingError: As said.
    """
    parts = _parts(uri)
    scheme = parts.scheme.partition("+")[0]
    # A database may have several hosts: which of them has to be there only its driver knows.
    if scheme not in _PORTS or not parts.hostname or "," in parts.hostname:
        return
    if scheme.startswith("http") and any(
        os.environ.get(name) for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
    ):
        return  # whether the server is there only the proxy can say
    try:
        port = parts.port or _PORTS[scheme]
        socket.create_connection((parts.hostname, port), timeout=SECONDS_TO_CONNECT).close()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        server, start = "database", ""
        if scheme.startswith("http"):
            server, start = "server", "start it with: mlflow server --host 127.0.0.1, "
        raise TrackingError(
            f"tracking store {without_credentials(uri)} cannot be opened: {reason}",
            hint=f"is the {server} running? {start}or record without it: layerlab run --offline",
        ) from None


def refuse_missing(uri: str) -> None:
    """Looks for the file of a store that something is to be read from: opening it would make it.

    Raises:
        TrackingError: There is none.
    """
    path = sqlite_path(uri)
    if path is None:
        return
    shown = f"tracking store {without_credentials(uri)}"
    with looked_at(shown, TrackingError):
        if not Path(path).exists():
            raise TrackingError(
                f"there is no {shown}", hint="--tracking-uri, or the folder in which the runs were made"
            )


def without_credentials(uri: str) -> str:
    """A URI that may be shown and stored: no user, no password, no query.

    Raises:
        TrackingError: It has no parts.
    """
    parts = _parts(uri)
    if not parts.netloc:
        return uri.partition("?")[0]
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit((parts.scheme, host, parts.path, "", ""))


def _parts(uri: str) -> SplitResult:
    """The parts of a URI.

    Raises:
        TrackingError: It has none. What Python says of it may have the password: it is not told.
    """
    try:
        return urlsplit(uri)
    except ValueError:
        scheme = re.split(r"[^\w+.-]", uri, maxsplit=1)[0]
        raise TrackingError(
            f"the tracking URI ({scheme}://...) has a character before its path that must not be there",
            hint="write '[' and ']' of a password as %5B and %5D, and what is not ASCII in the same way",
        ) from None


def without_secrets(error: BaseException, uri: str = "") -> str:
    """What an error says, in one line and without the credentials that a URI in it may have.

    Args:
        error: The error.
        uri: The store's own URI, whose parts may stand in it in whatever way.
    """
    return scrubbed(one_line(str(error)), uri)[:300]


def scrubbed(text: str, uri: str = "") -> str:
    """A text without the credentials that a URI in it may have, first of all this one."""
    if uri:
        text = text.replace(uri, without_credentials(uri))
        query = uri.partition("?")[2]
        for secret in (_parts(uri).password, query):
            if secret:
                text = text.replace(secret, "***")
    return re.sub(r"://[^/\s]+@", "://", text)


def refuse_unclear(uri: str) -> None:
    """Refuses a URI of which parts of the password would be taken for the host.

    Raises:
        TrackingError: As said, without the URI.
    """
    scheme, colon, rest = uri.partition("://")
    host, *after_host = re.split(r"[/?#]", rest, maxsplit=1)
    if colon and host and after_host and "@" in after_host[0]:
        raise TrackingError(
            f"the tracking URI ({scheme}://...) has an '@' after what should be its host",
            hint="write '/', '?' and '#' of a password as %2F, %3F and %23",
        )


def absolute(uri: str) -> str:
    """A URI that means the same after the working folder changed: MLflow keeps one store a URI.

    Raises:
        TrackingError: No URI names that file in every version of SQLAlchemy: it ends a path at ``?``, and of
            ``%20`` newer ones make a space, and MLflow beside them does not.
    """
    path = sqlite_path(uri)
    if path is None:
        return uri
    file = str(Path(path).absolute())
    if odd := next((character for character in "?%" if character in file), None):
        raise TrackingError(
            f"tracking store {without_credentials(uri)}: no URI can name {file}, for its '{odd}'",
            hint="work in a folder without it, or name a store elsewhere: --tracking-uri",
        )
    return uri.replace(f":///{path}", f":///{file}", 1)


def sqlite_path(uri: str) -> str | None:
    """The file of a SQLite store, whatever driver the URI names; None of another store, or one in memory."""
    scheme, colon, rest = uri.partition(":///")
    path = rest.partition("?")[0]
    known = bool(colon) and scheme.partition("+")[0] == "sqlite"
    return path if known and path not in {"", ":memory:"} else None
