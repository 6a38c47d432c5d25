"""What ``docs/performance.md`` says of figures that `performance.py` has: what is claimed, and the page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaling import BUDGET

from layerlab.benchmarking.report import FEWEST_ROUNDS, Timing, interval_label

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).resolve().parent
BUILTINS = ("numpy", "tensors", "autograd", "custom-function", "nn", "optim", "custom-module")
# What a tracked step is to take at most beside the bare loop of its tier.
STEP = 1.05
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
# Of a bench that did not tell what of a tracked step is the store's, and measured otherwise than later ones.
OTHERWISE = (
    "What sending the losses takes is in the tracked steps of this bench only where it is slower than the\n"
    "step itself, and is not added: with it none would take much more than twice as long. The products of\n"
    "its floor were a loop of their own, after the bare one or before it."
)


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
            Timing.of(found["memory"]["grown_mb"]),
            found["memory"]["budget_mb"],
        ),
        (
            "minibatches from a table of 2 GB",
            "a bare loop over the same mapped rows",
            over(large["blocks"], large["bare"]),
            found["large_table"]["budget"],
        ),
    ]
    if "cuda" in found:
        seen += _on_cuda(found["cuda"], found.get("cuda_against"))
    return seen + [
        (
            f"exponent of the cost, {s['grows']} from {size}, `{s['tier']}`",
            "linear: 1",
            Timing.of(slopes),
            BUDGET,
        )
        for s in found["scaling"]
        for size, slopes in zip(s["seconds"], s["exponents"], strict=False)
    ]


def _of_tiers(found: dict[str, Any]) -> list[Claim]:
    rows = {row["tier"]: row for row in found["bench"]["configs"][0]["rows"]}
    loop = fastest_bare(timings_of(found["bench"]))
    fused, against = rows["fused"]["timings"]["tracked"], rows[loop]["timings"]["bare"]
    if _in_turns(found):
        (row,) = found["fused"]["configs"][0]["rows"]
        fused, against = row["timings"]["tracked"], row["against"]["tracked"]
    tracked = over(fused["rounds"], against["rounds"])
    bare = over(rows["fused"]["timings"]["bare"]["rounds"], rows["fused"]["floor"]["rounds"])
    every = _of_all(found["tracked_run"]["tiers"])
    runs = over(every["tracked"], every["bare"])
    return [
        *(
            (f"a tracked step, `{tier}`", "its bare loop, in turns", _tax(row), STEP)
            for tier, row in rows.items()
            if tier in BUILTINS[1:]
        ),
        ("the same by whole runs, all of them", "their bare loops", runs, STEP),
        ("a tracked step, `fused`", f"the fastest bare loop of the seven (`{loop}`)", tracked, 0.70),
        ("a step of `fused`", "its five matrix products alone", bare, 1.10),
    ]


def _in_turns(found: dict[str, Any]) -> bool:
    """Whether `fused` took turns with the loop that it is held against, and not only rounds."""
    loop = fastest_bare(timings_of(found["bench"]))
    return bool(found.get("fused", {}).get("against") == loop)


def _on_cuda(figures: dict[str, Any], held: dict[str, Any] | None) -> list[Claim]:
    loop = fastest_bare(timings_of(figures))
    rows = {row["tier"]: row for row in (held or figures)["configs"][0]["rows"]}
    fused = rows["fused"]["timings"]
    # without such a bench, what there is are rounds of other seconds
    loops = rows["fused"]["against"] if held else dict.fromkeys(fused, rows[loop]["timings"]["bare"])
    replayed, tracked = (over(fused[m]["rounds"], loops[m]["rounds"]) for m in ("lightning", "tracked"))
    step = "a tracked step" if "sending" in rows["fused"] else "a tracked step without the sending"
    against = f"the fastest bare loop of the seven that run there (`{loop}`)"
    return [
        (f"on CUDA, {step}, `custom-module`", "its bare loop", _tax(rows["custom-module"]), 0.80),
        ("on CUDA, a replayed step, `fused`", against, replayed, 0.15),
        (f"on CUDA, {step}, `fused`", against, tracked, 0.15),
    ]


def _tax(row: dict[str, Any]) -> Timing:
    """What a tracked step takes beside one of the bare loop that it took turns with."""
    return over(row["timings"]["tracked"]["rounds"], row["beside"]["tracked"]["rounds"])


def timings_of(figures: dict[str, Any]) -> dict[str, Any]:
    """What a bench measured, by tier and mode."""
    return {row["tier"]: row["timings"] for row in figures["configs"][0]["rows"]}


def fastest_bare(timings: dict[str, Any], tiers: Sequence[str] = BUILTINS) -> str:
    """The tier whose bare loop is the fastest of some."""
    return min((t for t in tiers if t in timings), key=lambda t: timings[t]["bare"]["median"])


def table(columns: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown, all columns but the first aligned to the right."""
    lines = [columns, ["---", *["---:" for _ in columns[1:]]], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def micros(timing: dict[str, Any]) -> str:
    """A timing in microseconds with its interval; one round has none."""
    return shown(Timing.of([1e6 * seconds for seconds in timing["rounds"]]), ".0f")


def shown(value: Timing, form: str = ".2f") -> str:
    """A median with the ends of its interval; one round has none."""
    if len(value.rounds) == 1:
        return f"{value.median:{form}}"
    return with_ends(value.median, (value.low, value.high), form)


def with_ends(median: float, ends: Sequence[float], form: str) -> str:
    """A median with the ends of its interval."""
    low, high = ends
    return f"{median:{form}} [{low:{form}}, {high:{form}}]"


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
            shown(_tax(row)),
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


def _of_all(sides: dict[str, dict[str, list[float]]]) -> dict[str, list[float]]:
    """What whole runs of all tiers took together, round by round, and their bare loops."""
    return {
        side: [sum(one) for one in zip(*(seconds[side] for seconds in sides.values()), strict=True)]
        for side in ("tracked", "bare")
    }


def _runs(sides: dict[str, dict[str, list[float]]]) -> str:
    """What whole runs gave, by tier and of all tiers together."""
    rows = []
    tiers = [*((f"`{tier}`", seconds) for tier, seconds in sides.items()), ("all", _of_all(sides))]
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
            otherwise="" if "sending" in bench["configs"][0]["rows"][0] else f"{OTHERWISE}\n\n",
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
            fused=IN_TURNS if _in_turns(found) else "",
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
