"""Comparisons, each of which leaves an MLflow run: tiers in lockstep, and finished runs by their records."""

from layerlab.comparison.report import CompareReport, Pair, RunsReport
from layerlab.comparison.runs import compare_runs
from layerlab.comparison.tiers import compare

__all__ = ["CompareReport", "Pair", "RunsReport", "compare", "compare_runs"]
