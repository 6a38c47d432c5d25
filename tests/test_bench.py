"""The bench: what it measures, and whom it refuses. No test looks at how fast anything is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib.image
import numpy as np
import pytest

from layerlab.benchmarking import BenchReport, bench
from layerlab.benchmarking.audit import Trajectory, audit_way
from layerlab.benchmarking.report import Config, Timing
from layerlab.errors import Interrupted, SpecError
from layerlab.report import Observer
from layerlab.tier import Params

if TYPE_CHECKING:
    from helpers import Site

SMALL: dict[str, Any] = {"batch_size": [8], "d_in": [6], "hidden": [5], "d_out": [3]}
QUICK: dict[str, Any] = {"rounds": 2, "seconds": 0.01}

CHEATS = """
import os
from gallery import ByHand, Whole


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
"""


@pytest.fixture
def cheats(site: Site, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Installed tiers that should have no row, where worker processes find them too."""
    names = {"skips": "SkipsWhenTimed", "replays": "ReplaysItsAnswer", "forgetful": "Forgetful"}
    targets = {name: f"MODULE:{target}" for name, target in (names | {"vanishes": "Vanishes"}).items()}
    site.add("cheats-dist", targets, CHEATS)
    site.allow("cheats-dist")
    monkeypatch.setenv("PYTHONPATH", f"{site.path}:{Path(__file__).parent}")
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
        for timing in row.timings.values():
            assert len(timing.rounds) == 2
            assert 0 < timing.low <= timing.median <= timing.high
        bare = row.timings["bare"].median
        assert row.gflops == pytest.approx(2 * 8 * (6 * 5 * 2 + 5 * 3 * 3) / bare / 1e9)
        assert row.floor_share > 0
        assert row.first_step > 0
        assert row.peak_mb > 50
        assert "every round audited" in row.proof
    assert {"threads", "tf32", "clock", "torch", "processor", "cuda_allocator"} <= set(report.machine)
    run = client.get_run(report.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["optim/tracked_us"] == config.rows[1].timings["tracked"].median * 1e6
    names = {item.path for item in client.list_artifacts(report.run_id)}
    assert names == {"bench.json", Path(report.picture).name}
    pixels = matplotlib.image.imread(report.picture)
    assert pixels.std() > 0.01


def test_a_sweep_over_sizes_from_the_command_line(folder: Path, layerlab_cli: Any) -> None:
    """Every combination is a problem of its own; the picture has one line a tier."""
    flags = ["--hidden", "2,4", "--batch-size", "3,9", "--d-in", "5", "--d-out", "2"]
    quick = ["--rounds", 1, "--seconds", 0.01, "--mode", "bare"]
    result = layerlab_cli("bench", "tensors", *flags, *quick, "--json")
    assert result.code == 0, result.stderr
    report = json.loads(result.stdout)
    sizes = [(config["batch_size"], config["hidden"]) for config in report["configs"]]
    assert sizes == [(3, 2), (3, 4), (9, 2), (9, 4)]
    assert [list(config["rows"][0]["timings"]) for config in report["configs"]] == [["bare"]] * 4
    assert Path(report["picture"]).is_file()


def test_no_speed_without_proof(cheats: Site, folder: Path, layerlab_cli: Any) -> None:
    """One skips work when timed, one replays an answer, one is wrong, the process of one dies."""
    names = ["skips", "replays", "forgetful", "vanishes", "tensors"]
    sizes = ["--batch-size", 8, "--d-in", 6, "--hidden", 5, "--d-out", 3]
    quick = ["--rounds", 1, "--seconds", 0.05, "--mode", "bare"]
    result = layerlab_cli("bench", *names, *sizes, *quick, "--json")
    assert result.code == 1
    (config,) = json.loads(result.stdout)["configs"]
    assert [row["tier"] for row in config["rows"]] == ["tensors"]
    refused = config["refused"]
    assert set(refused) == set(names[:-1])
    assert "fails its audit (bare)" in refused["skips"]
    assert "fails its audit (bare)" in refused["replays"]
    assert "fails its proof: full-batch: 8x6x5x3, bias, 32-true: step 0, grad_w1" in refused["forgetful"]
    assert "its process ended" in refused["vanishes"]
    text = layerlab_cli("bench", "skips", *sizes, *quick)
    assert text.code == 1
    assert "refused: skips: fails its audit" in text.stdout


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


def test_the_way_is_audited_from_both_ends() -> None:
    """What is the oracle's passes; a loss, a parameter or a step that is not is named."""
    rng = np.random.default_rng(0)
    start = Params(rng.standard_normal((4, 3)), rng.standard_normal((3, 2)))
    way = Trajectory(start, rng.standard_normal((5, 4)), rng.standard_normal((5, 2)), "sgd", 1e-3)
    losses, end = way.follow(20)
    assert audit_way(way, losses, end) is None
    odd = [*losses[:7], losses[6] * 2, *losses[8:]]
    assert "timed step 7 gave the loss" in str(audit_way(way, odd, end))
    assert "w2 is off" in str(audit_way(way, losses, end._replace(w2=start.w2)))
    assert "w1 is off" in str(audit_way(way, losses, way.follow(18)[1]))
    assert audit_way(way, [float("nan")] * 20, end) is not None


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
        (["nn", "--seconds", 0], "seconds: should be above 0"),
        (["nn", "--mode", "bear"], "no mode is called 'bear'"),
        (["nn", "--precision", "bf16-mixed"], "precision: should be 32-true or 64-true"),
        (["nn", "--accelerator", "tpu"], "accelerator: should be cpu or gpu"),
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
    assert "there is no GPU on this machine" in report.configs[0].refused["tensors"]
    assert not report.ok


def test_an_interrupt_leaves_a_killed_run_and_no_process(folder: Path, client: Any) -> None:
    """A signal between two rounds: the workers are gone, the record says so."""

    class Stops(Observer):
        def started(self, tier: str, steps: int) -> None:
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        bench(["tensors"], modes=["bare"], observer=Stops(), **SMALL, **QUICK)
    (run,) = client.search_runs([client.get_experiment_by_name("layerlab-bench").experiment_id])
    assert run.info.status == "KILLED"
    listed = subprocess.run(["ps", "-eo", "ppid,args"], capture_output=True, text=True, check=True).stdout
    ours = [line for line in listed.splitlines() if line.split()[0] == str(os.getpid())]
    assert not [line for line in ours if "benchmarking.worker" in line and "defunct" not in line]


def test_from_python_names_are_checked(empty_folder: Path) -> None:
    """A mode or a size that cannot be is an input error."""
    with pytest.raises(SpecError, match="no mode"):
        bench(["nn"], modes=["bar"])
    with pytest.raises(SpecError, match="d_in"):
        bench(["nn"], d_in=[])
