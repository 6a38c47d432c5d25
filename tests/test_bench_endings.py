"""A bench that is stopped: by a signal, while it measures or while it keeps what it has."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from layerlab.benchmarking import BenchReport, bench
from layerlab.benchmarking.picture import draw
from layerlab.benchmarking.processes import WorkerProcess
from layerlab.benchmarking.report import Config
from layerlab.benchmarking.rounds import _Taken
from layerlab.console import Progress, bench_text
from layerlab.errors import Interrupted, JournalError
from layerlab.report import Observer
from layerlab.tracking import record
from layerlab.tracking.record import Record

SMALL: dict[str, Any] = {"batch_size": [8], "d_in": [6], "hidden": [5], "d_out": [3]}
QUICK: dict[str, Any] = {"rounds": 2, "seconds": 0.01, "seed": 0}


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
