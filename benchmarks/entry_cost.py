"""What the command line costs before it does anything, against the bare import of what it is made of.

Runs ``layerlab --help``, ``layerlab plugins`` and usage errors, each in a fresh process, in turn with
``python -c "import typer, pydantic"``, and prints medians and their ratio to it. The budget is a ratio of 2.
Both packages import most of what they are when they are first used, so there is also the ratio to the
smallest app that does: one command with an option, and one model.

    python benchmarks/entry_cost.py --rounds 20
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from whole_command import layerlab

BUDGET = 2.0
BASELINE = 'python -c "import typer, pydantic"'
# Typer converts by pydantic, for its own --help too.
SMALLEST = "the smallest app"
APP = """
import pydantic, typer

class Model(pydantic.BaseModel):
    steps: int = 1

app = typer.Typer(add_completion=False)

@app.command()
def command(steps: int = 1) -> None:
    Model(steps=steps)

app(["--steps", "2"])
"""
COMMANDS = {
    "layerlab --help": ["--help"],
    "layerlab plugins": ["plugins"],
    "layerlab run --help": ["run", "--help"],
    "layerlab run --stesp 5": ["run", "--stesp", "5"],
    "layerlab run --plugin nope": ["run", "--plugin", "nope"],
    "layerlab run --config unknown.yaml": ["run", "--config", "unknown.yaml"],
    "layerlab run --steps 0": ["run", "--steps", "0"],
    "layerlab run --lr nan": ["run", "--lr", "nan"],
    "layerlab run --data missing.csv": ["run", "--data", "missing.csv", "--target", "price"],
    "layerlab run --batch-size 65": ["run", "--batch-size", "65"],
}


def seconds(command: list[str], folder: str) -> float:
    """The wall time of one process, from its start to its end."""
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    return time.perf_counter() - began


def measure(rounds: int) -> dict[str, list[float]]:
    """The times of every command: one of each a round, so that a slow moment of the machine hits them all."""
    commands = {BASELINE: [sys.executable, "-c", "import typer, pydantic"]}
    commands[SMALLEST] = [sys.executable, "-c", APP]
    commands |= {name: [*layerlab(), *arguments] for name, arguments in COMMANDS.items()}
    times: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "unknown.yaml").write_text("train:\n  stesp: 5\n")
        for command in commands.values():  # once without a clock: byte code and the disk's cache
            seconds(command, folder)
        for _ in range(rounds):
            for name, command in commands.items():
                times[name].append(seconds(command, folder))
    return times


def main() -> None:
    """Measures and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, help="how often each is run (default: 20)")
    rounds = parser.parse_args().rounds
    if rounds < 1:
        parser.error("--rounds: should be at least 1")
    times = measure(rounds)
    bare, smallest = (statistics.median(times[name]) for name in (BASELINE, SMALLEST))
    width = max(map(len, times))
    lines = [f"medians of {rounds} rounds, {os.cpu_count()} CPUs, Python {sys.version.split()[0]}", ""]
    head = f"{'command':{width}}  median ms  fastest ms  ratio (budget {BUDGET:g})"
    lines.append(f"{head}  to the smallest app")
    for name, taken in times.items():
        median = statistics.median(taken)
        line = f"{name:{width}}  {1e3 * median:9.1f}  {1e3 * min(taken):10.1f}  {median / bare:16.2f}"
        lines.append(f"{line}  {median / smallest:19.2f}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
