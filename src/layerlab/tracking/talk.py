"""The trainer's end of the recording process: what is said, and what is answered.

Everything is said by a thread: what a signal interrupts in the main thread never leaves half a message in the
pipe.
"""

from __future__ import annotations

import atexit
import os
import pickle
import queue
import subprocess
import sys
import threading
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

# Messages that may wait for the process: a bound on memory. A training that is faster waits here.
_WAITING = 16
# Each call costs the store some milliseconds, however few points it brings: they go out once in so long. The
# bench counts these calls, and must not import MLflow: the constant is on this side.
SECONDS_BETWEEN_CALLS = 1.0
# Seconds between two looks of somebody who waits for an answer, whether to stop.
LOOK = 0.1


class RecorderGoneError(Exception):
    """The recording process ended by itself."""


@dataclass(frozen=True)
class Message:
    """What is to be done, and what becomes of the answer.

    Attributes:
        call: Method and arguments, pickled.
        answer: Filled in by the thread.
    """

    call: bytes
    answer: Future[Any]


class Process:
    """A recording process, and the thread that talks to it: one message, one answer."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self._popen = subprocess.Popen(
            # -P: a file called mlflow.py in the working folder is not MLflow
            [sys.executable, "-P", "-m", "layerlab.tracking.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # What is sent to the trainer's process group is not meant for the record: it closes its run.
            start_new_session=True,
        )
        self._messages: queue.Queue[Message | None] = queue.Queue(_WAITING)
        self._gone: str | None = None
        self._thread = threading.Thread(target=self._talk, name="layerlab-recorder", daemon=True)
        self._thread.start()

    @property
    def usable(self) -> bool:
        """Whether it can take another run of this process: alive, and nothing waits for it."""
        mine = self.owner == os.getpid() and self._messages.unfinished_tasks == 0
        return mine and self._gone is None and self._popen.poll() is None

    def say(self, message: Message) -> Future[Any]:
        """Queues a message."""
        self._messages.put(message)
        return message.answer

    def leave(self) -> None:
        """Lets it end as soon as it has done what it was told."""
        if self.owner == os.getpid():
            self._messages.put(None)

    def ended(self, timeout: float) -> None:
        """Waits for its end."""
        if self.owner == os.getpid():
            self._thread.join(timeout)

    def _talk(self) -> None:
        stdin, stdout = self._popen.stdin, self._popen.stdout
        assert stdin is not None
        assert stdout is not None
        while (message := self._messages.get()) is not None:
            kind: str = ""
            value: Any = None
            if self._gone is None:
                try:
                    stdin.write(message.call)
                    stdin.flush()
                    kind, value = pickle.load(stdout)
                except (OSError, EOFError, pickle.UnpicklingError):
                    self._gone = f"the recording process ended with code {self._popen.wait()}"
            if self._gone is not None:
                message.answer.set_exception(RecorderGoneError(self._gone))
            elif kind == "refused":
                refusal, text, hint = value
                message.answer.set_exception(refusal(text, hint=hint))
            elif kind == "failed":
                message.answer.set_exception(RuntimeError(f"in the recording process:\n{value}"))
            else:
                message.answer.set_result(value)
            self._messages.task_done()
        with suppress(OSError):  # it is gone, and there is nobody to tell
            stdin.close()
        stdout.close()
        self._popen.wait()


# Starting one takes as long as importing MLflow: the next run in this interpreter takes the last one's.
_warm: list[Process] = []
_lock = threading.Lock()


def acquire() -> Process:
    """A recording process that nobody uses: one that was given back, or a new one."""
    with _lock:
        while _warm:
            process = _warm.pop()
            if process.usable:
                return process
            process.leave()
    return Process()


@atexit.register
def _end_all() -> None:
    with _lock:
        for process in _warm:
            process.leave()
        while _warm:
            # whatever it still sends, it sends without anybody waiting
            _warm.pop().ended(timeout=0.5)


def give_back(process: Process) -> None:
    """Keeps a process for whoever wants one next, or leaves it to itself where it is still busy."""
    with _lock:
        if process.usable:
            _warm.append(process)
        else:
            process.leave()
