"""Measures all that ``docs/performance.md`` says, and writes it: figures first, the page from them.

    python benchmarks/performance.py            docs/performance.json, the pictures, and the page from them
    python benchmarks/performance.py memory     only that part anew
    python benchmarks/performance.py --cuda FILE COMMIT    what a bench on CUDA left, of this commit; the
                                                           picture lies where the bench says, from there
    python benchmarks/performance.py --write    only the page
    python benchmarks/performance.py --dirty ...    of a tree that is not what was committed, and says so

Measuring takes about three hours, in which the machine should be left alone. What is measured on CUDA is
left by `performance_page.CUDA_BENCH`, on a machine that need have nothing else of this. Which bare loop was
the fastest there is said when it is taken over; `CUDA_AGAINST`, on that machine, measures in turns with it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shutil
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from performance_claims import BUILTINS, fastest_bare, for_readme, timings_of
from performance_page import CUDA_AGAINST, CUDA_BENCH, CUDA_ROUNDS, CUDA_SECONDS, page

import layerlab_fused
from layerlab.benchmarking.machine import machine

HERE = Path(__file__).resolve().parent
DOCS, README = HERE.parent / "docs", HERE.parent / "README.md"
FIGURES, PAGE, IMAGES = DOCS / "performance.json", DOCS / "performance.md", DOCS / "images"
BENCH = ["bench", "all", "fused", "compiled", "--rounds", "21", "--seconds", "0.2", "--peers", "--json"]
# `fused` is held against another tier, which is another process in that bench, and of other seconds.
FUSED = ["bench", "fused", "--mode", "tracked", "--rounds", "21", "--seconds", "0.2", "--json", "--against"]
# What is asked of each part that is a script; the parts "bench" and "fused" are not.
SCRIPTS = {
    # what differs least needs the most rounds
    "whole_command": ["--rounds", "21", "--pairs", "129"],
    "tracked_run": ["--rounds", "33"],
    "memory": ["--rounds", "6"],
    "scaling": ["--rounds", "21", "--png", str(IMAGES / "scaling.png")],
    "large_table": ["--rounds", "21"],
}
# Seconds for which the processors are watched before a part, and the share that others may have of them.
_LOOK, _QUIET = 3.0, 0.1


def measure(part: str, folder: Path, found: dict[str, Any]) -> Any:
    """The figures of a part, made in a folder of their own; of some parts others must be found already."""
    if part == "bench":
        figures = bench(BENCH, folder)
        if figures["picture_fault"]:
            raise SystemExit(f"no picture: {figures['picture_fault']}\n{kept(json.dumps(figures))}")
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
    code = subprocess.run(command, cwd=folder, stdout=subprocess.DEVNULL, check=False).returncode
    if code:
        said = kept(out.read_text()) if out.exists() else "nothing was measured"
        raise SystemExit(f"{part}.py ended with {code}; {said}")
    return json.loads(out.read_text())


def kept(figures: str) -> str:
    """Says where figures are that do not go on the page."""
    file = Path(tempfile.mkdtemp(prefix="performance-"), "figures.json")
    file.write_text(figures)
    return f"what was measured is in {file}"


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
        said = [*refused, *(f"{name}: not installed" for name in figures["peers_missing"])]
        head = figures["stopped"] or "not everybody has a row"
        raise SystemExit("\n".join([f"{head}; {kept(told)}", *said]))
    return figures


def take_over(found: dict[str, Any], file: str, commit: str) -> None:
    """Adds the figures of a bench on CUDA, made elsewhere of a commit: of all tiers, or of turns with one."""
    try:
        figures = json.loads(Path(file).read_text())
        about, (config,) = figures["machine"], figures["configs"]
        asked = (figures["rounds"], figures["stopped"], figures["seconds"], figures["precision"])
        rows, loop = {row["tier"]: row for row in config["rows"]}, figures["against"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise SystemExit(
            f"{file}: no output of `layerlab bench --json` on one problem, or of an older one: {error!r}"
        ) from None
    if about["device"] == "cpu":
        raise SystemExit(f"{file}: measured on a CPU")
    ours = found["bench"]["configs"][0]
    if any(config[size] != ours[size] for size in ("batch_size", "d_in", "hidden", "d_out")):
        raise SystemExit(f"{file}: of another problem than the page's")
    rounds, stopped, seconds, precision = asked
    whole = rounds == CUDA_ROUNDS or stopped.endswith(f" of {CUDA_ROUNDS} rounds")
    if not whole or (seconds, precision) != (CUDA_SECONDS, "32-true"):
        raise SystemExit(f"{file}: asked for otherwise than by `{CUDA_BENCH}`")
    part, turns, wanted = "cuda", "beside", {"fused", *BUILTINS[1:]}
    if loop:
        part, turns, wanted = "cuda_against", "against", {"custom-module", "fused"}
    if wanted - rows.keys() or (loop and rows.keys() - wanted):
        raise SystemExit(f"{file}: should have rows of {', '.join(sorted(wanted))}")
    if not all({"lightning", "tracked"} <= row[turns].keys() for row in rows.values()):
        raise SystemExit(f"{file}: not every training took turns")
    if not all("sending" in row for row in rows.values()):
        raise SystemExit(f"{file}: of a `layerlab bench` that did not say what sending takes")
    if loop:
        _refuse_other_bench(found, file, about, loop)
    else:  # the turns there were are of the bench before this one
        found.pop("cuda_against", None)
        found.get("made", {}).pop("cuda_against", None)
    found[part] = figures
    where = f"{about['platform']}, Python {about['python']}"
    made = {"date": figures["date"], "machine": where, "commit": commit}
    found.setdefault("made", {})[part] = made


def picture_of(figures: dict[str, Any], file: Path) -> Path:
    """What a bench drew, in the folder in which it left its figures."""
    picture = file.parent / figures["picture"]
    if figures["picture_fault"] or not picture.is_file():
        raise SystemExit(f"{picture}: is not there, and should be; {figures['picture_fault']}".rstrip("; "))
    return picture


def _refuse_other_bench(found: dict[str, Any], file: str, about: dict[str, Any], loop: str) -> None:
    """Turns are with the loop that is the fastest in the bench of all tiers, of the same machine."""
    if "cuda" not in found:
        raise SystemExit(f"{file}: nothing says yet which loop is the fastest: {CUDA_BENCH}")
    all_of = found["cuda"]["machine"]
    if other := [key for key in all_of if key != "platform" and all_of[key] != about.get(key)]:
        raise SystemExit(f"{file}: of another {' and '.join(other)} than the bench of all tiers")
    fastest = fastest_bare(timings_of(found["cuda"]))
    if loop != fastest:
        raise SystemExit(f"{file}: `{fastest}` is the fastest: {CUDA_AGAINST.format(against=fastest)}")


def commit_of_tree() -> str:
    """What is measured; "-dirty" where anything but the figures is not what was committed."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(HERE.parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()

    ours = [f":!{path.relative_to(HERE.parent)}" for path in (FIGURES, PAGE, IMAGES)]
    dirty = git("status", "--porcelain", "--untracked-files=no", "--", ".", *ours)
    dirty = dirty or git("status", "--porcelain", "--", "src", "plugins", "benchmarks")  # new files too
    return (git("describe", "--always") or "unknown") + ("-dirty" if dirty else "")


def made(commit: str, busy: float | None) -> dict[str, str]:
    """When, where and from what a part was measured, and how busy others kept the processors before it."""
    about = machine(torch.device("cpu"), {})
    processor = f"{about['processor']} ({torch.backends.cpu.get_cpu_capability()}), {about['cores']} cores"
    versions = [f"{name} {version(name)}" for name in ("torch", "pytorch-lightning", "mlflow", "onnxruntime")]
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": ", ".join([about["platform"], processor, f"Python {about['python']}", *versions]),
        "busy": "unknown" if busy is None else f"{busy:.0%}",
        "commit": commit,
    }


def busy_processors() -> float | None:
    """The share of the processors' time that others take for a while; None: nobody can say."""

    def ticks() -> tuple[int, int]:
        # user nice system idle iowait irq softirq steal, see proc(5)
        counted = [int(tick) for tick in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(counted), counted[3] + counted[4]

    try:
        before = ticks()
        time.sleep(_LOOK)
        after = ticks()
    except OSError:  # another system
        return None
    whole, idle = (late - early for early, late in zip(before, after, strict=True))
    return 1 - idle / whole if whole else None


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
    parser.add_argument(
        "--dirty", action="store_true", help="measure what is not committed: nobody can measure it again"
    )
    arguments = parser.parse_args()
    only_page = arguments.write or arguments.cuda
    if only_page and arguments.parts:
        parser.error("nothing is measured where figures are taken over, or only the page is written")
    commit = commit_of_tree()  # before the figures are written into it
    if not only_page and not arguments.dirty and commit.endswith("-dirty"):
        parser.error("what would be measured is not committed: commit it, or say --dirty")
    if not only_page and layerlab_fused.CompiledStep is None:
        parser.error("the step of `fused` that the page speaks of was not compiled: install a C compiler")
    found = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
    if arguments.cuda:
        take_over(found, *arguments.cuda)
        # The picture is that of the bench of all tiers, with which the turns begin anew.
        if "cuda_against" not in found:
            shutil.copy(picture_of(found["cuda"], Path(arguments.cuda[0])), IMAGES / "bench-cuda.png")
        loop = fastest_bare(timings_of(found["cuda"]))
        sys.stderr.write(f"`{loop}` is the fastest: {CUDA_AGAINST.format(against=loop)}\n")
        FIGURES.write_text(json.dumps(found, indent=1) + "\n")
    for part in [] if only_page else arguments.parts or parts:
        busy = busy_processors()
        sys.stderr.write(f"measuring: {part}\n")
        if busy is not None and busy > _QUIET:
            sys.stderr.write(f"warning: others keep the processors busy, {busy:.0%} of the time\n")
        with tempfile.TemporaryDirectory() as folder:
            found[part] = measure(part, Path(folder), found)
        found.setdefault("made", {})[part] = made(commit, busy)
        FIGURES.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(page(found))
    if stale := unsaid(found):
        sys.stderr.write(f"README.md does not say any more, or not yet: {'; '.join(stale)}\n")


def unsaid(found: dict[str, Any]) -> list[str]:
    """What the README should say of the figures, and does not."""
    said = " ".join(README.read_text().split())
    return [phrase for phrase in for_readme(found) if phrase not in said]


if __name__ == "__main__":
    main()
