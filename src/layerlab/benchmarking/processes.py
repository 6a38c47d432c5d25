"""The two ends of a worker process: a line of JSON each way."""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from layerlab import startup
from layerlab.errors import LayerlabError, one_line
from layerlab.signals import kill_group

if TYPE_CHECKING:
    from collections.abc import Callable

# Far longer than any answer takes: a process that is as late will not answer.
LONGEST_SECONDS = 1800.0
_PR_SET_PDEATHSIG = 1
# How often somebody who waits for an answer looks whether to stop; and what a process may take to leave.
_LOOK, _LEAVING = 0.1, 5.0


class Refused(Exception):  # noqa: N818 -- nothing of ours went wrong
    """Somebody gets no row; the message says why."""


class WorkerProcess:
    """The coordinator's end.

    Args:
        module: The module that is run; its main is `serve`.
        check: Called while an answer is waited for; it raises to stop waiting.

    Attributes:
        ended: Whether it is known to have ended: whoever asked it last was told so.
    """

    def __init__(
        self,
        module: str,
        *,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self._module, self._check = module, check
        self._read = b""
        self.ended = False

    def __enter__(self) -> WorkerProcess:
        self._process = subprocess.Popen(
            # -P: a file called torch.py in the working folder is not torch
            [sys.executable, "-P", "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # a signal to the coordinator's group, as of a terminal or of timeout(1), is meant for it alone
            start_new_session=True,
            # what the command sets, whoever starts the bench
            env={**startup.ENVIRONMENT, **os.environ},
        )
        return self

    def __exit__(self, *exc_info: object) -> None:
        kill_group(self._process)
        self._process.wait()
        # Not read to the end: what the process has started may hold it open.
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):  # what was to be sent and nobody reads
                pipe.close()

    def restart(self) -> None:
        """Another process in the place of this one; it knows nothing of what was asked before."""
        self.__exit__()
        self._read, self.ended = b"", False
        self.__enter__()

    def ask(self, what: str, **arguments: Any) -> dict[str, Any]:
        """Asks, and waits for the answer.

        Raises:
            Refused: The worker raised, is gone, or does not answer.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
            line = self._line(what)
        except BrokenPipeError:
            line = b""
        answer: dict[str, Any] = json.loads(line) if line else {}
        if not line or "error" in answer:
            self._check()  # whoever stops the coordinator may stop others too, and no tier is refused for it
        if not line:
            self.ended = True
            raise Refused(self._ended(what))
        if "error" in answer:
            raise Refused(f"{what}: {answer['error']}")
        return answer

    def _ended(self, what: str) -> str:
        """How a process that will not answer went; one that closed its pipe and stayed is ended."""
        try:
            return f"its process ended in '{what}' with code {self._process.wait(_LEAVING)}"
        except subprocess.TimeoutExpired:
            kill_group(self._process)
            self._process.wait()
            return f"its process closed its pipe in '{what}' and stayed, and was ended"

    def _line(self, what: str) -> bytes:
        """The next line that it writes; empty if it ends before."""
        assert self._process.stdout is not None
        pipe, late = self._process.stdout.fileno(), time.monotonic() + LONGEST_SECONDS
        while b"\n" not in self._read:
            try:
                self._check()
            except BaseException:
                # It is in the midst of something, and nobody waits for that any more.
                kill_group(self._process)
                raise
            if time.monotonic() > late:
                kill_group(self._process)
                self._process.wait()
                self.ended = True
                raise Refused(f"its process did not answer '{what}' in {LONGEST_SECONDS:g} s, and was ended")
            gone = self._process.poll() is not None  # before the look: what it wrote last is there by then
            if select.select([pipe], [], [], 0 if gone else _LOOK)[0]:
                more = os.read(pipe, 1 << 16)
                if not more:
                    return b""
                self._read += more
            elif gone:  # whom it forked has the pipe too, and keeps it open
                kill_group(self._process)
                return b""
        line, _, self._read = self._read.partition(b"\n")
        return line


def serve(worker_class: Any) -> None:
    """The worker's end, until stdin ends: makes a worker when asked to "begin", then calls its methods.

    Args:
        worker_class: What it makes; its `begun` says what the coordinator is to know first.
    """
    _end_with_parent()
    startup.claim()
    startup.keep_freed_memory()  # of everybody who is measured
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)  # whatever is printed is no answer
        worker: Any = None
        for line in sys.stdin:
            request = json.loads(line)
            method = request.pop("do")
            try:
                if method == "begin":
                    worker = worker_class(**request)
                    answer = worker.begun()
                else:
                    answer = getattr(worker, method)(**request)
            except LayerlabError as error:
                answer = {"error": str(error)}
            except (Exception, SystemExit) as error:  # noqa: BLE001 -- the coordinator tells of it
                answer = {"error": one_line(f"{type(error).__name__}: {error}")}
            answers.write(json.dumps(answer) + "\n")
            answers.flush()


def _end_with_parent() -> None:
    """On Linux has the kernel end this process when the coordinator is killed, see prctl(2).

    Elsewhere it ends when it has answered, and finds that nobody asks any more.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
