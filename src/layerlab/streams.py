"""The standard streams: they are there, what is told on stderr fails nothing, and stdout is for results."""

from __future__ import annotations

import os
import sys
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TextIO


def open_closed() -> None:
    """Gives this process each standard stream that it was started without, as after ``>&-``.

    The next file that is opened would have its number, and in it what others print; and Python has no stream.
    To be called before anything else.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
            os.set_inheritable(nowhere, True)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


class Unheard(suppress):
    """Within this context what cannot be told is not told.

    Whoever read stderr may be gone, or the disk behind it full: what is only told must never fail a run.
    """

    def __init__(self) -> None:
        super().__init__(OSError, ValueError)  # the latter of a stream that is closed


class Told:
    """A stream, but that what cannot be told is not told."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """As the stream's; how much of it that could write does not matter to whoever tells."""
        with Unheard():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """As the stream's."""
        with Unheard():
            self._stream.flush()


def say(text: str) -> None:
    """Tells something on stderr: progress, news, errors."""
    print(text, file=Told(sys.stderr))


@contextmanager
def results_alone(wanted: bool = True) -> Iterator[None]:
    """Within this context what is printed goes to stderr, also by C code: what comes after it is a result.

    Args:
        wanted: Whether that is so; otherwise nothing is done.
    """
    if not wanted:
        yield
        return
    out = sys.stdout
    with redirect_stdout(cast("TextIO", Told(sys.stderr))):
        _flush(out)
        kept = os.dup(1)
        try:
            os.dup2(2, 1)
            yield
        finally:
            try:
                _flush(out)  # what was printed past the redirection
            finally:
                os.dup2(kept, 1)
                os.close(kept)


def _flush(stream: TextIO) -> None:
    """Has Python and C write what they still have of stdout."""
    import ctypes  # what has no JSON to print needs none of it

    with Unheard():
        stream.flush()
    with suppress(OSError, AttributeError, TypeError):  # a system whose C library has no such name
        ctypes.CDLL(None).fflush(None)
