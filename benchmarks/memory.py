"""What a long record costs in memory: the peak of the trainer and of the recording process.

A tiny network is trained under ``layerlab run`` for a thousand and for a million steps, every loss of them in
MLflow, each in a folder of its own, and both in every round.

    python benchmarks/memory.py [--steps 1000000] [--rounds 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BASE = 1000
BUDGET_MB = 30
RUN = ["run", "--plugin", "tensors", "--no-export", "--quiet", "--accelerator", "cpu"]
RUN += ["--tracking-uri", "sqlite:///mlflow.db"]
RUN += ["--n", "4", "--d-in", "3", "--d-out", "2", "--hidden", "3", "--lr", "1e-4"]


def peaks(steps: int) -> dict[str, float]:
    """The most memory that the trainer and its recorder held, 10^6 bytes, and the seconds that it took."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "layerlab", *RUN, "--steps", str(steps)], cwd=folder
        )
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        recorder = 0.0
        while True:
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
            # the peak only grows: the last look before the end is the one that counts
            recorder = max([recorder, *(_peak(int(child)) for child in children.read_text().split())])
            time.sleep(0.05)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"layerlab run ended with code {process.returncode}")
        return {
            "steps": steps,
            "trainer_mb": usage.ru_maxrss * 1024 / 1e6,
            "recorder_mb": recorder,
            "seconds": time.perf_counter() - began,
        }


def _peak(pid: int) -> float:
    try:
        if "layerlab.tracking.process" not in Path(f"/proc/{pid}/cmdline").read_text():
            return 0.0
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM")), 0.0)


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=1_000_000, help="the long run (default: 1000000)")
    parser.add_argument("--rounds", type=int, default=1, help="how often both are run (default: 1)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    if not Path("/proc/self/status").exists():
        parser.error("this benchmark reads /proc, which is not here")
    if arguments.rounds < 1:
        parser.error("--rounds: should be at least 1")
    runs, grown = [], []
    for _ in range(arguments.rounds):
        base, long = peaks(BASE), peaks(arguments.steps)
        runs += [base, long]
        grown.append(sum(long[key] - base[key] for key in ("trainer_mb", "recorder_mb")))
    lines = ["     steps  trainer MB  recorder MB  seconds"]
    lines += [
        f"{run['steps']:10.0f}  {run['trainer_mb']:10.1f}  {run['recorder_mb']:11.1f}  {run['seconds']:7.1f}"
        for run in runs
    ]
    lines += [f"grown by {statistics.median(grown):.1f} MB (budget {BUDGET_MB})"]
    sys.stdout.write("\n".join(lines) + "\n")
    if arguments.json:
        figures = {"runs": runs, "grown_mb": grown, "budget_mb": BUDGET_MB}
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
