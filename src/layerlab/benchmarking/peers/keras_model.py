"""Keras on torch: two `Dense` layers, compiled and fitted; nothing is recorded but its history."""

from __future__ import annotations

import os
from typing import Any

import torch

from layerlab.benchmarking.peers.job import Job, Made
from layerlab.errors import TierError
from layerlab.tier import Params

# Keras reads them when it is imported; this process is the worker's own.
os.environ["KERAS_BACKEND"] = "torch"
os.environ.setdefault("KERAS_TORCH_DEVICE", "cuda" if torch.cuda.is_available() else "cpu")

import keras


def sum_of_squares(y: Any, y_pred: Any) -> Any:
    """The loss of all tiers. Keras averages what a loss function returns, which leaves a scalar as it is."""
    return keras.ops.sum(keras.ops.square(y_pred - y))


class Clock(keras.callbacks.Callback):  # type: ignore[misc]  # Keras ships no types
    """Tells the job when a step begins: an epoch is one."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self._job = job

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:  # noqa: ARG002 -- Keras's hook
        """A step begins."""
        self._job.step_begins()


def train(job: Job) -> Made:
    """Trains; the losses are those of the history that ``fit`` returns.

    Raises:
        TierError: Keras multiplies in another precision than that of the job, as it does on torch in float64.
    """
    dtype = str(job.x.dtype)
    keras.config.set_floatx(dtype)
    if (found := keras.backend.result_type(dtype, dtype)) != dtype:
        raise TierError(f"Keras {keras.__version__} multiplies {dtype} as {found}, and the job is in {dtype}")
    hidden, d_out = job.start.w2.shape
    model = keras.Sequential(
        [
            keras.Input((job.x.shape[1],)),
            keras.layers.Dense(hidden, activation="relu"),
            keras.layers.Dense(d_out),
        ]
    )
    model.set_weights([job.start.w1, job.start.b1, job.start.w2, job.start.b2])
    model.compile(optimizer=keras.optimizers.SGD(job.lr), loss=sum_of_squares)
    history = model.fit(
        job.x,
        job.y,
        batch_size=len(job.x),
        epochs=job.steps,
        shuffle=False,
        verbose=0,
        callbacks=[Clock(job)],
    )
    w1, b1, w2, b2 = model.get_weights()
    return Made([float(loss) for loss in history.history["loss"]], Params(w1, w2, b1, b2))
