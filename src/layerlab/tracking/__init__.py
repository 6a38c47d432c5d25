"""The record in MLflow, kept by a process of its own.

The process that trains imports no MLflow: it writes a journal (`record`). `recorder.Recorder` starts a second
process (`process`), which imports MLflow while the first imports torch, holds the `store.Store`, and sends
what the journal has (`delivery`). It outlives a trainer that is killed, and closes its run.
"""

from layerlab.tracking.info import DatasetInfo, KnownRun, RunInfo
from layerlab.tracking.record import Closing, Record
from layerlab.tracking.recorder import OfflineRecorder, Recorder

__all__ = ["Closing", "DatasetInfo", "KnownRun", "OfflineRecorder", "Record", "Recorder", "RunInfo"]
