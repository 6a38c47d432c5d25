"""Draws the picture of the README: trains the seven tiers in a temporary folder and plots what MLflow holds.

python docs/figures.py
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")

import matplotlib.pyplot as plt
from mlflow import MlflowClient

import layerlab

IMAGES = Path(__file__).resolve().parent / "images"


def main() -> None:
    """Trains, reads the losses back, and writes ``loss-curves.png``."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        report = layerlab.run(plugin="all", export=False)
        client = MlflowClient("sqlite:///mlflow.db")
        figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
        styles = ["-", "--", "-.", ":", "-", "-", "--"]
        for run, style in zip(report.runs, styles, strict=True):
            points = sorted(client.get_metric_history(run.run_id, "loss"), key=lambda m: m.step)
            axes.plot(
                [p.step for p in points], [p.value for p in points], style, label=run.tier, linewidth=1.8
            )
        axes.set(
            xlabel="step",
            ylabel="loss",
            yscale="log",
            title="The default problem, each tier under its own recipe",
        )
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(IMAGES / "loss-curves.png", dpi=110)
        os.chdir(IMAGES)


if __name__ == "__main__":
    main()
