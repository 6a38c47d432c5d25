"""The page that is made of figures that `performance.py` has: ``docs/performance.md``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from performance_claims import (
    STEP,
    claims,
    in_turns,
    of_all,
    over,
    shown,
    tax,
    verdict,
    with_ends,
)

from layerlab.benchmarking.report import FEWEST_ROUNDS, Timing, interval_label

HERE = Path(__file__).resolve().parent
CUDA_ROUNDS, CUDA_SECONDS = 9, 0.05
_ON_CUDA = f"--accelerator gpu --rounds {CUDA_ROUNDS} --seconds {CUDA_SECONDS} --json"
CUDA_BENCH = f"layerlab bench all fused {_ON_CUDA} > cuda.json"
# Those that have goals, in turns with the bare loop that is the fastest in that bench.
CUDA_AGAINST = f"layerlab bench custom-module fused --against {{against}} {_ON_CUDA} > against.json"
# Where there is no such bench.
ALONE = "`fused` and the loop that it is held against are of other seconds here."
# Where there is one on the CPU.
IN_TURNS = (
    ": on the CPU, that `fused` is held against a bare loop of torch's is of a bench of\n"
    "its own, in which its training took turns with that loop too (`layerlab bench fused --against TIER`)"
)


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, all columns but the first aligned to the right."""
    lines = [columns, ["---", *["---:" for _ in columns[1:]]], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def micros(timing: dict[str, Any]) -> str:
    """A timing in microseconds with its interval; one round has none."""
    return shown(Timing.of([1e6 * seconds for seconds in timing["rounds"]]), ".0f")


def _claimed(found: dict[str, Any]) -> str:
    rows = []
    for figure, against, value, most in claims(found):
        n = len(value.rounds)
        between = "no interval, one round"
        if n > 1:
            between = interval_label(n) + (f", {n} rounds" if n >= FEWEST_ROUNDS else "")
        goal = "" if most is None else f"{most:g}"
        rows.append([figure, against, shown(value), between, goal, verdict(value, most)])
    return table(["figure", "held against", "measured", "in brackets", "at most", ""], rows)


def _tiers(config: dict[str, Any]) -> str:
    rows = [
        [
            f"`{row['tier']}`",
            *(micros(row["timings"][mode]) for mode in ("bare", "lightning", "tracked")),
            shown(tax(row)),
            f"{row['gflops']:.1f}",
            f"{100 * row['floor_share']:.0f} %",
            f"{1e3 * row['once']:.3g}",
            f"{row['peak_mb']:.1f}",
        ]
        for row in config["rows"]
    ]
    columns = [
        "tier",
        "bare",
        "Lightning",
        "tracked",
        "tracked / bare",
        "GFLOP/s",
        "floor",
        "once, ms",
        "memory, MB",
    ]
    return table(columns, rows)


def _runs(sides: dict[str, dict[str, list[float]]]) -> str:
    """What whole runs gave, by tier and of all tiers together."""
    rows = []
    tiers = [*((f"`{tier}`", seconds) for tier, seconds in sides.items()), ("all", of_all(sides))]
    for tier, seconds in tiers:
        tracked, bare = (Timing.of([1e6 * s for s in seconds[side]]) for side in ("tracked", "bare"))
        ratio = tracked.over(bare)
        rows.append([tier, shown(tracked, ".0f"), shown(bare, ".0f"), shown(ratio), verdict(ratio, STEP)])
    return table(["tier", "a run's step, us", "its bare loop's", "ratio", f"at most {STEP:g}"], rows)


def _cuda(found: dict[str, Any]) -> str:
    """What a bench on CUDA gave."""
    if "cuda" not in found:
        return f"On CUDA nothing of this page was measured; `{CUDA_BENCH}` does.\n\n"
    bench, held = found["cuda"], found.get("cuda_against")
    refused = bench["configs"][0]["refused"]
    text = (
        (HERE / "performance_cuda.txt")
        .read_text()
        .format(
            device=bench["machine"]["device"],
            rounds=_rounds(bench),
            tiers=_tiers(bench["configs"][0]),
            refused="".join(f"No row for `{name}`: {why}.\n\n" for name, why in refused.items()),
            command=CUDA_BENCH,
            about=_about(bench["machine"]),
        )
    )
    told = ALONE if held is None else _turns_on_cuda(held, bench["rounds"])
    return f"{text}{told}\n\n"


def _rounds(bench: dict[str, Any]) -> str:
    """How many rounds a bench has, and what stopped it."""
    rounds, stopped = bench["rounds"], bench["stopped"]
    many = f"the median of {rounds} rounds and a {interval_label(rounds)}" if rounds > 1 else "one round"
    return f"{many} ({stopped})" if stopped else many


def _turns_on_cuda(held: dict[str, Any], rounds: int) -> str:
    """The bench on CUDA of turns with the loop that was the fastest in another, of so many rounds."""
    rows = []
    for row in held["configs"][0]["rows"]:
        for mode in ("lightning", "tracked"):
            timing = row["timings"][mode]
            ratios = [over(timing["rounds"], row[of][mode]["rounds"]) for of in ("beside", "against")]
            told = [shown(ratio, ".3f") for ratio in ratios]
            rows.append([f"`{row['tier']}`", mode, micros(timing), *told])
    loop = held["against"]
    columns = ["tier", "what", "microseconds a step", "/ its bare loop", f"/ that of `{loop}`"]
    return (
        (HERE / "performance_turns.txt")
        .read_text()
        .rstrip()
        .format(
            loop=loop,
            chosen=f"{rounds} round{'s' if rounds > 1 else ''}",
            rounds=_rounds(held),
            turns=table(columns, rows),
            command=CUDA_AGAINST.format(against=loop),
        )
    )


def _about(machine: dict[str, Any]) -> str:
    return table(["", ""], [[key.replace("_", " "), str(value)] for key, value in machine.items()])


def _peers(config: dict[str, Any]) -> str:
    rows = [
        [
            p["peer"],
            p["mode"],
            micros(p["timing"]),
            "" if p["ratio"] is None else with_ends(p["ratio"], p["ratio_ends"], ".1f"),
        ]
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


def _bytes_a_row(large: dict[str, Any]) -> float:
    """By how much the process's own memory grows with a row of the table."""
    quarter = large["quarter"]
    grown = large["own_memory_grown_mb"] - quarter["own_memory_grown_mb"]
    return 1e6 * grown / (large["rows"] - quarter["rows"])


def _made(found: dict[str, Any]) -> str:
    """When, where and from what commit each part is."""
    columns = ["date", "machine", "busy", "commit"]
    rows = [[part, *(noted.get(column, "") for column in columns)] for part, noted in found["made"].items()]
    return table(["part", *columns], rows)


def page(found: dict[str, Any]) -> str:
    """The text of the page."""
    bench, large, commands = found["bench"], found["large_table"], found["whole_command"]
    config, machine = bench["configs"][0], bench["machine"]
    return (
        (HERE / "performance_page.txt")
        .read_text()
        .format(
            claimed=_claimed(found),
            sizes=f"{config['batch_size']} rows, {config['d_in']} inputs, {config['hidden']} hidden units",
            d_out=config["d_out"],
            rounds=_rounds(bench),
            tiers=_tiers(config),
            fused=IN_TURNS if in_turns(found) else "",
            more=found["tracked_run"]["steps"],
            runs=_runs(found["tracked_run"]["tiers"]),
            peers=_peers(config),
            growth=_growth(found),
            rows=large["rows"],
            table_gb=large["table_gb"],
            grown=large["own_memory_grown_mb"],
            quarter=large["quarter"],
            a_row=_bytes_a_row(large),
            run=commands["ratios"][0]["of"],
            modules=len(commands["imports"]) + commands["modules_beside"],
            beside=commands["modules_beside"],
            about=_about(machine),
            cuda=_cuda(found),
            made=_made(found),
        )
    )
