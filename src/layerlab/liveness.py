"""Which process this is, and whether another one is still there: what a run that died is known by."""

from __future__ import annotations

import datetime
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any


def this_process() -> dict[str, Any]:
    """Host, process id and start time, by which a run that died is known."""
    return {"host": socket.gethostname(), "pid": os.getpid(), "started": _started()}


def _started(pid: int | None = None) -> str:
    """When a process began, as text; "" where the system does not say."""
    with suppress(OSError, ValueError, IndexError):
        # Linux: the 22nd field is the start in ticks since boot, and the boot is a line of another file
        ticks = int(Path(f"/proc/{pid or 'self'}/stat").read_text().rpartition(")")[2].split()[19])
        facts = dict(line.split(maxsplit=1) for line in Path("/proc/stat").read_text().splitlines())
        began = int(facts["btime"]) + ticks / os.sysconf("SC_CLK_TCK")
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began))
    return ""


def is_alive(host: str, pid: int, started: str) -> bool:
    """Whether the process that is recorded so still runs here; of another host nobody can say: then, yes."""
    if host != socket.gethostname():
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    since = _started(pid)
    if not since or not started:
        return True
    try:  # the boot, from which it is counted, moves a little when the clock is set
        moments = [datetime.datetime.fromisoformat(text) for text in (since, started)]
    except ValueError:
        return True
    return abs(moments[0] - moments[1]) <= datetime.timedelta(seconds=5)
