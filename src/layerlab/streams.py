"""The standard streams: what is told on stderr fails nothing."""

from __future__ import annotations

import sys
from contextlib import ContextDecorator, suppress


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
