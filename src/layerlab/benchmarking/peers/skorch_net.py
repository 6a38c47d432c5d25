"""skorch: the same module in an estimator with scikit-learn's interface; only its own history is kept."""

from __future__ import annotations

from typing import Any

import torch
from skorch import NeuralNetRegressor
from skorch.callbacks import Callback
from torch import nn

from layerlab.benchmarking.peers.job import Job, Made


class Clock(Callback):  # type: ignore[misc]  # skorch ships no types
    """Tells the job when a step begins: an epoch is one."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        """A step begins."""
        self.job.step_begins()


def train(job: Job) -> Made:
    """Trains; the losses are those of the net's history."""
    net = NeuralNetRegressor(
        job.network,
        criterion=nn.MSELoss,
        criterion__reduction="sum",
        optimizer=torch.optim.SGD,
        lr=job.lr,
        max_epochs=job.steps,
        batch_size=-1,
        train_split=None,
        callbacks=[Clock(job)],
        verbose=0,
        device=job.device,
    )
    net.fit(job.x, job.y)
    return Made.of([float(loss) for loss in net.history[:, "train_loss"]], net.module_)
