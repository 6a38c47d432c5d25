"""A LightningModule under a stock Trainer, every loss in MLflow: what the documentation of both shows.

The same network, data and optimizer as elsewhere; Lightning optimises, ``self.log`` records, a `DataLoader`
serves the rows. Bar and summary are off, for they would fill the terminal, and so are checkpoints, which the
Trainer would write at the end of every epoch, here after every step: our tiers write none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytorch_lightning as pl
import torch
from mlflow import MlflowClient
from pytorch_lightning.loggers import MLFlowLogger
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from layerlab.benchmarking.peers.job import Job, Made

if TYPE_CHECKING:
    from torch import Tensor, nn


class Net(pl.LightningModule):
    """The network and how it is trained."""

    def __init__(self, network: nn.Module, lr: float) -> None:
        super().__init__()
        self.network, self.lr = network, lr

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:  # noqa: ARG002 -- Lightning's hook
        """The loss of a batch, recorded."""
        x, y = batch
        loss = functional.mse_loss(self.network(x), y, reduction="sum")
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain gradient descent."""
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Clock(pl.Callback):
    """Tells the job when a step begins."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def on_train_batch_start(self, *_: Any) -> None:
        """A step begins."""
        self._job.step_begins()


def train(job: Job) -> Made:
    """Trains; the losses are those that are in the MLflow store afterwards."""
    uri = f"sqlite:///{job.folder}/mlflow.db"
    network = job.network
    rows = TensorDataset(torch.as_tensor(job.x), torch.as_tensor(job.y))
    logger = MLFlowLogger(experiment_name="stock", tracking_uri=uri)
    trainer = pl.Trainer(
        accelerator="gpu" if job.device == "cuda" else "cpu",
        devices=1,
        precision=job.precision,
        max_epochs=job.steps,
        logger=logger,
        log_every_n_steps=1,
        callbacks=[Clock(job)],
        default_root_dir=job.folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Net(network, job.lr), DataLoader(rows, batch_size=len(rows)))
    history = MlflowClient(uri).get_metric_history(str(logger.run_id), "loss")
    recorded = sorted(history, key=lambda point: point.step)
    return Made.of([point.value for point in recorded], network)
