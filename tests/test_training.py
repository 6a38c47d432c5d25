"""Blocks under Lightning: counters that speak of steps, checkpoints, batches, what a block may do."""

from __future__ import annotations

import json
import math
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import BUILTINS, SameMemory, problem, run_python
from layerlab import batches, registry, replay, training
from layerlab.batches import Batches
from layerlab.errors import DivergedError, Interrupted, TierError
from layerlab.training import TierModule, TrainingData, make_trainer
from layerlab.validation import validation_metrics

BITWISE_TIERS = [*BUILTINS, "fused"]


@pytest.fixture(autouse=True)
def _plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERLAB_PLUGINS", "layerlab-fused")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    from layerlab.training import quiet_lightning

    with quiet_lightning():
        yield


class Recorder:
    """A sink that remembers what it got, block by block."""

    def __init__(self) -> None:
        self.blocks: list[tuple[int, int]] = []
        self.losses: list[float] = []
        self.metrics: list[tuple[int, dict[str, float]]] = []

    def log_losses(self, first_step: int, losses: Any, began: float, ended: float) -> None:
        assert began <= ended
        assert first_step == len(self.losses)
        self.blocks.append((first_step, len(losses)))
        self.losses += [float(loss) for loss in losses]

    def log_metrics(self, step: int, metrics: Any) -> None:
        self.metrics.append((step, dict(metrics)))


def module(tier: str = "nn", *, n: int = 20, val: int = 0, batch_size: int | None = None, **options: Any):
    params, x, y = problem(n, 6, 5, 3, bias=True)
    data = TrainingData(x, y, x[:val], y[:val])
    sink = Recorder()
    options = {"lr": 1e-4, "sink": sink, **options}
    return TierModule(
        registry.load(registry.find(tier)), params, data, batch_size=batch_size or n, **options
    ), sink


def fit(made: TierModule, steps: int, *, callbacks: Any = None, ckpt: Any = None, validate: bool = False):
    trainer = make_trainer(
        accelerator="cpu", precision="64-true", max_steps=steps, validate=validate, callbacks=callbacks or ()
    )
    trainer.fit(made, ckpt_path=ckpt, weights_only=True if ckpt else None)
    return trainer


@pytest.mark.parametrize("steps", [1, 7, 8, 9, 500])
def test_global_step_counts_steps(steps: int) -> None:
    """`trainer.global_step` is the number of updates, and every one has one loss."""
    made, sink = module()
    trainer = fit(made, steps)
    assert trainer.global_step == len(sink.losses) == steps
    assert made.first_loss == sink.losses[0]
    assert made.last_loss == sink.losses[-1]


def test_a_stock_trainer_trains_the_module_too(tmp_path: Path) -> None:
    """`pl.Trainer(max_epochs=...)` as anybody writes it: an epoch is one pass through the data."""
    made, sink = module(batch_size=6)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(made)
    assert trainer.global_step == len(sink.losses) == 3 * math.ceil(20 / 6)
    assert trainer.current_epoch == 3


@pytest.mark.parametrize(("batch_size", "round_steps"), [(20, 10), (6, 4)])
def test_validation_comes_after_every_round_and_at_the_end(batch_size: int, round_steps: int) -> None:
    """Figures are logged at the number of updates made: each full round, and the last step."""
    made, sink = module(val=5, batch_size=batch_size, round_steps=round_steps)
    fit(made, 25, validate=True)
    assert [step for step, _ in sink.metrics] == [*range(round_steps, 25, round_steps), 25]
    assert made.val_metrics == sink.metrics[-1][1]


def test_model_checkpoint_saves_at_its_steps(tmp_path: Path) -> None:
    """`ModelCheckpoint(every_n_train_steps=30)` saves at 30, 60 and 90 of 100, whatever the blocks are."""
    made, _ = module()
    saver = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=30, save_top_k=-1, filename="{step}")
    fit(made, 100, callbacks=[saver])
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step=30.ckpt", "step=60.ckpt", "step=90.ckpt"]
    loaded = torch.load(tmp_path / "step=60.ckpt", weights_only=True)
    assert loaded["global_step"] == 60


@pytest.mark.parametrize("tasks", ["1", "4"])
def test_a_job_of_a_cluster_is_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tasks: str
) -> None:
    """SLURM's variables change nothing: no tasks, no handler that requeues, no checkpoint of another job."""
    slurm = {
        "JOB_NAME": "job",
        "JOB_ID": "1234",
        "NTASKS": tasks,
        "PROCID": "0",
        "LOCALID": "0",
        "NODEID": "0",
    }
    for name, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.chdir(tmp_path)
    other, _ = module()
    fit(other, 7).save_checkpoint("hpc_ckpt_1.ckpt")
    handlers: list[Any] = []

    class Looks(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            handlers.append(signal.getsignal(signal.SIGUSR1))

    made, sink = module()
    assert fit(made, 12, callbacks=[Looks()]).global_step == len(sink.losses) == 12
    assert handlers == [signal.SIG_DFL]


@pytest.mark.parametrize("batch_size", [20, 6], ids=["full-batch", "mid-epoch"])
@pytest.mark.parametrize("tier", BITWISE_TIERS)
def test_a_resumed_training_is_the_unbroken_one(tmp_path: Path, tier: str, batch_size: int) -> None:
    """From a checkpoint at step 30 the steps to 50 have the same losses and end at the same bits."""
    unbroken, whole = module(tier, batch_size=batch_size)
    fit(unbroken, 50)
    first, _ = module(tier, batch_size=batch_size)
    saver = pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=30, filename="{step}")
    fit(first, 45, callbacks=[saver])
    second, rest = module(tier, batch_size=batch_size)
    rest.losses = whole.losses[:30]
    trainer = fit(second, 50, ckpt=tmp_path / "step=30.ckpt")
    assert trainer.global_step == 50
    assert rest.losses == whole.losses
    assert second.first_loss == unbroken.first_loss
    for p, q in zip(second.tier.params(), unbroken.tier.params(), strict=True):
        assert (p == q).all()


def test_minibatches_cover_every_row_once_an_epoch() -> None:
    """Each epoch is a permutation of its own, the same for the same seed, whatever the blocks are."""
    x = torch.arange(10.0).reshape(10, 1)
    data = Batches(x, x, batch_size=4, seed=3)
    assert data.steps_per_epoch == 3
    whole = [rows.flatten().tolist() for rows, _ in data.block(range(6))]
    assert [len(rows) for rows in whole] == [4, 4, 2, 4, 4, 2]
    for epoch in (whole[:3], whole[3:]):
        assert sorted(row for rows in epoch for row in rows) == list(range(10))
    assert whole[:3] != whole[3:]
    again = Batches(x, x, batch_size=4, seed=3)
    pieces = [b for span in (range(1), range(1, 5), range(5, 6)) for b in again.block(span)]
    assert [rows.flatten().tolist() for rows, _ in pieces] == whole
    other = Batches(x, x, batch_size=4, seed=4)
    assert [rows.flatten().tolist() for rows, _ in other.block(range(6))] != whole


def test_inputs_and_targets_stay_together() -> None:
    """A minibatch has the targets of its own rows."""
    x = torch.arange(10.0).reshape(10, 1)
    for rows, targets in Batches(x, 2 * x, batch_size=3, seed=0).block(range(8)):
        assert torch.equal(targets, 2 * rows)


@pytest.mark.parametrize("batch_size", [20, 6])
@pytest.mark.parametrize("tier", [t for t in BITWISE_TIERS if t not in {"numpy", "optim"}])
def test_no_step_waits_for_the_device(tier: str, batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside a block no tensor is turned into a Python number: that is what would wait on a GPU.

    Losses are kept as they are on a device; on the CPU, where nothing waits, they are kept as numbers.

    (Adam keeps its count of steps on the host, and reads it there.)
    """

    class NoScalars(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert "_local_scalar_dense" not in str(func), "a tensor was read on the host"
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(
        replay, "ReadSteps", lambda tier, dtype: replay.CalledSteps(tier, torch.zeros(40, dtype=dtype))
    )
    made, sink = module(tier, batch_size=batch_size)
    with NoScalars():
        fit(made, 40)
    assert len(sink.losses) == 40


def test_blocks_grow_until_they_take_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first block is short, each next one is at most four times as long, and the time is the limit."""
    monkeypatch.setattr(training, "BLOCK_SECONDS", 1e6)
    made, sink = module()
    fit(made, 500)
    assert [length for _, length in sink.blocks] == [8, 8, 32, 128, 324]
    monkeypatch.setattr(training, "BLOCK_SECONDS", 1e-9)
    made, sink = module()
    fit(made, 20)
    assert [length for _, length in sink.blocks] == [8, 8, 1, 1, 1, 1]


def test_blocks_of_minibatches_are_bounded_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """However fast the steps, no block gathers more rows than the limit in bytes."""
    monkeypatch.setattr(batches, "GATHER_BYTES", 3 * 6 * (6 + 3) * 8)  # three batches of six rows
    made, sink = module(batch_size=6)
    fit(made, 100)
    assert max(length for start, length in sink.blocks[2:]) == 3


@pytest.mark.parametrize("batch_size", [20, 6])
def test_replayed_it_is_the_same_training(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full batch is read where it is, others are not: to the bit what steps that are called come to."""
    called, sink = module(batch_size=batch_size)
    fit(called, 60)

    def stand_in(tier: Any, *, device: Any, dtype: Any, in_place: bool) -> Any:
        return replay.ReplayedSteps(tier, torch.zeros(60, dtype=dtype), SameMemory(), in_place=in_place)

    monkeypatch.setattr(training, "steps_of", stand_in)
    replayed, same = module(batch_size=batch_size)
    fit(replayed, 60)
    assert same.losses == sink.losses
    assert (replayed.tier.params().w1 == called.tier.params().w1).all()


def test_a_loss_that_is_not_finite_names_its_step() -> None:
    """The losses before it are kept, the step is named, and nothing after it happens."""
    made, sink = module("tensors", lr=1.0)
    with pytest.raises(DivergedError) as raised:
        fit(made, 100)
    assert raised.value.step == len(sink.losses)
    assert np.isfinite(sink.losses).all()


def test_a_last_update_that_blows_up_is_seen() -> None:
    """One step has a finite loss; what it did to the parameters is looked at."""
    made, sink = module("tensors", lr=1e308)
    fit(made, 1)
    assert len(sink.losses) == 1
    with pytest.raises(DivergedError, match=r"parameter of w1 became .* at step 0"):
        made.check_params()


def test_a_tier_that_raises_is_named_with_its_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step within the block is said, and the cause is kept."""
    made, _ = module("tensors")
    calls = iter(range(100))
    update = made._tier_class.update

    def failing(self: Any) -> None:
        if next(calls) == 13:
            raise ValueError("no more")
        update(self)

    monkeypatch.setattr(made._tier_class, "update", failing)
    with pytest.raises(TierError, match="step 13 failed: ValueError: no more") as raised:
        fit(made, 100)
    assert isinstance(raised.value.__cause__, ValueError)


def test_a_wish_to_stop_is_looked_at_after_every_block() -> None:
    """The block in hand is finished and handed on; no other begins."""

    class Stop:
        def check(self) -> None:
            raise Interrupted(15)

    made, sink = module(stop=Stop())
    with pytest.raises(Interrupted):
        fit(made, 100)
    assert len(sink.losses) == training.FIRST_BLOCK


def test_validation_figures_are_what_scikit_learn_says() -> None:
    """The sum of squares, the coefficient of determination, the accuracy."""
    from sklearn.metrics import accuracy_score, r2_score

    rng = np.random.default_rng(0)
    y, y_pred = rng.standard_normal((2, 30, 4))
    figures = validation_metrics(y_pred, y, classification=False)
    assert figures["val_loss"] == pytest.approx(np.square(y_pred - y).sum())
    assert figures["val_r2"] == pytest.approx(r2_score(y, y_pred))
    labels = rng.integers(0, 4, 30)
    figures = validation_metrics(y_pred, np.eye(4)[labels], classification=True)
    assert figures["val_accuracy"] == accuracy_score(labels, y_pred.argmax(axis=1))


def test_a_target_that_does_not_vary_has_no_r2() -> None:
    """One validation row, or a constant target: the figure is left out instead of being NaN."""
    assert set(validation_metrics(np.ones((1, 2)), np.ones((1, 2)), classification=False)) == {"val_loss"}


# In a process of its own: what other tests once took would hide what this takes. `ru_maxrss` begins with what
# the parent had.
MEMORY = """
import json, layerlab

def peak():
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))

tiny = {"plugin": "fused", "n": 4, "d_in": 3, "d_out": 2, "hidden": 3, "export": False}
layerlab.run(**tiny, steps=2_000)
before = peak()
(run,) = layerlab.run(**tiny, steps=200_000).runs
print(json.dumps([run.status, before, peak()]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks at /proc")
def test_memory_does_not_grow_with_the_number_of_steps(folder: Path) -> None:
    """200,000 tracked steps need at most 30 MB more than 2,000."""
    result = run_python(MEMORY, cwd=folder)
    assert result.code == 0, result.stderr
    status, before, after = json.loads(result.stdout.splitlines()[-1])
    assert status == "FINISHED"
    assert 0 < before <= after <= before + 30
