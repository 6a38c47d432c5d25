"""The bench: what it measures, and whom it refuses. No test asserts how fast anything of ours is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

from helpers import KEEPS_BLOCKS
from layerlab.benchmarking import BenchReport, bench, picture
from layerlab.benchmarking.coordinator import _metrics
from layerlab.benchmarking.machine import changed, settings
from layerlab.benchmarking.picture import draw
from layerlab.benchmarking.report import MODES, Config, PeerRow, Row, Timing
from layerlab.benchmarking.rounds import Rounds
from layerlab.benchmarking.seeds import seed_of
from layerlab.benchmarking.sending import audit_record, sending_of
from layerlab.benchmarking.worker import Worker
from layerlab.console import bench_text
from layerlab.errors import SpecError
from layerlab.startup import BLAS_TIMEOUT
from layerlab.tracking.talk import SECONDS_BETWEEN_CALLS

SMALL: dict[str, Any] = {"batch_size": [8], "d_in": [6], "hidden": [5], "d_out": [3]}


QUICK: dict[str, Any] = {"rounds": 2, "seconds": 0.01, "seed": 0}


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


def test_the_cost_of_a_record_is_in_a_step() -> None:
    """A call each second, and its share of what all losses take; a call that is slow takes nothing off."""
    share = sending_of(0.01, call=0.005, sending=0.025, losses=100)
    assert share == pytest.approx(0.01 * 0.005 / SECONDS_BETWEEN_CALLS + (0.025 - 0.005) / 100)
    assert sending_of(0.01, call=0.005, sending=0.001, losses=100) == pytest.approx(0.01 * 0.005)


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


def test_no_two_rounds_have_the_same_problem() -> None:
    """Nor the warm-up and a round, nor two modes."""
    seeds = [seed_of(3)] + [seed_of(3, n, mode) for n in range(4) for mode in MODES]
    assert len(set(seeds)) == len(seeds)
    assert seeds[0] != seed_of(4)
    assert seed_of(3, 2, "bare") == seed_of(3, 2, "bare")


def test_what_happens_once_is_in_the_first_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is captured is captured in the second step, and what is compiled as early as the tier is made."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")  # put back afterwards
    worker = Worker("numpy", "32-true", "cpu", f"sqlite:///{tmp_path}/bench.db")
    seconds = iter([2.0, 1.5, 5.0, 3.0, 0.01, 1.0])

    def clock(work: Any) -> float:
        work()
        return next(seconds)

    monkeypatch.setattr(worker, "_clock", clock)
    answer = worker.prepare([8, 6, 5, 3], seed=0)
    assert (answer["first_step"], answer["once"], answer["step"]) == (5.5, 8.0, 0.25)


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


def test_a_gpu_that_is_not_there_refuses_the_tier(folder: Path, client: Any) -> None:
    """The reason is the accelerator's; a bench of which nothing came is no finished one."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU on this machine")
    report = bench(["tensors"], accelerator="gpu", **SMALL, **QUICK)
    assert "there is no CUDA device on this machine" in report.configs[0].refused["tensors"]
    assert not report.ok
    run = client.get_run(report.run_id)
    assert run.info.status == "FAILED"
    assert "nothing was measured: tensors: begin: there is no CUDA" in run.data.tags["layerlab.reason"]


def test_from_python_names_are_checked(empty_folder: Path) -> None:
    """A mode or a size that cannot be is an input error."""
    with pytest.raises(SpecError, match="no mode"):
        bench(["nn"], modes=["bar"])
    with pytest.raises(SpecError, match="d_in"):
        bench(["nn"], d_in=[])
