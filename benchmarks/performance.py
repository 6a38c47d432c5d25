"""Measures all that ``docs/performance.md`` says, and writes it: figures first, the page from them.

    python benchmarks/performance.py            docs/performance.json, the pictures, and the page from them
    python benchmarks/performance.py memory     only that part anew
    python benchmarks/performance.py --cuda cuda.json 0123abc    what a bench on CUDA left, of this commit
    python benchmarks/performance.py --write    only the page

Measuring takes more than an hour, in which the machine should be left alone. What is measured on CUDA is the
output of `CUDA_BENCH`, on a machine that need have nothing else of this.
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
from typing import TYPE_CHECKING, Any

import layerlab_fused
from layerlab.benchmarking.report import FEWEST_ROUNDS, Timing, interval_label

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
FIGURES, PAGE, IMAGES = DOCS / "performance.json", DOCS / "performance.md", DOCS / "images"
BUILTINS = ("numpy", "tensors", "autograd", "custom-function", "nn", "optim", "custom-module")
BENCH = ["bench", "all", "fused", "compiled", "--rounds", "21", "--seconds", "0.2", "--peers", "--json"]
# `fused` is held against another tier, which is another process in that bench, and of other seconds.
FUSED = ["bench", "fused", "--mode", "tracked", "--rounds", "21", "--seconds", "0.2", "--json", "--against"]
CUDA_BENCH = "layerlab bench all fused --accelerator gpu --rounds 9 --seconds 0.05 --json > cuda.json"
# Of a bench that did not tell what of a tracked step is the store's, and measured otherwise than later ones.
OTHERWISE = (
    "What sending the losses takes is in the tracked steps of this bench only where it is slower than the\n"
    "step itself, and is not added: with it none would take much more than twice as long. The products of\n"
    "its floor were a loop of their own, after the bare one or before it."
)
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
        return bench([*FUSED, _fastest_bare(timings_of(found["bench"]), BUILTINS[1:])], folder)
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
    missing = {"fused", *BUILTINS[1:]} - {row["tier"] for row in rows}
    if missing:
        raise SystemExit(f"{file}: no row for {', '.join(sorted(missing))}")
    if not all("tracked" in row.get("beside", {}) for row in rows):
        raise SystemExit(f"{file}: of a bench whose trainings took no turns")
    found["cuda"] = figures
    machine = f"{about['platform']}, Python {about['python']}"
    made = {"date": figures["date"], "machine": machine, "commit": commit}
    found.setdefault("made", {})["cuda"] = made


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


def over(one: list[float], other: list[float]) -> Timing:
    """The ratios of two sides, round by round, with their interval."""
    return Timing.of(one).over(Timing.of(other))


Claim = tuple[str, str, Timing, float | None]


def claims(found: dict[str, Any]) -> list[Claim]:
    """What is claimed: a figure, what it is held against, its value, and what it is to be at most."""
    commands, large = found["whole_command"], found["large_table"]["seconds"]
    seen = _of_tiers(found)
    seen += [
        (
            f"`{r['of']}`",
            r["to"],
            over(commands["seconds"][r["of"]], commands["seconds"][r["to"]]),
            r["goal"],
        )
        for r in commands["ratios"]
    ]
    seen += [
        (
            "memory at 1,000,000 tracked steps, MB",
            "at 1,000",
            Timing.of([found["memory"]["grown_mb"]]),
            30,
        ),
        (
            "minibatches from a table of 2 GB",
            "a bare loop over the same mapped rows",
            over(large["blocks"], large["bare"]),
            found["large_table"]["budget"],
        ),
    ]
    if "cuda" in found:
        seen += _on_cuda(found["cuda"])
    return seen + [
        (
            f"exponent of the cost, {s['grows']} from {size}, `{s['tier']}`",
            "linear: 1",
            Timing.of(slopes),
            1.10,
        )
        for s in found["scaling"]
        for size, slopes in zip(s["seconds"], s["exponents"], strict=False)
    ]


def _of_tiers(found: dict[str, Any]) -> list[Claim]:
    rows = {row["tier"]: row for row in found["bench"]["configs"][0]["rows"]}
    loop = _fastest_bare(timings_of(found["bench"]))
    fused, against = rows["fused"]["timings"]["tracked"], rows[loop]["timings"]["bare"]
    if found.get("fused", {}).get("against") == loop:  # else what there is are rounds of other seconds
        (row,) = found["fused"]["configs"][0]["rows"]
        fused, against = row["timings"]["tracked"], row["against"]["tracked"]
    tracked = over(fused["rounds"], against["rounds"])
    bare = over(rows["fused"]["timings"]["bare"]["rounds"], rows["fused"]["floor"]["rounds"])
    return [
        *(
            (f"a tracked step, `{tier}`", "its bare loop", _tax(row), 1.05)
            for tier, row in rows.items()
            if tier in BUILTINS[1:]
        ),
        ("a tracked step, `fused`", f"the fastest bare loop of the seven (`{loop}`)", tracked, 0.70),
        ("a step of `fused`", "its five matrix products alone", bare, 1.10),
    ]


def _on_cuda(figures: dict[str, Any]) -> list[Claim]:
    rows, timings = figures["configs"][0]["rows"], timings_of(figures)
    loop = _fastest_bare(timings)
    against, bare = f"the fastest bare loop of the seven (`{loop}`)", timings[loop]["bare"]["rounds"]
    lightning, tracked = (timings["fused"][mode]["rounds"] for mode in ("lightning", "tracked"))
    module = _tax(next(row for row in rows if row["tier"] == "custom-module"))
    step = "a tracked step" if "sending" in rows[0] else "a tracked step without the sending"
    return [
        (f"on CUDA, {step}, `custom-module`", "its bare loop", module, 0.80),
        ("on CUDA, a replayed step, `fused`", against, over(lightning, bare), 0.15),
        (f"on CUDA, {step}, `fused`", against, over(tracked, bare), 0.15),
    ]


def _tax(row: dict[str, Any]) -> Timing:
    """What a tracked step takes beside one of the bare loop that it took turns with."""
    return over(row["timings"]["tracked"]["rounds"], row["beside"]["tracked"]["rounds"])


def timings_of(figures: dict[str, Any]) -> dict[str, Any]:
    """What a bench measured, by tier and mode."""
    return {row["tier"]: row["timings"] for row in figures["configs"][0]["rows"]}


def _fastest_bare(timings: dict[str, Any], tiers: Sequence[str] = BUILTINS) -> str:
    return min((t for t in tiers if t in timings), key=lambda t: timings[t]["bare"]["median"])


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, all columns but the first aligned to the right."""
    lines = [columns, ["---", *["---:" for _ in columns[1:]]], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def micros(timing: dict[str, Any]) -> str:
    """A timing in microseconds with its interval; one round has none."""
    return shown([1e6 * timing[key] for key in ("median", "low", "high")], len(timing["rounds"]), ".0f")


def shown(figures: Sequence[float], rounds: int, form: str) -> str:
    """A median with the ends of its interval; one round has none."""
    median, low, high = (f"{value:{form}}" for value in figures)
    return f"{median} [{low}, {high}]" if rounds > 1 else median


def verdict(value: Timing, most: float | None) -> str:
    """Whether a goal is reached: by the whole interval, by nothing of it, or nobody can say."""
    if most is None:
        return ""
    found = "reached" if value.high <= most else "missed" if value.low > most else "undecided"
    if len(value.rounds) < FEWEST_ROUNDS:
        return f"{'within' if found == 'reached' else found}; interval not measured"
    return found


def _claimed(found: dict[str, Any]) -> str:
    rows = []
    for figure, against, value, most in claims(found):
        n = len(value.rounds)
        measured = shown((value.median, value.low, value.high), n, ".2f")
        between = interval_label(n) if n > 1 else "no interval"
        goal = "" if most is None else f"{most:g}"
        rows.append([figure, against, measured, between, goal, verdict(value, most)])
    return table(["figure", "held against", "measured", "in brackets", "at most", ""], rows)


def _tiers(config: dict[str, Any]) -> str:
    rows = []
    for row in config["rows"]:
        tax = _tax(row)
        rows.append(
            [
                f"`{row['tier']}`",
                *(micros(row["timings"][mode]) for mode in ("bare", "lightning", "tracked")),
                shown((tax.median, tax.low, tax.high), len(tax.rounds), ".2f"),
                f"{row['gflops']:.1f}",
                f"{100 * row['floor_share']:.0f} %",
                f"{1e3 * row['once']:.3g}",
            ]
        )
    columns = ["tier", "bare", "Lightning", "tracked", "tracked / bare", "GFLOP/s", "floor", "once, ms"]
    return table(columns, rows)


def _cuda(found: dict[str, Any]) -> str:
    """What a bench on CUDA gave."""
    if "cuda" not in found:
        return f"On CUDA nothing of this page was measured; `{CUDA_BENCH}` does.\n\n"
    bench = found["cuda"]
    refused, rounds = bench["configs"][0]["refused"], bench["rounds"]
    many = f"the median of {rounds} rounds and a {interval_label(rounds)}" if rounds > 1 else "one round"
    return (
        (HERE / "performance_cuda.txt")
        .read_text()
        .format(
            device=bench["machine"]["device"],
            rounds=f"{many} ({bench['stopped']})" if bench.get("stopped") else many,
            tiers=_tiers(bench["configs"][0]),
            otherwise="" if "sending" in bench["configs"][0]["rows"][0] else f"{OTHERWISE}\n\n",
            refused="".join(f"No row for `{name}`: {why}.\n\n" for name, why in refused.items()),
            command=CUDA_BENCH,
            about=_about(bench["machine"]),
        )
    )


def _about(machine: dict[str, Any]) -> str:
    return table(["", ""], [[key.replace("_", " "), str(value)] for key, value in machine.items()])


def _peers(config: dict[str, Any]) -> str:
    rows = [
        [p["peer"], p["mode"], micros(p["timing"]), "" if p["ratio"] is None else f"{p['ratio']:.1f}"]
        for p in config["peers"]
    ]
    return table(["who", "what", "microseconds a step", "custom-module's"], rows)


def _growth(found: dict[str, Any]) -> str:
    rows = [
        [
            s["grows"],
            f"`{s['tier']}`",
            ", ".join(f"{size}: {Timing.of(rounds).median:.3g}" for size, rounds in s["seconds"].items()),
            ", ".join(f"{Timing.of(slopes).median:.2f}" for slopes in s["exponents"]),
        ]
        for s in found["scaling"]
    ]
    return table(["grows", "tier", "seconds", "exponents"], rows)


def _made(found: dict[str, Any]) -> str:
    """When, where and from what commit each part is."""
    columns = ["date", "machine", "commit"]
    rows = [[part, *(noted[column] for column in columns)] for part, noted in found["made"].items()]
    return table(["part", *columns], rows)


def page(found: dict[str, Any]) -> str:
    """The text of the page."""
    bench, large = found["bench"], found["large_table"]
    config, machine = bench["configs"][0], bench["machine"]
    return (
        (HERE / "performance_page.txt")
        .read_text()
        .format(
            date=bench["date"][:10],
            claimed=_claimed(found),
            sizes=f"{config['batch_size']} rows, {config['d_in']} inputs, {config['hidden']} hidden units",
            d_out=config["d_out"],
            rounds=bench["rounds"],
            between=interval_label(bench["rounds"]),
            tiers=_tiers(config),
            peers=_peers(config),
            growth=_growth(found),
            rows=large["rows"],
            table_gb=large["table_gb"],
            grown=large["own_memory_grown_mb"],
            about=_about(machine),
            cuda=_cuda(found),
            made=_made(found),
        )
    )


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
