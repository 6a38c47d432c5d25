"""How the cost grows with the problem: batch, inputs, hidden units and steps, each ten times larger, twice.

The first three are sweeps of ``layerlab bench``; the last is what ``layerlab run`` takes from the start of
the training to the end of the record, which another process sends meanwhile. There is an exponent for each
tenfold, of every round by itself, in which all sizes had their turn: 1 where cost is linear, and less where
overhead is left.

    python benchmarks/scaling.py [--rounds 6] [--json FILE] [--png FILE]
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tracked_run import tracked

import layerlab
from layerlab import startup

BUDGET = 1.1
TIERS = ("numpy", "tensors", "custom-module")
SWEEPS: dict[str, tuple[str, tuple[int, ...]]] = {
    "N": ("batch_size", (64, 640, 6400)),
    "D_in": ("d_in", (1000, 10_000, 100_000)),
    "H": ("hidden", (100, 1000, 10_000)),
}
# Of a tier whose steps are short: the longest runs are what takes long here.
STEPS = (500, 5000, 50_000)
STEPPED = "tensors"

# Seconds of every round, by what grows, by tier, by size.
Found = dict[str, dict[str, dict[int, list[float]]]]


def exponents(points: dict[int, list[float]]) -> list[list[float]]:
    """The slopes of log(cost) over log(size), from each size to the next, of every round."""
    ranked = sorted(points.items())
    return [
        [math.log(b / a) / math.log(large / small) for a, b in zip(before, after, strict=True)]
        for (small, before), (large, after) in itertools.pairwise(ranked)
    ]


def measure(rounds: int) -> Found:
    """Seconds of a bare step, or of a tracked run without its start; none where a tier is refused."""
    found: Found = {}
    for name, (argument, sizes) in SWEEPS.items():
        sweep: dict[str, Any] = {argument: sizes}
        report = layerlab.bench(TIERS, modes=["bare"], rounds=rounds, seconds=0.2, **sweep)
        found[name] = {tier: {} for tier in TIERS}
        for config in report.configs:
            for tier, why in config.refused.items():
                sys.stderr.write(f"{config.label}: no figure for {tier}: {why}\n")
            for row in config.rows:
                found[name][row.tier][getattr(config, argument)] = list(row.timings["bare"].rounds)
    found["steps"] = {STEPPED: {steps: [] for steps in STEPS}}
    tracked(STEPPED, STEPS[0])  # what happens once in a process
    for number in range(rounds):
        for steps in STEPS[:: -1 if number % 2 else 1]:
            found["steps"][STEPPED][steps].append(tracked(STEPPED, steps))
    return found


def draw(path: Path, found: Found) -> None:
    """Four panels, both axes logarithmic: medians with their intervals, and the line of linear cost."""
    import matplotlib as mpl

    from layerlab.benchmarking.report import Timing

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(3.2 * len(found), 3.4), layout="constrained")
    for axis, (name, tiers) in zip(axes, found.items(), strict=True):
        for tier, points in tiers.items():
            sizes = sorted(points)
            label = f"{tier}: {', '.join(f'{Timing.of(slopes).median:.2f}' for slopes in exponents(points))}"
            timings = [Timing.of(points[size]) for size in sizes]
            medians = [timing.median for timing in timings]
            ends = [
                [timing.median - timing.low for timing in timings],
                [timing.high - timing.median for timing in timings],
            ]
            axis.errorbar(sizes, medians, yerr=ends, marker="o", markersize=4, capsize=2, label=label)
        axis.set(xscale="log", yscale="log")
        first = next(iter(tiers.values()))
        start = min(first)
        linear = [Timing.of(first[start]).median * size / start for size in sorted(first)]
        axis.plot(sorted(first), linear, color="0.7", linestyle="--", label="linear", zorder=0)
        axis.set_xlabel(name)
        axis.set_ylabel("seconds of the run" if name == "steps" else "seconds a step")
        axis.set_ylim(top=axis.get_ylim()[1] * 10 ** (0.1 * (len(tiers) + 2)))  # the legend crosses no curve
        title = "exponent of each tenfold"
        axis.legend(fontsize=7, frameon=False, title=title, title_fontsize=7, loc="upper left")
        axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    """Measures, prints the exponents, and draws them."""
    # What is run here is as the command runs it; before NumPy and torch read the environment.
    startup.claim()
    from layerlab.benchmarking.report import Timing

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=6, help="rounds of each size (default: 6)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--png", type=Path, help="draw them to this file")
    arguments = parser.parse_args()
    outputs = [path and path.absolute() for path in (arguments.json, arguments.png)]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        found = measure(arguments.rounds)
        os.chdir("/")
    lines = [f"{'grows':6}  {'tier':14}  exponents and their intervals (budget {BUDGET})"]
    figures = []
    for name, tiers in found.items():
        for tier, points in tiers.items():
            slopes = exponents(points)
            timings = [Timing.of(rounds) for rounds in slopes]
            said = "  ".join(f"{t.median:.2f} [{t.low:.2f}, {t.high:.2f}]" for t in timings)
            lines.append(f"{name:6}  {tier:14}  {said}")
            figures.append({"grows": name, "tier": tier, "exponents": slopes, "seconds": points})
    sys.stdout.write("\n".join(lines) + "\n")
    if outputs[0]:
        outputs[0].write_text(json.dumps(figures, indent=2) + "\n")
    if any(len(points) < len(SWEEPS[name][1]) for name in SWEEPS for points in found[name].values()):
        sys.exit("not every tier has a figure at every size, and nothing is drawn")
    if outputs[1]:
        draw(outputs[1], found)


if __name__ == "__main__":
    main()
