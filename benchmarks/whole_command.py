"""What a whole run costs, from the start of the process to its end, against what it is made of.

Four commands, each a fresh process in a fresh folder, in turn, so that a slow moment of the machine hits them
all; medians, and three ratios with what they should be at most:

- ``layerlab run --plugin custom-module`` against `stock_script.py`, which does the same job;
- the same against a process that only imports what it imports;
- ``layerlab run --plugin all``, seven tiers, against one.

What a run imports is found by looking: a first run is made with a witness in every process that it starts,
which notes each module of a third party when it is executed, and so none that is only looked for. These are
imported by name, in that order and one after the other, by one process that does nothing else; the run has
two for it. It leaves out what the run leaves out (`layerlab.lightimport`), and may still bring in more than
the run did; how much is printed.
`layerlab` leaves without taking apart what it imported, so the imports are also measured with such an end:
that is the harder comparison, and has no goal.

MLflow's telemetry is off in all of them, as layerlab has it off: it is no part of the job.

    python benchmarks/whole_command.py --rounds 5 --json figures.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from layerlab.benchmarking.report import Timing

RUN, STOCK, ALL = "run one tier", "stock script", "run all tiers"
IMPORTS, GONE = "imports only", "imports, gone"
GOALS = [(RUN, STOCK, 0.45), (RUN, IMPORTS, 1.15), (ALL, RUN, 1.5), (RUN, GONE, None)]
OURS = {"layerlab", "layerlab_fused", "layerlab_jax"}
NOBODYS = {"sitecustomize", "usercustomize", "__main__", "__mp_main__"}

# Written down at once, for a process may end without cleaning up.
WITNESS = """
import os, sys, time
from importlib.machinery import PathFinder

file = os.path.join({folder!r}, f"{{time.time_ns():020}}-{{os.getpid()}}.names")

def note(name):
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(fd, (name + "\\n").encode())
    os.close(fd)

class Witness:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {known!r}:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.origin is None:
            return None
        execute = spec.loader.exec_module
        def exec_module(module):
            note(name)
            return execute(module)
        spec.loader.exec_module = exec_module
        return spec

sys.meta_path.insert(0, Witness())
"""

# As `layerlab` imports Lightning.
LIGHTLY = """
from layerlab.lightimport import unneeded_left_out
with unneeded_left_out():
"""

# A module that fails half-way, for want of something optional, fails here too, and is left out.
TRY = """
import importlib, json, sys
good = []
for name in json.load(open({names!r})):
    try:
        importlib.import_module(name)
    except BaseException:
        continue
    good.append(name)
json.dump(good, open({good!r}, "w"))
"""


def layerlab() -> list[str]:
    """The installed script beside this interpreter, or the module where there is none."""
    script = shutil.which("layerlab", path=str(Path(sys.executable).parent))
    return [script] if script else [sys.executable, "-m", "layerlab"]


def process(command: list[str], env: dict[str, str] | None = None) -> float:
    """The wall time of one process in a fresh folder, from its start to its end; it must succeed."""
    env = {**(env or os.environ), "MLFLOW_DISABLE_TELEMETRY": "true"}
    with tempfile.TemporaryDirectory(prefix="whole-") as folder:
        began = time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=env)
        taken = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return taken


def executed(command: list[str], folder: Path) -> list[str]:
    """The names of third parties' modules that a command and its children import, in the order they do.

    Args:
        command: The command; it runs once.
        folder: An empty folder.
    """
    known = sorted(set(sys.stdlib_module_names) | OURS | NOBODYS)
    (folder / "sitecustomize.py").write_text(WITNESS.format(folder=str(folder), known=known))
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    process(command, {**os.environ, "PYTHONPATH": path})
    files = sorted(folder.glob("*.names"))  # by when the process began
    names = dict.fromkeys(name for file in files for name in file.read_text().splitlines())
    return [name for name in names if all(part.isidentifier() for part in name.split("."))]


def imports_of(command: list[str], folder: Path) -> tuple[list[str], int]:
    """What a command imports of third parties, and how many modules importing it brings in beside.

    Args:
        command: The command.
        folder: A folder to keep the script of imports in.
    """
    (folder / "run").mkdir()
    (folder / "try").mkdir()
    wanted = executed(command, folder / "run")
    names, good = folder / "names.json", folder / "good.json"
    names.write_text(json.dumps(wanted))
    process([sys.executable, "-c", TRY.format(names=str(names), good=str(good))])
    modules = json.loads(good.read_text())
    script = folder / "imports.py"
    lines = "".join(f"    import {name}\n" for name in modules)
    script.write_text(f"{LIGHTLY}{lines}")
    (folder / "gone.py").write_text(script.read_text() + "import os\nos._exit(0)\n")
    brought = executed([sys.executable, str(script)], folder / "try")
    return modules, len(set(brought) - set(wanted))


def measure(rounds: int, folder: Path) -> tuple[dict[str, list[float]], list[str], int]:
    """The times of every command, what is imported, and how many modules come with that."""
    run = [*layerlab(), "run", "--accelerator", "cpu", "--tracking-uri", "sqlite:///mlflow.db", "--plugin"]
    modules, beside = imports_of([*run, "custom-module"], folder)
    commands = {
        RUN: [*run, "custom-module"],
        STOCK: [sys.executable, str(Path(__file__).with_name("stock_script.py"))],
        IMPORTS: [sys.executable, str(folder / "imports.py")],
        GONE: [sys.executable, str(folder / "gone.py")],
        ALL: [*run, "all"],
    }
    times: dict[str, list[float]] = {name: [] for name in commands}
    for command in commands.values():  # once without a clock: byte code and the disk's cache
        process(command)
    for number in range(rounds):
        # each round in another order: who comes after whom may matter, as what is still to be written does
        for name in random.Random(number).sample(list(commands), len(commands)):
            times[name].append(process(commands[name]))
    return times, modules, beside


def figures(times: dict[str, list[float]], modules: list[str], beside: int) -> dict[str, Any]:
    """Everything measured, as plain values."""
    timings = {name: Timing.of(taken) for name, taken in times.items()}
    return {
        "cpus": os.cpu_count(),
        "python": sys.version.split()[0],
        "seconds": times,
        "median": {name: timing.median for name, timing in timings.items()},
        "ratios": [
            {"of": one, "to": other, "ratio": timings[one].over(timings[other]).median, "goal": goal}
            for one, other, goal in GOALS
        ],
        "imports": modules,
        "packages": list(dict.fromkeys(name.partition(".")[0] for name in modules)),
        "modules_beside": beside,
    }


def text(seen: dict[str, Any], rounds: int) -> str:
    """The table."""
    lines = [f"medians of {rounds} rounds, {seen['cpus']} CPUs, Python {seen['python']}", ""]
    lines.append(f"{'command':16}  median s  fastest s  slowest s")
    for name, taken in seen["seconds"].items():
        lines.append(f"{name:16}  {seen['median'][name]:8.2f}  {min(taken):9.2f}  {max(taken):9.2f}")
    lines += ["", f"{'ratio':32}  median  goal"]
    for row in seen["ratios"]:
        goal = "" if row["goal"] is None else f"<= {row['goal']:g}"
        lines.append(f"{row['of'] + ' / ' + row['to']:32}  {row['ratio']:6.2f}  {goal}".rstrip())
    count, packages = len(seen["imports"]), seen["packages"]
    lines += ["", f"imports only: {count} modules of {len(packages)} packages, {', '.join(packages)}"]
    if seen["modules_beside"]:
        lines.append(f"they bring {seen['modules_beside']} modules that the run does not import")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each is run (default: 5)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds: should be at least 1")
    with tempfile.TemporaryDirectory(prefix="whole-imports-") as folder:
        seen = figures(*measure(arguments.rounds, Path(folder)))
    if arguments.json:
        arguments.json.write_text(json.dumps(seen, indent=2) + "\n")
    sys.stdout.write(text(seen, arguments.rounds))


if __name__ == "__main__":
    main()
