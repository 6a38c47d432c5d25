"""Measures all that ``docs/performance.md`` says, and writes it: figures first, the page from them.

    python benchmarks/performance.py            docs/performance.json, the pictures, and the page from them
    python benchmarks/performance.py memory     only that part anew
    python benchmarks/performance.py --cuda cuda.json 0123abc    what a bench on CUDA left, of this commit
    python benchmarks/performance.py --write    only the page

Measuring takes more than an hour, in which the machine should be left alone. What is measured on CUDA is the
outputs of `performance_page.CUDA_BENCH` and `CUDA_AGAINST`, on a machine that need have nothing else of this.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from performance_page import BUILTINS, CUDA_BENCH, fastest_bare, page, timings_of

import layerlab_fused

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
FIGURES, PAGE, IMAGES = DOCS / "performance.json", DOCS / "performance.md", DOCS / "images"
BENCH = ["bench", "all", "fused", "compiled", "--rounds", "21", "--seconds", "0.2", "--peers", "--json"]
# `fused` is held against another tier, which is another process in that bench, and of other seconds.
FUSED = ["bench", "fused", "--mode", "tracked", "--rounds", "21", "--seconds", "0.2", "--json", "--against"]
# What is asked of each part that is a script; the parts "bench" and "fused" are not.
SCRIPTS = {
    "whole_command": ["--rounds", "11"],
    "memory": [],
    "scaling": ["--rounds", "21", "--png", str(IMAGES / "scaling.png")],
    "large_table": ["--rounds", "21"],
}


def measure(part: str, folder: Path, found: dict[str, Any]) -> Any:
    """The figures of a part, made in a folder of their own; of some parts others must be found already."""
    if part == "bench":
        figures = bench(BENCH, folder)
        shutil.copy(folder / figures["picture"], IMAGES / "bench.png")
        return figures
    if part == "fused":
        if "bench" not in found:
            raise SystemExit(
                "there is no bench yet that says which loop is the fastest: performance.py bench"
            )
        # NumPy's threads and torch's take no turns
        return bench([*FUSED, fastest_bare(timings_of(found["bench"]), BUILTINS[1:])], folder)
    out = folder / f"{part}.json"
    command = [sys.executable, str(HERE / f"{part}.py"), "--json", str(out), *SCRIPTS[part]]
    subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=True)
    return json.loads(out.read_text())


def bench(arguments: list[str], folder: Path) -> dict[str, Any]:
    """What a bench tells, in which everybody has a row and all rounds."""
    command = [sys.executable, "-m", "layerlab", *arguments]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            told, _ = process.communicate()
        except KeyboardInterrupt:  # it has it too, and tells what it has
            told, _ = process.communicate()
    if not told:
        raise SystemExit(f"layerlab bench ended with {process.returncode}, and nothing was measured")
    figures = json.loads(told)
    (config,) = figures["configs"]
    refused = [f"{name}: {why}" for name, why in {**config["refused"], **config["peers_refused"]}.items()]
    if refused or figures["peers_missing"] or figures["stopped"]:
        kept = Path(tempfile.mkdtemp(prefix="performance-"), "bench.json")
        kept.write_text(told)
        said = [*refused, *(f"{name}: not installed" for name in figures["peers_missing"])]
        head = figures["stopped"] or "not everybody has a row"
        raise SystemExit("\n".join([f"{head}; what was measured is in {kept}", *said]))
    return figures


def take_over(found: dict[str, Any], file: str, commit: str) -> None:
    """Adds the figures of a bench on CUDA, made elsewhere of a commit."""
    try:
        figures = json.loads(Path(file).read_text())
        about, rows = figures["machine"], figures["configs"][0]["rows"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SystemExit(f"{file}: no output of `layerlab bench --json`: {error!r}") from None
    if "stopped" not in figures:
        raise SystemExit(f"{file}: of an older layerlab")
    if about["device"] == "cpu":
        raise SystemExit(f"{file}: measured on a CPU")
    part, wanted, turns = "cuda", {"fused", *BUILTINS[1:]}, "beside"
    if figures.get("against"):
        part, wanted, turns = "cuda_against", {"custom-module", "fused"}, "against"
    missing = wanted - {row["tier"] for row in rows}
    if missing:
        raise SystemExit(f"{file}: no row for {', '.join(sorted(missing))}")
    if not all({"lightning", "tracked"} <= row.get(turns, {}).keys() for row in rows):
        raise SystemExit(f"{file}: of a bench whose trainings took no turns")
    if part == "cuda_against" and "cuda" not in found:
        raise SystemExit(f"{file}: nothing says yet which loop is the fastest: {CUDA_BENCH}")
    found[part] = figures
    machine = f"{about['platform']}, Python {about['python']}"
    made = {"date": figures["date"], "machine": machine, "commit": commit}
    found.setdefault("made", {})[part] = made


def commit_of_tree() -> str:
    """What is measured; "-dirty" where the tree is not what was committed."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip() or "unknown"


def made(commit: str) -> dict[str, str]:
    """When, where and from what a part is measured."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.platform()}, Python {platform.python_version()}",
        "commit": commit,
    }


def main() -> None:
    """Measures, and writes the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ["bench", "fused", *SCRIPTS]
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="what to measure; default: all")
    parser.add_argument(
        "--cuda", nargs=2, metavar=("FILE", "COMMIT"), help="take over what a bench on CUDA left, and of what"
    )
    parser.add_argument("--write", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    only_page = arguments.write or arguments.cuda
    if only_page and arguments.parts:
        parser.error("nothing is measured where figures are taken over, or only the page is written")
    if not only_page and layerlab_fused.CompiledStep is None:
        parser.error("the step of `fused` that the page speaks of was not compiled: install a C compiler")
    commit = commit_of_tree()  # before the figures are written into it
    found = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    if arguments.cuda:
        take_over(found, *arguments.cuda)
        FIGURES.write_text(json.dumps(found, indent=1) + "\n")
    for part in [] if only_page else arguments.parts or parts:
        sys.stderr.write(f"measuring: {part}\n")
        with tempfile.TemporaryDirectory() as folder:
            found[part] = measure(part, Path(folder), found)
        found.setdefault("made", {})[part] = made(commit)
        FIGURES.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(page(found))


if __name__ == "__main__":
    main()
