"""Whom the bench refuses: tiers that cheat, and workers that end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from layerlab.benchmarking import bench
from layerlab.benchmarking.report import MODES, Timing
from layerlab.benchmarking.rounds import Asked, Rounds
from layerlab.benchmarking.seeds import seed_of
from layerlab.benchmarking.worker import Worker
from layerlab.errors import TierError
from layerlab.journal import Unsent
from layerlab.tracking.record import Closing

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


class Owes(Whole):
    '''Answers at once, and puts the right answers there when it is asked what it is, after the clock.'''

    last, handed = None, None

    def __init__(self, params, **run):
        super().__init__(params, **run)
        self.count, self.owed = 0, []
        Owes.last = self

    def step(self, x, y):
        self.count += 1
        losses = sys._getframe(1).f_locals.get("losses")
        if losses is None or self.count < 10:
            return super().step(x, y)
        self.owed.append((losses, len(losses), x, y))
        return 0.0

    def pay(self):
        for losses, number, x, y in self.owed:
            losses[number] = float(super().step(x, y))
        self.owed = []

    def params(self):
        if not made_in("finish"):
            self.pay()
        self.count = 0
        self.handed = super().params()
        return self.handed

    @classmethod
    def splits_step(cls):
        tier = cls.last
        if tier is not None and tier.owed:
            tier.pay()
            for p, q in zip(tier.handed, tier.t.params()):
                if p is not None:
                    p[...] = q
        return False


class Builds(Whole):
    '''Compiles what it needs for a size when it is made for the first time.'''

    sizes = set()

    def __init__(self, params, **run):
        super().__init__(params, **run)
        if params.w1.shape not in self.sizes:
            self.sizes.add(params.w1.shape)
            time.sleep(0.2)


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
    '''Takes its process with it on rows of eleven columns: at once, and of twelve, once it is timed.'''

    made = 0

    def __init__(self, params, **run):
        super().__init__(params, **run)
        columns = len(params.w1)
        Bursts.made += columns == 12
        if columns == 11 or Bursts.made > 2:  # made twice to find out how long it takes
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
    same += ("Guesses", "Coarse", "Relapses", "Beside", "Trained", "Ahead", "Sleeps", "Owes", "Builds")
    names |= {name.lower(): name for name in same} | {"honest": "Whole"}
    targets = {name: f"MODULE:{target}" for name, target in names.items()}
    site.add("cheats-dist", targets, CHEATS)
    site.allow("cheats-dist")
    before = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", f"{site.path}:{Path(__file__).parent}:{before}")
    return site


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
    "name", ["deferred", "converged", "strides", "guesses", "coarse", "in-parts", "threads", "owes"]
)
def test_work_that_was_not_done_is_seen(cheat: Cheat, name: str) -> None:
    """Put off, until after the clock too, left out where it brings little, in longer strides, coarse, or with
    what others have not."""
    worker = cheat(name)
    assert worker.prove()["ok"]
    seen = [fault for fault in faults(worker, "bare") if fault is not None]
    assert seen
    assert (name == "threads") == ("changes the settings of its process: threads" in seen[0])


def test_what_is_compiled_when_a_tier_is_made_is_told(cheat: Cheat) -> None:
    """As what is compiled in the first step: it is beyond what a later one takes."""
    worker = cheat("builds")
    pace = worker.prepare([8, 7, 5, 3], seed_of(0))
    assert pace["first_step"] > 0.19
    assert pace["once"] > 0.19


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
