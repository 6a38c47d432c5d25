"""What is claimed of figures that `performance.py` has, and whether it is reached."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scaling import BUDGET

from layerlab.benchmarking.report import FEWEST_ROUNDS, Timing

if TYPE_CHECKING:
    from collections.abc import Sequence

BUILTINS = ("numpy", "tensors", "autograd", "custom-function", "nn", "optim", "custom-module")
# What a tracked step is to take at most beside the bare loop of its tier.
STEP = 1.05


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
            over(*_sides(commands, r["of"], r["to"])),
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


def _sides(commands: dict[str, Any], *names: str) -> list[list[float]]:
    """The seconds of two commands: of the rounds of all of them, and of further ones of these two."""
    further = commands.get("pairs", {})
    if not further.keys() >= set(names):
        further = {}
    return [commands["seconds"][name] + further.get(name, []) for name in names]


def _of_tiers(found: dict[str, Any]) -> list[Claim]:
    rows = {row["tier"]: row for row in found["bench"]["configs"][0]["rows"]}
    loop = fastest_bare(timings_of(found["bench"]))
    fused, against = rows["fused"]["timings"]["tracked"], rows[loop]["timings"]["bare"]
    if in_turns(found):
        (row,) = found["fused"]["configs"][0]["rows"]
        fused, against = row["timings"]["tracked"], row["against"]["tracked"]
    tracked = over(fused["rounds"], against["rounds"])
    bare = over(rows["fused"]["timings"]["bare"]["rounds"], rows["fused"]["floor"]["rounds"])
    runs = found["tracked_run"]["tiers"]
    return [
        *(
            (f"a tracked step, `{tier}`, the sending added", "its bare loop, in turns", tax(row), STEP)
            for tier, row in rows.items()
            if tier in BUILTINS[1:]
        ),
        *(
            (f"the same by whole runs, `{tier}`", "its bare loop", over(s["tracked"], s["bare"]), STEP)
            for tier, s in runs.items()
        ),
        ("the same by whole runs, all of them", "their bare loops", _whole_runs(found), STEP),
        (
            "a tracked step, `fused`, the sending added",
            f"the fastest bare loop of the seven (`{loop}`)",
            tracked,
            0.70,
        ),
        ("a step of `fused`", "its five matrix products alone", bare, 1.10),
    ]


def _whole_runs(found: dict[str, Any]) -> Timing:
    every = of_all(found["tracked_run"]["tiers"])
    return over(every["tracked"], every["bare"])


def in_turns(found: dict[str, Any]) -> bool:
    """Whether `fused` took turns with the loop that it is held against, and not only rounds."""
    loop = fastest_bare(timings_of(found["bench"]))
    return bool(found.get("fused", {}).get("against") == loop)


def _on_cuda(figures: dict[str, Any], held: dict[str, Any] | None) -> list[Claim]:
    loop = fastest_bare(timings_of(figures))
    rows = {row["tier"]: row for row in (held or figures)["configs"][0]["rows"]}
    fused = rows["fused"]["timings"]
    if held:
        loops = rows["fused"]["against"]
    else:  # there are only rounds of other seconds: those count in which the loop was the fastest
        took = [rows[loop]["timings"]["bare"], *rows[loop]["beside"].values()]
        loops = dict.fromkeys(fused, min(took, key=lambda timing: timing["median"]))
    replayed, tracked = (over(fused[m]["rounds"], loops[m]["rounds"]) for m in ("lightning", "tracked"))
    against = f"the fastest bare loop of the seven that run there (`{loop}`)"
    custom = tax(rows["custom-module"])
    return [
        ("on CUDA, a tracked step, `custom-module`, the sending added", "its bare loop", custom, 0.80),
        ("on CUDA, a replayed step, `fused`", against, replayed, 0.15),
        ("on CUDA, a tracked step, `fused`, the sending added", against, tracked, 0.15),
    ]


def for_readme(found: dict[str, Any]) -> list[str]:
    """What the README says of the figures, each as it is written there."""
    config = found["bench"]["configs"][0]
    taxes = [f"{tax(row).median:.2f}" for row in config["rows"] if row["tier"] in BUILTINS[1:]]
    (script,) = [peer["ratio"] for peer in config["peers"] if peer["peer"] == "lightning-script"]
    (command,) = [r["ratio"] for r in found["whole_command"]["ratios"] if r["to"] == "stock script"]
    (fused,) = [value.median for figure, _, value, _ in _of_tiers(found) if "step, `fused`" in figure]
    phrases = [
        f"costs {min(taxes)} to {max(taxes)} of what it costs in a bare loop",
        f"{shown(_whole_runs(found))} for all of them",
        f"{script:.0f} times what a tracked one does",
        f"takes {command:.2f} of the time of a stock script",
        f"took {fused:.2f} of the fastest other tier's bare loop",
    ]
    if "cuda" in found:
        custom, replayed, _ = _on_cuda(found["cuda"], found.get("cuda_against"))
        phrases += [
            f"on an {found['cuda']['machine']['device']} a tracked step of `custom-module` took "
            f"{custom[2].median:.2f} of its bare loop",
            f"a replayed one of `fused` {replayed[2].median:.2f} of the fastest bare loop of a built-in tier",
        ]
    return phrases


def tax(row: dict[str, Any]) -> Timing:
    """What a tracked step takes beside one of the bare loop that it took turns with."""
    return over(row["timings"]["tracked"]["rounds"], row["beside"]["tracked"]["rounds"])


def timings_of(figures: dict[str, Any]) -> dict[str, Any]:
    """What a bench measured, by tier and mode."""
    return {row["tier"]: row["timings"] for row in figures["configs"][0]["rows"]}


def fastest_bare(timings: dict[str, Any], tiers: Sequence[str] = BUILTINS) -> str:
    """The tier whose bare loop is the fastest of some."""
    return min((t for t in tiers if t in timings), key=lambda t: timings[t]["bare"]["median"])


def of_all(sides: dict[str, dict[str, list[float]]]) -> dict[str, list[float]]:
    """What whole runs of all tiers took together, round by round, and their bare loops."""
    return {
        side: [sum(one) for one in zip(*(seconds[side] for seconds in sides.values()), strict=True)]
        for side in ("tracked", "bare")
    }


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
