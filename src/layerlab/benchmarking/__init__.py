"""The bench: tiers side by side, each in a process of its own, and no speed without proof.

`coordinator` asks one `worker` process a tier for one round after the other, so that a slow minute hits all
of them alike. A worker proves its tier before it times it, and audits every object that it has timed.
"""

from layerlab.benchmarking.coordinator import bench
from layerlab.benchmarking.report import BenchReport, Config, Row

__all__ = ["BenchReport", "Config", "Row", "bench"]
