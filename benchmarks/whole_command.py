"""What a whole run costs, from the start of the process to its end, against what it is made of.

Commands, each a fresh process in a fresh folder, in turn, so that a slow moment of the machine hits them all;
medians, and three ratios with what they should be at most:

- ``layerlab run --plugin custom-module`` against `stock_script.py`, which does the same job;
- the same against a process that only imports what it imports;
- ``layerlab run --plugin all``, seven tiers, against one.

What a run imports is found by looking: a first run is made with a witness in every process that it starts,
which notes each module of a third party when it is executed, and so none that is only looked for. These are
imported by name, in that order and one after the other, by one process that does nothing else; the run has
two for it. It leaves out what the run leaves out (`layerlab.lightimport`), collects no garbage meanwhile, as
the run does not (`layerlab.startup`), and may still bring in more than the run did; how much is printed.
`layerlab` leaves without taking apart what it imported, so the imports are also measured with such an end:
that is the harder comparison, and has no goal.

MLflow's telemetry is off in all of them, as layerlab has it off: it is no part of the job.

    python benchmarks/whole_command.py --rounds 5 --json figures.json
    python benchmarks/whole_command.py --rounds 5 --pairs 20    what differs least, `all` and one, more often
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

# As `layerlab` imports what it needs.
LIGHTLY = """
from layerlab.startup import claim, collector_paused
claim()
from layerlab.lightimport import unneeded_left_out
with unneeded_left_out(), collector_paused():
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


def in_turn(commands: dict[str, list[str]], rounds: int, seed: str) -> dict[str, list[float]]:
    """The times of commands, so many of each.

    Each round is in an order of its own: who comes after whom may matter, as what is still to be written
    does.
    """
    draw = random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name in draw.sample(list(commands), len(commands)):
            times[name].append(process(commands[name]))
    return times


def measure(rounds: int, pairs: int, folder: Path) -> dict[str, Any]:
    """Everything measured, as plain values."""
    run = [*layerlab(), "run", "--accelerator", "cpu", "--tracking-uri", "sqlite:///mlflow.db", "--plugin"]
    modules, beside = imports_of([*run, "custom-module"], folder)
    commands = {
        RUN: [*run, "custom-module"],
        STOCK: [sys.executable, str(Path(__file__).with_name("stock_script.py"))],
        IMPORTS: [sys.executable, str(folder / "imports.py")],
        GONE: [sys.executable, str(folder / "gone.py")],
        ALL: [*run, "all"],
    }
    for command in commands.values():  # once without a clock: byte code and the disk's cache
        process(command)
    times = in_turn(commands, rounds, "all of them")
    more = in_turn({name: commands[name] for name in (RUN, ALL)}, pairs, "pairs")
    timings = {name: Timing.of(taken) for name, taken in times.items()}

    def ratio(one: str, other: str) -> float:
        further = more if {one, other} <= more.keys() else {}
        of, to = (Timing.of(times[side] + further.get(side, [])) for side in (one, other))
        return of.over(to).median

    return {
        "cpus": os.cpu_count(),
        "python": sys.version.split()[0],
        "seconds": times,
        "pairs": more,
        "median": {name: timing.median for name, timing in timings.items()},
        "ratios": [
            {"of": one, "to": other, "ratio": ratio(one, other), "goal": goal} for one, other, goal in GOALS
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
    pairs = len(seen["pairs"][ALL])
    more = f" ({pairs} more rounds of {ALL} and {RUN})" if pairs else ""
    lines += ["", f"{'ratio':32}  median  goal{more}"]
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
    parser.add_argument(
        "--pairs", type=int, default=0, help="how often `all` and one tier are run beside that (default: 0)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds: should be at least 1")
    if arguments.pairs < 0:
        parser.error("--pairs: should be at least 0")
    with tempfile.TemporaryDirectory(prefix="whole-imports-") as folder:
        seen = measure(arguments.rounds, arguments.pairs, Path(folder))
    if arguments.json:
        arguments.json.write_text(json.dumps(seen, indent=2) + "\n")
    sys.stdout.write(text(seen, arguments.rounds))


if __name__ == "__main__":
    main()
