"""The picture of a comparison: loss curves, and how near each step came to what rounding allows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

# Okabe and Ito's palette, which all readers can tell apart (https://jfly.uni-koeln.de/color/). Dashes tell
# curves apart that lie on each other.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", (0, (6, 4)), (0, (2, 3)), (0, (8, 3, 2, 3)), (0, (1, 2)), (0, (10, 5)), (0, (4, 2, 1, 2)))


def draw(
    path: Path,
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]],
    shares: Mapping[str, Sequence[float]] | None = None,
    *,
    title: str,
) -> None:
    """Draws a PNG.

    Args:
        path: Where it goes.
        curves: Steps and losses, by name.
        shares: Of every follower the largest difference of each step as a share of its bound; None: no
            second panel.
        title: What is compared.
    """
    # The object-oriented interface: pyplot would keep the figure, and choose a window.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6 if shares else 4), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(2 if shares else 1, 1, sharex=True, squeeze=False)[:, 0]
    styles = dict(zip(curves, zip(_COLOURS * 9, _DASHES * 9, strict=True), strict=False))
    for name, (steps, losses) in curves.items():
        colour, dashes = styles[name]
        marker = "." if len(losses) == 1 else ""
        axes[0].plot(steps, losses, color=colour, linestyle=dashes, linewidth=1.8, marker=marker, label=name)
    every = np.concatenate([np.asarray(losses, float) for _, losses in curves.values()] or [np.ones(1)])
    positive = bool((every[np.isfinite(every)] > 0).all())
    axes[0].set(ylabel="loss", title=title, yscale="log" if positive else "linear")
    axes[0].legend(frameon=False)
    if shares:
        for name, share in shares.items():
            # A log axis has no 0: a difference of nothing is not drawn.
            seen = np.asarray(share, float)
            axes[1].plot(
                np.where(seen > 0, seen, np.nan), ".", color=styles[name][0], markersize=3, label=name
            )
        axes[1].axhline(1, color="0.4", linewidth=1)
        axes[1].set(ylabel="difference / bound", yscale="log")
        axes[1].annotate(
            "what rounding allows", (0.01, 1), xycoords=("axes fraction", "data"), va="bottom", color="0.3"
        )
    axes[-1].set(xlabel="step")
    for ax in axes:
        ax.grid(alpha=0.25)
        ax.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
