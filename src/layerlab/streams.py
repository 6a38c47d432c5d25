"""The standard streams: they are there, what is told on stderr fails nothing, and stdout is for results."""

from __future__ import annotations

import os
import sys
from contextlib import ContextDecorator, contextmanager, redirect_stdout, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


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


class Unheard(suppress, ContextDecorator):
    """Within this context, or function, what cannot be told is not told.

    Whoever read stderr may be gone, or the disk behind it full: what is only told must never fail a run.
    """

    def __init__(self) -> None:
        super().__init__(OSError, ValueError)  # the latter of a stream that is closed


@Unheard()
def say(text: str) -> None:
    """Tells something on stderr: progress, news, errors."""
    print(text, file=sys.stderr)  # noqa: T201 -- the one place that does


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
    with redirect_stdout(sys.stderr):
        with Unheard():
            out.flush()
        kept = os.dup(1)
        os.dup2(2, 1)
        try:
            yield
        finally:
            with Unheard():
                out.flush()  # what was printed past the redirection
            os.dup2(kept, 1)
            os.close(kept)
