"""The picture of a bench: bars a tier with intervals, or lines over the size that was swept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from layerlab.benchmarking.report import MODES, interval_label

if TYPE_CHECKING:
    from pathlib import Path

    from layerlab.benchmarking.report import BenchReport

# Okabe and Ito's palette (https://jfly.uni-koeln.de/color/).
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Of more tiers than colours, the next seven.
_LINES = ("-", "--", ":", "-.")


def draw(path: Path, report: BenchReport) -> None:
    """Draws a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots()
    if len(report.configs) == 1:
        _bars(axes, report)
    else:
        _lines(axes, report)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)  # beside nothing that is drawn
    figure.savefig(path, dpi=120)


def _bars(axes: Any, report: BenchReport) -> None:
    (config,) = report.configs
    modes = [mode for mode in MODES if mode in config.rows[0].timings]
    width = 0.8 / len(modes)
    for i, mode in enumerate(modes):
        timings = [row.timings[mode] for row in config.rows]
        medians = [timing.median * 1e6 for timing in timings]
        low = [(timing.median - timing.low) * 1e6 for timing in timings]
        high = [(timing.high - timing.median) * 1e6 for timing in timings]
        places = [place + (i - (len(modes) - 1) / 2) * width for place in range(len(medians))]
        error = {"ecolor": "0.25", "capsize": 2, "elinewidth": 1}
        axes.bar(places, medians, width, yerr=[low, high], label=mode, color=_COLOURS[i], error_kw=error)
    names = [row.tier for row in config.rows]
    axes.set_xticks(range(len(names)), names, rotation=20, ha="right", rotation_mode="anchor")
    axes.set(
        ylabel="microseconds a step", title=f"{config.label}: median and {interval_label(report.rounds)}"
    )


def _lines(axes: Any, report: BenchReport) -> None:
    """Time over work, both on log scales: a slope of 1 is a cost in proportion."""
    tiers = list(dict.fromkeys(row.tier for config in report.configs for row in config.rows))
    for i, tier in enumerate(tiers):
        points = [
            (config.operations, row.timings["bare"])
            for config in report.configs
            for row in config.rows
            if row.tier == tier
        ]
        points.sort(key=lambda point: (point[0], point[1].median))  # other sizes may be as much work
        work = [operations for operations, _ in points]
        medians = [timing.median * 1e6 for _, timing in points]
        error = [
            [(timing.median - timing.low) * 1e6 for _, timing in points],
            [(timing.high - timing.median) * 1e6 for _, timing in points],
        ]
        again, place = divmod(i, len(_COLOURS))
        style = {"color": _COLOURS[place], "linestyle": _LINES[again % len(_LINES)], "marker": "."}
        axes.errorbar(work, medians, yerr=error, capsize=2, label=tier, **style)
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="operations of the five matrix products of a step",
        ylabel="microseconds a step, bare loop",
        title=f"Cost over size: median and {interval_label(report.rounds)}",
    )
