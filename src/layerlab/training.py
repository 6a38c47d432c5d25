"""Training under Lightning, a block of steps at a time.

What Lightning calls a batch is here a *block*: a slice of consecutive steps. `TierModule.training_step` runs
the whole block and keeps each loss, on a device in a tensor; nothing waits for the device and nothing is
logged before the block ends. Lightning's counters are then moved on by the block's length, so that
`global_step`, `max_steps` and `ModelCheckpoint(every_n_train_steps=...)` speak of steps, as always.

What Lightning calls an epoch is here what lies between two validations.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from layerlab.lightimport import unneeded_left_out

with unneeded_left_out():
    import pytorch_lightning as pl
    from pytorch_lightning.plugins.environments import LightningEnvironment  # type: ignore[attr-defined]

from layerlab.batches import LONGEST_BLOCK, PREDICT_ROWS, Batches, Slices
from layerlab.errors import DivergedError, LayerlabError, TierError
from layerlab.replay import steps_of
from layerlab.tier import host_copy
from layerlab.validation import validation_metrics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor

    from layerlab.tier import Array, Params, Tier

# A block aims at this long: long beside what Lightning does once a block (about a millisecond), short beside
# the patience of somebody who presses Ctrl-C.
BLOCK_SECONDS = 0.25
FIRST_BLOCK = 8


class Sink(Protocol):
    """Where the figures of a training go, a block at a time."""

    def log_losses(self, first_step: int, losses: Array, began: float, ended: float) -> None:
        """Takes the losses of consecutive steps, and when they began and ended (`time.time`)."""

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Takes figures of the network as it is after ``step`` updates."""


class NoSink:
    """A sink that keeps nothing."""

    def log_losses(self, first_step: int, losses: Array, began: float, ended: float) -> None:
        """Does nothing."""

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Does nothing."""


class NeverStop:
    """The stop signals of a training that nobody stops."""

    def check(self) -> None:
        """Does nothing; `layerlab.signals.StopSignals` raises here."""


@dataclass(frozen=True)
class TrainingData:
    """Rows in units of training, on the host.

    Attributes:
        x: Training inputs, shape (N, n_in).
        y: Training targets, shape (N, n_out).
        x_val: Validation inputs, shape (M, n_in), M possibly 0.
        y_val: Validation targets, shape (M, n_out).
        classification: Whether targets are one-hot classes.
    """

    x: Array
    y: Array
    x_val: Array
    y_val: Array
    classification: bool = False


class TierModule(pl.LightningModule):
    """A tier as a LightningModule: give it to any `Trainer` with one device.

    Args:
        tier_class: The tier.
        params: First parameters.
        data: Training and validation rows.
        lr: Learning rate.
        batch_size: Rows a step.
        seed: What the order of minibatches is drawn from.
        round_steps: Steps between two validations; None: all steps where ``max_steps`` says how many, else
            one pass through the data.
        sink: Where losses and metrics go.
        stop: Asked after every block whether to stop; it raises to stop.
    """

    def __init__(
        self,
        tier_class: type[Tier],
        params: Params,
        data: TrainingData,
        *,
        lr: float,
        batch_size: int,
        seed: int = 0,
        round_steps: int | None = None,
        sink: Sink | None = None,
        stop: Any = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self._tier_class, self._params, self._data = tier_class, params, data
        self._lr, self._batch_size, self._seed = lr, batch_size, seed
        self.round_steps = round_steps
        self._sink: Sink = sink or NoSink()
        self._stop = stop or NeverStop()
        self.tier: Any = None
        self.first_loss: float | None = None
        self.last_loss: float | None = None
        self.val_metrics: dict[str, float] = {}
        self._validated_at = -1
        self.seconds_per_step = 0.0

    def setup(self, stage: str) -> None:  # noqa: ARG002 -- Lightning's hook
        """Builds the tier where the trainer runs, and puts the data there; once: a trained tier stays."""
        if self.tier is not None:
            return
        device = self.trainer.strategy.root_device
        self.dtype_ = torch.float64 if self.trainer.precision == "64-true" else torch.float32

        def tensor(array: Array) -> Tensor:
            # A mapped array stays where it is: its batches are put on the device.
            there = torch.device("cpu") if isinstance(array, np.memmap) else device
            return torch.as_tensor(array).to(device=there, dtype=self.dtype_)

        host = np.float64 if self.dtype_ is torch.float64 else np.float32
        params = self._params.map(lambda p: p.astype(host))
        with tiers_own("the tier cannot be built"):
            self.tier = self._tier_class(params, lr=self._lr, device=device, dtype=self.dtype_)
        data = self._data
        self.batches = Batches(
            tensor(data.x), tensor(data.y), batch_size=self._batch_size, seed=self._seed, device=device
        )
        self._x_val = tensor(data.x_val)
        self._begin()

    def _begin(self) -> None:
        """Nothing of the tier is captured that it no longer has."""
        device, in_place = self.batches.device, self.batches.steps_per_epoch == 1
        self._steps = steps_of(self.tier, device=device, dtype=self.dtype_, in_place=in_place)

    def configure_optimizers(self) -> None:
        """The tier updates itself."""

    def train_dataloader(self) -> Blocks:
        """The blocks, from wherever training stands."""
        return Blocks(self)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:  # noqa: ARG002 -- Lightning's hook
        """A slice of steps or rows is on no device."""
        return batch

    def training_step(self, batch: slice, batch_idx: int) -> None:  # noqa: ARG002 -- Lightning's hook
        """Runs a block of steps, then moves Lightning's counters and hands the losses on."""
        steps = range(batch.start, batch.stop)
        began, clock = time.time(), time.perf_counter()
        host = self._steps.run(steps, self.batches.block(steps))
        self.seconds_per_step = (time.perf_counter() - clock) / len(steps)
        self._advance(len(steps))
        finite = np.isfinite(host)
        good = len(host) if finite.all() else int(finite.argmin())
        if good:
            self.first_loss = float(host[0]) if self.first_loss is None else self.first_loss
            self.last_loss = float(host[good - 1])
            self._sink.log_losses(batch.start, host[:good], began, time.time())
        if good < len(host):
            raise DivergedError("loss", str(host[good]), batch.start + good)
        self._stop.check()

    def _advance(self, steps: int) -> None:
        # Lightning counts the steps of its own optimizers; there are none, so its counter is moved by hand.
        progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
        for counter in (progress.total, progress.current):
            counter.ready += steps
            counter.completed += steps

    def val_dataloader(self) -> Slices:
        """The validation rows, as slices."""
        return Slices(len(self._data.x_val))

    def on_validation_epoch_start(self) -> None:
        """Forgets the last predictions."""
        self._predicted: list[Array] = []

    def validation_step(self, batch: slice, batch_idx: int) -> None:  # noqa: ARG002 -- Lightning's hook
        """Predicts some rows."""
        self._predicted.append(self._predictions(batch))

    def on_validation_epoch_end(self) -> None:
        """Figures over all validation rows, after so many updates."""
        self._validated(np.concatenate(self._predicted), self.global_step)

    def _predictions(self, rows: slice) -> Array:
        return _forward(self.tier, self._x_val[rows].to(self.batches.device))

    def _validated(self, y_pred: Array, step: int) -> None:
        metrics = validation_metrics(y_pred, self._data.y_val, classification=self._data.classification)
        if not np.isfinite(metrics["val_loss"]):
            raise DivergedError("val_loss", str(metrics["val_loss"]), step)
        self.val_metrics, self._validated_at = metrics, step
        self._sink.log_metrics(step, metrics)

    def predict(self, x: Array) -> Array:
        """The tier's own predictions for inputs in units of training: (N, n_in) to (N, n_out), float64."""
        device = self.batches.device
        with torch.no_grad():
            parts = [
                _forward(self.tier, torch.as_tensor(part).to(device=device, dtype=self.dtype_))
                for part in np.split(x, range(PREDICT_ROWS, len(x), PREDICT_ROWS))
            ]
        return np.concatenate(parts)

    def params(self) -> Params:
        """The parameters as they are now, on the host.

        Raises:
            TierError: The tier raised.
        """
        with tiers_own("params failed"):
            params: Params = self.tier.params()
        return params

    def check_params(self) -> None:
        """Looks at the parameters once more: the last update has no loss that would show what it did.

        Raises:
            DivergedError: A parameter is not a finite number.
            TierError: The tier raised.
        """
        for name, p in self.params()._asdict().items():
            if p is not None and not np.isfinite(p).all():
                raise DivergedError(
                    f"a parameter of {name}", str(p[~np.isfinite(p)][0]), self.global_step - 1
                )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the tier's state: tensors and numbers only, so that ``weights_only=True`` loads it."""
        with tiers_own("state failed"):
            state = _plain(self.tier.state())
        checkpoint["layerlab"] = {
            "tier": state,
            "losses": [self.first_loss, self.last_loss],
            "val": [self._validated_at, dict(self.val_metrics)],
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on from a tier's state; a validation that was due and did not come is made up for."""
        kept, step = checkpoint["layerlab"], checkpoint["global_step"]
        with tiers_own("the checkpoint does not fit"):
            self.tier.load_state(kept["tier"])
        self._begin()
        self.first_loss, self.last_loss = kept["losses"]
        self._validated_at, self.val_metrics = kept["val"]
        validates = len(self._data.x_val) > 0 and self.trainer.limit_val_batches != 0
        due = step == self.trainer.max_steps or self.round_end(step - 1) == step
        if validates and step > 0 and due and self._validated_at != step:
            with torch.no_grad(), self.trainer.precision_plugin.forward_context():  # as in a validation
                predicted = [self._predictions(rows) for rows in self.val_dataloader()]
            self._validated(np.concatenate(predicted), step)

    def round_end(self, step: int) -> int:
        """The step at which the Lightning epoch that holds ``step`` ends."""
        last = self.trainer.max_steps
        if last == -1:
            return _next_multiple(step, self.round_steps or self.batches.steps_per_epoch)
        return min(last, _next_multiple(step, self.round_steps or last))

    def block_end(self, step: int) -> int:
        """The step at which a block that starts at ``step`` must end at the latest."""
        every = (getattr(c, "_every_n_train_steps", 0) for c in self.trainer.checkpoint_callbacks)
        return min([self.round_end(step), *(_next_multiple(step, n) for n in every if n)])


def _next_multiple(step: int, of: int) -> int:
    return (step // of + 1) * of


@dataclass
class Blocks:
    """The blocks of one Lightning epoch, each about `BLOCK_SECONDS` long; an iterable without a length.

    Attributes:
        module: Whose steps they are.
    """

    module: TierModule
    _length: int = field(default=FIRST_BLOCK, init=False)

    def __iter__(self) -> Iterator[slice]:
        """Slices of steps, from where training stands to the end of the Lightning epoch."""
        step = self.module.global_step
        end = self.module.round_end(step)
        while step < end:
            stop = min(step + self._length, self.module.block_end(step))
            yield slice(step, stop)
            step = stop
            self._adapt()

    def _adapt(self) -> None:
        seconds = self.module.seconds_per_step
        wanted = int(BLOCK_SECONDS / seconds) if seconds else self._length
        # The first steps are slow: warm-up must not be mistaken for the pace.
        most = min(LONGEST_BLOCK, self.module.batches.most_steps)
        self._length = max(1, min(wanted, 4 * self._length, most))


def make_trainer(
    *,
    accelerator: str,
    precision: Any,
    max_steps: int,
    validate: bool,
    callbacks: Sequence[pl.Callback] = (),
    plugins: Sequence[Any] = (),
) -> pl.Trainer:
    """A Trainer on one device that logs nothing, saves nothing and draws nothing: layerlab does."""
    return pl.Trainer(
        accelerator=accelerator,
        devices=1,
        precision=precision,
        max_steps=max_steps,
        max_epochs=-1,
        limit_val_batches=None if validate else 0,
        num_sanity_val_steps=0,
        logger=False,
        # No folder and no cluster: of SLURM's, Lightning would take checkpoints, signals and the tasks.
        default_root_dir=os.devnull,
        enable_checkpointing=any(isinstance(c, pl.callbacks.Checkpoint) for c in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        plugins=[LightningEnvironment(), *plugins],
    )


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Lightning would tell of the devices it sees and of choices that are made on purpose here."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"pytorch_lightning\.")
        try:
            yield
        finally:
            logger.setLevel(level)


@contextmanager
def tiers_own(what: str) -> Iterator[None]:
    """Within this context a tier's own code runs: what it raises is its failure, and nobody else's.

    Raises:
        TierError: It raised.
    """
    try:
        yield
    except LayerlabError:
        raise
    except (Exception, SystemExit) as error:
        raise TierError(f"{what}: {type(error).__name__}: {error}") from error


def _forward(tier: Tier, x: Tensor) -> Array:
    with tiers_own("forward failed"):
        y_pred = tier.forward(x)
        if torch.is_tensor(y_pred):
            y_pred = y_pred.to(torch.float64 if y_pred.device.type != "mps" else torch.float32)
        return host_copy(y_pred).astype(np.float64)


def _plain(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    return torch.from_numpy(np.array(state)) if isinstance(state, (np.ndarray, np.generic)) else state
