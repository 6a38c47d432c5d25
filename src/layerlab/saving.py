"""What a run adds to a Trainer: checkpoints, written aside, whole, and renamed into place; and signals."""

from __future__ import annotations

import io
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from layerlab.checkpoint import folder_of, path_of
from layerlab.errors import Interrupted, RunError
from layerlab.lightimport import unneeded_left_out

with unneeded_left_out():
    from pytorch_lightning.callbacks import Callback, Checkpoint
    from pytorch_lightning.plugins.io import TorchCheckpointIO

import torch

if TYPE_CHECKING:
    import pytorch_lightning as pl

    from layerlab.signals import StopSignals
    from layerlab.tracking import Record

# Where nothing else is said, a checkpoint is written so often.
SECONDS_BETWEEN = 60.0
# So many are kept: should the last one be damaged, there is one before it.
KEPT = 2


class OwnSignals(Callback):
    """Has the signals of a run again, once Lightning has put handlers of its own before them.

    Args:
        stop: The signals.
    """

    def __init__(self, stop: StopSignals) -> None:
        self._stop = stop

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 -- Lightning's hook
        """From here on they are looked at between blocks, and nowhere else."""
        self._stop.take()


class WholeFile(TorchCheckpointIO):
    """Writes a checkpoint where it is to be, to the disk.

    Lightning's own way writes it into the system's folder for temporary files and moves it from there: that
    one may be small, or of another disk, and what a process that is killed leaves there stays.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Any | None = None,  # noqa: ARG002 -- Lightning's signature
    ) -> None:
        """Writes it; torch first makes it in memory, so that what fails is the disk, with an `OSError`."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        with Path(path).open("wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())


class Saver(Checkpoint):
    """Writes the checkpoints of a run: every so many steps, when it is interrupted, and at its end.

    A run that is over before the first one is due leaves none, unless it was interrupted.

    Args:
        record: The record of the run, whose id is known once a training begins; its checkpoints are in a
            folder of their own.
        about: What is said of the run in every checkpoint: plain values.
        every: Steps between two; None: `SECONDS_BETWEEN`.
    """

    def __init__(self, record: Record, about: dict[str, Any], *, every: int | None = None) -> None:
        self._record, self._about, self._every = record, about, every
        # A block ends where a checkpoint is due: `TierModule.block_end` looks for this, Lightning's own name.
        self._every_n_train_steps = every or 0
        self._last_time = 0.0
        self._last_step = -1
        self.saved = ""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 -- Lightning's hook
        """From here on the time runs; what a process that was killed left while it wrote is removed."""
        self._last_time = time.monotonic()
        for left in folder_of(self._record.run_id).glob("*.new"):
            left.unlink(missing_ok=True)

    def on_save_checkpoint(
        self,
        trainer: pl.Trainer,  # noqa: ARG002 -- Lightning's hook
        pl_module: pl.LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Says in the checkpoint which run it is of."""
        checkpoint["layerlab_run"] = {"run_id": self._record.run_id, **self._about}

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Saves where it is time to."""
        if self._every is not None:
            due = trainer.global_step % self._every == 0
        else:
            due = time.monotonic() - self._last_time >= SECONDS_BETWEEN
        if due:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:  # noqa: ARG002 -- Lightning's hook
        """Saves the end of a run that saves at all."""
        if self._every is not None or self.saved:
            self._save(trainer)

    def on_exception(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,  # noqa: ARG002 -- Lightning's hook
        exception: BaseException,
    ) -> None:
        """Saves what an interrupt leaves."""
        if isinstance(exception, Interrupted):
            with suppress(RunError):  # the interrupt is what is told
                self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        if trainer.global_step == self._last_step:
            return
        path = path_of(self._record.run_id, trainer.global_step)
        aside = path.with_suffix(".new")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            trainer.save_checkpoint(aside, weights_only=False)
            aside.rename(path)
            _sync_folder(path.parent)
            self._forget()
        except OSError as error:
            with suppress(OSError):
                aside.unlink()
            raise RunError(
                f"checkpoint {path} cannot be written: {error.strerror or error}",
                hint="layerlab resume goes on from the one before it, once that is mended",
            ) from None
        self._last_time, self._last_step, self.saved = time.monotonic(), trainer.global_step, str(path)

    def _forget(self) -> None:
        for path in _oldest_first(folder_of(self._record.run_id))[:-KEPT]:
            path.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Has the disk know a file by its new name, where the file system does that for a folder."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        # 9p and vboxsf, by which virtual machines share folders, refuse it. The file itself is on the disk,
        # and has its name: no reason for the run to fail.
        with suppress(OSError):
            os.fsync(opened)
    finally:
        os.close(opened)


def _oldest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
