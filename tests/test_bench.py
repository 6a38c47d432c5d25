"""The bench: what it measures, and whom it refuses. No test asserts how fast anything of ours is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

from helpers import KEEPS_BLOCKS
from layerlab.benchmarking import BenchReport, bench, picture, processes
from layerlab.benchmarking.audit import _astray, audit_way
from layerlab.benchmarking.coordinator import _metrics
from layerlab.benchmarking.machine import changed, settings
from layerlab.benchmarking.picture import draw
from layerlab.benchmarking.problem import TimedProblem, most_steps
from layerlab.benchmarking.processes import Refused, WorkerProcess
from layerlab.benchmarking.report import MODES, Config, PeerRow, Row, Timing
from layerlab.benchmarking.rounds import Asked, Rounds, _Taken
from layerlab.benchmarking.seeds import seed_of
from layerlab.benchmarking.sending import audit_record, sending_of
from layerlab.benchmarking.timed import TimedModule
from layerlab.benchmarking.turns import BareLoop, Turns
from layerlab.benchmarking.walk import InFull, InSpan, Place, Update, pre_activation
from layerlab.benchmarking.way import GROWTH, Fork
from layerlab.benchmarking.worker import Worker
from layerlab.console import Progress, bench_text
from layerlab.errors import Interrupted, JournalError, SpecError, TierError
from layerlab.journal import Unsent
from layerlab.reference import initial_params
from layerlab.report import Observer
from layerlab.rounding import Roundoff
from layerlab.startup import BLAS_TIMEOUT
from layerlab.tier import Recipe
from layerlab.tracking import record
from layerlab.tracking.record import Closing, Record
from layerlab.tracking.talk import SECONDS_BETWEEN_CALLS
from layerlab.training import TierModule

if TYPE_CHECKING:
    from helpers import Site

SMALL: dict[str, Any] = {"batch_size": [8], "d_in": [6], "hidden": [5], "d_out": [3]}
QUICK: dict[str, Any] = {"rounds": 2, "seconds": 0.01, "seed": 0}

CHEATS = """
import copy
import os
import sys
import time
import torch
from gallery import ByHand, Whole
from layerlab import Recipe
from layerlab.tiers.tensors import TensorsTier


class SkipsWhenTimed(Whole):
    '''Takes it for timing when nobody asks for its parameters for a while, and does nothing then.'''

    def __init__(self, params, **run):
        super().__init__(params, **run)
        self.unwatched, self.loss = 0, None

    def params(self):
        self.unwatched = 0
        return super().params()

    def step(self, x, y):
        self.unwatched += 1
        if self.unwatched < 10 or self.loss is None:
            self.loss = super().step(x, y)
        return self.loss


class ReplaysItsAnswer(Whole):
    '''Once the same memory came in a hundred times, the last gradient and loss will do.'''

    def __init__(self, params, **run):
        super().__init__(params, **run)
        self.seen, self.loss = {}, None

    def step(self, x, y):
        key = x.data_ptr(), y.data_ptr(), x.shape
        self.seen[key] = self.seen.get(key, 0) + 1
        if self.seen[key] < 100:
            self.loss = super().step(x, y)
        else:
            self.t.update()
        return self.loss


class Nothing(Whole):
    '''Never updates while it is timed; its optimizer has a name of its own.'''

    recipe = Recipe(optimizer="none", lr=1e-4)

    def step(self, x, y):
        return (self.t.forward(x) - y).square().sum()


class Deferred(Whole):
    '''Replays the losses of an earlier training; makes the steps when its parameters are asked for.'''

    kept = []

    def __init__(self, params, **run):
        super().__init__(params, **run)
        self.i, self.pending = 0, []

    def step(self, x, y):
        if x.shape[1] != 7:
            return super().step(x, y)
        self.i += 1
        if self.i <= len(self.kept):
            self.pending.append((x, y))
            return self.kept[self.i - 1]
        self.kept.append(super().step(x, y))
        return self.kept[-1]

    def params(self):
        for x, y in self.pending:
            super().step(x, y)
        self.pending = []
        return super().params()


class Converged(Whole):
    '''Does nothing once a step brings little, until it is looked at.'''

    losses, done = (1e30, 1e29), False

    def params(self):
        self.losses, self.done = (1e30, 1e29), False
        return super().params()

    def step(self, x, y):
        if not self.done:
            self.losses = (self.losses[1], float(super().step(x, y)))
            self.done = 0 < self.losses[0] - self.losses[1] < 0.02 * self.losses[0]
        return torch.tensor(self.losses[1], dtype=torch.float64)


class Sleeps(Whole):
    '''Right, and half a millisecond a step.'''

    def step(self, x, y):
        time.sleep(0.0005)
        return super().step(x, y)


class Strides(Whole):
    '''Makes three steps as one that is three times as long, and gives its loss three times.'''

    count, loss = 0, None

    def params(self):
        self.count = 0
        return super().params()

    def step(self, x, y):
        self.count += 1
        if self.count > 10:
            lr, self.t.lr = self.t.lr, 3 * self.t.lr
            if self.count % 3 == 0:
                self.loss = super().step(x, y)
            self.t.lr = lr
            return self.loss
        self.loss = super().step(x, y)
        return self.loss


class Guesses(Whole):
    '''Makes two steps as one that is twice as long, and guesses the loss between them.'''

    count, loss, fall = 0, None, 0.0

    def params(self):
        self.count = 0
        return super().params()

    def step(self, x, y):
        self.count += 1
        long = self.count > 10
        if long and self.count % 2:
            return self.loss - self.fall
        lr, self.t.lr = self.t.lr, (2 if long else 1) * self.t.lr
        before, self.loss = self.loss, float(super().step(x, y))
        self.t.lr = lr
        self.fall = (before - self.loss) / (2 if self.count > 12 else 1) if before else 0.0
        return self.loss


class Coarse(Whole):
    '''Multiplies numbers of 8 bits when nobody looks.'''

    count = 0

    def params(self):
        self.count = 0
        return super().params()

    def step(self, x, y):
        self.count += 1
        with torch.autocast("cpu", torch.bfloat16, enabled=self.count > 10):
            return super().step(x, y)


def made_in(name):
    '''Whether a function of that name is being called, however far up.'''
    frame = sys._getframe()
    while frame and frame.f_code.co_name != name:
        frame = frame.f_back
    return frame is not None


class Beside(Whole):
    '''Takes it easy where it is what a training is held against.'''

    def __init__(self, params, **run):
        super().__init__(params, **run)
        self.easy, self.loss = made_in("_training") and not made_in("fit"), None

    def step(self, x, y):
        if self.loss is None or not self.easy:
            self.loss = super().step(x, y)
        return self.loss


class Trained(Whole):
    '''Takes it easy where a Trainer trains it, and nowhere else.'''

    def __init__(self, params, **run):
        super().__init__(params, **run)
        self.easy, self.loss = made_in("fit"), None

    def step(self, x, y):
        if self.loss is None or not self.easy:
            self.loss = super().step(x, y)
        return self.loss


class Ahead(Whole):
    '''Makes the steps of a training in the turns of its loop beside, once that has its last rows.'''

    training = None

    def __init__(self, params, **run):
        super().__init__(params, **run)
        self.ready, self.batch, self.looks = [], None, 0
        self.beside = made_in("_training") and not made_in("fit")
        if made_in("fit"):
            Ahead.training = self

    def params(self):
        self.looks += 1
        if self.ready:  # as far as it was asked to go
            self.t, _ = self.ready[0]
            self.ready = []
        return super().params()

    def step(self, x, y):
        if self.ready:
            return self.ready.pop(0)[1]
        self.batch = x, y
        loss = float(super().step(x, y))
        other = self.training
        if self.beside and self.looks == 1 and other is not None:
            before = copy.deepcopy(other.t)
            other.ready.append((before, float(Whole.step(other, *other.batch))))
        return loss


class InParts(TensorsTier):
    '''Right in its parts; the step that is timed moves a thousandth too far.'''

    def step(self, x, y):
        loss = self.backward(x, self.forward(x), y)
        for g in self.gradients() if x.shape[1] == 7 else ():
            g *= 1.001
        self.update()
        return loss


class Threads(Whole):
    '''Takes more threads than the others.'''

    more = True

    def step(self, x, y):
        if self.more and x.shape[1] == 7:
            torch.set_num_threads(torch.get_num_threads() + 1)
            self.more = False
        return super().step(x, y)


class Forgetful(ByHand):
    '''Is fast for being wrong.'''

    def mask(self):
        return (self.h == self.h).to(self.h.dtype)


class Vanishes(ByHand):
    '''Takes its process with it, once it is timed.'''

    def update(self):
        super().update()
        if self.done > 80:
            os._exit(3)


class Bursts(Whole):
    '''Takes its process with it on rows of eleven columns: at once, and of twelve, after its warm-up.'''

    made = 0

    def __init__(self, params, **run):
        super().__init__(params, **run)
        columns = len(params.w1)
        Bursts.made += columns == 12
        if columns == 11 or Bursts.made > 1:
            open("ended", "a").close()
            os._exit(3)


class Relapses(Bursts):
    '''The same; and what comes after it is wrong.'''

    def step(self, x, y):
        return super().step(x, y) * (2 if os.path.exists("ended") else 1)
"""


@pytest.fixture
def cheats(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Installed tiers that should have no row, where worker processes find them too."""
    names = {"skips": "SkipsWhenTimed", "replays": "ReplaysItsAnswer", "in-parts": "InParts"}
    same = ("Nothing", "Deferred", "Converged", "Strides", "Threads", "Forgetful", "Vanishes", "Bursts")
    same += ("Guesses", "Coarse", "Relapses", "Beside", "Trained", "Ahead", "Sleeps")
    names |= {name.lower(): name for name in same} | {"honest": "Whole"}
    targets = {name: f"MODULE:{target}" for name, target in names.items()}
    site.add("cheats-dist", targets, CHEATS)
    site.allow("cheats-dist")
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{site.path}:{Path(__file__).parent}:{before}")
    return site


def test_tiers_side_by_side(folder: Path, client: Any) -> None:
    """Every mode has its rounds; figures follow from them; report, picture and metrics are in MLflow."""
    report = bench(["numpy", "optim"], **SMALL, **QUICK)
    assert isinstance(report, BenchReport)
    assert report.ok
    (config,) = report.configs
    assert (config.label, config.refused) == ("8x6x5x3", {})
    assert [row.tier for row in config.rows] == ["numpy", "optim"]
    for row in config.rows:
        assert list(row.timings) == ["bare", "lightning", "tracked"]
        assert list(row.beside) == ["lightning", "tracked"]
        for timing in (*row.timings.values(), *row.beside.values()):
            assert len(timing.rounds) == 2
            assert timing.low <= timing.median <= timing.high
            assert min(timing.rounds) > 0
        assert min(row.floor.rounds) > 0
        bare = row.timings["bare"].median
        assert row.gflops == pytest.approx(2 * 8 * (6 * 5 * 2 + 5 * 3 * 3) / bare / 1e9)
        assert row.floor_share > 0
        assert row.first_step > 0
        assert 0 <= row.peak_mb < 50  # of this problem, not of the process
        assert row.once < 2 * row.first_step
        assert "every round audited" in row.proof
        tax = Timing.of(np.divide(row.timings["tracked"].rounds, row.beside["tracked"].rounds).tolist())
        assert row.tax("tracked") == tax
        assert f"(x {tax.median:.2f} [{tax.low:.2f}, {tax.high:.2f}])" in bench_text(report)
    assert {"threads", "tf32", "clock", "torch", "processor", "cuda_allocator"} <= set(report.machine)
    # of the workers, whoever calls
    assert report.machine["cpu_allocator"] != "default" or not KEEPS_BLOCKS
    assert report.machine["openblas_thread_timeout"] == os.environ.get(BLAS_TIMEOUT, "20")
    assert report.machine["blas_threads"] == torch.get_num_threads()
    run = client.get_run(report.run_id)
    assert run.info.status == "FINISHED"
    metrics, row = run.data.metrics, config.rows[1]
    tracked, tax = row.timings["tracked"], row.tax("tracked")
    for end, of in (("", "median"), ("_low", "low"), ("_high", "high")):
        assert metrics[f"optim/tracked_us{end}"] == getattr(tracked, of) * 1e6
        assert metrics[f"optim/tracked_tax{end}"] == getattr(tax, of)
    assert metrics["optim/steps_per_second"] == 1 / row.timings["bare"].median
    assert (metrics["optim/gflops"], metrics["optim/once_s"]) == (row.gflops, row.once)
    assert (metrics["optim/floor_share"], metrics["optim/peak_mb"]) == (row.floor_share, row.peak_mb)
    assert metrics["optim/sending_us"] == pytest.approx(1e6 * (row.sending or 0))
    assert run.data.tags["machine.threads"] == str(report.machine["threads"])
    assert run.data.tags["version.torch"] == report.machine["torch"]
    assert "machine.torch" not in run.data.tags
    names = {item.path for item in client.list_artifacts(report.run_id)}
    assert names == {"bench.json", Path(report.picture).name}
    pixels = matplotlib.image.imread(report.picture)
    assert pixels.std() > 0.01


@pytest.mark.slow
def test_a_tier_against_another(folder: Path, client: Any, cheats: Site, layerlab_cli: Any) -> None:
    """Trainings take turns with its loop too; the ratios are in the table, in the JSON and in MLflow."""
    flags = [text for key, (size,) in SMALL.items() for text in (f"--{key.replace('_', '-')}", size)]
    flags += [text for key, value in QUICK.items() for text in (f"--{key}", value)]
    result = layerlab_cli("bench", "tensors", "numpy", "--against", "sleeps", "--mode", "lightning", *flags)
    assert (result.code, result.stderr) == (0, "8x6x5x3: 2 rounds\n")
    report = json.loads(next(folder.glob("mlruns/**/bench.json")).read_text())
    assert report["against"] == "sleeps"
    row, other = report["configs"][0]["rows"]
    assert list(row["against"]) == ["lightning"]
    assert other["against"] == {}
    steps, others = (timings["lightning"]["rounds"] for timings in (row["timings"], row["against"]))
    assert len(others) == QUICK["rounds"]
    assert min(others) >= 0.0005  # so long it sleeps
    ratio = Timing.of(np.divide(steps, others).tolist())
    run = client.get_run(report["run_id"])
    ends = [run.data.metrics[f"tensors/lightning_against{end}"] for end in ("", "_low", "_high")]
    assert ends == [ratio.median, ratio.low, ratio.high]
    assert run.data.params["against"] == "sleeps"
    assert "lightning / sleeps" in result.stdout
    (line,) = [line for line in result.stdout.splitlines() if line.startswith("numpy")]
    assert " - " in line  # its threads and those of torch take no turns
    assert "/ sleeps: of its bare loop, which took turns too (NumPy's threads" in result.stdout


def test_a_tier_against_one_that_cheats(folder: Path, cheats: Site) -> None:
    """What is compared with something that fails its audit has no row."""
    report = bench(["tensors"], against="strides", modes=["lightning"], **{**SMALL, "d_in": [7]}, **QUICK)
    (config,) = report.configs
    assert not config.rows
    assert "fails its audit (lightning): strides beside it: " in config.refused["tensors"]


def test_a_tier_against_one_that_is_not_proven(cheat: Cheat) -> None:
    """Wrong, of an optimizer that nobody knows, or one that changes what the process is set to."""
    said = cheat("tensors", against="forgetful").prove()["said"]
    assert said.startswith("forgetful beside it: full-batch: ")
    with pytest.raises(TierError, match="nothing beside it: its optimizer is 'none'"):
        cheat("tensors", against="nothing").prove()
    worker = cheat("tensors", against="threads")
    assert worker.prove()["ok"]
    fault = str(faults(worker, "lightning")[0])
    assert fault.startswith("changes the settings of its process: threads from")
    assert fault.endswith("; or threads beside it does")


@pytest.mark.parametrize(
    ("beside", "against", "said"),
    [
        ([1.0] * 6, True, "took 0.50 of what the same step took in the bare loop alone"),
        ([1.0] * 5, True, None),
        ([1.0] * 6, False, None),
        ([2.0], False, "took 0.50 of what the same step took in its loop beside"),
        ([1.4] * 6, False, None),
        # in some rounds it leaves it, to be told from nobody
        ([2.0] * 8 + [1.0], False, "; the 95 % interval ends at 0.50"),
        ([2.0] * 18 + [1.0] * 3, False, "; the 95 % interval ends at 0.50"),
        ([2.0] * 5 + [1.0] * 4, False, None),
    ],
)
def test_work_in_the_turns_of_another(*, beside: list[float], against: bool, said: str | None) -> None:
    """Of its loop beside, however few the rounds; for both alike in a third one's, which bare rounds tell."""

    def timing(took: float) -> Timing:
        return Timing.of([took] * len(beside))

    row = Row(
        tier="mine",
        distribution="mine 1",
        timings={"bare": timing(2.0), "tracked": timing(1.0)},
        beside={"tracked": Timing.of(beside)},
        first_step=1.0,
        once=0.0,
        gflops=1.0,
        floor=timing(1.0),
        floor_share=0.5,
        peak_mb=1.0,
        proof="",
        against={"tracked": timing(1.0)} if against else {},
    )
    measured = Rounds.__new__(Rounds)
    measured._asked = Asked([], MODES, len(beside), 0.1, "32-true", "cpu", 0)
    fault = measured._too_fast(row)
    assert (fault is None) == (said is None)
    assert said is None or said in str(fault)


def test_metrics_of_a_sweep_say_of_which_problem() -> None:
    """Also those of peers."""
    peer = PeerRow("keras", "keras 3", "bare", Timing.of([2e-6]), 2.0, (1.5, 2.5), "")
    metrics = _metrics(Config(8, 6, 5, 3, peers=[peer]), single=False)
    prefix = "8x6x5x3/peers/keras/"
    expected = {"bare_us": 2.0, "bare_us_low": 2.0, "bare_us_high": 2.0}
    expected |= {"ratio": 2.0, "ratio_low": 1.5, "ratio_high": 2.5}
    assert metrics == {f"{prefix}{key}": pytest.approx(value) for key, value in expected.items()}


def test_a_sweep_over_sizes_from_the_command_line(folder: Path, layerlab_cli: Any) -> None:
    """Every combination is a problem of its own; the picture has one line a tier."""
    flags = ["--hidden", "2,4", "--batch-size", "3,9", "--d-in", "5", "--d-out", "2"]
    quick = ["--rounds", 1, "--seconds", 0.01, "--mode", "bare", "--seed", 5]
    result = layerlab_cli("bench", "tensors", *flags, *quick, "--json")
    assert (result.code, result.stderr) == (0, "4 problems: 1 rounds\n")
    report = json.loads(result.stdout)
    assert report["seed"] == 5
    sizes = [(config["batch_size"], config["hidden"]) for config in report["configs"]]
    assert sizes == [(3, 2), (3, 4), (9, 2), (9, 4)]
    assert [list(config["rows"][0]["timings"]) for config in report["configs"]] == [["bare"]] * 4
    assert Path(report["picture"]).is_file()


def test_no_speed_without_proof(cheats: Site, folder: Path, layerlab_cli: Any) -> None:
    """One skips work when timed, one replays an answer, one is wrong, the process of one dies."""
    names = ["skips", "replays", "forgetful", "nothing", "vanishes", "honest"]
    sizes = ["--batch-size", 8, "--d-in", 7, "--hidden", 5, "--d-out", 3]
    quick = ["--rounds", 2, "--seconds", 0.05, "--mode", "bare"]
    result = layerlab_cli("bench", *names, *sizes, *quick)
    assert result.code == 1
    assert "refused: skips: fails its audit" in result.stdout
    assert "the same rows and first weights again: --seed " in result.stdout
    (config,) = json.loads(next(folder.glob("mlruns/**/bench.json")).read_text())["configs"]
    assert [row["tier"] for row in config["rows"]] == ["honest"]
    refused = config["refused"]
    assert set(refused) == set(names[:-1])
    for name in ("skips", "replays"):
        assert "fails its audit (bare)" in refused[name], name
    assert "its optimizer is 'none'" in refused["nothing"]
    assert "fails its proof: full-batch: 8x6x5x3, bias, 32-true: step 0, grad_w1" in refused["forgetful"]
    assert "its process ended" in refused["vanishes"]


Cheat = Callable[..., Worker]


@pytest.fixture
def cheat(cheats: Site, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cheat]:
    """Makes workers in this process, and leaves it as it was."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder / "inductor"))
    threads = torch.get_num_threads()

    def made(name: str, against: str | None = None) -> Worker:
        torch.set_num_threads(threads)
        worker = Worker(name, "32-true", "cpu", f"sqlite:///{folder / 'mlflow.db'}", against)
        worker._kept = True  # nothing of this process is to be frozen
        return worker

    yield made
    torch.set_num_threads(threads)


@contextmanager
def ended(worker: Worker) -> Iterator[Worker]:
    """Its recording process ends with this context; a worker's own is killed with it."""
    try:
        yield worker
    finally:
        if worker._recorder is not None:
            worker._recorder.__exit__()


def faults(worker: Worker, mode: str) -> list[str | None]:
    """What is wrong with two rounds, as the coordinator asks for them."""
    sizes = [8, 7, 5, 3]
    pace = worker.prepare(sizes, seed_of(0))
    coordinator = Rounds.__new__(Rounds)
    coordinator._asked = Asked([], MODES, 2, 0.05, "32-true", "cpu", 0)
    steps = coordinator._steps(mode, pace)
    rounds = [worker.round(sizes, [(mode, steps, seed_of(0, n, mode))], pace["step"]) for n in range(2)]
    return [answer["modes"][mode]["fault"] for answer in rounds]


@pytest.mark.parametrize(
    "name", ["deferred", "converged", "strides", "guesses", "coarse", "in-parts", "threads"]
)
def test_work_that_was_not_done_is_seen(cheat: Cheat, name: str) -> None:
    """Put off, left out where it brings little, in longer strides, coarse, or with what others have not."""
    worker = cheat(name)
    assert worker.prove()["ok"]
    seen = [fault for fault in faults(worker, "bare") if fault is not None]
    assert seen
    assert (name == "threads") == ("changes the settings of its process: threads" in seen[0])


def test_threads_of_numpys_are_watched_too() -> None:
    """They are not torch's, and nobody's to change."""
    before = settings()
    with threadpool_limits(before["blas_threads"] + 1, user_api="blas"):
        assert changed(before) == (
            "changes the settings of its process: blas_threads from "
            f"{before['blas_threads']} to {before['blas_threads'] + 1}"
        )
    assert changed(before) is None


@pytest.mark.gpu
def test_on_cuda_replayed_steps_are_proven(folder: Path) -> None:
    """They are what is timed in a training; `optim` has none."""
    report = bench(["tensors", "optim"], **SMALL, **QUICK, accelerator="gpu")
    (config,) = report.configs
    assert [("replays-agree" in row.proof) for row in config.rows] == [True, False]


@pytest.mark.parametrize("mode", MODES)
def test_work_that_was_done_passes(cheat: Cheat, mode: str) -> None:
    """The same, of a tier that does what it says; its training takes turns with another's loop too."""
    with ended(cheat("honest", against="tensors")) as worker:
        assert faults(worker, mode) == [None, None]


@pytest.mark.parametrize("mode", ["lightning", "tracked"])
def test_both_sides_of_a_training_are_audited(cheat: Cheat, mode: str) -> None:
    """Itself, and its loop beside: whatever that takes, a training looks dear or cheap by it."""
    for name, said in (("beside", "its loop beside: "), ("trained", "timed step ")):
        with ended(cheat(name)) as worker:
            for fault in faults(worker, mode):
                assert str(fault).startswith(said)


def test_losses_are_read_back_from_the_store(folder: Path, client: Any) -> None:
    """One that is missing, or another than was computed, is no whole record."""
    run = client.create_run(client.create_experiment("read-back")).info
    losses = [3.0, 2.5, 2.25]
    for step, loss in enumerate(losses):
        client.log_metric(run.run_id, "loss", loss, step=step)
    store = f"sqlite:///{folder / 'mlflow.db'}"
    assert audit_record(store, run.run_id, losses) is None
    for other in ([3.0, 2.5, 2.0], losses[:2], [*losses, 2.0], [2.5, 3.0, 2.25]):
        assert audit_record(store, run.run_id, other) is not None


def test_a_training_whose_record_is_lost_has_no_row(cheat: Cheat, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the recording process says at the end of a run counts, whatever is in the store."""
    monkeypatch.setattr(Closing, "unsent", lambda _: Unsent(1, "", "no space left"))
    with ended(cheat("tensors")) as worker:
        assert set(faults(worker, "tracked")) == {"the record is not whole: no space left"}


@pytest.mark.slow
def test_work_in_the_turns_of_another_is_refused(cheats: Site, folder: Path) -> None:
    """Every loss is right, and so is the end; what is wrong is whose time it was."""
    sizes = {"batch_size": [64], "d_in": [100], "hidden": [50], "d_out": [3]}
    report = bench(["ahead", "honest"], modes=["lightning"], rounds=2, seconds=0.1, **sizes)
    (config,) = report.configs
    assert [row.tier for row in config.rows] == ["honest"]
    assert "of what the same step took in its loop beside" in config.refused["ahead"]


def test_the_cost_of_a_record_is_in_a_step() -> None:
    """A call each second, and its share of what all losses take; a call that is slow takes nothing off."""
    share = sending_of(0.01, call=0.005, sending=0.025, losses=100)
    assert share == pytest.approx(0.01 * 0.005 / SECONDS_BETWEEN_CALLS + (0.025 - 0.005) / 100)
    assert sending_of(0.01, call=0.005, sending=0.001, losses=100) == pytest.approx(0.01 * 0.005)


@pytest.mark.slow
def test_who_ends_at_one_size_goes_on_at_the_others(cheats: Site, folder: Path, client: Any) -> None:
    """Another process proves the tier anew; whatever was measured before stays."""
    sizes = {**SMALL, "d_in": [6, 11, 12, 7]}
    report = bench(["bursts"], modes=["bare"], **sizes, **QUICK)
    first, at_once, later, last = report.configs
    for config in (first, last):
        assert config.refused == {}
        assert [len(row.timings["bare"].rounds) for row in config.rows] == [2]
    assert at_once.refused == {"bursts": "its process ended in 'prepare' with code 3"}
    assert later.refused == {"bursts": "its process ended in 'round' with code 3"}
    assert not report.ok
    assert f"{last.label}/bursts/bare_us" in client.get_run(report.run_id).data.metrics


@pytest.mark.slow
def test_who_fails_when_proven_anew_has_no_row(cheats: Site, folder: Path) -> None:
    """Nor where its rounds were over by then: all of them rest on the proof."""
    sizes = {**SMALL, "d_in": [6, 12, 7]}
    report = bench(["relapses"], modes=["bare"], **sizes, rounds=1, seconds=0.01)
    assert [config.rows for config in report.configs] == [[], [], []]
    first, ended, last = (config.refused["relapses"] for config in report.configs)
    assert "its process ended in 'round'" in ended
    assert first == last
    assert "fails its proof" in first


@pytest.mark.parametrize(
    ("rounds", "ends"), [(1, (0, 0)), (5, (0, 4)), (6, (0, 5)), (9, (1, 7)), (12, (2, 9)), (20, (5, 14))]
)
def test_the_interval_is_between_order_statistics(rounds: int, ends: tuple[int, int]) -> None:
    """As tables of the sign test have it: 9 rounds, the second and the eighth."""
    values = np.random.default_rng(0).permutation(rounds).astype(float)
    timing = Timing.of(values.tolist())
    assert (timing.low, timing.high) == ends
    assert timing.median == np.median(values)


def test_the_interval_covers_the_median() -> None:
    """Of 2000 samples of 9 skewed values, at least 95 % of the intervals hold the true median."""
    rng = np.random.default_rng(0)
    timings = [Timing.of(rng.exponential(size=9).tolist()) for _ in range(2000)]
    covered = sum(timing.low <= np.log(2) <= timing.high for timing in timings)
    assert covered / 2000 >= 0.95


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_way_is_audited_step_by_step(optimizer: str) -> None:
    """What is the oracle's passes; a loss, a step or a parameter that is not is named."""
    recipe = Recipe(optimizer=optimizer)
    about: Any = {"seed": 0, "precision": "32-true", "recipe": recipe, "bias": False}
    problem = TimedProblem.draw((8, 6, 5, 3), steps=5000, **about)
    way = problem.way((500, 4500))
    losses, end = way.losses.tolist(), way.end
    assert audit_way(way, losses, end, "32-true") is None
    odd = [*losses[:7], losses[6] * 1.01, *losses[8:]]
    assert "timed step 7 gave the loss" in str(audit_way(way, odd, end, "32-true"))
    # of thousands of steps one loss that is given twice shows, wherever it is
    for step in (1, 499, 501, 4999):
        stale = [*losses[:step], losses[step - 1], *losses[step + 1 :]]
        assert "timed step" in str(audit_way(way, stale, end, "32-true")), step
    assert "w2 is off" in str(audit_way(way, losses, end._replace(w2=problem.start.w2), "32-true"))
    assert "w1 is off" in str(audit_way(way, losses, problem.way((500, 4000)).end, "32-true"))
    single = np.float32(losses).astype(float).tolist()
    assert audit_way(way, single, end, "64-true", losses_in="32-true") is None
    assert "gave the loss" in str(audit_way(way, single, end, "64-true"))
    rough = end.map(lambda p: p.astype("f4").astype(float))  # of who computed in single precision
    assert audit_way(way, single, rough, "32-true") is None
    if optimizer == "sgd":  # what Adam divides by is within its error in places, and the bound allows for it
        assert " is off by " in str(audit_way(way, single, rough, "64-true", losses_in="32-true"))
    assert "4999 losses were given" in str(audit_way(way, losses[:-1], end, "32-true"))
    assert audit_way(way, [float("nan")] * 5000, end, "32-true") is not None


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("place", [None, Place(5, 3)])
def test_steps_in_the_span_of_the_rows_are_those_in_full(bias: bool, place: Place | None) -> None:
    """Losses, slopes and parameters are the same, also where ReLU is taken to be on the other side of 0.

    Sums of a hundred terms at most leave float64 14 digits; what one entry of a gradient changes is in the
    sixth, or before it.
    """
    about: Any = {"precision": "64-true", "recipe": Recipe(), "bias": bias}
    problem = TimedProblem.draw((16, 60, 30, 4), steps=40, seed=1, **about)
    x, y = problem.rows[0]
    walk = Update("sgd", problem.lr).walk(problem.start, x, y, 40)
    assert isinstance(walk, InSpan)
    full = InFull(problem.start, x, y, Update("sgd", problem.lr))
    plain = InFull(problem.start, x, y, Update("sgd", problem.lr))
    for step in range(40):
        there = [place] if place is not None and step == 3 else []
        one, other, without = walk.step(there), full.step(there), plain.step()
        np.testing.assert_allclose(one, other, rtol=1e-12)
        np.testing.assert_allclose(walk.h, full.h, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(walk.back(), full.back(), rtol=1e-9, atol=1e-12)
    assert (abs(other[0] / without[0] - 1) > 1e-6) == (place is not None)
    for mine, expected in zip(walk.params(), full.params(), strict=True):
        assert (mine is None) == (expected is None)
        if mine is not None and expected is not None:
            np.testing.assert_allclose(mine, expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("bias", [True, False])
def test_thousands_of_steps_in_the_span_are_those_in_full(
    bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On both sets of rows, in float64: an audit allows for twenty times the difference, and more."""
    about: Any = {"precision": "64-true", "recipe": Recipe(), "bias": bias}
    counts = (1000, 4000)
    problem = TimedProblem.draw((16, 60, 30, 4), steps=5000, seed=1, **about)
    way = problem.way(counts)
    monkeypatch.setattr(Update, "walk", lambda self, params, x, y, count: InFull(params, x, y, self))
    full = problem.way(counts)
    u = Roundoff.of("64-true").store
    allowed = u * full.rounding + GROWTH * u * _astray(full, 1) * full.slopes
    assert (np.abs(way.losses - full.losses) <= allowed / 20).all()
    np.testing.assert_allclose(way.slopes, full.slopes, rtol=1e-9)
    assert audit_way(full, way.losses.tolist(), way.end, "64-true") is None


def test_the_shorter_way_is_taken() -> None:
    """Many rows span no less than the inputs, few steps are not worth the products; Adam leaves any span."""
    params = initial_params(4, 3, 2, init="linear", bias=True, seed=0)
    x, y = np.ones((8, 4)), np.ones((8, 2))

    def taken(optimizer: str, rows: int, count: int) -> type:
        return type(Update(optimizer, 0.1).walk(params, x[:rows], y[:rows], count))

    assert taken("sgd", 8, 10_000) is InFull
    assert taken("sgd", 6, 10_000) is InSpan
    assert taken("sgd", 6, 8) is InFull  # 6 * 3 * 8 + 4 * (6 + 6) are as many as 2 * 4 * 3 * 8
    assert taken("sgd", 6, 9) is InSpan
    assert taken("adam", 6, 10_000) is InFull


def test_of_two_right_ways_either_may_be_taken() -> None:
    """Where rounding decides whether ReLU switches a unit off, either way is right, and nothing between."""
    about: Any = {"precision": "32-true", "recipe": Recipe(), "bias": True}
    problem = TimedProblem.draw((64, 1000, 100, 10), steps=307, seed=seed_of(0, 6, "bare"), **about)
    counts = (308,)
    found = problem.forks(counts, "32-true", range(100))
    assert found[0] == Fork(45, Place(9, 60))
    one, other = problem.way(counts), problem.way(counts, found[:1])
    for way in (one, other):
        assert problem.fault(counts, way.losses.tolist(), way.end, "32-true") is None
    assert "w1 is off" in str(audit_way(one, other.losses.tolist(), other.end, "32-true"))
    late = problem.way((307,), found[:1]).end
    assert "w1 is off" in str(problem.fault(counts, other.losses.tolist(), late, "32-true"))


def test_some_units_may_go_the_other_way_in_one_round() -> None:
    """Each is found by how far it ended from where it should; what is wrong with another is still seen."""
    about: Any = {"precision": "32-true", "recipe": Recipe(), "bias": True}
    counts = (154, 308)
    problem = TimedProblem.draw((64, 1000, 100, 10), steps=461, seed=seed_of(0, 5, "bare"), **about)
    taken = [Fork(0, Place(50, 75)), Fork(154, Place(7, 63)), Fork(154, Place(31, 56))]
    assert set(taken) <= set(problem.forks(counts, "32-true", [56, 63, 75]))
    way, others = problem.way(counts), problem.way(counts, taken)
    losses, end = others.losses.tolist(), others.end
    assert "timed step 12 gave the loss" in str(audit_way(way, losses, end, "32-true"))
    assert "w1 is off" in str(audit_way(way, way.losses.tolist(), end, "32-true"))
    assert problem.fault(counts, losses, end, "32-true") is None
    for unit in (75, 2):
        wrong = end.w1.copy()
        wrong[:, unit] += 0.5 * (problem.start.w1[:, unit] - wrong[:, unit])
        assert problem.fault(counts, losses, end._replace(w1=wrong), "32-true") is not None


@pytest.mark.parametrize(("seed", "step", "place"), [(200, 16, Place(2, 0)), (625, 53, Place(3, 3))])
def test_a_switch_may_be_a_step_earlier_or_later(seed: int, step: int, place: Place) -> None:
    """Where a pre-activation is as good as 0: a bound that knew nothing of it would refuse a right one."""
    about: Any = {"precision": "32-true", "recipe": Recipe(), "bias": True}
    problem, counts = TimedProblem.draw((8, 6, 5, 3), steps=60, seed=seed, **about), (10, 50)
    way, other = problem.way(counts), problem.way(counts, [Fork(step, place)])
    assert step in way.near[:, 0]
    losses = other.losses.tolist()
    assert audit_way(way, losses, other.end, "32-true") is None
    blind = replace(way, near=way.near[:0])
    assert "gave the loss" in str(audit_way(blind, losses, other.end, "32-true"))
    assert "w1 is off" in str(audit_way(blind, way.losses.tolist(), other.end, "32-true"))


def test_to_get_to_the_other_side_may_take_some_steps() -> None:
    """On new rows a unit may be in doubt by more than a step moves it."""
    about: Any = {"precision": "32-true", "recipe": Recipe(), "bias": True}
    problem = TimedProblem.draw((64, 1000, 100, 10), steps=5920, seed=seed_of(0, 10, "tracked"), **about)
    x = problem.rows[1][0][44].astype(np.float64)

    def came(steps: int, taken: list[Fork]) -> float:
        return pre_activation(problem.way((1184, steps), taken).end, x, 2)

    fork = [Fork(1184, Place(44, 2))]
    assert came(0, []) > came(1, fork) > 0 > came(3, fork) > came(20, fork)
    assert came(20, []) > came(1, []) > came(0, [])


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_fork_leads_to_either_side(optimizer: str, bias: bool) -> None:
    """From where a way forks, one of the two stays on its side, and the other leads away from it."""
    about: Any = {"precision": "32-true", "recipe": Recipe(optimizer=optimizer), "bias": bias}
    seen = 0
    for seed in range(12):
        problem = TimedProblem.draw((64, 500, 100, 10), steps=60, seed=seed, **about)
        for fork in problem.forks((60,), "32-true", range(100)):
            x = problem.rows[0][0][fork.place.row].astype(np.float64)
            ways = ((fork.step, ()), (fork.step + 1, ()), (fork.step + 1, [fork]))
            ends = [problem.way((steps,), taken).end for steps, taken in ways]
            before, own, other = (pre_activation(end, x, fork.place.unit) for end in ends)
            assert (own > 0) == (before > 0), fork
            assert (other - before > 0) != (before > 0), fork
            seen += 1
    assert seen > 0


def test_nothing_converges_in_a_round() -> None:
    """The last step still brings something, for whatever sizes and however many steps."""
    for sizes in ((64, 20, 10, 4), (3, 5, 2, 2), (1, 4, 7, 2), (200, 3, 4, 1)):
        for steps in (25, most_steps(sizes, "32-true")):
            about: Any = {"seed": 1, "precision": "32-true", "recipe": Recipe(), "bias": True}
            losses = TimedProblem.draw(sizes, steps=steps, **about).way((steps,)).losses
            brings = -np.diff(losses)
            assert 0.02 * brings[0] < brings[-1] < brings[0]


def test_no_two_rounds_have_the_same_problem() -> None:
    """Nor the warm-up and a round, nor two modes."""
    seeds = [seed_of(3)] + [seed_of(3, n, mode) for n in range(4) for mode in MODES]
    assert len(set(seeds)) == len(seeds)
    assert seeds[0] != seed_of(4)
    assert seed_of(3, 2, "bare") == seed_of(3, 2, "bare")


HANGS = """
import os, sys, time
from layerlab.benchmarking.processes import serve


class W:
    def begun(self):
        return {}

    def wait(self, seconds=60):
        time.sleep(seconds)
        return {}

    def end(self):
        raise SystemExit("over")

    def environment(self, name):
        return {"value": os.environ.get(name)}

    def close(self):
        os.closerange(0, 100)
        time.sleep(60)

    def fork(self):
        pid = os.fork()
        if pid:
            return {"pid": pid}
        time.sleep(60)
        open("hangs.over", "w").close()
        os._exit(0)

    def crash(self):
        if os.fork():
            os._exit(7)
        time.sleep(60)


serve(W)
"""


@pytest.fixture
def hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A worker that takes a minute for an answer."""
    (tmp_path / "hangs.py").write_text(HANGS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    return "hangs"


def test_one_that_closed_its_pipe_and_stays_is_ended(hangs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing comes from it any more, and nobody waits for its end."""
    monkeypatch.setattr(processes, "_LEAVING", 0.2)
    with WorkerProcess(hangs) as worker:
        worker.ask("begin")
        with pytest.raises(Refused, match="closed its pipe in 'close' and stayed"):
            worker.ask("close")
        assert worker.ended


def test_a_worker_keeps_mlflows_telemetry_off(hangs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also that of a peer, which imports MLflow itself, whoever starts the bench."""
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY")
    with WorkerProcess(hangs) as worker:
        worker.ask("begin")
        assert worker.ask("environment", name="MLFLOW_DISABLE_TELEMETRY") == {"value": "true"}


def test_an_answer_is_waited_for_with_a_limit(hangs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is late is ended, and a refusal; a stop does not wait for it."""
    with WorkerProcess(hangs) as worker:
        worker.ask("begin")
        with pytest.raises(Refused, match="end: SystemExit: over"):
            worker.ask("end")
        with monkeypatch.context() as patch:
            patch.setattr(processes, "LONGEST_SECONDS", 0.3)
            with pytest.raises(Refused, match="did not answer 'wait'"):
                worker.ask("wait")
        with pytest.raises(Refused, match="its process ended"):
            worker.ask("end")
        assert worker.ended
        worker.restart()
        assert not worker.ended
        assert worker.ask("begin") == {}
        os.kill(worker._process.pid, signal.SIGKILL)  # while nobody asks it
        with pytest.raises(Refused, match="its process ended in 'wait' with code -9"):
            worker.ask("wait")
        assert worker.ended
    stops: list[int] = []

    def stop() -> None:
        stops.append(1)
        if len(stops) > 2:
            raise Interrupted(signal.SIGINT)

    with WorkerProcess(hangs, check=stop) as worker, pytest.raises(Interrupted):
        worker.ask("wait")


def _is_gone(pid: int) -> bool:
    """It may be there, dead, until somebody takes note."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state in ("X", "Z")


def test_one_that_is_gone_is_not_waited_for(hangs: str) -> None:
    """What it forked has its pipe too, and would keep it open for a minute."""
    with WorkerProcess(hangs) as worker:
        worker.ask("begin")
        began = time.monotonic()
        with pytest.raises(Refused, match="its process ended in 'crash' with code 7"):
            worker.ask("crash")
        assert time.monotonic() - began < 30
        assert worker.ended


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_what_a_worker_started_ends_with_it(hangs: str, folder: Path) -> None:
    """A process that it forked holds the pipe open, and would go on."""
    with WorkerProcess(hangs) as worker:
        worker.ask("begin")
        child = worker.ask("fork")["pid"]
        assert not _is_gone(child)
    late = time.monotonic() + 30
    while not _is_gone(child):
        assert time.monotonic() < late
        time.sleep(0.01)
    assert not Path(f"{hangs}.over").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends when it has answered")
def test_workers_end_with_a_coordinator_that_is_killed(hangs: str) -> None:
    """In the midst of an answer."""
    code = (
        "from layerlab.benchmarking.processes import WorkerProcess\n"
        f"worker = WorkerProcess({hangs!r}).__enter__()\n"
        "worker.ask('begin')\n"
        "print(worker._process.pid, flush=True)\n"
        "worker.ask('wait')\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as coordinator:
        assert coordinator.stdout is not None
        pid = int(coordinator.stdout.readline())
        coordinator.kill()
    late = time.monotonic() + 30
    while not _is_gone(pid):
        assert time.monotonic() < late
        time.sleep(0.01)


def test_what_happens_once_is_in_the_first_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is captured is captured in the second step."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # put back afterwards
    worker = Worker("numpy", "32-true", "cpu", f"sqlite:///{tmp_path}/bench.db")
    seconds = iter([5.0, 3.0, 0.01, 1.0])

    def clock(work: Any) -> float:
        work()
        return next(seconds)

    monkeypatch.setattr(worker, "_clock", clock)
    answer = worker.prepare([8, 6, 5, 3], seed=0)
    assert (answer["first_step"], answer["once"], answer["step"]) == (5.0, 7.5, 0.25)


class Clock:
    """Says what time it is, and what happened until then."""

    def __init__(self) -> None:
        self.now, self.did = 0.0, list[str]()

    def takes(self, seconds: float, what: str) -> None:
        self.now += seconds
        self.did.append(what)


class Ticking:
    """A tier whose steps take so long, by such a clock."""

    def __init__(self, clock: Clock, name: str, seconds: float) -> None:
        self.clock, self.name, self.seconds = clock, name, seconds

    def step(self, x: Any, y: Any) -> float:
        self.clock.takes(self.seconds, self.name)
        return 1.0

    def params(self) -> Any:
        self.clock.takes(self.seconds, f"{self.name}'s parameters")
        return self.name


@pytest.mark.parametrize("most", [2, 14])
def test_a_training_takes_turns_with_loops_beside(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its own clock, as many steps, and its parameters; by blocks where nothing may wait in one."""
    clock = Clock()
    monkeypatch.setattr("layerlab.benchmarking.turns.time.perf_counter", lambda: clock.now)
    draw_of = {"precision": "32-true", "recipe": Recipe(), "bias": True}
    problem = TimedProblem.draw((3, 2, 2, 1), steps=20, seed=0, **draw_of)
    mine = Ticking(clock, "training", 2.0)
    loops = [
        BareLoop(Ticking(clock, name, seconds), problem, torch.device("cpu"))  # type: ignore[arg-type]  # all that it needs of a tier
        for name, seconds in (("loop", 3.0), ("another", 7.0))
    ]
    turns = Turns(None, few=4, steps=14, most=most, beside=loops, synchronise=lambda: None)
    turns.begin, turns.finish = lambda: None, mine.params
    for block in (4, 7, 3):
        losses = [mine.step(x, y) for x, y in turns.batches([loops[0].batch] * block, block)]
        clock.takes(0.5, "framework")
        turns.log_losses(0, np.array(losses), 0.0, 0.0)
    first = ["training"] * 4 + ["framework"]
    first += ["loop"] * 4 + ["another"] * 4 + ["loop's parameters", "another's parameters"]

    def turns_of(swap: int, steps: int, *between: str, last: bool = False) -> list[str]:
        order = ["loop", "another"] if swap % 2 == 0 else ["another", "loop"]
        ends = [[name] * steps + ([f"{name}'s parameters"] if last else []) for name in order]
        return ["training"] * steps + list(between) + ends[0] + ends[1]

    if most == 14:
        second = turns_of(0, 7, "framework")
        third = turns_of(1, 3, "framework", "training's parameters", last=True)
        assert clock.did == first + second + third
    else:
        second = [*turns_of(0, 2), *turns_of(1, 2), *turns_of(2, 2), *turns_of(3, 1, "framework")]
        third = turns_of(4, 2) + turns_of(5, 1, "framework", "training's parameters", last=True)
        assert clock.did == first + second + third
    assert [len(losses) for losses in (turns.losses, *(loop.losses for loop in loops))] == [14] * 3
    assert turns.seconds == 10 * 2.0 + 2 * 0.5 + 2.0
    assert turns.beside_seconds == [10 * 3.0 + 3.0, 10 * 7.0 + 7.0]
    assert turns.within == (0 if most == 14 else 2 * (3.0 + 7.0))
    assert (turns.end, *(loop.end for loop in loops)) == ("training", "loop", "another")


def test_the_bare_loop_is_between_two_halves_of_its_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads are waited for before each, and never between the new rows and the end of the clock."""
    clock = Clock()
    monkeypatch.setattr("layerlab.benchmarking.worker.time.perf_counter", lambda: clock.now)
    monkeypatch.setattr("layerlab.benchmarking.worker.settle", lambda: clock.takes(5.0, "wait"))
    about: Any = {"precision": "32-true", "recipe": Recipe(), "bias": True}
    problem = TimedProblem.draw((3, 2, 2, 1), steps=20, seed=0, **about)
    worker = Worker.__new__(Worker)
    worker.device, worker._settings = torch.device("cpu"), settings()
    tier = Ticking(clock, "step", 2.0)
    floor_loop = BareLoop(Ticking(clock, "product", 3.0), problem, worker.device)  # type: ignore[arg-type]
    monkeypatch.setattr(worker, "_draw", lambda steps, seed: problem)
    monkeypatch.setattr(worker, "_loop", lambda problem: BareLoop(tier, problem, worker.device))  # type: ignore[arg-type]
    monkeypatch.setattr(worker, "_products", lambda problem, few: floor_loop.run)
    measured = worker._bare(9, 0)
    first, last = (["wait", *["product"] * (2 + steps)] for steps in (4, 5))
    loop = ["wait", "step", "step", "step's parameters", *["step"] * 9, "step's parameters"]
    assert clock.did == [*first, *loop, *last]
    assert measured.step == (9 * 2.0 + 2.0) / 9
    assert measured.beside == 3.0


def test_blocks_are_as_long_as_without_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the loop beside takes within a block is not taken for the pace of the training."""

    def step(self: TierModule, batch: slice, batch_idx: int) -> None:
        self.seconds_per_step = 0.5
        self._sink.within = 40.0  # type: ignore[attr-defined]

    monkeypatch.setattr(TierModule, "training_step", step)
    module = TimedModule.__new__(TimedModule)
    torch.nn.Module.__init__(module)
    module._sink = Turns.__new__(Turns)
    module.training_step(slice(100, 200), 0)
    assert module.seconds_per_step == pytest.approx(0.1)


def test_the_first_part_is_as_long_as_it_should_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """A block that went on would leave the clock few steps, or none: blocks grow fourfold."""
    monkeypatch.setattr(TierModule, "block_end", lambda *_: 100)
    module = TimedModule.__new__(TimedModule)
    torch.nn.Module.__init__(module)
    module._sink = Turns.__new__(Turns)
    module._sink.few = 40
    assert [module.block_end(step) for step in (0, 39, 40, 41)] == [40, 40, 100, 100]


@pytest.mark.slow
def test_the_problems_of_a_sweep_take_turns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every round has all of them; each has rows of its own, and memory of its own."""
    seen: list[tuple[int, str]] = []
    measured = Rounds._round

    def noted(self: Rounds, number: int, taken: Any) -> None:
        seen.append((number, taken.config.label))
        measured(self, number, taken)

    monkeypatch.setattr(Rounds, "_round", noted)
    sizes = {**SMALL, "d_in": [6, 300_000]}
    report = bench(["tensors"], modes=["bare"], **sizes, **QUICK)
    small, large = (config.label for config in report.configs)
    assert seen == [(0, small), (0, large), (1, small), (1, large)]
    (few,), (many,) = (config.rows for config in report.configs)
    batch, weights = (300_000 * width * 4 / 1e6 for width in (SMALL["batch_size"][0], SMALL["hidden"][0]))
    assert few.peak_mb < weights
    assert many.peak_mb > batch + 2 * weights  # one gradient beside them


def test_a_picture_that_fails_loses_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, client: Any
) -> None:
    """The report is kept, and says why; a module of the standard library's name in the folder is not read."""
    (folder / "benches").write_text("in the way")
    (folder / "resource.py").write_text("raise RuntimeError('not this one')")
    report = bench(["tensors"], modes=["bare"], **SMALL, **QUICK)
    assert report.ok
    assert report.picture == ""
    assert "DataError" in report.picture_fault
    assert [item.path for item in client.list_artifacts(report.run_id)] == ["bench.json"]
    assert "no picture: DataError" in bench_text(report)
    assert "range of 2 rounds" in bench_text(report)


def test_problems_of_equal_work_are_drawn(tmp_path: Path) -> None:
    """Other sizes may be as many operations: 2 hidden units on 8 rows, and 4 on 4."""
    timing = Timing.of([1.0, 2.0])
    row = Row("t", "d 1", {"bare": timing}, {}, 1.0, 0.5, 1.0, timing, 1.0, 1.0, "")
    configs = [Config(n, 5, hidden, 2, [row]) for n, hidden in ((8, 2), (4, 4))]
    assert configs[0].operations == configs[1].operations
    draw(tmp_path / "lines.png", BenchReport({}, "", 2, 0.2, "32-true", configs))
    assert (tmp_path / "lines.png").is_file()


def test_no_two_tiers_are_drawn_alike() -> None:
    """There are more of them than colours."""
    timing = Timing.of([1.0, 2.0])
    rows = [
        Row(name, "d 1", {"bare": timing}, {}, 1.0, 0.5, 1.0, timing, 1.0, 1.0, "") for name in "abcdefghi"
    ]
    report = BenchReport({}, "", 2, 0.2, "32-true", [Config(n, 5, 2, 2, rows) for n in (4, 8)])
    axes = Figure().subplots()
    picture._lines(axes, report)
    drawn = {(line.get_color(), line.get_linestyle()) for line, *_ in axes.containers}
    assert len(drawn) == 9


def test_nobody_knows_the_seed_before(folder: Path, client: Any) -> None:
    """Who is not given one draws it, another one each time, and tells it."""
    reports = [bench(["numpy"], **SMALL, rounds=1, seconds=0.01, modes=["bare"]) for _ in range(2)]
    kept = [client.get_run(report.run_id).data.params["seed"] for report in reports]
    assert kept == [str(report.seed) for report in reports]
    assert kept[0] != kept[1]


def test_the_operations_of_a_step() -> None:
    """Two for each entry of each of the five products."""
    n, d_in, hidden, d_out = 7, 5, 3, 2
    pairs = [(n, d_in, hidden), (n, hidden, d_out), (hidden, n, d_out), (n, d_out, hidden)]
    products = [*pairs, (d_in, n, hidden)]
    assert Config(n, d_in, hidden, d_out).operations == sum(2 * a * b * c for a, b, c in products)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nope"], "no tier is called 'nope'"),
        (["nn", "--hidden", "a,b"], "should be whole numbers"),
        (["nn", "--hidden", "0"], "hidden: sizes should be at least 1"),
        (["nn", "--rounds", 0], "rounds: should be at least 1"),
        (["nn", "--seed", -1], "seed: should be 0 or more"),
        (["nn", "--seconds", 0], "seconds: should be above 0"),
        (["nn", "--mode", "bear"], "no mode is called 'bear'"),
        (["nn", "--precision", "bf16-mixed"], "precision: should be 32-true or 64-true"),
        (["nn", "--accelerator", "tpu"], "accelerator: should be cpu or gpu"),
        (["nn", "--against", "tensor"], "no tier is called 'tensor'"),
        (["nn", "--against", "all"], "no tier is called 'all'"),
        (["nn", "--against", "tensors", "--mode", "bare"], "against: it is trainings that take turns"),
        (["nn", "--against", "numpy"], "against: the threads of numpy and those of nn may"),
        (["numpy", "--against", "nn"], "against: the threads of numpy and those of nn may"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_exit_2(
    layerlab_cli: Any, empty_folder: Path, arguments: list[Any], said: str
) -> None:
    """Before anything is started or written."""
    result = layerlab_cli("bench", *arguments)
    assert (result.code, result.stdout) == (2, "")
    assert said in result.stderr
    assert not list(empty_folder.iterdir())


def test_a_gpu_that_is_not_there_refuses_the_tier(folder: Path) -> None:
    """The reason is the accelerator's."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU on this machine")
    report = bench(["tensors"], accelerator="gpu", **SMALL, **QUICK)
    assert "there is no CUDA device on this machine" in report.configs[0].refused["tensors"]
    assert not report.ok


def test_an_interrupt_leaves_a_killed_run_and_no_process(folder: Path, client: Any) -> None:
    """A signal between two rounds: the workers are gone, the record says so."""

    class Stops(Observer):
        def measuring(self, what: str, rounds: int) -> None:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        bench(["tensors"], modes=["bare"], observer=Stops(), **SMALL, **QUICK)
    (run,) = client.search_runs([client.get_experiment_by_name("layerlab-bench").experiment_id])
    assert run.info.status == "KILLED"
    listed = subprocess.run(["ps", "-eo", "ppid,args"], capture_output=True, text=True, check=True).stdout
    ours = [line for line in listed.splitlines() if line.split()[0] == str(os.getpid())]
    assert not [line for line in ours if "benchmarking.worker" in line and "defunct" not in line]


def _drawn_under_signals(path: Path, report: BenchReport) -> None:
    for signum in (signal.SIGINT, signal.SIGINT, signal.SIGTERM):
        signal.raise_signal(signum)
    draw(path, report)


def test_signals_do_not_break_off_what_is_being_kept(
    folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is measured: it is kept, and nothing of it was stopped; whoever called is told of the signal."""
    monkeypatch.setattr("layerlab.benchmarking.picture.draw", _drawn_under_signals)
    monkeypatch.setattr(record, "PATIENCE", 60.0)  # whoever interrupts waits no longer
    with pytest.raises(Interrupted) as interrupted:
        bench(["tensors"], modes=["bare"], **SMALL, **QUICK)
    report = interrupted.value.report
    assert isinstance(report, BenchReport)
    assert report.ok
    run = client.get_run(report.run_id)
    assert run.info.status == "FINISHED"
    for kept in ("bench.json", Path(report.picture).name):
        assert Path(client.download_artifacts(report.run_id, kept)).stat().st_size > 0


def test_what_a_stopped_bench_could_not_keep_is_told(
    folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full in the end: the error is still the signal's, and has the report."""

    class Stops(Observer):
        def measured(self, rounds: int) -> None:
            signal.raise_signal(signal.SIGTERM)

    def full(self: Record, text: str, name: str) -> None:
        raise JournalError("no space left")

    monkeypatch.setattr(Record, "log_text", full)
    with pytest.raises(Interrupted) as caught:
        bench(["tensors"], modes=["bare"], observer=Stops(), **SMALL, **QUICK)
    report = caught.value.report
    assert report.configs[0].rows[0].tier == "tensors"
    assert report.unsent["reason"] == "bench.json is not in the run: no space left"
    assert client.get_run(report.run_id).info.status == "KILLED"


@pytest.mark.slow
def test_an_interrupt_loses_no_whole_round(
    folder: Path, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal in the middle of a round, more while it is drawn: what is whole is told, drawn and kept."""
    asked: list[str] = []

    def ask(self: WorkerProcess, what: str, **arguments: Any) -> dict[str, Any]:
        asked.append(what)
        if asked.count("round") == 6:  # of the second tier, in the third round
            signal.raise_signal(signal.SIGINT)
        return whole(self, what, **arguments)

    whole = WorkerProcess.ask
    monkeypatch.setattr(WorkerProcess, "ask", ask)
    monkeypatch.setattr("layerlab.benchmarking.picture.draw", _drawn_under_signals)
    with pytest.raises(Interrupted) as caught:
        bench(["tensors", "nn"], modes=["tracked"], **SMALL, rounds=4, seconds=0.01)
    assert asked.count("round") == 6
    report = caught.value.report
    assert (report.rounds, report.stopped) == (2, "stopped by SIGINT after 2 of 4 rounds")
    assert not report.ok
    assert (report.configs[0].refused, report.unsent) == ({}, None)
    for row in report.configs[0].rows:
        timings = [*row.timings.values(), *row.beside.values(), row.floor]
        assert [len(timing.rounds) for timing in timings] == [2] * 4
    assert "stopped by SIGINT after 2 of 4 rounds" in bench_text(report)
    run = client.get_run(report.run_id)
    assert run.info.status == "KILLED"
    kept = json.loads(Path(client.download_artifacts(report.run_id, "bench.json")).read_text())
    assert (kept["rounds"], len(kept["configs"][0]["rows"])) == (2, 2)
    assert Path(client.download_artifacts(report.run_id, Path(report.picture).name)).stat().st_size > 0
    assert "tensors/tracked_us" in run.data.metrics
    assert run.data.metrics["rounds"] == 2


def test_a_signal_to_the_group_is_not_the_workers(hangs: str) -> None:
    """They are in sessions of their own, and so in no group of whoever asks."""
    with WorkerProcess(hangs) as worker:
        assert worker.ask("begin") == {}
        pid = worker._process.pid
        assert os.getsid(pid) == pid


def test_nobody_is_refused_for_a_stop(hangs: str) -> None:
    """A worker that raises, or is gone, when its coordinator is stopped may have been stopped as well."""
    stops: list[int] = []

    def stop() -> None:
        if stops:
            raise Interrupted(signal.SIGTERM)

    with WorkerProcess(hangs, check=stop) as worker:
        worker.ask("begin")
        line = worker._line

        def stopped(what: str) -> bytes:
            answer = line(what)
            stops.append(1)
            return b"" if what == "wait" else answer

        worker._line = stopped  # type: ignore[method-assign]
        with pytest.raises(Interrupted):
            worker.ask("end")
        stops.clear()
        with pytest.raises(Interrupted):
            worker.ask("wait", seconds=0)


def test_a_round_that_was_broken_off_counts_for_nobody() -> None:
    """Some tiers have it and some have not: all of it is dropped."""
    times = {"a": {"bare": [1.0, 2.0, 3.0]}, "b": {"bare": [4.0, 5.0]}}
    beside, against = {"a": {"tracked": [1.0, 2.0, 3.0]}}, {"a": {"tracked": [3.0, 2.0, 1.0]}}
    sending, peaks = {"a": [4.0, 5.0, 6.0]}, {"a": [7.0, 8.0, 9.0]}
    taken = _Taken(Config(8, 6, 5, 3), {}, times, beside, against, sending, peaks)
    taken.keep(2)
    assert times == {"a": {"bare": [1.0, 2.0]}, "b": {"bare": [4.0, 5.0]}}
    assert against["a"]["tracked"] == [3.0, 2.0]
    assert (beside["a"]["tracked"], sending["a"], peaks["a"]) == ([1.0, 2.0], [4.0, 5.0], [7.0, 8.0])


def test_a_command_that_is_stopped_tells_what_it_has(
    folder: Path, layerlab_cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The JSON is whole, and the exit code is that of the signal."""

    def measured(self: Progress, rounds: int) -> None:
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Progress, "measured", measured)
    sizes = ("--batch-size", 8, "--d-in", 6, "--hidden", 5, "--d-out", 3)
    done = layerlab_cli("bench", "tensors", "--mode", "bare", "--seconds", 0.01, *sizes, "--json")
    assert done.code == 128 + signal.SIGTERM
    assert done.stderr.endswith("error: stopped by SIGTERM\n")
    told = json.loads(done.stdout)
    assert (told["rounds"], told["stopped"]) == (1, "stopped by SIGTERM after 1 of 9 rounds")
    assert [row["tier"] for row in told["configs"][0]["rows"]] == ["tensors"]


def test_from_python_names_are_checked(empty_folder: Path) -> None:
    """A mode or a size that cannot be is an input error."""
    with pytest.raises(SpecError, match="no mode"):
        bench(["nn"], modes=["bar"])
    with pytest.raises(SpecError, match="d_in"):
        bench(["nn"], d_in=[])
