"""Loading every tier to see whether it loads, with nothing that a plugin does in the way.

The built-in tiers are loaded here. Those of each other distribution are loaded by a process of its own, which
has a time limit and is killed, with what it started, when it is over: a plugin may hang, end the process,
crash the interpreter or start threads, and is a row with a reason all the same. The process answers with a
line of JSON a tier, through a pipe that is not its stdout.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerlab import registry
from layerlab.errors import ContractError, PluginError, one_line
from layerlab.signals import kill_group

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerlab.registry import TierRow

# Seconds that the tiers of a distribution may take: importing torch and a compiler takes a few.
TIME_LIMIT = 60.0
# Processes at once: each imports torch, on some processors.
AT_ONCE = 2
# Characters of a reason: an exception may say as much as it likes.
_LONGEST = 2000


def inspect_tiers(rows: Sequence[TierRow], *, time_limit: float = TIME_LIMIT) -> list[dict[str, Any]]:
    """What loading tells of each tier: its row, ``contract``, ``accelerators``, ``recipe`` and ``status``.

    Args:
        rows: The tiers.
        time_limit: Seconds that the tiers of one distribution may take together.
    """
    guests: dict[str, list[TierRow]] = {}
    for row in rows:
        if not row.builtin:
            guests.setdefault(registry.normalised(row.distribution), []).append(row)
    found: dict[TierRow, dict[str, Any]] = {}
    with _Children(time_limit) as children, ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            waiting = [(theirs, pool.submit(children.inspect, theirs)) for theirs in guests.values()]
            found |= {row: _inspect(row) for row in rows if row.builtin}
            for theirs, answers in waiting:
                found |= zip(theirs, answers.result(), strict=True)
        except BaseException:  # a signal, say: the pool waits for its threads, and they for the children
            children.stop()
            raise
    return [found[row] for row in rows]


def _inspect(row: TierRow) -> dict[str, Any]:
    try:
        told = registry.describe(row, registry.load(row))
    except PluginError as error:
        cure = f" ({error.hint})" if isinstance(error, ContractError) else ""
        return _broken(row, f"{error}{cure}")
    contract = told["contract_version"]
    return {
        **row.as_dict(),
        "contract": contract,
        "accelerators": told["accelerators"],
        "recipe": told["recipe"],
        "status": "ok" if contract is not None else "ok, but declares no contract_version",
    }


def _broken(row: TierRow, reason: str) -> dict[str, Any]:
    status = one_line(f"broken: {reason}")[:_LONGEST]
    return {**row.as_dict(), "contract": None, "accelerators": [], "recipe": {}, "status": status}


class _Children:
    """The processes that load plugins; all that still run are killed with their children on exit."""

    def __init__(self, time_limit: float) -> None:
        self._time_limit = time_limit
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def __enter__(self) -> _Children:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Kills what runs, and lets nothing begin."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                kill_group(process)

    def inspect(self, rows: Sequence[TierRow]) -> list[dict[str, Any]]:
        """The answers for the tiers of one distribution; one that ends its process does not hide the next."""
        deadline = time.monotonic() + self._time_limit
        answers: list[dict[str, Any]] = []
        while len(answers) < len(rows):
            left = rows[len(answers) :]
            told, ending = self._ask(left, deadline)
            answers += told
            if len(told) < len(left):
                culprit, *others = left[len(told) :]
                why = ending or self._late()
                answers.append(_broken(culprit, f"{culprit.label} cannot be loaded: {why}"))
                if ending is None:
                    answers += [_broken(row, f"{row.label} was not loaded: {why}") for row in others]
        return answers

    def _late(self) -> str:
        return f"its distribution took more than {self._time_limit:g} seconds"

    def _ask(self, rows: Sequence[TierRow], deadline: float) -> tuple[list[dict[str, Any]], str | None]:
        """What a process answers, and how it ended; None: it was killed, for its time was over."""
        # -P, and the path as it is here: the child finds what was found here, and nothing else
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        with self._lock:
            if self._stopped:
                return [], None
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "layerlab.inspection"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )
            self._running.add(process)
        lines: list[bytes] = []
        # Read while waiting, or a long answer would fill the pipe. Its end is not waited for: a process that
        # a plugin started may keep it open.
        reader = threading.Thread(target=_read, args=(process, lines), daemon=True)
        reader.start()
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.write(json.dumps([row.as_dict() for row in rows]).encode() + b"\n")
            process.stdin.flush()
        in_time = True
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            in_time = False
        with self._lock:
            kill_group(process)
            self._running.discard(process)
        code = process.wait()
        reader.join(1.0)
        with suppress(BrokenPipeError):
            process.stdin.close()
        return _parsed(lines[: len(rows)]), _ending(code) if in_time else None


def _read(process: subprocess.Popen[bytes], lines: list[bytes]) -> None:
    assert process.stdout is not None
    with process.stdout as answers:
        for line in answers:
            lines.append(line)  # noqa: PERF402 -- each is there at once, also if this never ends


def _parsed(lines: list[bytes]) -> list[dict[str, Any]]:
    """The answers, up to the first that is none."""
    answers: list[dict[str, Any]] = []
    for line in lines:
        try:
            answer = json.loads(line)
        except ValueError:
            break
        answers.append(answer)
    return answers


def _ending(code: int) -> str:
    if code >= 0:
        return f"it ends its process with code {code}"
    try:
        return f"its process is ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"its process is ended by signal {-code}"


def main() -> None:
    """The child: loads the tiers that a line of JSON on stdin names, in order, and answers a line each."""
    request = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a plugin prints is no answer
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 -- a device, no path of ours
        os.dup2(nothing.fileno(), 0)  # and what is asked here is not asked of a plugin
    asked = json.loads(request.readline())
    threading.Thread(target=_die_with_parent, args=(request,), daemon=True).start()
    known = registry.rows()
    for facts in asked:
        row = next((row for row in known if row.as_dict() == facts), None)
        if row is None:
            break  # the path changed under our feet: the parent says that there was no answer
        answers.write(json.dumps(_line(row)).encode() + b"\n")
        answers.flush()
    os._exit(0)  # whatever threads and exit handlers a plugin left


def _line(row: TierRow) -> dict[str, Any]:
    try:
        answer = _inspect(row)
        json.dumps(answer)
    except BaseException as error:  # noqa: BLE001 -- whatever its class does when it is looked at
        answer = _broken(row, f"{row.label} cannot be described: {type(error).__name__}: {error}")
    return answer


def _die_with_parent(request: Any) -> None:
    """Waits for the end of stdin, which is the end of whoever asked."""
    request.read()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
