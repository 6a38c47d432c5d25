"""SIGINT and SIGTERM: a wish to stop that is looked at between blocks, so that the record can be closed."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from layerlab.errors import Interrupted

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from types import FrameType


class StopSignals:
    """Within this context SIGINT and SIGTERM are noted; `check` raises. A second SIGINT stops at once.

    Only the main thread can take signals: elsewhere the context does nothing.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self._closing = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def take(self) -> None:
        """Has the signals again, from a Trainer that put handlers of its own before these.

        Lightning's would end a training at a SIGTERM wherever it notes one, also where nothing can be saved.
        They are gone with this, until `fit` is over: it then puts back what there was before it.
        """
        for signum in self._before:
            signal.signal(signum, self._note)

    def check(self, report: Any = None) -> None:
        """Stops if a signal came.

        Args:
            report: What was done, where that is all that was to be done.

        Raises:
            Interrupted: A signal came since the context was entered; it has the report.
        """
        if self.signum is not None:
            self._closing = True
            interrupted = Interrupted(self.signum)
            interrupted.report = report
            raise interrupted

    @contextmanager
    def held(self) -> Iterator[None]:
        """Within this context nothing stops at once: a record that is being closed is closed."""
        before, self._closing = self._closing, True
        try:
            yield
        finally:
            self._closing = before

    def _note(self, signum: int, frame: FrameType | None) -> None:  # noqa: ARG002 -- the handler's signature
        if self.signum is None:
            self.signum = signum
        elif signum == signal.SIGINT and not self._closing:
            self._closing = True
            raise KeyboardInterrupt


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process that leads a session, and all that it started that leads none: compilers, above all."""
    with suppress(ProcessLookupError, PermissionError):  # there is none any more
        os.killpg(process.pid, signal.SIGKILL)
