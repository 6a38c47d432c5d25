"""How soon things end when they are to end: the figures of docs/reliability.md.

Real commands, real signals, a real server that is not there and one that never answers.

    python benchmarks/reliability.py [--times 5] [--write]

With ``--write`` the figures go to docs/reliability.json and into the page.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- figures, by benchmarks/reliability.py -->\n", "<!-- end of figures -->\n"
TRAINING = [
    "run",
    "-p",
    "nn",
    "--steps",
    "1000000000",
    "--n",
    "64",
    "--d-in",
    "100",
    "--hidden",
    "50",
    "--quiet",
]
CROWD, POINTS = 16, 10_000
PRODUCER = """
import sys, time, numpy as np
from layerlab.tracking import Recorder, RunInfo
with Recorder() as recorder:
    recorder.open(None, "crowd")
    recorder.opened()
    record = recorder.start_run(RunInfo("crowd", sys.argv[1], {}, {}))
    record.started()
    for first in range(0, int(sys.argv[2]), 500):
        now = time.time()
        record.log_losses(first, np.ones(500), now, now + 0.5)
    unsent = record.finish("FINISHED").unsent()
sys.exit(unsent is not None)
"""


def layerlab(*arguments: str, folder: str) -> subprocess.Popen[bytes]:
    """Starts a command."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return subprocess.Popen([sys.executable, "-m", "layerlab", *arguments], cwd=folder, **quiet)  # type: ignore[call-overload,no-any-return]


def status(folder: str) -> tuple[str, int]:
    """How the one run of a folder's store says that it ended, and how many losses it has."""
    try:
        with closing(sqlite3.connect(f"file:{folder}/mlflow.db?mode=ro", uri=True)) as database:
            found = database.execute(
                "SELECT r.status, COUNT(m.step) FROM runs r LEFT JOIN metrics m "
                "ON m.run_uuid = r.run_uuid AND m.key = 'loss' GROUP BY r.run_uuid"
            ).fetchall()
    except sqlite3.OperationalError:  # it is being made
        return "", 0
    return found[0] if found else ("", 0)


def until(wanted: Any) -> float:
    """Waits for something to be true; the seconds that it took."""
    began = time.perf_counter()
    while not wanted():
        time.sleep(0.01)
        if time.perf_counter() - began > 120:
            raise SystemExit("nothing came of it in two minutes")
    return time.perf_counter() - began


def ending(*signums: int) -> float:
    """Seconds from the first signal to the end of a command that trains, its run being closed."""
    with tempfile.TemporaryDirectory() as folder:
        process = layerlab(*TRAINING, folder=folder)
        until(lambda: status(folder)[1] > 0)
        began = time.perf_counter()
        for signum in signums:
            process.send_signal(signum)
            time.sleep(0.02)  # two pending signals of one number are one
        process.wait()
        took = time.perf_counter() - began
        assert process.returncode == 128 + signums[0], process.returncode
        assert status(folder)[0] == "KILLED"
        return took


def killed() -> float:
    """Seconds from SIGKILL to a run that says KILLED."""
    with tempfile.TemporaryDirectory() as folder:
        process = layerlab(*TRAINING, folder=folder)
        until(lambda: status(folder)[1] > 0)
        process.kill()
        took = until(lambda: status(folder)[0] == "KILLED")
        process.wait()
        until(lambda: not list(Path(folder, ".layerlab", "runs").glob("*.jsonl")))
        return took


def refused(deaf: bool) -> float:
    """Seconds of a command whose server is not there, or takes the connection and never answers."""
    with tempfile.TemporaryDirectory() as folder, socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if deaf:
            server.listen(50)
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        began = time.perf_counter()
        code = layerlab("run", "-p", "nn", "--tracking-uri", uri, folder=folder).wait()
        assert code == 2, code
        return time.perf_counter() - began


def crowd() -> float:
    """Seconds that many processes take to record many points into one store that is not there yet."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        processes = [
            subprocess.Popen([sys.executable, "-c", PRODUCER, str(i), str(POINTS)], cwd=folder)
            for i in range(CROWD)
        ]
        assert [process.wait() for process in processes] == [0] * CROWD
        took = time.perf_counter() - began
        with closing(sqlite3.connect(f"{folder}/mlflow.db")) as database:
            (count,) = database.execute("SELECT COUNT(*) FROM metrics").fetchone()
            (open_runs,) = database.execute("SELECT COUNT(*) FROM runs WHERE status = 'RUNNING'").fetchone()
        assert (count, open_runs) == (CROWD * POINTS, 0), (count, open_runs)
        return took


MEASURED = {
    "SIGINT to the end of the command": (lambda: ending(signal.SIGINT), 5.0),
    "SIGTERM to the end of the command": (lambda: ending(signal.SIGTERM), 5.0),
    "two SIGINTs to the end of the command": (lambda: ending(signal.SIGINT, signal.SIGINT), 5.0),
    "SIGKILL to a run that says KILLED": (killed, None),
    "whole command, no server at the address": (lambda: refused(deaf=False), 10.0),
    "whole command, a server that never answers": (lambda: refused(deaf=True), 10.0),
}


def section(found: dict[str, Any]) -> str:
    """The figures, as the page shows them."""
    lines = [
        f"Measured {found['date']} on {found['machine']}; each {found['times']} times, seconds.",
        "",
        "| what | median | longest | goal |",
        "|---|---|---|---|",
    ]
    for name, (_, goal) in MEASURED.items():
        took = sorted(found["seconds"][name])
        aim = "" if goal is None else f"{goal:g}"
        lines.append(f"| {name} | {took[len(took) // 2]:.1f} | {took[-1]:.1f} | {aim} |")
    lines += [
        "",
        f"{CROWD} processes that record {POINTS:,} points each into one SQLite store that is not there yet:",
        f"all {CROWD * POINTS:,} points are there, no run is left RUNNING, {found['crowd']:.0f} s.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures, prints, and writes if asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--times", type=int, default=5, help="how often each is measured (default: 5)")
    parser.add_argument("--write", action="store_true", help="write docs/reliability.json, and the page")
    arguments = parser.parse_args()
    if sys.platform != "linux":
        parser.error("this benchmark sends signals to processes as Linux knows them")
    seconds: dict[str, list[float]] = {name: [] for name in MEASURED}
    for _ in range(arguments.times):
        for name, (measure, _) in MEASURED.items():
            seconds[name].append(round(measure(), 3))
    found = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "times": arguments.times,
        "seconds": seconds,
        "crowd": round(crowd(), 1),
    }
    print(section(found))  # noqa: T201 -- the result
    if arguments.write:
        (DOCS / "reliability.json").write_text(json.dumps(found, indent=2) + "\n")
        page = (DOCS / "reliability.md").read_text()
        before, rest = page.split(BEGIN)
        after = rest.split(END)[1]
        (DOCS / "reliability.md").write_text(f"{before}{BEGIN}\n{section(found)}\n{END}{after}")


if __name__ == "__main__":
    main()
