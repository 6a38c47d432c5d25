"""One two-layer network at every level of abstraction: trained, tracked, exported, checked.

    import layerlab
    report = layerlab.run(plugin="custom-module", steps=500)

Names are loaded when they are first used, so that ``import layerlab`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerlab.benchmarking import BenchReport, bench
    from layerlab.comparison import CompareReport, RunsReport, compare, compare_runs
    from layerlab.conformance import CheckReport, CheckResult, check
    from layerlab.errors import (
        AcceleratorError,
        CheckpointError,
        ContractError,
        DataError,
        DivergedError,
        InputError,
        Interrupted,
        JournalError,
        LayerlabError,
        ModelError,
        PluginError,
        RunError,
        SpecError,
        TierError,
        TrackingError,
    )
    from layerlab.modelfile import ModelFile, VerifyReport, verify
    from layerlab.report import Observer, Report, RunReport
    from layerlab.resuming import resume
    from layerlab.runner import run
    from layerlab.syncing import SyncReport, sync
    from layerlab.tier import Params, Recipe, Tier
    from layerlab.training import TierModule, TrainingData

__all__ = [
    # what is done
    "run",
    "resume",
    "sync",
    "bench",
    "check",
    "compare",
    "compare_runs",
    "verify",
    "Observer",
    "Report",
    "RunReport",
    "SyncReport",
    "BenchReport",
    "CheckReport",
    "CheckResult",
    "CompareReport",
    "RunsReport",
    "VerifyReport",
    "ModelFile",
    # what a plugin is made of
    "Tier",
    "Params",
    "Recipe",
    # for a Trainer of one's own
    "TierModule",
    "TrainingData",
    # what can go wrong
    "LayerlabError",
    "InputError",
    "SpecError",
    "DataError",
    "PluginError",
    "ContractError",
    "AcceleratorError",
    "CheckpointError",
    "TrackingError",
    "RunError",
    "DivergedError",
    "TierError",
    "JournalError",
    "ModelError",
    "Interrupted",
]

_HOME = {
    "run": "runner",
    "resume": "resuming",
    "sync": "syncing",
    "SyncReport": "syncing",
    "bench": "benchmarking",
    "BenchReport": "benchmarking",
    "check": "conformance",
    "CheckReport": "conformance",
    "CheckResult": "conformance",
    "compare": "comparison",
    "compare_runs": "comparison",
    "CompareReport": "comparison",
    "RunsReport": "comparison",
    "Observer": "report",
    "verify": "modelfile",
    "ModelFile": "modelfile",
    "VerifyReport": "modelfile",
    "Report": "report",
    "RunReport": "report",
    "Tier": "tier",
    "Params": "tier",
    "Recipe": "tier",
    "TierModule": "training",
    "TrainingData": "training",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'layerlab' has no attribute '{name}'")
    return getattr(importlib.import_module(f"layerlab.{_HOME.get(name, 'errors')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
